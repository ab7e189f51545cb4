//! The page about an evaluation: what caps do to a model, with controls.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::frame::{self, CELL, NAME, box_of, head, origin, page, scroll};
use crate::charts::{IntervalPlot, LineChart, Series};
use crate::error::Error;
use crate::estimate::Estimate;
use crate::evaluate::{Arm, Dose, DosePlace, Drift, Findings, Measure, StatementKind, Suite};
use crate::text::{MISSING, clean, fixed, name};

/// Maximum arms of a chart. Tables have all of them.
const ARMS: usize = 4;

/// Returns the page, with the command line that made it.
///
/// # Errors
/// [`Error::Chart`] if a chart cannot be drawn. A chart without a point is no error: a sentence replaces it.
pub fn evaluation_page(findings: &Findings, command: &str) -> Result<String, Error> {
    let header = &findings.header;
    let title = format!("What caps do to {}", name(&header.model, NAME));
    let floor = header.floor.map_or("none".into(), |floor| fixed(floor.into(), 3));
    let facts = [
        ("tool", header.tool.clone()),
        ("architecture", header.architecture.clone()),
        ("watched block, and its floor", format!("{}, {floor}", header.block)),
        ("seed", header.seed.to_string()),
        ("temperature", header.temperature.to_string()),
        ("caps (SHA-256)", header.caps_sha256.clone()),
        ("material (SHA-256)", header.material_sha256.clone()),
        ("size", format!("{:?}", header.size)),
    ];
    let says = |kind| {
        let of = findings.statements.iter().filter(move |statement| statement.kind == kind);
        of.map(|statement| statement.text.as_str())
    };
    let turns = findings.drift.as_ref().map(|drift| turns(findings, drift)).transpose()?.unwrap_or_default();
    let body = html! {
        h1 { "What caps do to " bdi { (name(&header.model, NAME)) } }
        (opening(findings))
        (box_of("Shown", "", says(StatementKind::Shown)))
        (box_of("Not shown", "", says(StatementKind::NotShown)))
        (box_of("What this cannot say", "warnings", says(StatementKind::Caution)))
        (suite(findings, Suite::Drift, "Drift", &turns)?)
        (suite(findings, Suite::Reliability, "Reliability", &Markup::default())?)
        (suite(findings, Suite::Consistency, "Consistency", &Markup::default())?)
        (suite(findings, Suite::Capability, "Capability", &Markup::default())?)
        @if let Some(doses) = &findings.dose { (dose(doses)?) }
        h2 { "All numbers" }
        (numbers(findings))
        (origin(command, facts.iter().map(|(fact, value)| (*fact, value.as_str()))))
    };
    Ok(page(&title, &body).into_string())
}

fn opening(findings: &Findings) -> Markup {
    html! {
        p {
            "The same questions were asked uncapped, capped, and under caps on random directions (the control). "
            "The random caps change the distributions of the next tokens as much as the caps do, so that what "
            "they do as well is not the work of the axis. Differences are those of pairs: each conversation and "
            "each item with itself. Brackets hold intervals of 95 %. "
            "Many intervals are looked at here, and one in twenty misses the truth by chance."
        }
        @if !findings.controls.is_empty() {
            p.soft {
                @for control in &findings.controls {
                    (control.arm.to_string()) ": mean KL " (fixed(control.kl.into(), 6)) " nats per token, the caps "
                    (fixed(control.wanted_kl.into(), 6)) ". "
                }
            }
        }
    }
}

/// A chart of all measures of a name.
struct Figure {
    suite: Suite,
    measure: &'static str,
    heading: &'static str,
    x_label: &'static str,
    shown: Shown,
    /// How to read it.
    reading: &'static str,
}

/// What a chart of a measure shows.
#[derive(Clone, Copy)]
enum Shown {
    /// Each arm.
    Arms,
    /// Capped minus uncapped, capped minus random, random minus uncapped.
    Differences,
}

