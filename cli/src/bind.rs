//! `axiscap bind`: the fingerprint of a model, written into a cap file that exists.

use std::path::PathBuf;

use anyhow::{Result, bail};
use axiscap::file::{CapFile, ModelInfo, Warning};
use axiscap_lab::output::write_caps;
use axiscap_llama::Fingerprint as ModelFingerprint;
use serde_json::json;

use crate::fingerprint::Fingerprint;
use crate::output;

/// Write into a cap file which model it is for: name and digests of the norm weights.
///
/// Norm weights are the same in every quantisation of a model. With their digests, caps are known to belong
/// to a model whatever its file is called. `axiscap extract` and `calibrate` write them already. The caps
/// themselves are not changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  axiscap bind --model model.gguf --caps caps.gguf
  axiscap inspect caps.gguf")]
pub(crate) struct Args {
    /// The model that the caps were made for, a GGUF file; of a split model any of its files. Its weights are
    /// not loaded
    #[arg(long, short = 'm', value_name = "FILE", env = "AXISCAP_MODEL")]
    model: PathBuf,

    /// The cap file or file of axes
    #[arg(long = "caps", id = "changed_caps", value_name = "FILE")]
    caps: PathBuf,

    /// The file to write [default: the cap file itself]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Bind caps that were bound to a model with other norm weights
    #[arg(long)]
    force: bool,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// Unreadable files, caps of another model's shape, caps that are bound to other norm weights.
pub(crate) fn run(args: Args) -> Result<()> {
    let mut file = CapFile::read(&args.caps)?;
    let ModelFingerprint { mut model, width, .. } = ModelFingerprint::read(&args.model)?;
    let warnings = check(&args, &file, &model, width)?;
    // Floors belong to the quantisation that they were measured on, whichever file the norms are read from.
    model.file_type = file.model.file_type.or(model.file_type);
    for warning in &warnings {
        output::warning(warning);
    }
    let is_changed = file.model != model;
    file.model = model.clone();
    let out = args.out.as_ref().unwrap_or(&args.caps);
    if is_changed || args.out.is_some() {
        write_caps(out, &file)?;
    }
    let fingerprint = Fingerprint::new(model, width);
    if args.json {
        let report = json!({
            "out": out.display().to_string(),
            "changed": is_changed,
            "width": width,
            "model": fingerprint,
            "warnings": warnings,
        });
        return output::json(&report);
    }
    let bound = if is_changed { "bound to" } else { "was bound already to" };
    let norms = fingerprint.norms_in_words().map_or(String::new(), |norms| format!("norms: {norms}\n"));
    output::text(&format!("{} {bound} {fingerprint}\n{norms}", out.display()))
}

/// Refuses caps of another model. Returns what the user should know.
fn check(args: &Args, file: &CapFile, model: &ModelInfo, width: usize) -> Result<Vec<String>> {
    let place = args.caps.display();
    let fits = file.check_model(&model.architecture, width, model.blocks);
    let mut found = fits.map_err(|error| error.in_file(&args.caps))?;
    found.extend(file.check_fingerprint(model));
    let mut warnings: Vec<_> =
        found.iter().chain(file.warnings()).map(|warning| format!("{place}: {warning}")).collect();
    if model.norms.is_empty() {
        warnings.push(format!(
            "{}: the model has no norm weights of F32, so the file tells it from others by its name alone",
            args.model.display()
        ));
    }
    let is_other = found.iter().any(|warning| matches!(warning, Warning::OtherWeights { .. }));
    let knows = |tensor: &str| model.norms.iter().any(|norm| norm.tensor == tensor);
    let is_comparable =
        file.model.norms.is_empty() || file.model.norms.iter().any(|norm| knows(&norm.tensor));
    if (is_other || !is_comparable) && !args.force {
        let name = file.model.name.as_ref().map_or(String::new(), |name| format!(" ({name:?})"));
        bail!(
            "{place}: these caps are bound to a model{name} with other norm weights than {}: caps work only on the model they were made for; give that model, or caps that were made for this one (--force binds these all the same)",
            args.model.display()
        );
    }
    Ok(warnings)
}
