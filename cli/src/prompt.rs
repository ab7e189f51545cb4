//! The options that give the prompt.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::input;

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
                let file = File::open(path).with_context(|| {
                    format!("cannot read the prompt file {}; check the path and the rights", path.display())
                })?;
                let source = format!("the prompt from {}", path.display());
                input::utf8(input::all(file, &source)?, &source)
            }
            _ => {
                let source = "the prompt from stdin";
                input::utf8(input::all(std::io::stdin().lock(), source)?, source)
            }
        }
    }
}
