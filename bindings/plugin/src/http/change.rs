//! Changes of the caps: what a request asks for, and how it takes effect.

use std::path::PathBuf;

use axiscap_ggml::{ReplaceError, Replaced};
use serde_json::{Value, json};

use super::control::{Control, Origin};
use super::response::Response;
use crate::caps;

/// What a request asks for. What it does not name stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Change {
    pub(crate) files: Option<Vec<PathBuf>>,
    /// `Some(None)` stands for the strengths of the files.
    pub(crate) strength: Option<Option<f32>>,
    pub(crate) enabled: Option<bool>,
}

impl Change {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// The reason why it asks for nothing that can be done.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
        let Value::Object(fields) = value else { return Err("expected a JSON object".into()) };
        if fields.is_empty() {
            return Err("nothing to change; name file, files, strength or enabled".into());
        }
        if fields.contains_key("file") && fields.contains_key("files") {
            return Err("file and files exclude each other".into());
        }
        let mut change = Self::default();
        for (name, value) in &fields {
            match &**name {
                "file" => {
                    let file = path(value).ok_or("file: expected the path of a cap file")?;
                    change.files = Some(vec![file]);
                }
                "files" => {
                    let list = value.as_array().filter(|list| !list.is_empty());
                    let files = list.and_then(|list| list.iter().map(path).collect::<Option<Vec<_>>>());
                    change.files = Some(files.ok_or("files: expected a list of paths of cap files")?);
                }
                "strength" => {
                    let number = value.as_f64().map(|number| number as f32);
                    let number = number.filter(|strength| (0.0..=1.0).contains(strength));
                    if number.is_none() && !value.is_null() {
                        return Err(
                            "strength: expected a number from 0 to 1, or null for those of the files".into(),
                        );
                    }
                    change.strength = Some(number);
                }
                "enabled" => {
                    change.enabled = Some(value.as_bool().ok_or("enabled: expected true or false")?);
                }
                other => {
                    return Err(format!(
                        "{other:?} is not known; there are file, files, strength and enabled"
                    ));
                }
            }
        }
        Ok(change)
    }
}

fn path(value: &Value) -> Option<PathBuf> {
    value.as_str().filter(|path| !path.is_empty() && !path.contains('\0')).map(Into::into)
}

/// Has a change take effect, or leaves all as it is and answers with the reason.
pub(crate) fn apply(control: &Control, change: Change) -> Response {
    let mut origin = control.origin();
    let before = control.capping.in_force();
    let next = match changed(&origin, change.files, change.strength) {
        Ok(next) => next,
        Err(reason) => return refuse(422, &reason),
    };
    let enabled = change.enabled.unwrap_or(before.enabled);
    let models = match caps::with_strength(&next.models, next.strength) {
        Ok(models) => models,
        Err(error) => return refuse(422, &error.to_string()),
    };
    match control.capping.replace(models, enabled) {
        Ok(replaced) => {
            log(before.enabled, enabled, &replaced, &next);
            let answer = describe(&replaced, enabled, &next);
            *origin = next;
            Response::json(200, &answer)
        }
        Err(error @ ReplaceError::Caps(_)) => refuse(422, &error.to_string()),
        Err(error) => refuse(409, &error.to_string()),
    }
}

fn refuse(status: u16, reason: &str) -> Response {
    tracing::warn!("a change of the caps was refused: {reason}");
    Response::error(status, &format!("{reason}; the caps stay as they were"))
}

/// Reads the caps that a change leads to.
fn changed(
    origin: &Origin,
    files: Option<Vec<PathBuf>>,
    strength: Option<Option<f32>>,
) -> Result<Origin, String> {
    let mut next = origin.clone();
    if let Some(files) = files {
        next.models = caps::read(&files).map_err(|error| error.to_string())?;
        next.files = files;
    }
    next.strength = strength.unwrap_or(next.strength);
    Ok(next)
}

fn log(before: bool, enabled: bool, replaced: &Replaced, next: &Origin) {
    let (generation, contexts) = (replaced.generation, replaced.contexts.len());
    let files: Vec<_> = next.files.iter().map(|file| file.display().to_string()).collect();
    let strength = next.strength.map_or_else(String::new, |strength| format!(" at strength {strength}"));
    tracing::info!(
        "caps were replaced over HTTP: generation {generation}, {}{strength}, in {contexts} contexts",
        files.join(", ")
    );
    match (before, enabled) {
        (_, false) => {
            tracing::warn!("caps are switched off over HTTP: nothing is capped until they are on again")
        }
        (false, true) => tracing::info!("caps are switched on again over HTTP"),
        (true, true) => {}
    }
}

const KV_CACHE: &str = "Rows that are in the KV cache stay as they were computed, and later rows attend to them. \
    To have no such rows, erase the slots of the server (POST /slots/N?action=erase), restart it, or send requests \
    with \"cache_prompt\": false.";

fn describe(replaced: &Replaced, enabled: bool, next: &Origin) -> Value {
    let generation = replaced.generation;
    let contexts: Vec<_> = replaced
        .contexts
        .iter()
        .map(|context| {
            json!({
                "id": context.id,
                "caps_before": context.before,
                "caps": context.after,
                "kv_cache": format!("rows of generations before {generation} are kept"),
            })
        })
        .collect();
    json!({
        "generation": generation,
        "enabled": enabled,
        "files": next.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        "strength": next.strength.map(super::caps::number),
        "contexts": contexts,
        "kv_cache": KV_CACHE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_it_changes() {
        let parse = |text: &str| Change::parse(text.as_bytes());
        let all = parse(r#"{ "file": "/a.gguf", "strength": 0.5, "enabled": false }"#).unwrap();
        let files = Some(vec!["/a.gguf".into()]);
        assert_eq!(all, Change { files, strength: Some(Some(0.5)), enabled: Some(false) });
        let files = parse(r#"{"files":["a","b c"]}"#).unwrap();
        assert_eq!(files, Change { files: Some(vec!["a".into(), "b c".into()]), ..Change::default() });
        for (text, strength) in [("0", Some(0.0)), ("1", Some(1.0)), ("null", None)] {
            let change = parse(&format!(r#"{{"strength":{text}}}"#)).unwrap();
            assert_eq!(change.strength, Some(strength));
        }
        for (wrong, reason) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("{} x", "no JSON"),
            ("[]", "expected a JSON object"),
            ("null", "expected a JSON object"),
            ("{}", "nothing to change"),
            (r#"{"strenght":1}"#, "\"strenght\" is not known"),
            (r#"{"strength":1.01}"#, "from 0 to 1"),
            (r#"{"strength":-1e-9}"#, "from 0 to 1"),
            (r#"{"strength":"1"}"#, "from 0 to 1"),
            (r#"{"strength":true}"#, "from 0 to 1"),
            (r#"{"enabled":1}"#, "expected true or false"),
            (r#"{"enabled":null}"#, "expected true or false"),
            (r#"{"file":""}"#, "expected the path"),
            (r#"{"file":7}"#, "expected the path"),
            (r#"{"file":"a\u0000b"}"#, "expected the path"),
            (r#"{"files":[]}"#, "expected a list"),
            (r#"{"files":"a"}"#, "expected a list"),
            (r#"{"files":["a",1]}"#, "expected a list"),
            (r#"{"file":"a","files":["b"]}"#, "exclude each other"),
        ] {
            let found = parse(wrong).unwrap_err();
            assert!(found.contains(reason), "{wrong}: {found}");
        }
        let deep = [b"[".repeat(60_000), b"]".repeat(60_000)].concat();
        assert!(Change::parse(&deep).unwrap_err().contains("no JSON"));
    }
}
