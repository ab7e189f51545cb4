//! Drift over transcripts: the answers are given, and read uncapped and capped.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use axiscap::CapSet;
use axiscap_lab::Estimate;
use axiscap_lab::charts::{LineChart, Series};
use axiscap_lab::output::write_atomically;
use axiscap_lab::transcript::Transcript;
use axiscap_lab::watch::{self, Answer, AnswerSums, Prepared, Reader};
use axiscap_llama::{ChatTemplate, Watch};
use serde::Serialize;
use serde_json::json;

use super::Args;
use crate::bos::{self, Writer};
use crate::interrupt::{self, Catch};
use crate::levels::{self, AnswerLevels, ThresholdsReport};
use crate::output::{self, counted};
use crate::progress::Progress;
use crate::{input, report};

/// A transcript that was read.
#[derive(Debug, Serialize)]
struct Read {
    /// Line of the file.
    line: usize,
    turns: Vec<Turn>,
}

/// An answer that was read uncapped and capped.
#[derive(Debug, Serialize)]
struct Turn {
    /// Index of its message.
    message: usize,
    tokens: usize,
    /// Means of its tokens on the shown block. `null` without tokens.
    uncapped: Option<f64>,
    capped_before: Option<f64>,
    capped_after: Option<f64>,
    /// Share of its tokens on which the shown cap acted.
    engaged: Option<f64>,
    /// What was watched, uncapped.
    watch: AnswerLevels,
}

/// A turn, over all transcripts that have it.
#[derive(Debug, Serialize)]
struct Row {
    turn: usize,
    /// Means over the transcripts, with intervals.
    uncapped: Option<Estimate>,
    capped_before: Option<Estimate>,
    capped_after: Option<Estimate>,
    engaged: Option<f64>,
    /// Transcripts in which an alarm has begun up to this turn.
    alarmed: usize,
}

/// Reads the transcripts of a file and reports.
pub(super) fn run(
    args: &Args,
    path: &Path,
    template: &ChatTemplate<'_>,
    caps: &CapSet,
    watch: &Watch,
    caught: &Catch,
) -> Result<()> {
    let prepared = prepare(path, template)?;
    if let Some((_, first)) = prepared.first() {
        bos::check(template.model(), &first.first_prompt(), Writer::Template);
    }
    let shown = report::shown_cap(caps, args.block)?;
    let texts: Vec<&Prepared> = prepared.iter().map(|(_, one)| one).collect();
    let answers: usize = texts.iter().map(|one| one.answers()).sum();
    let compute = args.model.load.compute.options();
    let progress = Progress::new("answers", 2 * answers);
    let mut read = [false, true].into_iter().enumerate().map(|(pass, acts)| {
        let reader = Reader { template, caps, watched: watch.watched(caps), acts, compute: &compute };
        reader.read(&texts, |done| {
            progress.set(pass * answers + done);
            caught.go_on()
        })
    });
    let cut = || interrupt::error("the transcripts were not read to the end; nothing is kept");
    let uncapped = read.next().transpose()?.flatten().ok_or_else(cut)?;
    let capped = read.next().transpose()?.flatten().ok_or_else(cut)?;
    drop(read);
    progress.clear();
    let pairs = prepared.iter().zip(uncapped.into_iter().zip(capped));
    let all: Result<Vec<Read>> = pairs
        .map(|((line, _), (uncapped, capped))| {
            Ok(Read { line: *line, turns: turns(watch, shown, &uncapped, &capped)? })
        })
        .collect();
    let all = all?;
    let rows = rows(&all);
    let block = caps.caps()[shown].block;
    let beyond: usize = texts.iter().map(|one| one.beyond).sum();
    if beyond > 0 {
        output::warning(&format!(
            "{} left out: they end beyond the {} tokens that the model was trained on",
            counted(beyond, "answer"),
            template.model().trained_context()
        ));
    }
    let printed = if args.json {
        output::json(&json!({
            "block": block,
            "watch": {"block": levels::block(watch, caps), "thresholds": ThresholdsReport::of(watch)},
            "turns": rows,
            "transcripts": all,
            "beyond_context": beyond,
            "plot": args.plot.display().to_string(),
        }))
    } else {
        output::text(&table(&rows, &all, caps, shown, watch)?)
    };
    let svg = chart(&rows, caps, shown).to_svg()?;
    write_atomically(&args.plot, |out| out.write_all(svg.as_bytes()))?;
    printed?;
    if args.json { Ok(()) } else { output::text(&format!("plot: {}\n", args.plot.display())) }
}

/// Reads the file. Returns the transcripts with the numbers of their lines.
fn prepare(path: &Path, template: &ChatTemplate<'_>) -> Result<Vec<(usize, Prepared)>> {
    let text = if path == Path::new("-") {
        input::utf8(input::all(std::io::stdin().lock(), "stdin")?, "stdin")?
    } else {
        input::text_file(path)?
    };
    // A mark of the byte order is no part of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let prepared: Result<Vec<_>> = lines
        .map(|(number, line)| {
            let one = Transcript::parse(line).and_then(|transcript| Prepared::new(template, &transcript));
            let one = one.with_context(|| format!("{}, line {number}", path.display()))?;
            Ok((number, one))
        })
        .collect();
    let prepared = prepared?;
    anyhow::ensure!(!prepared.is_empty(), "{}: there is no transcript in it", path.display());
    Ok(prepared)
}

