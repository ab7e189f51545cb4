//! What the environment asks for.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use axiscap_ggml::RouteChoice;
use tracing::level_filters::LevelFilter;

use crate::http::{Address, EXPECTED};
use crate::profiles::{self, SlotsProfile};

/// The variables, by what they say.
pub(crate) const CAPS: &str = "AXISCAP_CAPS";
const STRENGTH: &str = "AXISCAP_STRENGTH";
pub(crate) const PROFILES: &str = "AXISCAP_PROFILES";
pub(crate) const STRICT: &str = "AXISCAP_STRICT";
const ENGINE: &str = "AXISCAP_ENGINE";
const LOG: &str = "AXISCAP_LOG";
const REPORT: &str = "AXISCAP_REPORT";
const GGML: &str = "AXISCAP_GGML";
pub(crate) const LISTEN: &str = "AXISCAP_LISTEN";
/// Variables of the project's that say nothing to the plugin.
const OTHERS: [&str; 2] = ["AXISCAP_PLUGIN", "AXISCAP_CUDA_ARCHS"];

/// What happens after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strict {
    /// The process ends.
    Abort,
    /// The fault is logged and counted.
    Warn,
}

/// The settings that the environment holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Environment {
    /// Cap files, or folders of them.
    pub(crate) caps: Vec<PathBuf>,
    /// The profiles of slots.
    pub(crate) profiles: Vec<SlotsProfile>,
    /// Strength in the place of that of each cap.
    pub(crate) strength: Option<f32>,
    pub(crate) strict: Strict,
    pub(crate) engine: RouteChoice,
    pub(crate) log: LevelFilter,
    /// The socket of the launcher.
    pub(crate) report: Option<PathBuf>,
    /// The library that has ggml's functions.
    pub(crate) ggml: Option<PathBuf>,
    /// Where metrics and caps are served.
    pub(crate) listen: Option<Address>,
    /// Variables with the prefix that are not known.
    pub(crate) unknown: Vec<String>,
}

/// A variable with a wrong value.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{name}={found:?}: {expected}")]
pub(crate) struct WrongValue {
    name: &'static str,
    found: OsString,
    expected: &'static str,
}

impl Environment {
    /// Reads the environment of the process. What is right of it comes with the first wrong value.
    pub(crate) fn read() -> (Self, Option<WrongValue>) {
        Self::of(env::vars_os())
    }

    fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> (Self, Option<WrongValue>) {
        let mut environment = Self {
            caps: Vec::new(),
            profiles: Vec::new(),
            strength: None,
            strict: Strict::Abort,
            engine: RouteChoice::Auto,
            log: LevelFilter::INFO,
            report: None,
            ggml: None,
            listen: None,
            unknown: Vec::new(),
        };
        let mut wrong = None;
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with("AXISCAP_")) else { continue };
            if let Err((name, expected)) = environment.set(name, &value) {
                wrong.get_or_insert(WrongValue { name, found: value, expected });
            }
        }
        environment.unknown.sort();
        (environment, wrong)
    }

    /// Sets one variable. The error is its name and what was expected.
    fn set(&mut self, name: &str, value: &OsString) -> Result<(), (&'static str, &'static str)> {
        let text = value.to_str().unwrap_or_default();
        match name {
            CAPS => {
                self.caps = env::split_paths(value).filter(|path| !path.as_os_str().is_empty()).collect();
                if self.caps.is_empty() {
                    return Err((CAPS, "expected cap files or folders of them, separated as in PATH"));
                }
            }
            STRENGTH => {
                let strength = text.parse().ok().filter(|strength| (0.0..=1.0).contains(strength));
                self.strength = Some(strength.ok_or((STRENGTH, "expected a number from 0 to 1"))?);
            }
            PROFILES => {
                self.profiles = profiles::parse(value).ok_or((PROFILES, profiles::EXPECTED))?;
            }
            STRICT => {
                self.strict = match text {
                    "abort" => Strict::Abort,
                    "warn" => Strict::Warn,
                    _ => return Err((STRICT, "expected abort or warn")),
                }
            }
            ENGINE => {
                self.engine = match text {
                    "auto" => RouteChoice::Auto,
                    "inserted" => RouteChoice::Inserted,
                    "views" => RouteChoice::Views,
                    "one-graph" => RouteChoice::OneGraph,
                    _ => return Err((ENGINE, "expected auto, inserted, views or one-graph")),
                }
            }
            LOG => {
                self.log = match text {
                    "error" => LevelFilter::ERROR,
                    "warn" => LevelFilter::WARN,
                    "info" => LevelFilter::INFO,
                    "debug" => LevelFilter::DEBUG,
                    _ => return Err((LOG, "expected error, warn, info or debug")),
                }
            }
            REPORT => self.report = Some(value.into()),
            GGML => self.ggml = Some(value.into()),
            LISTEN => self.listen = Some(Address::parse(value).ok_or((LISTEN, EXPECTED))?),
            other if OTHERS.contains(&other) || other.starts_with("AXISCAP_TEST_") => {}
            other => self.unknown.push(other.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> (Environment, Option<WrongValue>) {
        Environment::of(variables.iter().map(|&(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn each_variable_sets_what_it_says() {
        let (environment, wrong) = of(&[
            (CAPS, "/a.gguf:/b c:"),
            (STRENGTH, "0.5"),
            (PROFILES, "0-1=none,2=/b.gguf"),
            (STRICT, "warn"),
            (ENGINE, "one-graph"),
            (LOG, "debug"),
            (REPORT, "/run/report"),
            (GGML, "/lib/libggml.so"),
            (LISTEN, "unix:/run/http"),
            ("AXISCAP_STRENGHT", "1"),
            ("AXISCAP_PLUGIN", "/x"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(wrong, None);
        assert_eq!(environment.caps, [PathBuf::from("/a.gguf"), PathBuf::from("/b c")]);
        assert_eq!(environment.profiles.len(), 2);
        assert_eq!((environment.strength, environment.strict), (Some(0.5), Strict::Warn));
        assert_eq!((environment.engine, environment.log), (RouteChoice::OneGraph, LevelFilter::DEBUG));
        assert_eq!(environment.report, Some("/run/report".into()));
        assert_eq!(environment.ggml, Some("/lib/libggml.so".into()));
        assert_eq!(environment.listen, Some(Address::Unix("/run/http".into())));
        assert_eq!(environment.unknown, ["AXISCAP_STRENGHT"]);
        let (nothing, wrong) = of(&[("HOME", "/")]);
        assert_eq!((wrong, nothing.caps.len(), nothing.strict), (None, 0, Strict::Abort));
    }

    #[test]
    fn a_wrong_value_is_named_with_what_was_expected() {
        for (name, value) in [
            (CAPS, ""),
            (CAPS, ":"),
            (STRENGTH, ""),
            (STRENGTH, "1.5"),
            (STRENGTH, "-0.1"),
            (STRENGTH, "nan"),
            (STRENGTH, "1,0"),
            (PROFILES, ""),
            (PROFILES, "0"),
            (STRICT, "yes"),
            (STRICT, "Abort"),
            (ENGINE, "fast"),
            (LOG, "verbose"),
            (LISTEN, ""),
            (LISTEN, "0.0.0.0:8181"),
            (LISTEN, "8181"),
        ] {
            let (environment, wrong) = of(&[(name, value)]);
            let text = wrong.expect("a wrong value").to_string();
            assert!(text.starts_with(&format!("{name}={value:?}: expected ")), "{text}");
            assert_eq!(environment.strict, Strict::Abort);
        }
    }
}
