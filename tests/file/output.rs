//! `CapFile::write` writes a file whole or not at all.

use std::fs;
use std::path::Path;

use axiscap::file::{CapFile, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

const OLD: &[u8] = b"the former content";

fn file(width: usize) -> CapFile {
    let axis = Axis::from_direction(&vec![1.0; width]).unwrap();
    let caps = [BlockCap { block: 1, cap: Cap::new(axis, Bound::NONE) }];
    CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 2))
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_made_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for width in [8, 300, 1] {
        file(width).write(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), file(width).to_bytes().unwrap());
        assert_eq!(entries(folder.path()), ["file"]);
    }
}

#[test]
fn paths_that_cannot_be_written_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| file(8).write(path).unwrap_err().to_string();
    let message = refused(&folder.path().join("absent/file"));
    assert!(message.contains("absent/file") && message.contains("folder"), "{message}");
    let message = refused(folder.path());
    assert!(message.contains("name a file, not a folder"), "{message}");
    fs::write(folder.path().join("file"), OLD).unwrap();
    let message = refused(&folder.path().join("file/x"));
    assert!(message.contains("is a file, not a folder"), "{message}");
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), OLD);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    #[test]
    fn links_are_followed_and_permissions_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let new = file(8).to_bytes().unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("elsewhere/target"), OLD).unwrap();
        fs::set_permissions(at("elsewhere/target"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("elsewhere/target", at("link")).unwrap();
        symlink("elsewhere/new", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for (link, target) in [("link", "elsewhere/target"), ("dangling", "elsewhere/new")] {
            file(8).write(&at(link)).unwrap();
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink());
            assert_eq!(fs::read(at(target)).unwrap(), new);
        }
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("elsewhere/target"), 0o640);
        fs::write(at("usual"), &new).unwrap();
        assert_eq!(mode("elsewhere/new"), mode("usual"));
        assert!(file(8).write(&at("circle")).is_err());
        assert_eq!(entries(&at("elsewhere")), ["new", "target"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_and_not_replaced() {
        let error = file(8).write("/dev/full".as_ref()).unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        file(8).write("/dev/null".as_ref()).unwrap();
        for device in ["/dev/full", "/dev/null"] {
            assert!(fs::metadata(device).unwrap().file_type().is_char_device());
        }
    }

    /// A file system that is really full, if one can be mounted in a new user and mount namespace.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_file_system_keeps_the_old_file() {
        const FOLDER: &str = "AXISCAP_TEST_FULL_FOLDER";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = Path::new(&folder).join("file");
            let old = file(10 << 10);
            old.write(&path).unwrap();
            let error = file((10 << 10) + 1).write(&path).unwrap_err();
            assert!(error.to_string().contains("free some space"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), old.to_bytes().unwrap());
            assert_eq!(entries(Path::new(&folder)), ["file"]);
            println!("the full file system held");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = r#"mount -t tmpfs -o size=64k axiscap "$1" || exit 77
exec "$2" --exact output::unix::a_full_file_system_keeps_the_old_file --nocapture"#;
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(folder.path())
            .arg(std::env::current_exe().unwrap())
            .env(FOLDER, folder.path())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                assert!(String::from_utf8_lossy(&output.stdout).contains("the full file system held"));
            }
            Ok(output) if output.status.code() == Some(101) => {
                panic!("{}", String::from_utf8_lossy(&output.stdout))
            }
            other => eprintln!("skipped: no tmpfs can be mounted here: {other:?}"),
        }
    }
}