const CHARTS: [Figure; 10] = [
    Figure {
        suite: Suite::Drift,
        measure: "projection",
        heading: "Does capping lift the text?",
        x_label: "difference of the mean projection",
        shown: Shown::Differences,
        reading: "Right of 0 the capped text lies higher on the axis. Capping lowers drift where both intervals do.",
    },
    Figure {
        suite: Suite::Drift,
        measure: "slope",
        heading: "How fast does the text drift?",
        x_label: "change of the projection per turn",
        shown: Shown::Arms,
        reading: "The slope of a line through the projections over the turns. Left of 0 the conversation drifts.",
    },
    Figure {
        suite: Suite::Drift,
        measure: "outside",
        heading: "How much of the text is beyond the bounds?",
        x_label: "share of the answers' tokens",
        shown: Shown::Arms,
        reading: "The share of tokens whose projection, read by the uncapped model, a cap of the watched block would \
                  move.",
    },
    Figure {
        suite: Suite::Reliability,
        measure: "errors",
        heading: "How often is the wrong answer more likely?",
        x_label: "share of the facts",
        shown: Shown::Arms,
        reading: "Every fact is asked plainly, by a sad user, with a false belief, with both, and under a warm \
                  persona. An error is a fact whose wrong answer is at least as likely as the right one.",
    },
    Figure {
        suite: Suite::Reliability,
        measure: "amplification",
        heading: "How many errors do sadness, belief and warmth add?",
        x_label: "errors minus those when asked plainly",
        shown: Shown::Arms,
        reading: "Right of 0 the model errs more than when it is asked plainly.",
    },
    Figure {
        suite: Suite::Reliability,
        measure: "margin lost",
        heading: "How much certainty do they take?",
        x_label: "nats lost against asking plainly",
        shown: Shown::Arms,
        reading: "The margin is the logarithm of how much likelier the right answer is than the wrong one. It moves \
                  long before an answer tips.",
    },
    Figure {
        suite: Suite::Consistency,
        measure: "agreement",
        heading: "Is a question answered alike early and late?",
        x_label: "share of the probes with the same answer",
        shown: Shown::Arms,
        reading: "The same questions were asked after the first turn and after the last. They agree if the same \
                  option is the most likely one.",
    },
    Figure {
        suite: Suite::Consistency,
        measure: "distance",
        heading: "How far do the answers move?",
        x_label: "total variation distance",
        shown: Shown::Arms,
        reading: "0 means that both times every option has the same share of the probability, and 1 that no option \
                  has a part of it both times.",
    },
    Figure {
        suite: Suite::Capability,
        measure: "nats per token",
        heading: "What does capping do to other text?",
        x_label: "difference of the nats per token",
        shown: Shown::Differences,
        reading: "Right of 0 the text is less likely under the caps. 0.01 nats are 1 % of the perplexity. The units \
                  are pieces of at most 512 tokens; with a single one there is no interval.",
    },
    Figure {
        suite: Suite::Capability,
        measure: "right",
        heading: "How many choices are right?",
        x_label: "share of the questions",
        shown: Shown::Arms,
        reading: "The option with the largest probability counts as the answer.",
    },
];

/// Returns the charts of a suite's measures, under its heading and what comes first. Nothing without measures.
fn suite(findings: &Findings, suite: Suite, heading: &str, first: &Markup) -> Result<Markup, Error> {
    if findings.measures().all(|(found, _)| found != suite) {
        return Ok(Markup::default());
    }
    let charts = CHARTS.iter().filter(|figure| figure.suite == suite);
    let charts = charts.map(|figure| intervals(findings, figure)).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        h2 { (heading) }
        (first)
        @for chart in charts { (chart) }
    })
}

/// Returns the projections turn by turn.
fn turns(findings: &Findings, drift: &Drift) -> Result<Markup, Error> {
    let mut domains: Vec<&str> = drift.turns.iter().map(|line| line.domain.as_str()).collect();
    // Those of a domain stand together.
    domains.dedup();
    let chart = |domain: &str, under_caps: bool| {
        let lines = drift.turns.iter().filter(|line| line.domain == domain);
        // Without caps both readings are one.
        let lines = lines.filter(|line| line.under_caps == under_caps || line.arm == Arm::Uncapped);
        let series = lines.take(ARMS).map(|line| Series {
            name: line.arm.to_string(),
            points: (1..)
                .zip(&line.projections)
                .filter_map(|(turn, projection)| Some((f64::from(turn), (*projection)?)))
                .collect(),
        });
        let floor = findings.header.floor.map(f64::from);
        LineChart {
            title: format!("{domain}: mean projection of the answers"),
            x_label: "turn".into(),
            y_label: "projection".into(),
            series: series.collect(),
            level: floor.map(|floor| (format!("floor {}", fixed(floor, 2)), floor)),
            band: None,
        }
    };
    let charts = |under_caps: bool| {
        let charts = domains.iter().map(|domain| chart(domain, under_caps)).filter(LineChart::has_points);
        charts.map(|chart| chart.to_svg()).collect::<Result<Vec<_>, _>>()
    };
    Ok(html! {
        (frame::figure("How far does the text drift?", &charts(false)?, &html! {
            "Each answer was read by the uncapped model, whatever wrote it: a difference is one of the text and not "
            "of the clamp itself. Higher means more like the default Assistant. A line that falls drifts."
        }))
        (frame::figure("What did the rest of the model see?", &charts(true)?, &html! {
            "The projection after the caps of each arm, as the answers were written. A floor holds it by "
            "construction, so this shows that the caps acted, and not that they helped."
        }))
    })
}

