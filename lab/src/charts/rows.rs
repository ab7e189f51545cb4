//! What charts with named rows have in common.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, Drawn, FAINT, INK, MARGIN, drawable, font, head, label, tick};
use crate::text::name;

/// Width of the names, and the columns that fit into it.
const NAMES: u32 = 210;
const COLUMNS: usize = 24;

/// The frame of a chart: its title, the names of its series, its x axis, and a dashed vertical line with a name.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    pub(super) series: &'a [&'a str],
    pub(super) x_label: &'a str,
    pub(super) x: (f64, f64),
    pub(super) level: Option<&'a (String, f64)>,
    /// Height of all rows. The first one is on top, at 0.
    pub(super) height: f64,
}

pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Draws the frame, and gives `draw` the chart.
pub(super) fn frame<'b>(
    root: &Area<'b>,
    frame: &Frame<'_>,
    draw: impl FnOnce(&mut Chart<'_, 'b>) -> Drawn,
) -> Drawn {
    let &Frame { title, series, x_label, x, level, height } = frame;
    let top = head(root, title, series, level.map(|(name, _)| name.as_str()))?;
    let (_, body) = root.split_vertically(top);
    let mut chart = ChartBuilder::on(&body)
        .margin(MARGIN)
        .margin_top(6)
        .x_label_area_size(46)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(x.0..x.1, height..0.0)?;
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
        .x_desc(x_label)
        .draw()?;
    if let Some((_, level)) = level.filter(|(_, level)| drawable(*level)) {
        let ends = [(*level, 0.0), (*level, height)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?;
    }
    draw(&mut chart)
}

/// Writes the name of a row beside it.
pub(super) fn draw_name(root: &Area<'_>, chart: &Chart<'_, '_>, text: &str, y: f64) -> Drawn {
    let plot = chart.plotting_area();
    let (left, middle) = plot.map_coordinate(&(plot.get_x_range().start, y));
    let style = label().pos(Pos::new(HPos::Right, VPos::Center));
    root.draw(&Text::new(name(text, COLUMNS), (left - 8, middle), style))?;
    Ok(())
}
