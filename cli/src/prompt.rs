//! The options that give the prompt.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;

/// The prompt: on the command line, in a file, or on stdin.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PromptArgs {
    /// The prompt; `-` reads it from stdin, without the last line break (with --raw it is kept)
    #[arg(long, short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file that holds the prompt; `-` is stdin. The last line break is left out (with --raw it is kept)
    #[arg(long, short = 'f', visible_alias = "file", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

impl PromptArgs {
    /// Returns the prompt's file, if it is in one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.prompt_file.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// Returns the prompt's text, without the line break that editors and `echo` put at the end. A `raw` text
    /// keeps it.
    pub(crate) fn read(&self, raw: bool) -> Result<String> {
        let mut text = self.text()?;
        let is_given = self.prompt.as_ref().is_some_and(|text| text != "-");
        if !raw && !is_given && text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }

    fn text(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) if text != "-" => Ok(text.clone()),
            (None, Some(path)) if path != Path::new("-") => {
                let bytes = fs::read(path).with_context(|| {
                    format!("cannot read the prompt file {}; check the path and the rights", path.display())
                })?;
                utf8(bytes, &path.display().to_string())
            }
            _ => {
                let mut bytes = Vec::new();
                std::io::stdin()
                    .lock()
                    .read_to_end(&mut bytes)
                    .context("cannot read the prompt from stdin")?;
                utf8(bytes, "stdin")
            }
        }
    }
}

fn utf8(bytes: Vec<u8>, source: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow!(
            "the prompt from {source} is not UTF-8: byte {offset} begins no character; convert it to UTF-8"
        )
    })
}
