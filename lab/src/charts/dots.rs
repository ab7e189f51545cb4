//! One dot per name.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, Drawn, FAINT, INK, LINE, MARGIN, drawable, font, head, label, mark, padded, tick, to_svg};
use crate::error::Error;
use crate::text::name;

/// Width of the names, and the columns that fit into it.
const NAMES: u32 = 210;
const COLUMNS: usize = 24;

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
        let top = head(root, &self.title, &[], self.level.as_ref().map(|(name, _)| name.as_str()))?;
        let (_, body) = root.split_vertically(top);
        let rows = self.rows().count() as f64;
        let mut chart = ChartBuilder::on(&body)
            .margin(MARGIN)
            .margin_top(6)
            .x_label_area_size(46)
            .y_label_area_size(NAMES)
            // The first row is on top.
            .build_cartesian_2d(x.0..x.1, rows..0.0)?;
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
            let ends = [(*level, 0.0), (*level, rows)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, INK.stroke_width(1)))?;
        }
        let style = label().pos(Pos::new(HPos::Right, VPos::Center));
        for (row, (text, value)) in self.rows().enumerate() {
            let y = row as f64 + 0.5;
            // Leads the eye from the name to the dot.
            chart.draw_series([PathElement::new([(x.0, y), (value, y)], FAINT)])?;
            chart.draw_series([EmptyElement::at((value, y)) + mark(0)])?;
            let (left, middle) = chart.plotting_area().map_coordinate(&(x.0, y));
            root.draw(&Text::new(name(text, COLUMNS), (left - 8, middle), style.clone()))?;
        }
        Ok(())
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