/// Returns arms in their order, each once, as many as a chart can show.
fn charted(arms: impl Iterator<Item = Arm>) -> Vec<Arm> {
    arms.collect::<BTreeSet<_>>().into_iter().take(ARMS).collect()
}

fn dose(doses: &[Dose]) -> Result<Markup, Error> {
    let arms = charted(doses.iter().map(|dose| dose.arm));
    let places: BTreeSet<&DosePlace> = doses.iter().map(|dose| &dose.place).collect();
    let at = |place: &DosePlace, arm: Arm| {
        doses.iter().find(|dose| dose.place == *place && dose.arm == arm).and_then(|dose| dose.kl)
    };
    let plot = IntervalPlot {
        title: "KL(capped || uncapped) per token".into(),
        x_label: "nats".into(),
        series: arms.iter().map(Arm::to_string).collect(),
        rows: places
            .iter()
            .map(|place| (place.to_string(), arms.iter().map(|&arm| at(place, arm)).collect::<Vec<_>>()))
            .filter(|(_, row)| row.iter().any(Option::is_some))
            .collect(),
        level: None,
    };
    Ok(html! {
        h2 { "Dose" }
        (frame::figure("Where do caps change what comes next?", &draw(&plot)?, &html! {
            "Answers that the uncapped model gave under several system prompts were read with caps and without. The "
            "more the distributions of the next token differ, the stronger the dose."
        }))
        (scroll("Dose", &html! {
            table.words {
                (head(&["where", "arm", "tokens", "mean KL", "KL 95 %", "rows engaged, %"]))
                tbody {
                    @for dose in doses {
                        tr {
                            th scope="row" { bdi { (clean(&dose.place.to_string(), CELL)) } }
                            td { (dose.arm.to_string()) }
                            td.number { (dose.tokens) }
                            td.number { (dose.kl.map_or(MISSING.into(), |kl| kl.to_string())) }
                            td.number { (dose.kl_p95.map_or(MISSING.into(), |kl| fixed(kl, 5))) }
                            td.number { (dose.engaged.map_or(MISSING.into(), |share| fixed(100.0 * share, 1))) }
                        }
                    }
                }
            }
        }))
    })
}

/// Returns a chart.
fn intervals(findings: &Findings, figure: &Figure) -> Result<Markup, Error> {
    let &Figure { suite, measure, heading, x_label, shown, reading } = figure;
    let is_it = |found: &(Suite, &Measure)| found.0 == suite && found.1.name == measure;
    let of: Vec<&Measure> = findings.measures().filter(is_it).map(|(_, found)| found).collect();
    let arms = charted(of.iter().flat_map(|measure| measure.arms.keys().copied()));
    let (series, level): (Vec<String>, _) = match shown {
        Shown::Arms => (arms.iter().map(Arm::to_string).collect(), None),
        Shown::Differences => {
            let names = ["capped - uncapped", "capped - random", "random - uncapped"];
            (names.map(String::from).into(), Some(("no difference: 0".into(), 0.0)))
        }
    };
    let row = |measure: &Measure| -> Vec<Option<Estimate>> {
        match shown {
            Shown::Arms => arms.iter().map(|arm| measure.arms.get(arm).copied()).collect(),
            Shown::Differences => {
                vec![
                    measure.capped_minus_uncapped,
                    measure.capped_minus_random,
                    measure.random_minus_uncapped,
                ]
            }
        }
    };
    let plot = IntervalPlot {
        title: format!("{}: {measure}", suite.name()),
        x_label: x_label.into(),
        series,
        rows: of.iter().map(|measure| (measure.of.clone(), row(measure))).collect(),
        level,
    };
    Ok(frame::figure(heading, &draw(&plot)?, &html! { (reading) }))
}

fn draw(plot: &IntervalPlot) -> Result<Vec<String>, Error> {
    if plot.has_points() { Ok(vec![plot.to_svg()?]) } else { Ok(Vec::new()) }
}

