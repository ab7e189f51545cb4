//! The options of chat templates.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use axiscap_lab::rollout::RolloutHeader;
use axiscap_llama::{ChatTemplate, Model, TemplateNote, TemplateOptions, TemplateSource};
use clap::Args;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{input, output};

/// How conversations are written: by default as llama.cpp's server does it.
#[derive(Debug, Clone, Args)]
pub(crate) struct TemplateArgs {
    /// A template in place of the model's own: its text in Jinja, or a name that llama.cpp knows (chatml,
    /// llama3, ...)
    #[arg(long, value_name = "NAME|JINJA", conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// A file with a template in Jinja in place of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// Variables of the template, as a JSON object, e.g. '{"reasoning_effort": "low"}'
    #[arg(long, value_name = "JSON", value_parser = variables)]
    chat_template_kwargs: Option<Variables>,
    /// Whether the model thinks before it answers, if its template can tell it so (`enable_thinking`)
    #[arg(long, visible_alias = "reasoning", value_name = "on|off", value_parser = switch)]
    thinking: Option<bool>,
    /// System prompt of conversations that have none. An empty one keeps the template from adding its own
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    default_system: Option<String>,
    /// The date that the template writes, if it does so [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    template_date: Option<String>,
}

/// The ids of these options, for those that exclude them.
pub(crate) const IDS: [&str; 6] = [
    "chat_template",
    "chat_template_file",
    "chat_template_kwargs",
    "thinking",
    "default_system",
    "template_date",
];

/// Variables, as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variables(Map<String, Value>);

fn variables(text: &str) -> Result<Variables, String> {
    serde_json::from_str(text)
        .map(Variables)
        .map_err(|error| format!("expected a JSON object such as {{\"name\": true}}: {error}"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

impl TemplateArgs {
    /// Returns the options, with the template that a file holds.
    pub(crate) fn options(&self) -> Result<TemplateOptions> {
        let source = match (&self.chat_template_file, &self.chat_template) {
            (Some(path), _) => {
                let text = input::text_file(path)?;
                if text.trim().is_empty() {
                    return Err(anyhow!("{}: the file holds no chat template", path.display()));
                }
                TemplateSource::Jinja(text)
            }
            (None, Some(text)) => TemplateSource::of(text),
            (None, None) => TemplateSource::Model,
        };
        Ok(TemplateOptions {
            source,
            default_system: self.default_system.clone(),
            thinking: self.thinking,
            variables: self.chat_template_kwargs.clone().map(|given| given.0).unwrap_or_default(),
            date: self.template_date.clone(),
        })
    }

    /// Returns the option that names the template.
    pub(crate) fn flag(&self) -> &'static str {
        if self.chat_template_file.is_some() { "--chat-template-file" } else { "--chat-template" }
    }

    /// Prepares the template for a model, and says what the user should know about it.
    pub(crate) fn prepare<'m>(&self, model: &'m Model) -> Result<ChatTemplate<'m>> {
        let template = model.chat_template(&self.options()?)?;
        say(&template);
        Ok(template)
    }
}

/// Says what the user should know about a template.
pub(crate) fn say(template: &ChatTemplate<'_>) {
    for note in template.notes() {
        match note {
            TemplateNote::Recognised { .. } | TemplateNote::NoThinking => output::warning(&note.to_string()),
            // It is the case wherever such a model is served.
            _ => tracing::info!("{note}"),
        }
    }
}

/// Returns what a file of answers says about where their template came from: nothing for the model's own.
pub(crate) fn name(source: &TemplateSource) -> Option<String> {
    match source {
        TemplateSource::Model => None,
        TemplateSource::Named(name) => Some(name.clone()),
        TemplateSource::Jinja(text) => Some(format!("sha256:{:x}", Sha256::digest(text))),
    }
}

/// Returns the word for a switch.
pub(crate) fn switched(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Returns the options that answers were made with, for the origin of a file. Those with several words are in
/// quotes.
pub(crate) fn words(header: &RolloutHeader) -> String {
    let mut words = String::new();
    if let Some(name) = &header.chat_template {
        words += &format!(" --chat-template {name}");
    }
    if let Some(text) = &header.default_system {
        words += &format!(" --default-system {text:?}");
    }
    if let Some(thinking) = header.thinking {
        words += &format!(" --thinking {}", switched(thinking));
    }
    if !header.template_variables.is_empty() {
        words += &format!(" --chat-template-kwargs '{}'", Value::Object(header.template_variables.clone()));
    }
    if let Some(date) = &header.template_date {
        words += &format!(" --template-date {date}");
    }
    words
}
