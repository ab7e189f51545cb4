//! Line charts and dot plots as SVG text.

mod dots;
mod intervals;
mod line;
mod rows;

use maud::html;
use plotters::coord::Shift;
use plotters::element::DynElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use unicode_width::UnicodeWidthStr;

pub use self::dots::DotPlot;
pub use self::intervals::IntervalPlot;
pub use self::line::{LineChart, Series};
use crate::error::Error;
use crate::text::{clean, fixed};

/// Colours that colour-blind readers and printers can tell apart (Okabe and Ito). The chart has a background,
/// which makes it look the same on light and dark pages.
const COLOURS: [RGBColor; 4] =
    [RGBColor(213, 94, 0), RGBColor(0, 114, 178), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const WIDTH: u32 = 720;
/// Space on all sides.
const MARGIN: i32 = 14;
/// Height of a line of text, and of a row of a dot plot.
const LINE: i32 = 20;
/// Width of a column of the labels, rounded up: the reader's font is not known.
const LETTER: i32 = 7;
/// Larger numbers are not drawn. The margins would vanish in their rounding.
const MAX: f64 = 1e15;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws a chart, and gives it a name for those who cannot see it.
fn to_svg(title: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Chart(e.to_string());
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        draw(&root).map_err(|e| failed(&e))?;
        root.present().map_err(|e| failed(&e))?;
    }
    // Escaped for text and for an attribute.
    let title = html! { (clean(title, 200)) }.into_string();
    let (tag, rest) = svg.split_once('>').ok_or_else(|| failed(&"it has no content"))?;
    let tag = tag.replacen("<svg", &format!("<svg role=\"img\" aria-label=\"{title}\""), 1);
    Ok(format!("{tag}>\n<title>{title}</title>{rest}"))
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Returns the style of labels: 13 pixels.
fn label() -> TextStyle<'static> {
    font(16)
}

/// Returns a mark. Its shape tells it from others without colour.
fn mark<'a>(index: usize) -> DynElement<'static, SVGBackend<'a>, (i32, i32)> {
    let colour = COLOURS[index % COLOURS.len()];
    match index {
        0 => Circle::new((0, 0), 4, colour.filled()).into_dyn(),
        1 => Rectangle::new([(-4, -4), (4, 4)], colour.filled()).into_dyn(),
        2 => TriangleMarker::new((0, 0), 6, colour.filled()).into_dyn(),
        _ => Cross::new((0, 0), 4, colour.stroke_width(2)).into_dyn(),
    }
}

/// Draws the title, and below it the names of lines and of the dashed level. They stand above the chart,
/// where no point can be under them. Returns the height used.
fn head(
    area: &Area<'_>,
    title: &str,
    lines: &[&str],
    level: Option<&str>,
) -> Result<i32, Box<dyn std::error::Error>> {
    let middle = Pos::new(HPos::Left, VPos::Center);
    area.draw(&Text::new(clean(title, 70), (MARGIN, MARGIN + LINE / 2), font(20).pos(middle)))?;
    let (mut x, mut y) = (MARGIN, MARGIN + LINE + 4 + LINE / 2);
    let lines = lines.iter().enumerate().map(|(index, name)| (Some(index), *name));
    let mut names = 0;
    for (index, name) in lines.chain(level.map(|name| (None, name))) {
        let name = clean(name, 60);
        let width = 34 + width(&name) + 3 * LETTER;
        if x > MARGIN && x + width > WIDTH as i32 {
            (x, y) = (MARGIN, y + LINE);
        }
        match index {
            Some(index) => {
                let colour = COLOURS[index % COLOURS.len()];
                area.draw(&PathElement::new([(x, y), (x + 26, y)], colour.stroke_width(2)))?;
                area.draw(&(EmptyElement::at((x + 13, y)) + mark(index)))?;
            }
            None => {
                for dash in [0, 10, 20] {
                    area.draw(&PathElement::new([(x + dash, y), (x + dash + 6, y)], INK))?;
                }
            }
        }
        area.draw(&Text::new(name, (x + 34, y), label().pos(middle)))?;
        x += width;
        names += 1;
    }
    Ok(if names == 0 { MARGIN + LINE + 4 } else { y + LINE / 2 })
}

/// Returns about how wide a label is.
fn width(label: &str) -> i32 {
    label.width() as i32 * LETTER
}

fn drawable(value: f64) -> bool {
    value.abs() < MAX
}

/// Returns the range of an axis: the values, with space on both sides. Values that cannot be drawn do not
/// count. `None` if there are no others.
fn padded(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let ends = |(lo, hi): (f64, f64), value: f64| (lo.min(value), hi.max(value));
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let (lo, hi) = values.filter(|value| drawable(*value)).fold(start, ends);
    // Below this the ticks would fall together.
    let least = 1e-6 * lo.abs().max(hi.abs()).max(1e-3);
    let margin = if hi > lo { (0.08 * (hi - lo)).max(least) } else { least.max(0.5) };
    (lo <= hi).then_some((lo - margin, hi + margin))
}

/// Returns a tick's label, with as many decimals as tell apart the ticks of an axis of this length.
fn tick(value: f64, length: f64) -> String {
    fixed(value, (1.0 - length.log10().floor()).clamp(0.0, 6.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_whatever_they_are() {
        assert_eq!(padded([].into_iter()), None);
        assert_eq!(padded([f64::NAN, f64::INFINITY, 1e300].into_iter()), None);
        assert_eq!(padded([2.0].into_iter()), Some((1.5, 2.5)));
        for values in [[0.0, 1e-300], [1.0, 1.0 + f64::EPSILON], [-9e14, 9e14], [9e14, 9e14 + 1.0]] {
            let (lo, hi) = padded(values.into_iter()).unwrap();
            assert!(lo < values[0] && values[1] < hi, "{values:?}");
        }
    }
}
