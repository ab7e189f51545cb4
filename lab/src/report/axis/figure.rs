//! The charts of a report, each with how to read it.

use maud::{Markup, html};

use super::super::frame::figure;
use super::{BlockRow, Report};
use crate::charts::{DotPlot, LineChart, Series};
use crate::error::Error;
use crate::text::fixed;

/// Maximum rows of a dot plot. A plot of so many fits on a printed page.
const ROWS: usize = 40;

/// Returns the charts over all blocks.
pub(super) fn blocks(report: &Report<'_>) -> Result<Markup, Error> {
    Ok(html! {
        (separation(report)?)
        (cosines(report)?)
        (variance(report)?)
    })
}

fn separation(report: &Report<'_>) -> Result<Markup, Error> {
    let auc = line_chart(
        report,
        "Held-out AUC per block",
        "AUC",
        &[("AUC", &|b| Some(b.auc))],
        Some(("chance: 0.5", 0.5)),
    );
    let d_prime = line_chart(
        report,
        "Held-out d' per block",
        "d'",
        &[("d'", &|b| Some(b.d_prime))],
        Some(("not apart: 0", 0.0)),
    );
    Ok(html! {
        (figure("Does the axis tell default answers from role play?", &draw(&auc)?, &html! {
            "The AUC is the chance that a default answer lies higher on the axis than an answer in a role. "
            "1 means always, and 0.5 is no better than a coin."
        }))
        (figure("How far are the two groups apart?", &draw(&d_prime)?, &html! {
            "d' is the distance of the two groups' means in units of the standard deviation (the square root "
            "of the mean of the two variances). At 0 the groups lie on each other. At 2 about one answer in "
            "six is past the middle between the means, and at 4 about one in forty."
        }))
    })
}

fn cosines(report: &Report<'_>) -> Result<Markup, Error> {
    let lines: [(&str, Value); 4] = [
        ("next block", &|b| b.cosine_next),
        ("other half of the roles", &|b| b.cosine_halves),
        ("first principal component", &|b| b.cosine_first_component),
        ("thoughts", &|b| b.thoughts_cosine),
    ];
    let chart = line_chart(
        report,
        "Cosine of the axis to others, per block",
        "cosine",
        &lines,
        Some(("unrelated: 0", 0.0)),
    );
    Ok(figure(
        "Would other data give the same axis?",
        &draw(&chart)?,
        &html! {
            "A cosine near 1 means nearly the same direction, and 0 an unrelated one. Near 1 for"
            ul {
                li { "the next block: the axis changes little from block to block." }
                li { "the other half of the roles: the axis does not hang on the choice of roles." }
                li { "the first principal component: the roles differ most along this axis." }
                @if report.blocks.iter().any(|block| block.thoughts_cosine.is_some()) {
                    li { "the axis of the thoughts: thoughts and answers share one axis." }
                }
            }
        },
    ))
}

fn variance(report: &Report<'_>) -> Result<Markup, Error> {
    let percent = |block: &BlockRow, component: usize| Some(100.0 * block.variance.get(component)?);
    let lines: [(&str, Value); 3] =
        [("PC1", &|b| percent(b, 0)), ("PC2", &|b| percent(b, 1)), ("PC3", &|b| percent(b, 2))];
    let chart = line_chart(report, "Variance explained per block", "share of the variance, %", &lines, None);
    Ok(figure(
        "Do the roles differ mainly in one direction?",
        &draw(&chart)?,
        &html! {
            "PC1 to PC3 are the principal components of the roles' mean activations. "
            "If PC1 is far above the others, one direction holds most of the difference between roles."
        },
    ))
}

type Value<'a> = &'a dyn Fn(&BlockRow) -> Option<f64>;

/// Makes a chart over the blocks, with the recommended ones shaded. Lines without a point are left out.
fn line_chart(
    report: &Report<'_>,
    title: &str,
    y_label: &str,
    lines: &[(&str, Value)],
    level: Option<(&str, f64)>,
) -> LineChart {
    let series = lines.iter().map(|(name, value)| Series {
        name: (*name).into(),
        points: report
            .blocks
            .iter()
            .filter_map(|b| Some((b.block as f64, value(b).filter(|v| v.is_finite())?)))
            .collect(),
    });
    let band = report.range().map(|(words, _)| {
        let (first, last) = (*report.recommended.start() as f64, *report.recommended.end() as f64);
        (format!("cap {words}"), first - 0.5, last + 0.5)
    });
    LineChart {
        title: title.into(),
        x_label: "block".into(),
        y_label: y_label.into(),
        series: series.filter(|line| !line.points.is_empty()).collect(),
        level: level.map(|(name, value)| (name.into(), value)),
        band,
    }
}

fn draw(chart: &LineChart) -> Result<Vec<String>, Error> {
    if chart.has_points() { Ok(vec![chart.to_svg()?]) } else { Ok(Vec::new()) }
}

/// Returns the roles along the axis.
pub(super) fn roles(report: &Report<'_>) -> Result<Markup, Error> {
    let rows =
        report.sorted_roles().into_iter().filter_map(|role| Some((role.name.clone(), role.projection?)));
    let mean = report.default_mean;
    let level = mean.is_finite().then(|| (format!("default Assistant: {}", fixed(mean, 2)), mean));
    let title = format!("Mean projection of each role, block {}", report.shown_block);
    let plots = dot_plots(&title, "mean projection", rows.collect(), level)?;
    Ok(figure(
        "Where does each role lie?",
        &plots,
        &html! {
            "Further right means more like the default Assistant, whose mean is the dashed line. "
            "Roles at the left end are the ones that a cap acts on most."
        },
    ))
}

/// Returns how much the axis has of each trait.
pub(super) fn traits(report: &Report<'_>) -> Result<Markup, Error> {
    let rows = report.sorted_traits().into_iter().map(|row| (row.name.clone(), row.cosine)).collect();
    let level = Some(("unrelated: 0".into(), 0.0));
    let plots = dot_plots("Cosine of each trait's axis to this axis", "cosine", rows, level)?;
    Ok(figure(
        "Which traits does the axis hold?",
        &plots,
        &html! {
            "Right of 0: the trait grows towards the Assistant. Left of 0: it grows towards role play. "
            "Near 0: a cap hardly touches it."
        },
    ))
}

/// Draws dot plots of nearly the same number of rows, on a common x axis.
fn dot_plots(
    title: &str,
    x_label: &str,
    rows: Vec<(String, f64)>,
    level: Option<(String, f64)>,
) -> Result<Vec<String>, Error> {
    let rows: Vec<_> = rows.into_iter().filter(|(_, value)| value.is_finite()).collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let parts = rows.len().div_ceil(ROWS);
    let room_for: Vec<f64> = rows.iter().map(|(_, value)| *value).collect();
    let plots = rows.chunks(rows.len().div_ceil(parts)).enumerate().map(|(part, rows)| DotPlot {
        title: if parts == 1 { title.into() } else { format!("{title} ({} of {parts})", part + 1) },
        x_label: x_label.into(),
        rows: rows.to_vec(),
        level: level.clone(),
        room_for: room_for.clone(),
    });
    plots.filter(DotPlot::has_points).map(|plot| plot.to_svg()).collect()
}
