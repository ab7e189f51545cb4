//! Line charts as SVG text.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::Error;

/// Colours that colour-blind readers and printers can tell apart (Okabe and Ito). The chart has a background,
/// which makes it look the same on light and dark pages.
const COLOURS: [RGBColor; 4] =
    [RGBColor(213, 94, 0), RGBColor(0, 114, 178), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const SIZE: (u32, u32) = (800, 420);

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
}

impl LineChart {
    /// Draws the chart.
    ///
    /// # Errors
    /// [`Error::Chart`] if no line has a point.
    pub fn to_svg(&self) -> Result<String, Error> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, SIZE)).map_err(|e| Error::Chart(e.to_string()))?;
        Ok(svg)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error + '_>> {
        let (x, y) = self.extent().ok_or("it has no points")?;
        let root = backend.into_drawing_area();
        root.fill(&WHITE)?;
        let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, text(18))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(x.0 - 0.25..x.1 + 0.25, y.0..y.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style(text(13))
            .axis_desc_style(text(14))
            .x_labels(((x.1 - x.0) as usize + 1).min(16))
            .x_label_formatter(&|v| {
                if (v - v.round()).abs() < 1e-6 { format!("{v:.0}") } else { String::new() }
            })
            .y_label_formatter(&|v| format!("{:.*}", decimals(y.1 - y.0), v))
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;
        if let Some((name, level)) = &self.level {
            let ends = [(x.0 - 0.25, *level), (x.1 + 0.25, *level)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?;
            let style = text(12).pos(Pos::new(HPos::Right, VPos::Top));
            let label = Text::new(name.clone(), (0, 5), style);
            chart.draw_series([EmptyElement::at((x.1 + 0.2, *level)) + label])?;
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points: Vec<_> = finite(series).collect();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
            // Marks tell the lines apart without colour.
            chart.draw_series(points.iter().map(|&point| {
                let mark: Box<dyn Fn() -> _> = match index {
                    0 => Box::new(|| Circle::new((0, 0), 4, colour.filled()).into_dyn()),
                    1 => Box::new(|| Rectangle::new([(-4, -4), (4, 4)], colour.filled()).into_dyn()),
                    2 => Box::new(|| TriangleMarker::new((0, 0), 6, colour.filled()).into_dyn()),
                    _ => Box::new(|| Cross::new((0, 0), 4, colour.stroke_width(2)).into_dyn()),
                };
                EmptyElement::at(point) + mark()
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT)
            .label_font(text(13))
            .draw()?;
        root.present()?;
        Ok(())
    }

    /// Returns the range of both axes, with space above and below the lines.
    fn extent(&self) -> Option<((f64, f64), (f64, f64))> {
        let points = || self.series.iter().flat_map(finite);
        let (first_x, first_y) = points().next()?;
        let level = self.level.iter().map(|(_, level)| *level);
        let x = points().fold((first_x, first_x), |(lo, hi), (x, _)| (lo.min(x), hi.max(x)));
        let y = points()
            .map(|(_, y)| y)
            .chain(level)
            .fold((first_y, first_y), |(lo, hi), y| (lo.min(y), hi.max(y)));
        let margin = if y.1 > y.0 { 0.12 * (y.1 - y.0) } else { 0.5 };
        // More space above, for the legend.
        Some((x, (y.0 - margin, y.1 + 2.5 * margin)))
    }
}

fn finite(series: &Series) -> impl Iterator<Item = (f64, f64)> {
    series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

/// Returns how many decimals tell apart the ticks of an axis of this length.
fn decimals(length: f64) -> usize {
    (1.0 - length.log10().floor()).clamp(0.0, 6.0) as usize
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
        }
    }

    #[test]
    fn a_chart_holds_its_labels_escaped() {
        let svg = chart(vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)]).to_svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for label in
            ["Projection per turn", "turn", "projection", "uncapped", "capped &lt;&amp;&gt;", "floor"]
        {
            assert!(svg.contains(label), "{label}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn one_point_is_enough_and_no_point_is_an_error() {
        assert!(chart(vec![(1.0, 0.0)]).to_svg().is_ok());
        let error = chart(vec![]).to_svg().unwrap_err().to_string();
        assert!(error.contains("no points"), "{error}");
    }
}
