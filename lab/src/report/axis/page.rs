//! The page around charts and tables.

use maud::{Markup, html};

use super::super::frame::{self, NAME, SENTENCE, box_of, origin};
use super::{Report, figure, table};
use crate::error::Error;
use crate::text::{clean, fixed, name};

const PAPER: &str = "https://arxiv.org/abs/2601.10387";

pub(super) fn page(report: &Report<'_>) -> Result<Markup, Error> {
    let title = format!("Persona axis of {}", name(report.model, NAME));
    let body = html! {
        (opening(report))
        (summary(report))
        (box_of("Warnings", "warnings", report.warnings.iter().map(String::as_str)))
        h2 { "How good the axis is" }
        (tested(report))
        (figure::blocks(report)?)
        h2 { "Roles" }
        (figure::roles(report)?)
        @if !report.roles.is_empty() { (table::roles(report)) }
        @if !report.traits.is_empty() {
            h2 { "Traits" }
            (figure::traits(report)?)
            (table::traits(report))
        }
        h2 { "All blocks" }
        @if report.blocks.is_empty() {
            p { "There are no blocks." }
        } @else {
            (table::blocks(report))
        }
        (massive(report))
        (origin(&report.command, report.facts.iter().map(|(fact, value)| (*fact, value.as_str()))))
    };
    Ok(frame::page(&title, &body))
}

fn opening(report: &Report<'_>) -> Markup {
    html! {
        h1 { "Persona axis of " bdi { (name(report.model, NAME)) } }
        p.soft { "Architecture: " bdi { (name(report.architecture, NAME)) } }
        p {
            "The axis of a block is the mean of its output over the model's default answers minus the mean "
            "over answers in a role, after " a href=(PAPER) { "The Assistant Axis" } ". "
            "A projection is how far an answer lies along the axis: higher means more like the default "
            "Assistant. A cap keeps the projection from falling below a floor."
        }
    }
}

fn summary(report: &Report<'_>) -> Markup {
    let shown = Some(report.shown_block).filter(|shown| report.recommended.contains(shown));
    let best = report.blocks.iter().find(|block| Some(block.block) == shown);
    html! {
        section.box aria-label="Recommendation" {
            @match report.range() {
                Some((words, flag)) => {
                    h2 { "Cap " (words) }
                    p { bdi { (clean(&report.why_recommended, SENTENCE)) } }
                    @if let Some(best) = best {
                        p {
                            "Block " (best.block) " is the best of them: held-out AUC " (fixed(best.auc, 3))
                            ", d' " (fixed(best.d_prime, 2)) "."
                        }
                    }
                    p {
                        "Next, find their floors: " code { "axiscap calibrate" } " takes these blocks as "
                        code { "--blocks " (flag) } "."
                    }
                }
                None => {
                    h2 { "No blocks to cap" }
                    p { bdi { (clean(&report.why_recommended, SENTENCE)) } }
                }
            }
        }
    }
}

fn tested(report: &Report<'_>) -> Markup {
    html! {
        p {
            "The scores are held out: an axis is tested on answers whose "
            b { (name(report.held_out_on, NAME)) }
            " it was not made from. "
            @if !report.held_out_on.contains("roles") { "They say nothing about new roles." }
        }
    }
}

fn massive(report: &Report<'_>) -> Markup {
    html! {
        @if !report.massive.is_empty() {
            h2 { "Massive activations" }
            p {
                "A few channels of a model can be hundreds of times larger than the rest, whatever the text. "
                @if report.massive_dropped { "The axes leave these channels out." }
                @else { "These channels are part of the axes." }
            }
            (table::massive(report))
        }
    }
}
