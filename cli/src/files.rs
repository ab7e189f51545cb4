//! The files of a command. None that it writes may be one that it reads, or another that it writes.
//!
//! The files are those of the command line as clap has it. What is done with each option is said here once,
//! and a test finds options that are left out.

use std::any::TypeId;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use axiscap_llama::model_files;
use clap::{Arg, ArgMatches, Command};

use crate::answers::part_file;

/// What a command does with the file that an option names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Read,
    Written,
    /// Read, and replaced unless --out names another file.
    Changed,
    /// The answers: read if they are there, else written.
    Answers,
}

/// A file and the option that names it.
struct Named(String, PathBuf);

fn role(arg: &Arg) -> Option<Role> {
    Some(match arg.get_id().as_str() {
        "model" | "caps" | "axes" | "chat_template_file" | "default_vector" | "file" | "jsonl"
        | "material" | "plugin" | "prompt_file" | "questions" | "role_vector" | "roles" | "script"
        | "texts" | "traits" | "transcripts" => Role::Read,
        "out" | "pairs" | "plot" | "report" | "trace" => Role::Written,
        "changed_caps" => Role::Changed,
        "rollouts" => Role::Answers,
        _ => return None,
    })
}

/// Returns the options of a command that take a path.
fn paths(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_path = |arg: &&Arg| arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    command.get_arguments().filter(is_path)
}

/// Returns how the user writes an option.
fn flag(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string().to_uppercase(), |long| format!("--{long}"))
}

/// Fails before the work if an output of the command cannot be written, or would replace an input or another
/// output.
///
/// # Errors
/// The two options and their file, or why it cannot be written.
pub(crate) fn check(cli: &Command, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = cli.find_subcommand(name) else { return Ok(()) };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for arg in paths(command) {
        let id = arg.get_id().as_str();
        let Some(path) = matches.get_one::<PathBuf>(id) else { continue };
        let every = || matches.get_many::<PathBuf>(id).into_iter().flatten();
        let role = role(arg).with_context(|| format!("{}: a path without a role", flag(arg)))?;
        match role {
            Role::Read if id == "model" => {
                inputs.extend(model_files(path).into_iter().map(|file| Named(flag(arg), file)));
            }
            Role::Read if path == Path::new("-") => inputs.push(stdin()),
            Role::Read => inputs.extend(every().map(|path| Named(flag(arg), path.clone()))),
            Role::Changed if matches.contains_id("out") => inputs.push(Named(flag(arg), path.clone())),
            Role::Answers if path.exists() => inputs.push(Named(flag(arg), path.clone())),
            Role::Answers | Role::Changed | Role::Written => outputs.push(Named(flag(arg), path.clone())),
        }
    }
    if matches!(matches.try_get_one::<String>("prompt"), Ok(Some(text)) if text == "-") {
        inputs.push(stdin());
    }
    if paths(command).any(|arg| role(arg) == Some(Role::Answers))
        && let Some(out) = matches.get_one::<PathBuf>("out")
    {
        let answers = matches.get_one::<PathBuf>("rollouts").map(PathBuf::as_path);
        if answers.is_none_or(|path| !path.exists()) {
            outputs.push(Named("the answers in progress".into(), part_file(answers, out)));
        }
    }
    check_files(&inputs, &outputs)
}

/// Returns stdin, which may be a file.
fn stdin() -> Named {
    Named("stdin".into(), "/dev/stdin".into())
}

