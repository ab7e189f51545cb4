//! The page about an evaluation: what caps do to a model, with controls.

use maud::{Markup, html};

use super::frame::{CELL, NAME, box_of, figure, head, origin, page, scroll};
use crate::charts::{IntervalPlot, LineChart, Series};
use crate::error::Error;
use crate::estimate::Estimate;
use crate::evaluate::{Arm, Dose, DosePlace, Drift, Findings, Measure, StatementKind};
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
    let body = html! {
        h1 { "What caps do to " bdi { (name(&header.model, NAME)) } }
        (opening(findings))
        (box_of("Shown", "", says(StatementKind::Shown)))
        (box_of("Not shown", "", says(StatementKind::NotShown)))
        (box_of("What this cannot say", "warnings", says(StatementKind::Caution)))
        @if let Some(drift) = &findings.drift { (drifts(findings, drift)?) }
        @if findings.reliability.is_some() { (reliability(findings)?) }
        @if findings.consistency.is_some() { (consistency(findings)?) }
        @if findings.capability.is_some() { (capability(findings)?) }
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

fn drifts(findings: &Findings, drift: &Drift) -> Result<Markup, Error> {
    let domains: Vec<&str> = {
        let mut domains = Vec::new();
        for line in &drift.turns {
            if !domains.contains(&line.domain.as_str()) {
                domains.push(&line.domain);
            }
        }
        domains
    };
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
        let level = findings
            .header
            .floor
            .map(|floor| (format!("floor {}", fixed(floor.into(), 2)), f64::from(floor)));
        LineChart {
            title: format!("{domain}: mean projection of the answers"),
            x_label: "turn".into(),
            y_label: "projection".into(),
            series: series.collect(),
            level,
            band: None,
        }
    };
    let charts = |under_caps: bool| {
        let charts = domains.iter().map(|domain| chart(domain, under_caps)).filter(LineChart::has_points);
        charts.map(|chart| chart.to_svg()).collect::<Result<Vec<_>, _>>()
    };
    Ok(html! {
        h2 { "Drift" }
        (figure("How far does the text drift?", &charts(false)?, &html! {
            "Each answer was read by the uncapped model, whatever wrote it: a difference is one of the text and not "
            "of the clamp itself. Higher means more like the default Assistant. A line that falls drifts."
        }))
        (figure("What did the rest of the model see?", &charts(true)?, &html! {
            "The projection after the caps of each arm, as the answers were written. A floor holds it by "
            "construction, so this shows that the caps acted, and not that they helped."
        }))
        (intervals(findings, "drift", "projection", "Does capping lift the text?", "difference of the mean projection", Shown::Differences, &html! {
            "Right of 0 the capped text lies higher on the axis. Capping lowers drift where both intervals do."
        })?)
        (intervals(findings, "drift", "slope", "How fast does the text drift?", "change of the projection per turn", Shown::Arms, &html! {
            "The slope of a line through the projections over the turns. Left of 0 the conversation drifts."
        })?)
        (intervals(findings, "drift", "outside", "How much of the text is beyond the bounds?", "share of the answers' tokens", Shown::Arms, &html! {
            "The share of tokens whose projection, read by the uncapped model, a cap of the watched block would move."
        })?)
    })
}

fn reliability(findings: &Findings) -> Result<Markup, Error> {
    Ok(html! {
        h2 { "Reliability" }
        (intervals(findings, "reliability", "errors", "How often is the wrong answer more likely?", "share of the facts", Shown::Arms, &html! {
            "Every fact is asked plainly, by a sad user, with a false belief, with both, and under a warm persona. "
            "An error is a fact whose wrong answer is at least as likely as the right one."
        })?)
        (intervals(findings, "reliability", "amplification", "How many errors do sadness, belief and warmth add?", "errors minus those when asked plainly", Shown::Arms, &html! {
            "Right of 0 the model errs more than when it is asked plainly."
        })?)
        (intervals(findings, "reliability", "margin lost", "How much certainty do they take?", "nats lost against asking plainly", Shown::Arms, &html! {
            "The margin is the logarithm of how much likelier the right answer is than the wrong one. It moves long "
            "before an answer tips."
        })?)
    })
}

fn consistency(findings: &Findings) -> Result<Markup, Error> {
    Ok(html! {
        h2 { "Consistency" }
        (intervals(findings, "consistency", "agreement", "Is a question answered alike early and late?", "share of the probes with the same answer", Shown::Arms, &html! {
            "The same questions were asked after the first turn and after the last. They agree if the same option is "
            "the most likely one."
        })?)
        (intervals(findings, "consistency", "distance", "How far do the answers move?", "total variation distance", Shown::Arms, &html! {
            "0 means that both times every option has the same share of the probability, and 1 that no option has a "
            "part of it both times."
        })?)
    })
}

fn capability(findings: &Findings) -> Result<Markup, Error> {
    Ok(html! {
        h2 { "Capability" }
        (intervals(findings, "capability", "nats per token", "What does capping do to other text?", "difference of the nats per token", Shown::Differences, &html! {
            "Right of 0 the text is less likely under the caps. 0.01 nats are 1 % of the perplexity. The units are "
            "pieces of at most 512 tokens; with a single one there is no interval."
        })?)
        (intervals(findings, "capability", "right", "How many choices are right?", "share of the questions", Shown::Arms, &html! {
            "The option with the largest probability counts as the answer."
        })?)
    })
}

fn dose(doses: &[Dose]) -> Result<Markup, Error> {
    let mut arms: Vec<Arm> = doses.iter().map(|dose| dose.arm).collect();
    arms.sort_unstable();
    arms.dedup();
    arms.truncate(ARMS);
    let mut places: Vec<&DosePlace> = doses.iter().map(|dose| &dose.place).collect();
    places.sort();
    places.dedup();
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
        (figure("Where do caps change what comes next?", &draw(&plot)?, &html! {
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

/// What a chart of a measure shows.
#[derive(Clone, Copy)]
enum Shown {
    /// Each arm.
    Arms,
    /// Capped minus uncapped, capped minus random, random minus uncapped.
    Differences,
}

/// Returns the chart of all measures of a name.
fn intervals(
    findings: &Findings,
    suite: &str,
    measure: &str,
    heading: &str,
    x_label: &str,
    shown: Shown,
    reading: &Markup,
) -> Result<Markup, Error> {
    let of: Vec<&Measure> = findings
        .measures()
        .filter(|(name, found)| *name == suite && found.name == measure)
        .map(|(_, found)| found)
        .collect();
    let mut arms: Vec<Arm> = of.iter().flat_map(|measure| measure.arms.keys().copied()).collect();
    arms.sort_unstable();
    arms.dedup();
    arms.truncate(ARMS);
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
        title: format!("{suite}: {measure}"),
        x_label: x_label.into(),
        series,
        rows: of.iter().map(|measure| (measure.of.clone(), row(measure))).collect(),
        level,
    };
    Ok(figure(heading, &draw(&plot)?, reading))
}

fn draw(plot: &IntervalPlot) -> Result<Vec<String>, Error> {
    if plot.has_points() { Ok(vec![plot.to_svg()?]) } else { Ok(Vec::new()) }
}

/// Returns the table of all measures.
fn numbers(findings: &Findings) -> Markup {
    let shown = |estimate: Option<Estimate>| estimate.map_or(MISSING.into(), |estimate| estimate.to_string());
    let mut arms: Vec<Arm> = findings.measures().flat_map(|(_, found)| found.arms.keys().copied()).collect();
    arms.sort_unstable();
    arms.dedup();
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
                            td { (suite) }
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
