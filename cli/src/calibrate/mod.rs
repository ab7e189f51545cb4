//! `axiscap calibrate`: bounds for axes, from projections of the model's answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use axiscap::file::CapFile;
use axiscap::file::gguf::{Array, Value};
use axiscap::{Axis, CapSet};
use axiscap_lab::activations::{self, Projections};
use axiscap_lab::calibrate::{self, BlockFloor, DEFAULT_PERCENTILE, Setting, default_blocks, floor_of};
use axiscap_lab::output::write_caps;

use crate::answers::AnswersArgs;
use crate::caps;
use crate::extract::RECOMMENDED;
use crate::interrupt::{self, Interrupt};
use crate::model::model_info;
use crate::output::{self, seconds};

mod doses;
mod report;

use doses::{DoseArgs, Dosing};
use report::Report;

/// Give axes their floors, on the model file that will be served.
///
/// A floor is a percentile of the mean projections of the model's answers, default and role play alike.
/// Quantisation moves projections: calibrate on the GGUF that will serve.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  axiscap calibrate --model model.gguf --rollouts answers.jsonl --axes axes.gguf --out caps.gguf
  axiscap calibrate --model model.gguf --rollouts answers.jsonl --axes axes.gguf --out caps.gguf \\
      --max-kl 0.1 --max-perplexity 3

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

    #[command(flatten)]
    doses: DoseArgs,

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
    let own_floors: BTreeMap<usize, f32> = args.floors.iter().copied().collect();
    let axes = chosen_axes(&args, &file, &own_floors)?;
    let interrupt = Interrupt::new()?;
    let caught = interrupt.catch();
    let mut answers = args.answers.answers(&model, &args.out, &caught)?;
    // Answers that were asked to show a trait are no sample of what the model says.
    answers.rollouts.retain(|rollout| rollout.group.kind() != "trait");
    let sample = args.doses.sample(&model, &answers)?;
    doses::note_if_missing(&sample);
    let (rollouts, compute) = (&answers.rollouts, args.answers.compute());
    let projections = answers.measured("answers projected", rollouts.len(), &caught, |go_on| {
        activations::project(&model, rollouts, &axes, &compute, go_on)
    })?;
    let sinks = answers.measured("rows looked at for sinks", rollouts.len(), &caught, |go_on| {
        activations::sinks(&model, rollouts, &axes, &compute, go_on)
    })?;
    let skipped =
        args.skip_positions.unwrap_or_else(|| file.caps.policy().skip_positions.max(sinks.leading()));
    let policy = file.caps.policy().with_skip_positions(skipped);
    let floors = |setting: Setting| -> Result<Vec<BlockFloor>> {
        let floor = |((block, _), projections): (&(usize, Axis), &Projections)| {
            floor_of(*block, projections, setting.percentile, own_floors.get(block).copied())
        };
        Ok(axes.iter().zip(&projections).map(floor).collect::<Result<_, _>>()?)
    };
    let caps = |setting: Setting| -> Result<CapSet> {
        let caps = calibrate::caps(floors(setting)?.iter().zip(axes.iter().map(|(_, axis)| axis)))?;
        Ok(caps.with_strength(setting.strength)?.with_policy(policy))
    };
    let dosing = Dosing {
        args: &args.doses,
        model: &model,
        compute: &compute,
        answers: &answers,
        sample,
        caught: &caught,
    };
    let (setting, doses) = dosing.strongest(args.percentile, caps)?;
    file.caps = caps(setting)?;
    let control = dosing.control(&file.caps)?;
    file.model = info;
    let found = Report { floors: floors(setting)?, projections, setting, doses, control, sinks, skipped };
    found.record(&args, &mut file, &answers);
    write_caps(&args.out, &file)?;
    let warnings = found.warnings();
    warnings.iter().for_each(|warning| output::warning(warning));
    let printed = if args.json {
        output::json(&found.json(&args, &answers, &warnings, started.elapsed()))
    } else {
        let written = format!("{} written in {}\n", args.out.display(), seconds(started.elapsed()));
        output::text(&(found.text()? + &written))
    };
    answers.done();
    printed
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
