//! `axiscap import`: axes and caps from files of other tools.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use axiscap::file::CapFile;
use axiscap::file::gguf::Value as Origin;
use axiscap_lab::import::{Description, Evidence, Imported, PointsTo, Request, Source, Target};
use axiscap_lab::output::write_caps;
use axiscap_llama::Fingerprint as ModelFingerprint;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::fingerprint::Fingerprint;
use crate::inspect::{printable, ranges};
use crate::output::{self, counted};

/// Make a cap file of axes or caps that another tool wrote: capping_config.pt, assistant_axis.pt and other
/// vectors by PyTorch, safetensors, control vectors by llama.cpp and repeng, or a persona.yaml of Neuronpedia.
///
/// Nothing in a file is executed. The axes of the result are unit vectors that point to the Assistant. Which
/// way the file's vectors point is decided by --default-vector and --role-vector, if they are given, or else by
/// --points-to, or else by the format's convention. Caps keep their bounds. Axes without bounds need a
/// calibration on the model that will serve.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  axiscap import capping_config.pt --list
  axiscap import capping_config.pt --experiment layers_46:54-p0.25 --model Qwen3-32B-Q4_K_M.gguf --out caps.gguf
  axiscap import assistant_axis.pt --default-vector default_vector.pt --role-vectors role_vectors/ \\
      --model M.gguf --out axes.gguf
  axiscap calibrate --model M.gguf --axes axes.gguf --out caps.gguf")]
pub(crate) struct Args {
    /// The file to import. Without it, the axes are the default vector minus the mean of the role vectors
    #[arg(value_name = "FILE", required_unless_present = "default_vector")]
    file: Option<PathBuf>,

    /// Only list what is in the file
    #[arg(long, requires = "file", conflicts_with_all = ["model", "out"])]
    list: bool,

    /// The model that will be capped, a GGUF file; of a split model any of its files. Its weights are not loaded
    #[arg(long, short = 'm', value_name = "FILE", env = "AXISCAP_MODEL", required_unless_present = "list")]
    model: Option<PathBuf>,

    /// Where to write the caps or axes
    #[arg(long, short = 'o', value_name = "FILE.gguf", required_unless_present = "list")]
    out: Option<PathBuf>,

    /// The experiment of a capping_config.pt to take, by its id; needed if there are several
    #[arg(long, value_name = "ID", requires = "file")]
    experiment: Option<String>,

    /// Take only these layers, 0-based: one (46), from the first to the last (46-53), or as a slice of Python
    /// without its end (46:54) [default: all in the file]
    #[arg(long, visible_alias = "blocks", value_name = "LAYERS", value_parser = layers)]
    layers: Option<Range<usize>>,

    /// Mean activations of the default Assistant (default_vector.pt): with --role-vector they decide which way
    /// the file's vectors point
    #[arg(long, value_name = "FILE", requires = "role_vector")]
    default_vector: Option<PathBuf>,

    /// Mean activations of roles: files, or a folder of them (.pt, .safetensors). Every role counts the same
    #[arg(long, visible_alias = "role-vectors", value_name = "FILE", num_args = 1.., requires = "default_vector")]
    role_vector: Vec<PathBuf>,