/// Returns the table of all measures.
fn numbers(findings: &Findings) -> Markup {
    let shown = |estimate: Option<Estimate>| estimate.map_or(MISSING.into(), |estimate| estimate.to_string());
    let arms = findings.measures().flat_map(|(_, found)| found.arms.keys().copied());
    let arms: BTreeSet<Arm> = arms.collect();
    let names: Vec<String> = arms.iter().map(Arm::to_string).collect();
    let headings: Vec<&str> = ["measure", "suite"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .chain(["capped - uncapped", "capped - random", "random - uncapped", "units"])
        .collect();
    scroll(
        "All numbers",
        &html! {
            table.words {
                (head(&headings))
                tbody {
                    @for (suite, measure) in findings.measures() {
                        tr {
                            th scope="row" { (measure.name) ", " bdi { (name(&measure.of, CELL)) } }
                            td { (suite.name()) }
                            @for arm in &arms { td.number { (shown(measure.arms.get(arm).copied())) } }
                            td.number { (shown(measure.capped_minus_uncapped)) }
                            td.number { (shown(measure.capped_minus_random)) }
                            td.number { (shown(measure.random_minus_uncapped)) }
                            td.number { (measure.arms.values().map(|it| it.units).max().unwrap_or(0)) }
                        }
                    }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{parse, texts};
    use super::*;
    use crate::evaluate::{Condition, Material, Record, Records, Size, TurnReading};

    /// Findings of all suites, with texts of strangers where a file may bring them.
    fn findings(name: &str) -> Findings {
        let script = |id: &str, domain: &str| serde_json::json!({"id": id, "domain": domain, "subject": "", "system": null, "turns": ["x", "y"]});
        let json = serde_json::json!({"conversations": [script("a", name), script("b", "therapy")]});
        let material = Material::parse(&json.to_string()).unwrap();
        let header = crate::evaluate::Header { model: name.into(), ..crate::evaluate::test_header() };
        let mut records = Records::in_memory(header);
        let turn =
            |before| TurnReading { tokens: 4, before: Some(before), after: Some(before + 1.0), outside: 1 };
        let mut all = Vec::new();
        for (number, arm) in (0_u8..).zip([Arm::Uncapped, Arm::Capped, Arm::Random(1)]) {
            let shift = f32::from(number);
            for id in ["a", "b"] {
                for under_caps in [false, true] {
                    let turns = vec![turn(-3.0 + shift), turn(-5.0 + shift)];
                    all.push(Record::Reading { arm, id: id.into(), under_caps, turns });
                }
                let probe = material.probes[0].id.clone();
                let (early, late) = (vec![-1.0, -2.0], vec![-2.0, -1.0 - shift]);
                all.push(Record::Probe { arm, conversation: id.into(), id: probe, early, late });
            }
            for condition in Condition::ALL {
                let (right, wrong) = (-2.0, -3.0 + shift);
                all.push(Record::Fact { arm, id: "f".into(), condition, right, wrong });
            }
            all.push(Record::Choice { arm, id: "c".into(), options: vec![-1.0, -2.0 + shift], right: 0 });
            for piece in 0..2 {
                let log_likelihood = -30.0 - shift * piece as f32;
                all.push(Record::Piece { arm, text: name.into(), piece, tokens: 10, log_likelihood });
            }
            if arm != Arm::Uncapped {
                let (kl, engaged) = (vec![0.1, 0.0], "0110".into());
                all.push(Record::Dose { arm, prompt: name.into(), question: 0, first: 2, kl, engaged });
            }
        }
        records.add("all".into(), all).unwrap();
        Findings::of(&material.cut(&Size::FULL), &records)
    }

    #[test]
    fn a_page_shows_every_suite_with_its_charts() {
        let page = evaluation_page(&findings("plain"), "axiscap eval --model m.gguf").unwrap();
        let document = parse(&page);
        let headings = texts(&document, "h2");
        for suite in
            ["Drift", "Reliability", "Consistency", "Capability", "Dose", "All numbers", "How it was made"]
        {
            assert!(headings.contains(&suite.to_owned()), "{suite}: {headings:?}");
        }
        let charts = document.descendants().filter(|node| node.tag_name().name() == "svg").count();
        // Two domains twice, three measures of drift, three of reliability, two each of consistency and capability,
        // and the dose.
        assert_eq!(charts, 4 + 3 + 3 + 2 + 2 + 1);
        assert!(page.contains("axiscap eval --model m.gguf"));
    }

    #[test]
    fn names_of_strangers_do_no_harm() {
        let page = evaluation_page(&findings("</style><script>\u{202e}&"), "<b>").unwrap();
        parse(&page);
        assert!(page.contains("&lt;script&gt;"), "it is escaped");
        let long = "x".repeat(100_000);
        assert!(evaluation_page(&findings(&long), &long).unwrap().len() < 400_000);
    }

    #[test]
    fn nothing_measured_is_a_page_without_charts() {
        let records = Records::in_memory(crate::evaluate::test_header());
        let page = evaluation_page(&Findings::of(&Material::builtin(), &records), "").unwrap();
        assert_eq!(parse(&page).descendants().filter(|node| node.tag_name().name() == "svg").count(), 0);
    }
}
