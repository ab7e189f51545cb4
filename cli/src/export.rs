//! `axiscap export`: cap files for other tools.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use axiscap::file::CapFile;
use axiscap_lab::import::export;
use axiscap_lab::output::write_atomically;
use clap::ValueEnum;
use serde_json::json;

use crate::output::{self, counted};

/// Write caps or axes in a format of other tools.
///
/// A control vector holds the axes alone, for llama.cpp and repeng: it steers, and caps nothing. safetensors
/// hold all that the caps say.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  axiscap export caps.gguf --out caps.safetensors
  axiscap export caps.gguf --to control-vector --out vector.gguf")]
pub(crate) struct Args {
    /// The cap file or file of axes
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to write
    #[arg(long, short = 'o', value_name = "FILE")]
    out: PathBuf,
    /// The format [default: by the ending of --out: .safetensors, or .gguf for a control vector]
    #[arg(long, value_name = "FORMAT", value_enum)]
    to: Option<Format>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A format of other tools.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// llama.cpp's and repeng's GGUF: one direction per block, without bounds
    ControlVector,
    /// Axes, blocks, bounds, strengths and norms, as tensors
    Safetensors,
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, caps that the format cannot hold.
pub(crate) fn run(args: Args) -> Result<()> {
    let format = match (args.to, args.out.extension().and_then(|ending| ending.to_str())) {
        (Some(format), _) => format,
        (None, Some("safetensors")) => Format::Safetensors,
        (None, Some("gguf")) => Format::ControlVector,
        _ => bail!(
            "{}: the name does not say the format; end it with .safetensors or .gguf, or name the format with --to",
            args.out.display()
        ),
    };
    let file = CapFile::read(&args.file)?;
    let (bytes, name) = match format {
        Format::ControlVector => (export::control_vector(&file), "control vector"),
        Format::Safetensors => (export::safetensors(&file), "safetensors"),
    };
    let bytes = bytes.map_err(|error| error.in_file(&args.file))?;
    warn(&args.file, &file, format);
    write_atomically(&args.out, |out| out.write_all(&bytes))?;
    let (out, count) = (args.out.display().to_string(), file.caps.caps().len());
    if args.json {
        return output::json(&json!({ "out": out, "format": name, "caps": count, "bytes": bytes.len() }));
    }
    output::text(&format!("{out}: {} as {name}\n", counted(count, "cap")))
}

/// Says what the format leaves out.
fn warn(path: &Path, file: &CapFile, format: Format) {
    let bounded = !file.is_unbounded();
    let skips = file.caps.policy().skip_positions > 0;
    let lost = match (format, bounded, skips) {
        (Format::ControlVector, true, true) => "bounds, or positions that caps leave alone",
        (Format::ControlVector, true, false) => "bounds",
        (_, _, true) => "positions that caps leave alone",
        _ => return,
    };
    output::warning(&format!(
        "{}: the format has no place for {lost}, and they are left out",
        path.display()
    ));
}
