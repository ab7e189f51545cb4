//! The page about an axis: how good it is in each block, and which blocks to cap.

mod figure;
mod page;
mod table;

use std::ops::RangeInclusive;

use crate::error::Error;

/// What the report shows. Text may come from strangers (a GGUF file, a roles file): the page escapes and
/// bounds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The model's architecture.
    pub architecture: &'a str,
    /// The command line that made the axis.
    pub command: String,
    /// Further names and values: answers, what was left out, the seed, the template.
    pub facts: Vec<(&'a str, String)>,
    /// What is new to the axis where it is tested: `roles and questions` or `questions`.
    pub held_out_on: &'a str,
    /// One row per block.
    pub blocks: Vec<BlockRow>,
    /// The roles at [`Report::shown_block`].
    pub roles: Vec<RoleRow>,
    /// Mean projection of the default answers at [`Report::shown_block`].
    pub default_mean: f64,
    /// The block of the recommended range whose axis is best.
    pub shown_block: usize,
    /// The blocks to cap. An empty range recommends none.
    pub recommended: RangeInclusive<usize>,
    /// Why these blocks: one sentence.
    pub why_recommended: String,
    /// Channels with massive activations: the channel, and its value in blocks.
    pub massive: Vec<(usize, Vec<(usize, f64)>)>,
    /// Whether the axes leave these channels out.
    pub massive_dropped: bool,
    /// Traits compared with the axis.
    pub traits: Vec<TraitRow>,
    /// What a reader has to know before the numbers are used: one sentence each.
    pub warnings: Vec<String>,
}

/// What the report shows of a block. Numbers that are not finite are not drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRow {
    /// The block.
    pub block: usize,
    /// Distance between the two groups' means.
    pub norm: f64,
    /// Held-out area under the ROC curve.
    pub auc: f64,
    /// Held-out distance of the two means, divided by the square root of the mean of the two variances.
    pub d_prime: f64,
    /// Cosine to the axis of the next block.
    pub cosine_next: Option<f64>,
    /// Cosine between the axes of one half of the roles and of the other.
    pub cosine_halves: Option<f64>,
    /// Cosine to the first principal component of the roles' means.
    pub cosine_first_component: Option<f64>,
    /// Share of the variance of the roles' means that each principal component explains, from the first on.
    pub variance: Vec<f64>,
    /// The channel with the largest share of the unit vector, and its value.
    pub peak: (usize, f32),
    /// Cosine between the axis of the thoughts and that of the answers.
    pub thoughts_cosine: Option<f64>,
}

/// What the report shows of a role.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleRow {
    /// The role's name.
    pub name: String,
    /// Answers in the role.
    pub answers: usize,
    /// Answers that the axis was made from.
    pub kept: usize,
    /// Mean projection of these. `None` if too few were kept.
    pub projection: Option<f64>,
}

/// What the report shows of a trait.
#[derive(Debug, Clone, PartialEq)]
pub struct TraitRow {
    /// The trait's name.
    pub name: String,
    /// Cosine between the trait's axis and this one.
    pub cosine: f64,
    /// Held-out area under the ROC curve of the trait's axis.
    pub auc: f64,
}

impl Report<'_> {
    /// Writes the report as an HTML page.
    ///
    /// # Errors
    /// [`Error::Chart`] if a chart cannot be drawn. A chart without a point is no error: a sentence
    /// replaces it.
    pub fn to_html(&self) -> Result<String, Error> {
        Ok(page::page(self)?.into_string())
    }

    /// Returns the recommended blocks in words and as `--blocks` takes them, `None` if there are none.
    fn range(&self) -> Option<(String, String)> {
        let (first, last) = (self.recommended.start(), self.recommended.end());
        match first.cmp(last) {
            std::cmp::Ordering::Less => {
                Some((format!("blocks {first} to {last}"), format!("{first}-{last}")))
            }
            std::cmp::Ordering::Equal => Some((format!("block {first}"), first.to_string())),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// Returns the roles, the most Assistant-like first, those without a projection last.
    fn sorted_roles(&self) -> Vec<&RoleRow> {
        let mut roles: Vec<_> = self.roles.iter().collect();
        let known = |role: &RoleRow| role.projection.filter(|p| p.is_finite()).unwrap_or(f64::NEG_INFINITY);
        roles.sort_by(|a, b| known(b).total_cmp(&known(a)));
        roles
    }

    /// Returns the traits, those most like the axis first, those without a cosine last.
    fn sorted_traits(&self) -> Vec<&TraitRow> {
        let mut traits: Vec<_> = self.traits.iter().collect();
        let known = |row: &TraitRow| if row.cosine.is_finite() { row.cosine } else { f64::NEG_INFINITY };
        traits.sort_by(|a, b| known(b).total_cmp(&known(a)));
        traits
    }
}

#[cfg(test)]
mod tests;
