//! Where the plugin is.

use std::env;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context as _, Result, bail, ensure};

/// The plugin's file name. ggml's backends end in `.so` on every Unix.
const NAME: &str = "libggml-axiscap.so";
/// The variable that names a file for ggml to load.
pub(super) const BACKEND_PATH: &str = "GGML_BACKEND_PATH";

/// Returns the plugin's path: the one given, or else that of the file beside this program or in `../lib`.
///
/// # Errors
/// No plugin is there, or ggml is to load another file.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf> {
    let plugin = match given {
        Some(path) => {
            ensure!(
                path.is_file(),
                "the plugin {} is not there, or is no file; name {NAME} with --plugin",
                path.display()
            );
            path.to_owned()
        }
        None => beside(&env::current_exe().context("cannot tell where this program is")?)?,
    };
    let plugin = absolute(&plugin).with_context(|| format!("cannot tell where {} is", plugin.display()))?;
    match env::var_os(BACKEND_PATH).filter(|path| !path.is_empty()).map(PathBuf::from) {
        Some(other) if !is_same(&other, &plugin) => bail!(
            "{BACKEND_PATH} names {}, and llama.cpp loads one file from it: the plugin {} would not be loaded; unset {BACKEND_PATH}",
            other.display(),
            plugin.display()
        ),
        _ => Ok(plugin),
    }
}

fn beside(program: &Path) -> Result<PathBuf> {
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(NAME), folder.join("../lib").join(NAME)];
    if let Some(found) = places.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    bail!(
        "{NAME} is neither in {} nor in ../lib beside it; build it with scripts/build-plugin of axiscap's sources, and put it there, or name it with --plugin",
        folder.display()
    )
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_beside_the_program_or_in_the_folder_of_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "lib"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let error = beside(&at("bin/axiscap")).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains("scripts/build-plugin"), "{error}");
        std::fs::write(at("lib").join(NAME), "").unwrap();
        assert!(is_same(&beside(&at("bin/axiscap")).unwrap(), &at("lib").join(NAME)));
        std::fs::write(at("bin").join(NAME), "").unwrap();
        assert_eq!(beside(&at("bin/axiscap")).unwrap(), at("bin").join(NAME));
    }
}
