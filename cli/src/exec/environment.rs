//! The environment variables from which the host takes the plugin, and the plugin its settings.

use std::env::join_paths;
use std::ffi::{OsStr, OsString};
use std::path::{Path, absolute};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::Args;
use super::plugin::BACKEND_PATH;
use super::profiles;

/// Returns the variables of the host. Paths are absolute, because the host may change its folder.
///
/// # Errors
/// A path of caps with a colon in it, and those of the profiles.
pub(super) fn variables(args: &Args, plugin: &Path, socket: &Path) -> Result<Vec<(&'static str, OsString)>> {
    let caps = args.caps.iter().map(absolute).collect::<Result<Vec<_>, _>>();
    let caps = caps.context("cannot tell where the caps are")?;
    let caps = join_paths(caps).context("the path of a cap file holds a colon; name it by another path")?;
    let socket = absolute(socket).context("cannot tell where the socket is")?;
    let mut variables = vec![
        (BACKEND_PATH, plugin.into()),
        ("AXISCAP_CAPS", caps),
        ("AXISCAP_REPORT", socket.into()),
        ("AXISCAP_STRICT", word(args.strict)),
    ];
    if let Some(strength) = args.strength {
        variables.push(("AXISCAP_STRENGTH", strength.to_string().into()));
    }
    if let Some(profiles) = &args.profiles {
        variables.push(("AXISCAP_PROFILES", profiles::check(profiles)?.into()));
        let before = std::env::var_os(profiles::PRELOAD);
        variables.push((profiles::PRELOAD, profiles::preload(plugin, before)?));
    }
    if let Some(engine) = args.engine {
        variables.push(("AXISCAP_ENGINE", word(engine)));
    }
    if let Some(level) = args.log {
        variables.push(("AXISCAP_LOG", word(level)));
    }
    Ok(variables)
}

/// Returns a value as it is written on the command line.
fn word(value: impl ValueEnum) -> OsString {
    value.to_possible_value().map_or_else(OsString::new, |value| OsStr::new(value.get_name()).to_owned())
}