    /// What the file's vectors point to
    #[arg(long, value_name = "SIDE", value_enum, requires = "file")]
    points_to: Option<Side>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What vectors point to.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Side {
    /// A positive projection means more Assistant
    Assistant,
    /// A positive projection means more of a role
    Roles,
}

fn layers(text: &str) -> Result<Range<usize>, String> {
    let number = |part: &str| {
        let number: Option<usize> = part.trim().parse().ok().filter(|&number| number <= 100_000);
        number.ok_or_else(|| format!("{part:?} is no layer; write e.g. 46, 46-53 or 46:54"))
    };
    let range = match (text.split_once(':'), text.split_once('-')) {
        (Some((first, end)), _) => number(first)?..number(end)?,
        (None, Some((first, last))) => number(first)?..number(last)? + 1,
        (None, None) => number(text)?..number(text)? + 1,
    };
    if range.is_empty() { Err(format!("{text:?} is empty; write the lower layer first")) } else { Ok(range) }
}

/// Runs the subcommand.
///
/// # Errors
/// Files that cannot be read, hold something else, or are of another model; an orientation that is not decided.
pub(crate) fn run(args: Args) -> Result<()> {
    let source = args.file.as_deref().map(Source::open).transpose()?;
    if let (true, Some(source)) = (args.list, &source) {
        return list(&source.describe()?, args.json);
    }
    let (Some(model), Some(out)) = (&args.model, &args.out) else {
        bail!("--model and --out are needed to make a cap file; --list shows what a file holds");
    };
    let evidence = evidence(&args)?;
    let ModelFingerprint { model, width, .. } = ModelFingerprint::read(model)?;
    let target = Target { model, width };
    let imported = match (&source, &evidence) {
        (Some(source), _) => {
            let points_to = args.points_to.map(|side| match side {
                Side::Assistant => PointsTo::Assistant,
                Side::Roles => PointsTo::Roles,
            });
            let request = Request {
                experiment: args.experiment.as_deref(),
                blocks: args.layers.clone(),
                points_to,
                evidence: evidence.as_ref(),
            };
            source.caps(&target, &request)?
        }
        (None, Some(evidence)) => evidence.axes(&target, args.layers.clone())?,
        (None, None) => {
            bail!("there is nothing to import: name a file, or --default-vector and --role-vector")
        }
    };
    let Imported { file, warnings, .. } = imported;
    for warning in &warnings {
        output::warning(&warning.to_string());
    }
    write_caps(out, &file)?;
    let out = out.display().to_string();
    if args.json {
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        return output::json(&json!({
            "out": out,
            "caps": caps(&file),
            "has_bounds": !file.is_unbounded(),
            "orientation": file.orientation,
            "orientation_by": text(&file, "import.orientation_by"),
            "model": Fingerprint::new(file.model, target.width),
            "warnings": warnings,
        }));
    }
    let what = if file.is_unbounded() { "axis" } else { "cap" };
    let count = file.caps.caps().len();
    let plural = if what == "axis" && count != 1 { format!("{count} axes") } else { counted(count, what) };
    let mut text = format!("{out}: {plural}, on blocks {}\n", blocks(&file));
    if file.is_unbounded() {
        text += "They have no bounds yet: `axiscap calibrate --axes` measures them on the model that will serve.\n";
    } else {
        text += "The bounds are those of the file. They were measured on its model in its own number format: `axiscap run --json` and `axiscap drift` show how often they engage on yours.\n";
    }
    output::text(&text)
}

fn evidence(args: &Args) -> Result<Option<Evidence>> {
    let Some(path) = &args.default_vector else { return Ok(None) };
    let default = Source::open(path)?;
    let roles = role_files(&args.role_vector)?;
    let Some((first, rest)) = roles.split_first() else {
        bail!("--default-vector needs --role-vector as well: only their difference has no common offset");
    };
    // One file at a time: there may be hundreds.
    let mut evidence = Evidence::new(&default, [&Source::open(first)?])?;
    for path in rest {
        evidence.add_role(&Source::open(path)?)?;
    }
    Ok(Some(evidence))
}

/// Returns the files that paths of role vectors stand for: those of a folder in the order of their names.
fn role_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let failed = || format!("cannot read the folder {}", path.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(path).with_context(failed)? {
            let file = entry.with_context(failed)?.path();
            if file.extension().is_some_and(|ending| ending == "pt" || ending == "safetensors") {
                found.push(file);
            }
        }
        ensure!(
            !found.is_empty(),
            "{}: the folder holds no file whose name ends in .pt or .safetensors; name the folder of role vectors",
            path.display()
        );
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// Returns a text of the file's origin.
fn text<'a>(file: &'a CapFile, key: &str) -> Option<&'a str> {
    match file.origin.get(key) {
        Some(Origin::String(text)) => Some(text),
        _ => None,
    }
}

fn caps(file: &CapFile) -> Vec<Value> {
    let finite = |bound: f32| bound.is_finite().then_some(bound);
    let cap = |entry: &axiscap::BlockCap| {
        let bound = entry.cap.bound();
        json!({
            "block": entry.block,
            "floor": finite(bound.lo()),
            "ceiling": finite(bound.hi()),
            "norm": entry.cap.axis().norm(),
        })
    };
    file.caps.caps().iter().map(cap).collect()
}

fn blocks(file: &CapFile) -> String {
    ranges(file.caps.caps().iter().map(|entry| entry.block).collect())
}

/// Prints what is in a file.
fn list(description: &Description, json: bool) -> Result<()> {
    let Description { format, experiments, vectors, .. } = description;
    if json {
        let experiments: Vec<_> = experiments
            .iter()
            .map(|line| json!({ "id": line.id, "layers": line.layers, "upper_bounds": line.upper_bounds }))
            .collect();
        let vectors: Vec<_> = vectors
            .iter()
            .map(|line| {
                json!({
                    "name": line.name,
                    "layer": line.layer,
                    "width": line.width,
                    "element_type": line.element_type,
                    "norm": line.norm.is_finite().then_some(line.norm),
                })
            })
            .collect();
        return output::json(&json!({
            "format": format.name(), "experiments": experiments, "vectors": vectors,
        }));
    }
    let mut text = format!("format: {}\n", format.name());
    if !experiments.is_empty() {
        text += &format!("\n{:<32} {:>5}  layers\n", "experiment", "caps");
    }
    for line in experiments {
        let range = ranges(line.layers.clone());
        text += &format!("{:<32} {:>5}  {range}\n", printable(&line.id), line.upper_bounds.len());
    }
    text += &format!("\n{:>5} {:>6} {:>9} {:>12}  vector\n", "layer", "width", "type", "norm");
    for line in vectors {
        let layer = line.layer.map_or("-".into(), |layer| layer.to_string());
        let name = line.name.as_deref().map(printable).unwrap_or_default();
        text +=
            &format!("{layer:>5} {:>6} {:>9} {:>12.4}  {name}\n", line.width, line.element_type, line.norm);
    }
    output::text(&text)
}

#[cfg(test)]
mod tests {
    use super::layers;

    #[test]
    fn layers_are_inclusive_or_a_slice() {
        assert_eq!(layers("46"), Ok(46..47));
        assert_eq!(layers("46-53"), Ok(46..54));
        assert_eq!(layers("46:54"), Ok(46..54));
        for wrong in ["", "5-4", "4:4", "a", "-1", "1-", "1-2-3", "99999999999"] {
            assert!(layers(wrong).is_err(), "{wrong}");
        }
    }
}
