//! The tables of a report.

use maud::{Markup, html};

use super::super::frame::{CELL as NAME, VALUE, head, scroll};
use super::{BlockRow, Report};
use crate::text::{MISSING, clean, fixed, name, ranges};

/// A column of the table of blocks: its name, and what it holds.
type Column<'a> = (&'a str, &'a dyn Fn(&BlockRow) -> Option<String>);

/// Returns the table of all blocks. Columns that no block has a value for are left out.
pub(super) fn blocks(report: &Report<'_>) -> Markup {
    let number = |value: Option<f64>| value.filter(|v| !v.is_nan()).map(|v| fixed(v, 3));
    let percent =
        |b: &BlockRow, i: usize| b.variance.get(i).filter(|v| v.is_finite()).map(|v| fixed(100.0 * v, 1));
    let columns: [Column; 13] = [
        ("cap", &|b| report.recommended.contains(&b.block).then(|| "yes".into())),
        ("norm", &|b| Some(fixed(b.norm, 2))),
        ("AUC", &|b| Some(fixed(b.auc, 3))),
        ("d'", &|b| Some(fixed(b.d_prime, 2))),
        ("cosine to next", &|b| number(b.cosine_next)),
        ("cosine of halves", &|b| number(b.cosine_halves)),
        ("cosine to PC1", &|b| number(b.cosine_first_component)),
        ("cosine of thoughts", &|b| number(b.thoughts_cosine)),
        ("PC1 %", &|b| percent(b, 0)),
        ("PC2 %", &|b| percent(b, 1)),
        ("PC3 %", &|b| percent(b, 2)),
        ("largest channel", &|b| Some(b.peak.0.to_string())),
        ("its value", &|b| Some(fixed(f64::from(b.peak.1), 3))),
    ];
    let used: Vec<_> =
        columns.iter().filter(|(_, value)| report.blocks.iter().any(|b| value(b).is_some())).collect();
    let row = |block: &BlockRow| {
        html! {
            th scope="row" { (block.block) }
            @for (heading, value) in &used {
                td { (value(block).unwrap_or_else(|| if *heading == "cap" { "" } else { MISSING }.into())) }
            }
        }
    };
    let headings: Vec<_> = ["block"].into_iter().chain(used.iter().map(|(heading, _)| *heading)).collect();
    html! {
        p.soft {
            "Norm: distance between the means of the two groups. Largest channel: the one with the largest "
            "share of the axis, which is a unit vector. A value above about 0.7, or below -0.7, points to "
            "massive activations instead of character. " (MISSING) ": not measured."
        }
        (scroll("All blocks", &html! {
            table {
                (head(&headings))
                tbody {
                    @for block in &report.blocks {
                        tr.capped[report.recommended.contains(&block.block)] { (row(block)) }
                    }
                }
            }
        }))
    }
}

/// Returns the table of roles.
pub(super) fn roles(report: &Report<'_>) -> Markup {
    html! {
        p.soft {
            "Block " (report.shown_block) ". Kept: answers that the axis was made from. "
            (MISSING) ": too few answers were kept."
        }
        (scroll("Roles", &html! {
            table.words {
                (head(&["role", "answers", "kept", "mean projection"]))
                tbody {
                    @for role in report.sorted_roles() {
                        tr {
                            th scope="row" { bdi { (name(&role.name, NAME)) } }
                            td.number { (role.answers) }
                            td.number { (role.kept) }
                            td.number { (role.projection.map_or(MISSING.into(), |p| fixed(p, 2))) }
                        }
                    }
                }
            }
        }))
    }
}

/// Returns the table of traits.
pub(super) fn traits(report: &Report<'_>) -> Markup {
    html! {
        p.soft { "AUC: how well the trait's own axis tells answers with the trait from others." }
        (scroll("Traits", &html! {
            table.words {
                (head(&["trait", "cosine", "AUC"]))
                tbody {
                    @for row in report.sorted_traits() {
                        tr {
                            th scope="row" { bdi { (name(&row.name, NAME)) } }
                            td.number { (fixed(row.cosine, 3)) }
                            td.number { (fixed(row.auc, 3)) }
                        }
                    }
                }
            }
        }))
    }
}

/// Returns the table of channels with massive activations.
pub(super) fn massive(report: &Report<'_>) -> Markup {
    let rows = report.massive.iter().map(|(channel, values)| {
        let known = values.iter().filter(|(_, value)| !value.is_nan());
        (channel, values, known.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())))
    });
    scroll(
        "Massive activations",
        &html! {
            table.words {
                (head(&["channel", "blocks", "largest value", "in block"]))
                tbody {
                    @for (channel, values, largest) in rows {
                        tr {
                            th scope="row" { (channel) }
                            td { (clean(&ranges(values.iter().map(|(block, _)| *block)), VALUE)) }
                            td.number { (largest.map_or(MISSING.into(), |(_, value)| fixed(*value, 1))) }
                            td.number { (largest.map_or(MISSING.into(), |(block, _)| block.to_string())) }
                        }
                    }
                }
            }
        },
    )
}
