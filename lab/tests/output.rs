//! Output files appear whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use axiscap::file::FileError;
use axiscap_lab::Error;
use axiscap_lab::output::write_atomically;

const OLD: &[u8] = b"the content before";
const NEW: &[u8] = b"the new content, which is somewhat longer than the old content";

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_created_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for content in [OLD, NEW, b""] {
        write_atomically(&path, |out| out.write_all(content)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(entries(folder.path()), ["file"]);
    }
}

/// The disk is full after any number of bytes, with and without a file to replace.
#[test]
fn a_full_disk_leaves_the_folder_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, present) = (folder.path().join("absent"), folder.path().join("present"));
    fs::write(&present, OLD).unwrap();
    for space in 0..NEW.len() {
        for path in [&absent, &present] {
            let full = |out: &mut dyn Write| {
                out.write_all(&NEW[..space])?;
                out.flush()?;
                Err(io::ErrorKind::StorageFull.into())
            };
            let error = write_atomically(path, full).unwrap_err();
            assert!(
                matches!(&error, Error::File(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::StorageFull)
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
fn a_writer_that_panics_leaves_no_file() {
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
fn a_place_that_cannot_be_written_to_is_named() {
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

#[test]
fn a_name_without_a_folder_is_written_to_the_current_one() {
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_stays_a_device() {
        let error = write_atomically("/dev/full".as_ref(), |out| out.write_all(NEW)).unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        write_atomically("/dev/null".as_ref(), |out| out.write_all(NEW)).unwrap();
        for device in ["/dev/full", "/dev/null"] {
            assert!(fs::metadata(device).unwrap().file_type().is_char_device());
        }
    }

    /// A reader who may not read the old content may not read the new one before it is in place.
    #[test]
    fn a_private_file_is_private_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for mode in [0o600, 0o640, 0o666, 0o400] {
            fs::write(&path, OLD).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let write = |out: &mut dyn Write| {
                out.write_all(NEW)?;
                out.flush()?;
                let temporary = entries(folder.path()).into_iter().find(|name| name != "file").unwrap();
                let found = fs::metadata(folder.path().join(temporary))?.permissions().mode() & 0o777;
                assert_eq!(found, mode, "{found:o} for {mode:o}");
                Ok(())
            };
            write_atomically(&path, write).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(fs::read(&path).unwrap(), NEW);
            fs::remove_file(&path).unwrap();
        }
    }

    /// A file that a shell's `>> log` opened is appended to and not replaced.
    #[cfg(target_os = "linux")]
    #[test]
    fn open_files_are_written_to_where_they_stand() {
        use std::os::fd::AsRawFd;

        const NAME: &str = "AXISCAP_TEST_DESCRIPTOR";
        if let Some(name) = std::env::var_os(NAME) {
            // Its standard output is the log.
            print!("printed, ");
            write_atomically(Path::new(&name), |out| out.write_all(b"written")).unwrap();
            // The test harness must not write after it.
            std::process::exit(0);
        }
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let link = folder.path().join("link");
        symlink("/dev/stdout", &link).unwrap();
        let child = |name: &Path, append: bool| {
            let output = fs::File::options().append(append).write(true).open(&log).unwrap();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "unix::open_files_are_written_to_where_they_stand", "--nocapture", "-q"])
                .env(NAME, name)
                .stdout(output.try_clone().unwrap())
                .stderr(output)
                .status()
                .unwrap();
            assert!(status.success());
        };
        let names = [
            "/dev/stdout",
            "/dev/stderr",
            "/dev/fd/1",
            "/dev/fd/2",
            "/dev/../dev/fd/1",
            "/proc/self/fd/1",
            "/proc/thread-self/fd/1",
        ];
        for name in names.map(Path::new).into_iter().chain([link.as_path()]) {
            fs::write(&log, OLD).unwrap();
            let before = fs::metadata(&log).unwrap();
            child(name, true);
            let text = fs::read_to_string(&log).unwrap();
            assert!(text.as_bytes().starts_with(OLD), "{name:?}: {text}");
            assert!(text.contains("printed, ") && text.contains("written"), "{name:?}: {text}");
            if !name.ends_with("2") && !name.ends_with("stderr") {
                assert!(text.ends_with("printed, written"), "{name:?}: {text}");
            }
            use std::os::unix::fs::MetadataExt;
            assert_eq!(fs::metadata(&log).unwrap().ino(), before.ino(), "{name:?}: another file");
            assert_eq!(entries(folder.path()), ["link", "log"]);
        }

        // A descriptor of this process in the middle of a file, and one opened for reading only.
        fs::write(&log, b"0123456789").unwrap();
        let mut file = fs::File::options().write(true).open(&log).unwrap();
        file.write_all(b"ab").unwrap();
        let name = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        write_atomically(name.as_ref(), |out| out.write_all(b"cd")).unwrap();
        file.write_all(b"ef").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"abcdef6789");
        let closed = format!("/dev/fd/{}", i32::MAX);
        assert!(write_atomically(closed.as_ref(), |_| Ok(())).is_err());
        let file = fs::File::open(&log).unwrap();
        let name = format!("/dev/fd/{}", file.as_raw_fd());
        assert!(write_atomically(name.as_ref(), |out| out.write_all(NEW)).is_err());
        assert_eq!(fs::read(&log).unwrap(), b"abcdef6789");
    }

    /// A full file system, if one may be mounted (in a user and mount namespace).
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_file_system_leaves_the_old_file() {
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
        let script = r#"mount -t tmpfs -o size=64k axiscap "$1" || exit 77; exec "$2" --exact unix::a_full_file_system_leaves_the_old_file --nocapture"#;
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
