//! `axiscap calibrate`: bounds for axes, from projections of the model's answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use axiscap::Axis;
use axiscap::file::CapFile;
use axiscap::file::gguf::{Array, Value};
use axiscap_lab::activations::{self, Sinks};
use axiscap_lab::calibrate::{self, BlockFloor, DEFAULT_PERCENTILE, TABLE, default_blocks, floor_of};
use axiscap_lab::output::write_caps;
use serde_json::json;

use crate::answers::{Answers, AnswersArgs};
use crate::caps;
use crate::extract::RECOMMENDED;
use crate::interrupt::{self, Interrupt};
use crate::model::model_info;
use crate::output::{self, file_name, seconds, tool};

/// Give axes their floors, on the model file that will be served.
///
/// A floor is a percentile of the mean projections of the model's answers, default and role play alike.
/// Quantisation moves projections: calibrate on the GGUF that will serve.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  axiscap calibrate --model model.gguf --rollouts answers.jsonl --axes axes.gguf --out caps.gguf

Which percentile: counted from the role end. A floor at 75 lies above the mean projection of 75 % of all answers \
(these it lifts) and below that of 25 % (these it leaves alone). Higher is stronger. The paper's released \
configurations call the same floor \"p0.25\", because they count on the negated axis.")]
pub(crate) struct Args {
    #[command(flatten)]
    answers: AnswersArgs,

    /// The axes: a file by `axiscap extract`, or a control vector in llama.cpp's format
    #[arg(long, value_name = "FILE")]
    axes: PathBuf,

    /// The cap file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Floor at this percentile of the answers' mean projections, counted from the role end: P % of the
    /// answers lie below the floor
    #[arg(long, default_value_t = DEFAULT_PERCENTILE, value_name = "P", value_parser = parse_percentile)]
    percentile: f64,

    /// Write into the file that rows at the first N positions of each sequence are left alone [default: the
    /// positions that attention sinks are found at, and what the axes' file says if that is more]
    #[arg(long, value_name = "N")]
    skip_positions: Option<u32>,

    /// Blocks to cap, 0-based and inclusive, e.g. 21-26 or 9,21-26. Default: those that the axes' file
    /// recommends, or else 70 % to 90 % of the depth
    #[arg(long, value_name = "BLOCKS", value_parser = parse_blocks)]
    blocks: Option<Blocks>,

