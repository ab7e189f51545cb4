//! The decision which way the vectors of a file point.

use std::collections::BTreeSet;

use crate::axis::Axis;
use crate::file::{Result, invalid};
use crate::import::problem::unsupported;
use crate::import::request::{PointsTo, Request};
use crate::import::warning::{Numbers, Warning};

/// A vector of a file with the block it is for.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) block: usize,
    pub(super) axis: Axis,
    /// The vector as it is in the file, for the evidence.
    pub(super) name: Option<String>,
}

/// What a format says about its vectors, if it says anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Convention {
    pub(super) points_to: PointsTo,
    pub(super) name: &'static str,
}

/// How the orientation was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    Evidence,
    Caller,
    Convention(&'static str),
    Unknown,
}

impl Basis {
    pub(super) fn text(self) -> String {
        match self {
            Self::Evidence => "evidence: <default - mean of roles, vector>, per block".into(),
            Self::Caller => "the caller's word".into(),
            Self::Convention(name) => format!("convention: {name}"),
            Self::Unknown => "unknown: as in the file".into(),
        }
    }
}

/// The orientation of a file's vectors.
#[derive(Debug, Clone)]
pub(super) struct Orientation {
    pub(super) basis: Basis,
    /// Per vector: whether it points to roles.
    pub(super) to_roles: Vec<bool>,
    /// Per vector: the cosine with the evidence. Empty without evidence.
    pub(super) cosines: Vec<f64>,
    pub(super) warnings: Vec<Warning>,
}

/// Decides the orientation: by evidence if there is any, or else by the caller's word, or else by the format's
/// convention.
///
/// # Errors
/// [`FileError`](crate::file::FileError) for evidence that does not decide, or that contradicts the caller.
pub(super) fn decide(
    vectors: &[Placed],
    convention: Option<Convention>,
    request: &Request<'_>,
) -> Result<Orientation> {
    let same = |basis, points_to| Orientation {
        basis,
        to_roles: vec![points_to == PointsTo::Roles; vectors.len()],
        cosines: Vec::new(),
        warnings: Vec::new(),
    };
    let Some(evidence) = request.evidence else {
        return Ok(match (request.points_to, convention) {
            (Some(points_to), _) => same(Basis::Caller, points_to),
            (None, Some(Convention { points_to, name })) => {
                let mut orientation = same(Basis::Convention(name), points_to);
                orientation.warnings.push(Warning::ByConvention { convention: name });
                orientation
            }
            (None, None) => {
                let mut orientation = same(Basis::Unknown, PointsTo::Assistant);
                orientation.warnings.push(Warning::UnknownDirection);
                orientation
            }
        });
    };
    let cosines = vectors
        .iter()
        .map(|vector| evidence.cosine(vector.block, vector.axis.values()))
        .collect::<Result<Vec<_>>>()?;
    let to_roles: Vec<bool> = cosines.iter().map(|&cosine| cosine < 0.0).collect();
    let blocks_where = |roles: bool| -> Vec<usize> {
        let of = vectors.iter().zip(&to_roles).filter(|&(_, &to_roles)| to_roles == roles);
        of.map(|(vector, _)| vector.block).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let against = |points_to| blocks_where(points_to == PointsTo::Assistant);
    let mut warnings = Vec::new();
    if let Some(points_to) = request.points_to {
        let blocks = against(points_to);
        if !blocks.is_empty() {
            let expected = format!("vectors that point to {}, as was said", points_to.text());
            let found =
                format!("the opposite on blocks {}, by the default and role vectors", Numbers(&blocks));
            let remedy = "leave the direction to the evidence, or check that all files are of one model";
            return Err(unsupported("orientation", expected, found, remedy));
        }
    } else if let Some(convention) = convention {
        let blocks = against(convention.points_to);
        if !blocks.is_empty() {
            warnings.push(Warning::AgainstConvention { blocks });
        }
    }
    if to_roles.contains(&true) && to_roles.contains(&false) {
        warnings.push(Warning::MixedDirections { from_assistant: blocks_where(true) });
    }
    Ok(Orientation { basis: Basis::Evidence, to_roles, cosines, warnings })
}

/// Refuses a configuration of which it is not known what its bounds limit.
pub(super) fn refuse_unknown(orientation: &Orientation, names: &str) -> Result<()> {
    if orientation.basis != Basis::Unknown {
        return Ok(());
    }
    let expected = "names as in layer_46/contrast_role_pos3_default1, whose vectors point to roles";
    let remedy = "give the default vector and role vectors, or say what the file's vectors point to";
    Err(invalid("orientation", expected, names, remedy))
}

impl PointsTo {
    fn text(self) -> &'static str {
        match self {
            Self::Assistant => "the Assistant",
            Self::Roles => "roles",
        }
    }
}