/// Fails before the work if an output cannot be written, or would replace an input or another output. Files
/// come with the options that name them.
fn check_files(inputs: &[Named], outputs: &[Named]) -> Result<()> {
    for (index, Named(flag, path)) in outputs.iter().enumerate() {
        for Named(other, read) in inputs {
            ensure!(
                !is_same(path, read),
                "{flag} and {other} are one file, {}: it would be overwritten; name another file with {flag}",
                path.display()
            );
        }
        for Named(other, written) in &outputs[..index] {
            ensure!(!is_same(path, written), "{flag} and {other} are one file, {}; name two", path.display());
        }
        check_place(path).with_context(|| format!("{flag}: cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that a file can be put there.
fn check_place(path: &Path) -> Result<()> {
    ensure!(!path.is_dir(), "it is a folder; name a file");
    let folder = folder(path);
    ensure!(folder.is_dir(), "there is no folder {}; create it, or name another place", folder.display());
    // A device or a pipe is written to directly. A link to a file that does not exist yet is followed.
    let is_replaced = path.is_file() || path.symlink_metadata().is_err();
    if is_replaced {
        let target = path.canonicalize();
        let folder = target.as_deref().ok().and_then(Path::parent).unwrap_or(folder);
        tempfile::Builder::new().prefix(".axiscap-").tempfile_in(folder).map_err(|error| {
            anyhow!("no file can be made in its folder: {}; name another place", error.kind())
        })?;
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns whether two paths lead to one regular file, through any names and links, or to one place without a
/// file.
fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a_is), Ok(b_is)) => a_is.is_file() && b_is.is_file() && is_same_file((a, &a_is), (b, &b_is)),
        (Err(_), Err(_)) => place(a).is_some_and(|a| Some(a) == place(b)),
        _ => false,
    }
}

#[cfg(unix)]
fn is_same_file((_, a): (&Path, &fs::Metadata), (_, b): (&Path, &fs::Metadata)) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file((a, _): (&Path, &fs::Metadata), (b, _): (&Path, &fs::Metadata)) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// Returns where a path without a file leads to, through links that lead nowhere.
fn place(path: &Path) -> Option<PathBuf> {
    /// Maximum symbolic links in a row, as on Linux.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder(&path).join(target),
            Err(_) => return Some(folder(&path).canonicalize().ok()?.join(path.file_name()?)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(flag: &str, path: &Path) -> Named {
        Named(flag.into(), path.into())
    }

    #[test]
    fn a_file_is_the_same_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "x").unwrap();
        fs::write(at("b"), "x").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        assert!(!is_same(&at("a"), &at("b")));
        assert!(is_same(&at("a"), &folder.path().join(".").join("a")) && is_same(&at("hard"), &at("a")));
        assert!(is_same(&at("new"), &folder.path().join(".").join("new")) && !is_same(&at("new"), &at("a")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("a"), at("soft")).unwrap();
            assert!(is_same(&at("soft"), &at("hard")));
            std::os::unix::fs::symlink("new", at("leads-nowhere")).unwrap();
            assert!(is_same(&at("leads-nowhere"), &at("new")) && !is_same(&at("leads-nowhere"), &at("a")));
            std::os::unix::fs::symlink("ring", at("ring")).unwrap();
            assert!(!is_same(&at("ring"), &at("ring")), "it leads to no place");
            assert!(!is_same(Path::new("/dev/null"), Path::new("/dev/null")), "a device is not replaced");
        }
        let (a, hard) = (at("a"), at("hard"));
        let error = check_files(&[named("--model", &a)], &[named("--out", &hard)]).unwrap_err().to_string();
        assert!(error.contains("--out and --model are one file"), "{error}");
        let new = at("new");
        let error = check_files(&[], &[named("--out", &new), named("--plot", &new)]).unwrap_err().to_string();
        assert!(error.contains("--plot and --out are one file"), "{error}");
        check_files(&[named("--model", &a)], &[named("--out", &new)]).unwrap();
        assert!(!new.exists());
    }

    /// The path options of a command: their ids and what the command does with them.
    fn roles(command: &Command) -> Vec<(String, Role)> {
        let of = |arg: &Arg| {
            let place = format!("{} {}", command.get_name(), flag(arg));
            (arg.get_id().to_string(), role(arg).unwrap_or_else(|| panic!("{place} has no role")))
        };
        paths(command).map(of).collect()
    }

    #[test]
    fn every_option_that_takes_a_file_is_one_of_paths_and_has_a_role() {
        let mut written = 0;
        for command in crate::command().get_subcommands() {
            for arg in command.get_arguments() {
                let names = arg.get_value_names().unwrap_or_default();
                let is_path = paths(command).any(|path| path.get_id() == arg.get_id());
                let place = format!("{} {}", command.get_name(), arg.get_id());
                assert_eq!(names.iter().any(|name| name.contains("FILE")), is_path, "{place}");
            }
            written += roles(command).iter().filter(|(_, role)| *role != Role::Read).count();
        }
        assert_eq!(
            written, 15,
            "run --trace, drift --plot, extract --out --plot --report --rollouts, calibrate --out --rollouts, bind --out --caps, import --out, export --out, eval --out --report --pairs"
        );
    }

    /// Returns the result of the check for a command line in which each path option has a file of its own,
    /// but for those in `given`, and those that exclude others.
    fn checked(command: &Command, folder: &Path, given: &[(&str, &Path)]) -> Result<()> {
        checked_with("", command, folder, given)
    }

    /// As `checked`, with this option rather than one that excludes it.
    fn checked_with(needed: &str, command: &Command, folder: &Path, given: &[(&str, &Path)]) -> Result<()> {
        let mut words: Vec<std::ffi::OsString> = vec!["axiscap".into(), command.get_name().into()];
        let is_first = |arg: &&Arg| arg.get_id() == needed;
        let mut taken: Vec<&Arg> = Vec::new();
        for arg in paths(command).filter(is_first).chain(paths(command).filter(|arg| !is_first(arg))) {
            if taken.iter().any(|other| {
                let excludes = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).contains(&b);
                excludes(arg, other) || excludes(other, arg)
            }) {
                continue;
            }
            taken.push(arg);
            let id = arg.get_id().as_str();
            if let Some(long) = arg.get_long() {
                words.push(format!("--{long}").into());
            }
            let own = || folder.join(format!("own-{id}"));
            words.push(
                given.iter().find(|(name, _)| *name == id).map_or_else(own, |given| given.1.into()).into(),
            );
        }
        if command.get_arguments().any(Arg::is_last_set) {
            words.extend(["--".into(), "program".into()]);
        }
        let all = crate::command();
        let matches = all.clone().try_get_matches_from(words).unwrap();
        check(&all, &matches)
    }

    #[test]
    fn no_output_of_any_command_may_be_an_input_or_another_output() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        let mut pairs = 0;
        for command in crate::command().get_subcommands() {
            let options = roles(command);
            for (id, _) in &options {
                fs::write(at(&format!("own-{id}")), "x").unwrap();
            }
            checked(command, folder.path(), &[]).unwrap();
            for (one, first) in &options {
                for (other, second) in &options {
                    let is_written = |role: &Role| *role == Role::Written;
                    if one == other || !is_written(first) || (is_written(second) && one > other) {
                        continue;
                    }
                    pairs += 1;
                    let file = at(&format!("own-{other}"));
                    let mut names =
                        vec![file.clone(), folder.path().join("sub/..").join(format!("own-{other}"))];
                    #[cfg(unix)]
                    {
                        fs::hard_link(&file, at("hard")).unwrap();
                        std::os::unix::fs::symlink(&file, at("soft")).unwrap();
                        names.extend([at("hard"), at("soft")]);
                    }
                    for name in &names {
                        let checked = checked_with(other, command, folder.path(), &[(one, name)]);
                        let error = checked.unwrap_err().to_string();
                        assert!(error.contains("one file"), "{} {one} {other}: {error}", command.get_name());
                    }
                    #[cfg(unix)]
                    for link in ["hard", "soft"] {
                        fs::remove_file(at(link)).unwrap();
                    }
                }
            }
        }
        assert_eq!(
            pairs,
            4 + 5 + (3 * 6 + 3) + 8 + 2 + 4 + 1 + (3 * 5 + 3),
            "run, drift, extract, calibrate, bind, import, export, eval"
        );
    }

    #[test]
    fn a_file_that_is_changed_in_place_is_an_output() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let cli = crate::command();
        let checked = |model: &str, caps: &str| {
            let words = ["axiscap", "bind", "--model", model, "--caps", caps];
            check(&cli, &cli.clone().try_get_matches_from(words).unwrap()).map_err(|error| error.to_string())
        };
        fs::write(at("a"), "x").unwrap();
        fs::write(at("b"), "x").unwrap();
        checked(&at("a"), &at("b")).unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        for caps in ["a", "hard"] {
            let error = checked(&at("a"), &at(caps)).unwrap_err();
            assert!(error.contains("--caps and --model are one file"), "{error}");
        }
        let error = checked(&at("a"), "/nowhere/caps.gguf").unwrap_err();
        assert!(error.contains("--caps: cannot write /nowhere/caps.gguf"), "{error}");
    }

    #[test]
    fn answers_that_are_made_are_an_output_and_so_is_the_file_that_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let cli = crate::command();
        for name in ["extract", "calibrate"] {
            let command = cli.find_subcommand(name).unwrap();
            for (id, _) in roles(command).iter().filter(|(id, _)| id != "rollouts") {
                fs::write(at(&format!("own-{id}")), "x").unwrap();
            }
            let refused = |given: &[(&str, &Path)], parts: [&str; 2]| {
                let error = checked(command, folder.path(), given).unwrap_err().to_string();
                assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            };
            checked(command, folder.path(), &[]).unwrap();
            let (new, part) = (at("new"), at("new.part"));
            refused(&[("rollouts", &new), ("out", &new)], ["--rollouts", "--out"]);
            fs::write(&part, "x").unwrap();
            refused(&[("rollouts", &new), ("questions", &part)], ["in progress", "--questions"]);
            refused(&[("rollouts", &new), ("model", &part)], ["in progress", "--model"]);
            fs::remove_file(&part).unwrap();
        }
    }

    #[test]
    fn every_file_of_a_split_model_is_an_input() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let files = [1, 2, 3].map(|number| at(&format!("m-0000{number}-of-00003.gguf")));
        files.iter().for_each(|file| fs::write(file, "x").unwrap());
        let cli = crate::command();
        let extract = cli.find_subcommand("extract").unwrap();
        for out in &files {
            let given: [(&str, &Path); 2] = [("model", &files[1]), ("out", out)];
            let error = checked(extract, folder.path(), &given).unwrap_err().to_string();
            assert!(error.contains("--out and --model are one file"), "{error}");
        }
    }
}