    /// A floor of your own for one block, e.g. 24=1.5. May be repeated
    #[arg(long = "floor", value_name = "BLOCK=VALUE", value_parser = parse_floor)]
    floors: Vec<(usize, f32)>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Blocks, ascending, each once.
#[derive(Debug, Clone)]
struct Blocks(Vec<usize>);

fn parse_blocks(text: &str) -> Result<Blocks, String> {
    let number = |part: &str| {
        part.trim().parse::<usize>().map_err(|_| format!("{part:?} is no block; write e.g. 21-26 or 9,21-26"))
    };
    let mut blocks = BTreeSet::new();
    for part in text.split(',') {
        let range: RangeInclusive<usize> = match part.split_once('-') {
            Some((first, last)) => number(first)?..=number(last)?,
            None => number(part)?..=number(part)?,
        };
        if range.is_empty() {
            return Err(format!("{part:?} is empty; write the lower block first"));
        }
        if *range.end() > 100_000 {
            return Err(format!("{part:?}: no model has so many blocks"));
        }
        blocks.extend(range);
    }
    Ok(Blocks(blocks.into_iter().collect()))
}

fn parse_percentile(text: &str) -> Result<f64, String> {
    let percentile = text.parse().ok().filter(|percentile| (0.0..=100.0).contains(percentile));
    percentile.ok_or_else(|| "it must be 0 to 100, counted from the role end".into())
}

fn parse_floor(text: &str) -> Result<(usize, f32), String> {
    let wrong = || format!("{text:?} is not BLOCK=VALUE, e.g. 24=1.5");
    let (block, value) = text.split_once('=').ok_or_else(wrong)?;
    let value: f32 = value.trim().parse().map_err(|_| wrong())?;
    if !value.is_finite() {
        return Err(format!("the floor {value} must be a finite number"));
    }
    Ok((block.trim().parse().map_err(|_| wrong())?, value))
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, axes of another model, blocks without an axis.
pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json;
    interrupt::report(work(args), json)
}

fn work(args: Args) -> Result<()> {
    let started = Instant::now();
    let model = args.answers.load_model()?;
    let info = model_info(&model)?;
    let mut file = CapFile::read_axes(&args.axes, &info)?;
    caps::check_file(&file, &args.axes, &model)?;
    let floors: BTreeMap<usize, f32> = args.floors.iter().copied().collect();
    let axes = chosen_axes(&args, &file, &floors)?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    let mut answers = args.answers.answers(&model, &args.out, &caught)?;
    // Answers that were asked to show a trait are no sample of what the model says.
    answers.rollouts.retain(|rollout| rollout.group.kind() != "trait");
    let (rollouts, threads) = (&answers.rollouts, args.answers.threads);
    let projections = answers.measured("answers measured", &caught, |go_on| {
        activations::project(&model, rollouts, &axes, threads, go_on)
    })?;
    let sinks = answers.measured("rows looked at for sinks", &caught, |go_on| {
        activations::sinks(&model, rollouts, &axes, threads, go_on)
    })?;
    let mut results = Vec::new();
    for ((block, _), projections) in axes.iter().zip(&projections) {
        results.push(floor_of(*block, projections, args.percentile, floors.get(block).copied())?);
    }
    let skipped =
        args.skip_positions.unwrap_or_else(|| file.caps.policy().skip_positions.max(sinks.leading()));
    let policy = file.caps.policy().with_skip_positions(skipped);
    file.caps = calibrate::caps(results.iter().zip(axes.iter().map(|(_, axis)| axis)))?.with_policy(policy);
    file.model = info;
    record(&args, &mut file, &results, &answers);
    let positions = sinks.sinks.iter().map(|sink| u32::try_from(sink.position).unwrap_or(u32::MAX));
    file.origin.set("calibrate.sink_positions", positions.collect::<Vec<_>>());
    write_caps(&args.out, &file)?;
    let count = answers.rollouts.len();
    let seed = answers.header.seed;
    let (faults, left_out) = (answers.faults(), answers.counts.left_out);
    let judge = answers.header.judge.clone();
    answers.done();
    let warnings: Vec<String> = results.iter().filter_map(BlockFloor::warning).collect();
    for warning in &warnings {
        output::warning(warning);
    }
    if args.json {
        let blocks: Vec<_> = results.iter().map(block_json).collect();
        let report = json!({
            "out": args.out.display().to_string(),
            "percentile_from_role_end": args.percentile,
            "interrupted": false,
            "answers": count,
            "left_out": left_out,
            "faults": faults,
            "judge": judge,
            "seed": seed,
            "seconds": started.elapsed().as_secs_f64(),
            "blocks": blocks,
            "skip_positions": skipped,
            "sinks": sinks_json(&sinks),
            "warnings": warnings,
        });
        return output::json(&report);
    }
    let mut text = String::from(
        "block    floor  default    role    AUC  answers below  tokens below (expected engagement)\n",
    );
    for result in &results {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        writeln!(
            text,
            "{:>5} {:>8.3} {:>8} {:>7} {:>6} {:>12.1} % {:>10.1} %",
            result.block,
            result.floor,
            number(result.default_mean),
            number(result.role_mean),
            number(result.separation.map(|s| s.auc)),
            100.0 * result.answers_below,
            100.0 * result.tokens_below
        )?;
    }
    text += &sinks_text(&sinks, &results, skipped)?;
    writeln!(text, "{} written in {}", args.out.display(), seconds(started.elapsed()))?;
    output::text(&text)
}

/// Returns the axes to put floors on, by block.
fn chosen_axes(args: &Args, file: &CapFile, floors: &BTreeMap<usize, f32>) -> Result<Vec<(usize, Axis)>> {
    let mut known = BTreeMap::new();
    for entry in file.caps.caps() {
        let earlier = known.insert(entry.block, entry.cap.axis().clone());
        ensure!(
            earlier.is_none(),
            "{}: block {} has several axes; calibrate puts one floor per block",
            args.axes.display(),
            entry.block
        );
    }
    let blocks = match &args.blocks {
        Some(Blocks(blocks)) => blocks.clone(),
        None => match file.origin.get(RECOMMENDED) {
            Some(Value::Array(Array::U32(blocks))) if !blocks.is_empty() => {
                blocks.iter().map(|&block| block as usize).collect::<BTreeSet<_>>().into_iter().collect()
            }
            _ => default_blocks(file.model.blocks).collect(),
        },
    };
    if let Some(block) = floors.keys().find(|block| !blocks.contains(block)) {
        bail!("--floor {block}=...: block {block} is not among the capped blocks; add it to --blocks");
    }
    let names = known.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let axis = |block: usize| {
        let axis = known.get(&block).cloned().with_context(|| {
            format!(
                "{}: there is no axis for block {block}, only for {names}; choose among these with --blocks",
                args.axes.display()
            )
        })?;
        Ok((block, axis))
    };
    blocks.into_iter().map(axis).collect()
}

/// Records in the file how its bounds were made. Tables are `[caps][percentiles]`.
fn record(args: &Args, file: &mut CapFile, results: &[BlockFloor], answers: &Answers) {
    let each = |value: &dyn Fn(&BlockFloor) -> f64| -> Vec<f32> {
        results.iter().map(|result| value(result) as f32).collect()
    };
    let blocks = results.iter().map(|r| r.block.to_string()).collect::<Vec<_>>().join(",");
    let mut command = format!(
        "axiscap calibrate {} --axes {} --out {} --percentile {} --blocks {blocks}",
        args.answers.command(&answers.header),
        file_name(&args.axes),
        file_name(&args.out),
        args.percentile,
    );
    for (block, floor) in &args.floors {
        command += &format!(" --floor {block}={floor}");
    }
    file.origin
        .set("tool", tool())
        .set("calibrate.command", command)
        .set("calibrate.percentile_from_role_end", args.percentile as f32)
        .set("calibrate.answers", answers.rollouts.len() as u32)
        .set("calibrate.left_out", answers.counts.left_out as u32)
        .set("calibrate.faults", answers.counts.to_string())
        .set("calibrate.default_mean", each(&|r| r.default_mean.unwrap_or(f64::NAN)))
        .set("calibrate.role_mean", each(&|r| r.role_mean.unwrap_or(f64::NAN)))
        .set("calibrate.answers_below_floor", each(&|r| r.answers_below))
        .set("calibrate.tokens_below_floor", each(&|r| r.tokens_below))
        .set("calibrate.quantile_levels", TABLE.map(|level| level as f32).to_vec())
        .set(
            "calibrate.quantiles",
            results.iter().flat_map(|r| r.quantiles.map(|q| q as f32)).collect::<Vec<f32>>(),
        );
}

/// Returns where attention sinks are, and what the caps do with them.
fn sinks_text(sinks: &Sinks, results: &[BlockFloor], skipped: u32) -> Result<String> {
    let mut text = String::new();
    for sink in &sinks.sinks {
        let is_left_alone = u32::try_from(sink.position).is_ok_and(|position| position < skipped);
        writeln!(
            text,
            "attention sink at position {}: {}",
            sink.position,
            if is_left_alone {
                "left alone by these caps"
            } else {
                "capped as any other row (--skip-positions)"
            }
        )?;
        let columns = results.iter().zip(&sink.norms).zip(&sink.projections).zip(&sinks.other_projections);
        for (((result, norm), projection), other) in columns {
            writeln!(
                text,
                "{:>5} {:>8.0} times the median norm; projection {:.1}, other rows {:.1}",
                result.block, norm, projection, other
            )?;
        }
    }
    Ok(text)
}

fn sinks_json(sinks: &Sinks) -> serde_json::Value {
    let positions: Vec<_> = sinks
        .sinks
        .iter()
        .map(
            |sink| json!({ "position": sink.position, "norms": sink.norms, "projections": sink.projections }),
        )
        .collect();
    json!({
        "positions": positions,
        "other_projections": sinks.other_projections,
        "elsewhere": sinks.elsewhere,
    })
}

fn block_json(result: &BlockFloor) -> serde_json::Value {
    json!({
        "block": result.block,
        "floor": result.floor,
        "default_mean": result.default_mean,
        "role_mean": result.role_mean,
        "auc": result.separation.map(|s| s.auc),
        "d_prime": result.separation.map(|s| s.d_prime),
        "answers_below": result.answers_below,
        "tokens_below": result.tokens_below,
        "thoughts_below": result.thoughts_below,
        "quantile_levels": TABLE,
        "quantiles": result.quantiles,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbers_and_ranges() {
        assert_eq!(parse_blocks("9,21-23,22").unwrap().0, [9, 21, 22, 23]);
        for bad in ["", "x", "3-1", "1-", "-1", "1,,2", "0-99999999999"] {
            assert!(parse_blocks(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn floors_are_block_and_value() {
        assert_eq!(parse_floor("24=-1.5"), Ok((24, -1.5)));
        for bad in ["24", "=1", "a=1", "1=nan", "1=inf", "1="] {
            assert!(parse_floor(bad).is_err(), "{bad}");
        }
    }
}
