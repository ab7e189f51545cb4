//! One dot per name.

use plotters::prelude::*;

use super::rows::{Frame, draw_name, frame};
use super::{Area, Drawn, FAINT, LINE, drawable, mark, padded, to_svg};
use crate::error::Error;

/// Named numbers, one a row in the order given, on a common x axis.
#[derive(Debug, Clone, PartialEq)]
pub struct DotPlot {
    /// Above the plot.
    pub title: String,
    /// Below the x axis.
    pub x_label: String,
    /// Names and numbers. Numbers that are not finite are left out.
    pub rows: Vec<(String, f64)>,
    /// A dashed vertical line and its name.
    pub level: Option<(String, f64)>,
    /// Numbers that the axis has room for besides its own. With the same ones, several plots can be compared.
    pub room_for: Vec<f64>,
}

impl DotPlot {
    /// Draws the plot. Its height grows with the rows.
    ///
    /// # Errors
    /// [`Error::Chart`] if there is no row.
    pub fn to_svg(&self) -> Result<String, Error> {
        let rows = i32::try_from(self.rows().count()).map_err(|e| Error::Chart(e.to_string()))?;
        let height = rows.saturating_mul(LINE).saturating_add(150).unsigned_abs();
        to_svg(&self.title, height, |root| self.draw(root))
    }

    /// Returns whether there is anything to draw.
    #[must_use]
    pub fn has_points(&self) -> bool {
        self.rows().next().is_some()
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        self.rows().next().ok_or("it has no points")?;
        let level = self.level.iter().map(|(_, level)| *level);
        let values = self.rows().map(|(_, value)| value).chain(level).chain(self.room_for.iter().copied());
        let x = padded(values).ok_or("it has no points")?;
        let (title, x_label, level) = (&self.title, &self.x_label, self.level.as_ref());
        let height = self.rows().count() as f64;
        frame(root, &Frame { title, series: &[], x_label, x, level, height }, |chart| {
            for (row, (text, value)) in self.rows().enumerate() {
                let y = row as f64 + 0.5;
                // Leads the eye from the name to the dot.
                chart.draw_series([PathElement::new([(x.0, y), (value, y)], FAINT)])?;
                chart.draw_series([EmptyElement::at((value, y)) + mark(0)])?;
                draw_name(root, chart, text, y)?;
            }
            Ok(())
        })
    }

    fn rows(&self) -> impl Iterator<Item = (&str, f64)> {
        let rows = self.rows.iter().map(|(name, value)| (name.as_str(), *value));
        rows.filter(|(_, value)| drawable(*value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(rows: Vec<(String, f64)>) -> DotPlot {
        DotPlot {
            title: "Roles".into(),
            x_label: "mean projection".into(),
            rows,
            level: Some(("Assistant".into(), 4.0)),
            room_for: vec![-7.0, f64::NAN],
        }
    }

    #[test]
    fn its_height_grows_with_the_rows_that_can_be_drawn() {
        let rows = |count: usize| (0..count).map(|i| (format!("role {i}"), i as f64)).collect::<Vec<_>>();
        let height = |rows| {
            let svg = plot(rows).to_svg().unwrap();
            let document = roxmltree::Document::parse(&svg).unwrap();
            document.root_element().attribute("height").unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(height(rows(300)) - height(rows(1)), 299 * LINE as usize);
        let mut holes = rows(5);
        holes[2].1 = f64::NAN;
        assert_eq!(height(holes), height(rows(4)));
    }

    #[test]
    fn names_are_escaped_and_cut_and_no_row_is_an_error() {
        let names = ["<b>\"&", "\u{202e}", "", &"x".repeat(10_000)];
        let svg = plot(names.map(|name| (name.into(), -3.5)).into()).to_svg().unwrap();
        for shown in ["&lt;b&gt;&quot;&amp;", "\u{fffd}", "(no name)", "xxxxxxxxxxxxxxxxxxxxxxx…"] {
            assert!(svg.contains(shown), "{shown}");
        }
        assert!(svg.len() < 6000);
        let error = plot(vec![("pirate".into(), f64::NAN)]).to_svg().unwrap_err();
        assert!(error.to_string().contains("no points"));
    }
}