fn turns(watch: &Watch, shown: usize, uncapped: &[Answer], capped: &[Answer]) -> Result<Vec<Turn>> {
    let levels = watch::watch(watch, uncapped.iter().map(|answer| answer.projections.as_slice()))?;
    let answers = uncapped.iter().zip(capped).zip(&levels);
    let turns = answers.map(|((uncapped, capped), levels)| {
        let sums: AnswerSums = capped.caps[shown];
        let means = sums.means();
        Turn {
            message: uncapped.message,
            tokens: uncapped.tokens.len(),
            uncapped: uncapped.caps[shown].means().map(|(before, _)| before),
            capped_before: means.map(|(before, _)| before),
            capped_after: means.map(|(_, after)| after),
            engaged: means.map(|_| sums.engaged as f64 / sums.tokens as f64),
            watch: AnswerLevels::of(levels),
        }
    });
    Ok(turns.collect())
}

/// Returns the turns over all transcripts.
fn rows(all: &[Read]) -> Vec<Row> {
    let most = all.iter().map(|read| read.turns.len()).max().unwrap_or(0);
    let mut alarmed = BTreeSet::new();
    let row = |index: usize| {
        let turns: Vec<&Turn> = all.iter().filter_map(|read| read.turns.get(index)).collect();
        let mean = |value: fn(&Turn) -> Option<f64>| {
            Estimate::of_mean(&turns.iter().filter_map(|turn| value(turn)).collect::<Vec<_>>())
        };
        let began = |read: &&Read| read.turns.get(index).is_some_and(|turn| !turn.watch.began.is_empty());
        alarmed.extend(all.iter().filter(began).map(|read| read.line));
        Row {
            turn: index + 1,
            uncapped: mean(|turn| turn.uncapped),
            capped_before: mean(|turn| turn.capped_before),
            capped_after: mean(|turn| turn.capped_after),
            engaged: mean(|turn| turn.engaged).map(|mean| mean.value),
            alarmed: alarmed.len(),
        }
    };
    (0..most).map(row).collect()
}

fn table(rows: &[Row], all: &[Read], caps: &CapSet, shown: usize, watch: &Watch) -> Result<String> {
    let (block, bound) = (caps.caps()[shown].block, caps.caps()[shown].cap.bound());
    let answers: usize = all.iter().map(|read| read.turns.len()).sum();
    let mut text = format!(
        "{}, {}: mean projection on the axis of block {block} (positive = more Assistant; cap: {bound}), with 95 % intervals over the transcripts\n",
        counted(all.len(), "transcript"),
        counted(answers, "answer"),
    );
    writeln!(
        text,
        "turn  {:>24}  {:>24} {:>24}  engaged  with an alarm so far",
        "uncapped", "capped: before", "after"
    )?;
    for row in rows {
        let number = |estimate: Option<Estimate>| match estimate {
            Some(Estimate { value, ci95: Some([low, high]), .. }) => {
                format!("{value:.1} [{low:.1}, {high:.1}]")
            }
            Some(Estimate { value, .. }) => format!("{value:.1}"),
            None => "-".into(),
        };
        writeln!(
            text,
            "{:>4}  {:>24}  {:>24} {:>24} {:>8}  {:>20}",
            row.turn,
            number(row.uncapped),
            number(row.capped_before),
            number(row.capped_after),
            row.engaged.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            format!("{} of {}", row.alarmed, all.len()),
        )?;
    }
    match watch.thresholds {
        Some(thresholds) => writeln!(
            text,
            "alarms: block {}, uncapped; average over {} down to {:.1}, or sum up to {:.1}",
            levels::block(watch, caps),
            counted(watch.tokens as usize, "token"),
            thresholds.alarm,
            watch.most_sum().unwrap_or_default()
        )?,
        None => writeln!(text, "alarms: none, there are no thresholds")?,
    }
    for read in all {
        for (turn, found) in (1..).zip(&read.turns) {
            if let Some(note) = found.watch.note(watch) {
                writeln!(text, "line {}, turn {turn}: {note}", read.line)?;
            }
        }
    }
    Ok(text)
}

fn chart(rows: &[Row], caps: &CapSet, shown: usize) -> LineChart {
    let line = |name: &str, value: fn(&Row) -> Option<Estimate>| Series {
        name: name.into(),
        points: rows.iter().filter_map(|row| Some((row.turn as f64, value(row)?.value))).collect(),
    };
    let floor = caps.caps()[shown].cap.bound().lo();
    LineChart {
        title: format!("Projection of transcripts on the Assistant axis, block {}", caps.caps()[shown].block),
        x_label: "turn".into(),
        y_label: "mean projection of the answers".into(),
        series: vec![line("read uncapped", |row| row.uncapped), line("read capped", |row| row.capped_after)],
        band: None,
        level: floor.is_finite().then(|| (format!("floor {floor:.3}"), f64::from(floor))),
    }
}
