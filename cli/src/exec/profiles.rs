//! The profiles of slots, read before anything is started.

use std::ffi::OsString;
use std::path::{Path, absolute};

use anyhow::{Context as _, Result, bail, ensure};

use super::caps;

/// The loader's list of libraries that come before all others.
pub(super) const PRELOAD: &str = "LD_PRELOAD";

/// Reads the cap files of profiles, and returns the profiles with absolute paths. The plugin reads the slots.
///
/// # Errors
/// An entry that is none, and those of [`caps::check`].
pub(super) fn check(profiles: &str) -> Result<String> {
    let entries = profiles.split(',').map(|entry| {
        let parts = entry.split_once('=').filter(|(slots, profile)| !slots.is_empty() && !profile.is_empty());
        let Some((slots, profile)) = parts else {
            bail!(
                "--profiles {profiles:?}: expected SLOT=PROFILE or FIRST-LAST=PROFILE, separated by commas, where PROFILE is default, none or a cap file"
            );
        };
        if matches!(profile, "default" | "none") {
            return Ok(entry.to_owned());
        }
        caps::check(&[profile.into()])?;
        let path = absolute(profile).context("cannot tell where the caps are")?;
        let path = path.to_str().with_context(|| format!("{}: the path is not UTF-8", path.display()))?;
        ensure!(!path.contains(','), "{path}: the path of a profile's caps holds a comma; name it by another path");
        Ok(format!("{slots}={path}"))
    });
    Ok(entries.collect::<Result<Vec<_>>>()?.join(","))
}

/// Returns the loader's list with the plugin before what is in it.
///
/// # Errors
/// A path that the loader would take for several.
pub(super) fn preload(plugin: &Path, before: Option<OsString>) -> Result<OsString> {
    let mut list = plugin.as_os_str().to_owned();
    let text = list.to_string_lossy();
    ensure!(
        !text.contains([' ', ':']),
        "{text}: with --profiles the plugin is loaded by {PRELOAD}, and its path must hold no space and no colon; copy it elsewhere"
    );
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        list.push(":");
        list.push(before);
    }
    Ok(list)
}
