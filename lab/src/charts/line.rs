//! Lines over whole numbers.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, COLOURS, Drawn, FAINT, INK, LINE, MARGIN, WIDTH, drawable, font, head, label, mark};
use super::{padded, tick, to_svg, width};
use crate::error::Error;
use crate::text::clean;

const HEIGHT: u32 = 400;

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points, x ascending. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a whole-numbered x axis (turns, blocks).
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// Above the chart.
    pub title: String,
    /// Below the x axis.
    pub x_label: String,
    /// Beside the y axis.
    pub y_label: String,
    /// The lines, at most four: there are four colours and marks.
    pub series: Vec<Series>,
    /// A dashed horizontal line and its name, e.g. the floor.
    pub level: Option<(String, f64)>,
    /// A shaded range of x and its name, e.g. the blocks to cap.
    pub band: Option<(String, f64, f64)>,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl LineChart {
    /// Draws the chart.
    ///
    /// # Errors
    /// [`Error::Chart`] if no line has a point.
    pub fn to_svg(&self) -> Result<String, Error> {
        to_svg(&self.title, HEIGHT, |root| self.draw(root))
    }

    /// Returns whether there is anything to draw.
    #[must_use]
    pub fn has_points(&self) -> bool {
        self.extent().is_some()
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let (x, y) = self.extent().ok_or("it has no points")?;
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        let level = self.level.as_ref().map(|(name, _)| name.as_str());
        let top = head(root, &self.title, &names, level)? + if self.band.is_some() { LINE } else { 0 };
        let (_, body) = root.split_vertically(top);
        let mut chart = ChartBuilder::on(&body)
            .margin(MARGIN)
            .margin_top(6)
            .x_label_area_size(44)
            .y_label_area_size(66)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        // Under the lines of the mesh.
        self.draw_band(root, &chart, x)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style(label())
            .axis_desc_style(font(17))
            .x_labels(((x.1 - x.0) as usize).clamp(1, 16))
            .y_labels(9)
            .x_label_formatter(&|v| {
                if (v - v.round()).abs() < 1e-6 { format!("{v:.0}") } else { String::new() }
            })
            .y_label_formatter(&|v| tick(*v, y.1 - y.0))
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;
        if let Some((_, level)) = self.level.as_ref().filter(|(_, level)| drawable(*level)) {
            let ends = [(x.0, *level), (x.1, *level)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?;
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            chart.draw_series(LineSeries::new(points(series), colour.stroke_width(2)))?;
            chart.draw_series(points(series).map(|point| EmptyElement::at(point) + mark(index)))?;
        }
        Ok(())
    }

    /// Shades the band and writes its name above the chart.
    fn draw_band(&self, root: &Area<'_>, chart: &Chart<'_, '_>, x: (f64, f64)) -> Drawn {
        let Some((name, from, to)) = &self.band else { return Ok(()) };
        let (from, to) = (from.max(x.0), to.min(x.1));
        if from >= to {
            return Ok(());
        }
        let plot = chart.plotting_area();
        let (rows, columns) = (plot.get_y_range(), plot.get_x_range());
        let (left, top) = plot.map_coordinate(&(from, rows.end));
        let (right, bottom) = plot.map_coordinate(&(to, rows.start));
        let colour = COLOURS[1].mix(0.13).filled();
        root.draw(&Rectangle::new([(left, top), (right, bottom)], colour))?;
        let name = clean(name, 60);
        let half = width(&name) / 2;
        let (first, _) = plot.map_coordinate(&(columns.start, rows.end));
        let last = (WIDTH as i32 - MARGIN - half).max(first + half);
        let at = ((left + right) / 2).clamp(first + half, last);
        let style = label().pos(Pos::new(HPos::Center, VPos::Center));
        root.draw(&Text::new(name, (at, top - LINE / 2), style))?;
        Ok(())
    }

    /// Returns the range of both axes, with space around the lines.
    fn extent(&self) -> Option<((f64, f64), (f64, f64))> {
        let all = || self.series.iter().flat_map(points);
        all().next()?;
        let ends = all().fold((f64::MAX, f64::MIN), |(lo, hi), (x, _)| (lo.min(x), hi.max(x)));
        let level = self.level.iter().map(|(_, level)| *level);
        Some(((ends.0 - 0.5, ends.1 + 0.5), padded(all().map(|(_, y)| y).chain(level))?))
    }
}

fn points(series: &Series) -> impl Iterator<Item = (f64, f64)> {
    series.points.iter().copied().filter(|(x, y)| drawable(*x) && drawable(*y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> LineChart {
        LineChart {
            title: "Projection per turn".into(),
            x_label: "turn".into(),
            y_label: "projection".into(),
            series: vec![
                Series { name: "uncapped".into(), points: points.clone() },
                Series { name: "capped <&>".into(), points },
            ],
            level: Some(("floor".into(), 1.5)),
            band: Some(("drifts".into(), 1.5, 2.5)),
        }
    }

    #[test]
    fn a_chart_holds_its_labels_escaped() {
        let svg = chart(vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)]).to_svg().unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\"Projection per turn\" width"));
        assert!(svg.trim_end().ends_with("</svg>"));
        for label in
            ["turn", "projection", "uncapped", "capped &lt;&amp;&gt;", "floor", "drifts", "<title>Projection"]
        {
            assert!(svg.contains(label), "{label}");
        }
        assert!(!svg.contains("NaN"));
        roxmltree::Document::parse(&svg).unwrap();
    }

    #[test]
    fn one_point_is_enough_and_no_point_is_an_error() {
        assert!(chart(vec![(1.0, 0.0)]).to_svg().is_ok());
        for none in [vec![], vec![(1.0, f64::INFINITY), (f64::NAN, 1.0), (2.0, 1e300)]] {
            assert!(!chart(none.clone()).has_points());
            let error = chart(none).to_svg().unwrap_err().to_string();
            assert!(error.contains("no points"), "{error}");
        }
    }

    #[test]
    fn no_value_makes_it_panic_or_hang() {
        let extremes =
            [0.0, -0.0, 1.0, 1.0 + f64::EPSILON, 1e-300, 1e-12, -3e7, 9e14, -9e14, f64::MAX, f64::NAN];
        for a in extremes {
            for b in extremes {
                let mut chart = chart(vec![(0.0, a), (a, b), (1.0, b)]);
                chart.level = Some(("level".into(), a));
                chart.band = Some(("band".into(), a, b));
                assert!(
                    chart.to_svg().is_ok_and(|svg| !svg.contains("NaN")) || !chart.has_points(),
                    "{a} {b}"
                );
            }
        }
    }
}
