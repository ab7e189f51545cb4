//! Estimates with their intervals, row by row.

use plotters::prelude::*;

use super::rows::{Frame, draw_name, frame};
use super::{Area, COLOURS, Drawn, LINE, drawable, mark, padded, to_svg};
use crate::error::Error;
use crate::estimate::Estimate;

/// Named rows with an estimate per series, on a common x axis.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalPlot {
    /// Above the plot.
    pub title: String,
    /// Below the x axis.
    pub x_label: String,
    /// Names of the series, at most four: there are four colours and marks.
    pub series: Vec<String>,
    /// Names of the rows, each with an estimate per series. What is not finite is left out.
    pub rows: Vec<(String, Vec<Option<Estimate>>)>,
    /// A dashed vertical line and its name.
    pub level: Option<(String, f64)>,
}

impl IntervalPlot {
    /// Draws the plot. Its height grows with the rows.
    ///
    /// # Errors
    /// [`Error::Chart`] if there is no estimate.
    pub fn to_svg(&self) -> Result<String, Error> {
        let lines = i32::try_from(self.rows.len() * self.lines()).map_err(|e| Error::Chart(e.to_string()))?;
        let height = lines.saturating_mul(LINE - 4).saturating_add(170).unsigned_abs();
        to_svg(&self.title, height, |root| self.draw(root))
    }

    /// Returns whether there is anything to draw.
    #[must_use]
    pub fn has_points(&self) -> bool {
        self.values().next().is_some()
    }

    /// Returns the lines of a row: one per series, and space below.
    fn lines(&self) -> usize {
        self.series.len() + 1
    }

    /// Returns every number that is drawn.
    fn values(&self) -> impl Iterator<Item = f64> {
        let of = |estimate: &Estimate| {
            let ends = estimate.ci95.into_iter().flatten();
            std::iter::once(estimate.value).chain(ends).collect::<Vec<_>>()
        };
        self.rows
            .iter()
            .flat_map(|(_, row)| row.iter().flatten())
            .flat_map(of)
            .filter(|value| drawable(*value))
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        self.values().next().ok_or("it has no points")?;
        let level = self.level.iter().map(|(_, level)| *level);
        let x = padded(self.values().chain(level)).ok_or("it has no points")?;
        let names: Vec<&str> = self.series.iter().map(String::as_str).collect();
        let (title, x_label, level) = (&self.title, &self.x_label, self.level.as_ref());
        let lines = self.lines() as f64;
        let height = lines * self.rows.len() as f64;
        frame(root, &Frame { title, series: &names, x_label, x, level, height }, |chart| {
            for (index, (text, row)) in self.rows.iter().enumerate() {
                let first = lines * index as f64;
                for (series, estimate) in row.iter().enumerate().take(self.series.len()) {
                    let Some(estimate) = estimate.filter(|estimate| drawable(estimate.value)) else {
                        continue;
                    };
                    let (y, colour) = (first + series as f64 + 0.75, COLOURS[series % COLOURS.len()]);
                    let ends = estimate.ci95.filter(|ends| ends.iter().all(|end| drawable(*end)));
                    if let Some([low, high]) = ends {
                        chart
                            .draw_series([PathElement::new([(low, y), (high, y)], colour.stroke_width(2))])?;
                    }
                    chart.draw_series([EmptyElement::at((estimate.value, y)) + mark(series)])?;
                }
                draw_name(root, chart, text, first + 0.25 + self.series.len() as f64 / 2.0)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(estimates: &[(f64, Option<[f64; 2]>)]) -> IntervalPlot {
        let estimate = |&(value, ci95): &(f64, Option<[f64; 2]>)| Some(Estimate { value, ci95, units: 3 });
        IntervalPlot {
            title: "Errors".into(),
            x_label: "share".into(),
            series: vec!["uncapped".into(), "capped".into()],
            rows: estimates.iter().map(|e| ("<row>".into(), vec![estimate(e), None])).collect(),
            level: Some(("chance".into(), 0.5)),
        }
    }

    #[test]
    fn estimates_are_drawn_with_their_intervals() {
        let svg = plot(&[(0.3, Some([0.2, 0.4])), (0.6, None)]).to_svg().unwrap();
        roxmltree::Document::parse(&svg).unwrap();
        for label in ["&lt;row&gt;", "uncapped", "capped", "chance", "share"] {
            assert!(svg.contains(label), "{label}");
        }
    }

    #[test]
    fn no_value_makes_it_panic_and_nothing_to_draw_is_an_error() {
        for value in [0.0, 1e-300, 9e14, -9e14] {
            for end in [f64::NEG_INFINITY, f64::NAN, -1e300, value] {
                assert!(!plot(&[(value, Some([end, value]))]).to_svg().unwrap().contains("NaN"));
            }
        }
        for none in [&[][..], &[(f64::NAN, None)]] {
            assert!(!plot(none).has_points());
            assert!(plot(none).to_svg().unwrap_err().to_string().contains("no points"));
        }
    }
}
