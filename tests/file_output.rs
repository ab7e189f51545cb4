//! Output files appear whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use axiscap::file::{FileError, write_atomically};

const OLD: &[u8] = b"what was there before";
const NEW: &[u8] = b"and what is to replace it, somewhat longer than the old content";

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_file_and_a_replaced_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for content in [OLD, NEW, b""] {
        write_atomically(&path, |out| out.write_all(content)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(entries(folder.path()), ["file"]);
    }
}

/// The disk full after any number of bytes: with and without a file to replace.
#[test]
fn nothing_changes_when_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, present) = (folder.path().join("absent"), folder.path().join("present"));
    fs::write(&present, OLD).unwrap();
    for room in 0..NEW.len() {
        for path in [&absent, &present] {
            let full = |out: &mut dyn Write| {
                out.write_all(&NEW[..room])?;
                out.flush()?;
                Err(io::ErrorKind::StorageFull.into())
            };
            let error = write_atomically(path, full).unwrap_err();
            assert!(
                matches!(&error, FileError::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
            );
            let message = error.to_string();
            assert!(
                message.contains(path.to_str().unwrap()) && message.contains("free some space"),
                "{message}"
            );
        }
        assert_eq!(entries(folder.path()), ["present"]);
        assert_eq!(fs::read(&present).unwrap(), OLD);
    }
}

#[test]
fn nothing_is_left_by_a_writer_that_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let write = || {
        write_atomically(&path, |out| {
            out.write_all(NEW)?;
            panic!("on purpose")
        })
    };
    assert!(std::panic::catch_unwind(write).is_err());
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn places_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("absent/file");
    let message = write_atomically(&nowhere, |_| Ok(())).unwrap_err().to_string();
    assert!(message.contains("absent/file") && message.contains("folder"), "{message}");
    let message = write_atomically(folder.path(), |_| Ok(())).unwrap_err().to_string();
    assert!(message.contains("name a file, not a folder"), "{message}");
    fs::write(folder.path().join("file"), OLD).unwrap();
    let message = write_atomically(&folder.path().join("file/x"), |_| Ok(())).unwrap_err().to_string();
    assert!(message.contains("is a file, not a folder"), "{message}");
}

/// A relative path without a folder is written to the current one.
#[test]
fn a_bare_name() {
    let name = format!("axiscap-test-{}.tmp", std::process::id());
    write_atomically(name.as_ref(), |out| out.write_all(NEW)).unwrap();
    assert_eq!(fs::read(&name).unwrap(), NEW);
    fs::remove_file(&name).unwrap();
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
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("elsewhere/target"), OLD).unwrap();
        fs::set_permissions(at("elsewhere/target"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("elsewhere/target", at("link")).unwrap();
        symlink("elsewhere/new", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for (link, target) in [("link", "elsewhere/target"), ("dangling", "elsewhere/new")] {
            write_atomically(&at(link), |out| out.write_all(NEW)).unwrap();
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink());
            assert_eq!(fs::read(at(target)).unwrap(), NEW);
        }
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("elsewhere/target"), 0o640);
        fs::write(at("usual"), NEW).unwrap();
        assert_eq!(mode("elsewhere/new"), mode("usual"));
        assert!(write_atomically(&at("circle"), |_| Ok(())).is_err());
        assert_eq!(entries(&at("elsewhere")), ["new", "target"]);
    }

    /// A device is written to, never replaced.
    #[cfg(target_os = "linux")]
    #[test]
    fn devices() {
        let error = write_atomically("/dev/full".as_ref(), |out| out.write_all(NEW)).unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        write_atomically("/dev/null".as_ref(), |out| out.write_all(NEW)).unwrap();
        for device in ["/dev/full", "/dev/null"] {
            assert!(fs::metadata(device).unwrap().file_type().is_char_device());
        }
    }

    /// A file system that is really full, where one may be mounted (a user and mount namespace of our own).
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_file_system() {
        const FOLDER: &str = "AXISCAP_TEST_FULL_FOLDER";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = Path::new(&folder).join("file");
            let old = vec![1u8; 40 << 10];
            write_atomically(&path, |out| out.write_all(&old)).unwrap();
            let error = write_atomically(&path, |out| out.write_all(&vec![2u8; 40 << 10])).unwrap_err();
            assert!(error.to_string().contains("free some space"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), old);
            assert_eq!(entries(Path::new(&folder)), ["file"]);
            println!("the full file system held");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = r#"mount -t tmpfs -o size=64k axiscap "$1" || exit 77; exec "$2" --exact unix::a_full_file_system --nocapture"#;
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
            other => eprintln!("skipped: no tmpfs may be mounted here: {other:?}"),
        }
    }
}
