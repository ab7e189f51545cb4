//! The findings, for people.

use std::fmt::Write as _;

use axiscap_lab::Estimate;
use axiscap_lab::evaluate::{Arm, Dose, Findings, Measure, StatementKind};

/// Returns the findings: what they say, and the numbers.
pub(super) fn text(findings: &Findings) -> String {
    let mut text = String::new();
    let header = &findings.header;
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    line(format!(
        "{} ({}), block {}{}; seed {}; differences are those of pairs, in brackets intervals of 95 %",
        if header.model.is_empty() { "a model without a name" } else { &header.model },
        header.architecture,
        header.block,
        header.floor.map_or(String::new(), |floor| format!(", floor {floor:.3}")),
        header.seed
    ));
    for control in &findings.controls {
        line(format!(
            "{}: mean KL {:.6} per token over {} tokens; the caps: {:.6}",
            control.arm, control.kl, control.tokens, control.wanted_kl
        ));
    }
    let mut last = None;
    for (suite, measure) in findings.measures() {
        if last.replace(suite) != Some(suite) {
            line(format!("\n{}", suite.name()));
            line(format!(
                "{:<22} {:<16} {:>26} {:>26} {:>28} {:>28}",
                "", "", "uncapped", "capped", "capped - uncapped", "capped - random"
            ));
        }
        line(row(measure));
    }
    if let Some(doses) = &findings.dose {
        line("\ndose".into());
        line(format!(
            "{:<10} {:<24} {:>7} {:>26} {:>10} {:>9}",
            "", "", "tokens", "mean KL per token, nats", "KL 95 %", "engaged"
        ));
        doses.iter().for_each(|dose| line(dose_row(dose)));
    }
    line(String::new());
    for statement in &findings.statements {
        let mark = match statement.kind {
            StatementKind::Shown => "shown",
            StatementKind::NotShown => "not shown",
            StatementKind::Caution => "caution",
        };
        line(format!("[{mark}] {}: {}", statement.suite.name(), statement.text));
    }
    text
}

fn row(measure: &Measure) -> String {
    let arm = |arm| shown(measure.arms.get(&arm).copied());
    format!(
        "{:<22} {:<16} {:>26} {:>26} {:>28} {:>28}",
        measure.name,
        measure.of,
        arm(Arm::Uncapped),
        arm(Arm::Capped),
        shown(measure.capped_minus_uncapped),
        shown(measure.capped_minus_random)
    )
}

fn dose_row(dose: &Dose) -> String {
    format!(
        "{:<10} {:<24} {:>7} {:>26} {:>10} {:>9}",
        dose.arm.to_string(),
        dose.place.to_string(),
        dose.tokens,
        shown(dose.kl),
        dose.kl_p95.map_or("-".into(), |kl| format!("{kl:.5}")),
        dose.engaged.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
    )
}

fn shown(estimate: Option<Estimate>) -> String {
    estimate.map_or("-".into(), |estimate| estimate.to_string())
}
