//! Estimates with their intervals, row by row.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{
    Area, COLOURS, Drawn, FAINT, INK, LINE, MARGIN, drawable, font, head, label, mark, padded, tick, to_svg,
};
use crate::error::Error;
use crate::estimate::Estimate;
use crate::text::name;

/// Width of the names, and the columns that fit into it.
const NAMES: u32 = 190;
const COLUMNS: usize = 24;

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
        let top = head(root, &self.title, &names, self.level.as_ref().map(|(name, _)| name.as_str()))?;
        let (_, body) = root.split_vertically(top);
        let lines = self.lines() as f64;
        let all = lines * self.rows.len() as f64;
        let mut chart = ChartBuilder::on(&body)
            .margin(MARGIN)
            .margin_top(6)
            .x_label_area_size(46)
            .y_label_area_size(NAMES)
            // The first row is on top.
            .build_cartesian_2d(x.0..x.1, all..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style(label())
            .axis_desc_style(font(17))
            .x_labels(7)
            .y_labels(0)
            .x_label_formatter(&|v| tick(*v, x.1 - x.0))
            .x_desc(&self.x_label)
            .draw()?;
        if let Some((_, level)) = self.level.as_ref().filter(|(_, level)| drawable(*level)) {
            let ends = [(*level, 0.0), (*level, all)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?;
        }
        let style = label().pos(Pos::new(HPos::Right, VPos::Center));
        for (index, (text, row)) in self.rows.iter().enumerate() {
            let first = lines * index as f64;
            for (series, estimate) in row.iter().enumerate().take(self.series.len()) {
                let Some(estimate) = estimate.filter(|estimate| drawable(estimate.value)) else { continue };
                let (y, colour) = (first + series as f64 + 0.75, COLOURS[series % COLOURS.len()]);
                if let Some([low, high]) = estimate.ci95.filter(|ends| ends.iter().all(|end| drawable(*end)))
                {
                    chart.draw_series([PathElement::new([(low, y), (high, y)], colour.stroke_width(2))])?;
                }
                chart.draw_series([EmptyElement::at((estimate.value, y)) + mark(series)])?;
            }
            let middle = first + 0.25 + self.series.len() as f64 / 2.0;
            let (left, middle) = chart.plotting_area().map_coordinate(&(x.0, middle));
            root.draw(&Text::new(name(text, COLUMNS), (left - 8, middle), style.clone()))?;
        }
        Ok(())
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
