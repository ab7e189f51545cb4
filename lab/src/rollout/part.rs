//! Answers kept while they are generated. A run that was stopped continues from them.
//!
//! The file is the beginning of the complete file: the header, then answers in the order of the plan.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::file::{Rollout, RolloutHeader};
use crate::appended;
use crate::error::Error;

/// An open file of answers that is not complete yet.
#[derive(Debug)]
pub struct RolloutPart {
    path: PathBuf,
    file: File,
    kept: Vec<Rollout>,
}

impl RolloutPart {
    /// Opens the file, or begins it if there is none. Of an existing file, complete groups of `group` answers
    /// are kept ([`Generator::group_size`](crate::rollout::Generator::group_size)). The answers of an
    /// unfinished group are generated again.
    ///
    /// # Errors
    /// [`Error::RolloutFile`] if the file cannot be read or written, is no file of answers, or was begun with
    /// other settings than those of `header`.
    pub fn open(path: &Path, header: &RolloutHeader, group: usize) -> Result<Self, Error> {
        let fail = |line, problem| Error::RolloutFile { path: path.into(), line, problem };
        let failed = |what: &str, error: io::Error| fail(None, format!("cannot be {what}: {error}"));
        let (mut file, text) = appended::open(path).map_err(|problem| fail(None, problem))?;
        let (kept, length) = parse(&text, header, group).map_err(|(line, problem)| fail(line, problem))?;
        file.set_len(length as u64).map_err(|error| failed("cut to whole answers", error))?;
        if length == 0 {
            let mut line = serde_json::to_vec(header).map_err(|error| failed("written", error.into()))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|error| failed("written", error))?;
        }
        Ok(Self { path: path.into(), file, kept })
    }

    /// Returns the answers in the file.
    #[must_use]
    pub fn kept(&self) -> &[Rollout] {
        &self.kept
    }

    /// Adds answers and syncs them to the medium.
    ///
    /// # Errors
    /// [`Error::RolloutFile`] if the disk is full.
    pub fn append(&mut self, rollouts: Vec<Rollout>) -> Result<(), Error> {
        let mut lines = Vec::new();
        let written = rollouts
            .iter()
            .try_for_each(|rollout| {
                serde_json::to_writer(&mut lines, rollout)?;
                lines.push(b'\n');
                Ok::<_, io::Error>(())
            })
            .and_then(|()| self.file.write_all(&lines))
            .and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::RolloutFile {
            path: self.path.clone(),
            line: None,
            problem: format!("cannot be written: {error}"),
        })?;
        self.kept.extend(rollouts);
        Ok(())
    }

    /// Closes and removes the file and returns its answers. Call it after they are written elsewhere.
    #[must_use]
    pub fn finish(self) -> Vec<Rollout> {
        drop(self.file);
        // A file that cannot be removed does no harm: the complete file exists, and it takes precedence.
        let _ = fs::remove_file(&self.path);
        self.kept
    }
}

/// A line, and what is wrong there.
type Problem = (Option<usize>, String);

/// Returns the answers of complete groups, and the number of bytes up to there.
fn parse(text: &[u8], header: &RolloutHeader, group: usize) -> Result<(Vec<Rollout>, usize), Problem> {
    const AGAIN: &str = "remove the file to begin again";
    // The bytes after the last line feed are a line that was cut.
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let Some(first) = lines.next() else { return Ok((Vec::new(), 0)) };
    let utf8 = |line: &[u8], number| {
        let text = String::from_utf8(line.to_vec());
        text.map_err(|_| (Some(number), format!("is not UTF-8; {AGAIN}")))
    };
    let found = RolloutHeader::parse(&utf8(first, 1)?);
    let found = found.map_err(|problem| (Some(1), format!("{problem} ({AGAIN})")))?;
    if let Some(what) = difference(&found, header) {
        let problem = format!("was begun with {what}; give the same options again to continue, or {AGAIN}");
        return Err((None, problem));
    }
    let mut length = first.len();
    let (mut kept, mut whole) = (Vec::new(), (0, length));
    for (line, number) in lines.zip(2..) {
        let rollout = Rollout::parse(&utf8(line, number)?, header);
        kept.push(rollout.map_err(|problem| (Some(number), format!("{problem} ({AGAIN})")))?);
        length += line.len();
        if kept.len() % group.max(1) == 0 || kept.len() == header.answers {
            whole = (kept.len(), length);
        }
    }
    kept.truncate(whole.0);
    Ok((kept, whole.1))
}

/// Returns the first setting in which two runs differ, with the file's value and the wanted one.
fn difference(file: &RolloutHeader, wanted: &RolloutHeader) -> Option<String> {
    let fields = |header: &RolloutHeader| -> Result<serde_json::Map<String, serde_json::Value>, _> {
        serde_json::to_string(header).and_then(|text| serde_json::from_str(&text))
    };
    let (file, wanted) = (fields(file).ok()?, fields(wanted).ok()?);
    let null = serde_json::Value::Null;
    // Another version of the program may draw otherwise, so the tool is compared as well.
    file.keys().chain(wanted.keys()).find_map(|key| {
        let (found, expected) = (file.get(key).unwrap_or(&null), wanted.get(key).unwrap_or(&null));
        (found != expected).then(|| format!("another {key} ({found}, now {expected})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::file::tests::rollouts;

    #[test]
    fn complete_groups_are_kept_and_the_rest_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.part");
        let mut whole = rollouts();
        whole.header.answers = 5;
        whole.rollouts = (0..5).map(|seed| Rollout { seed, ..whole.rollouts[0].clone() }).collect();
        let open = || RolloutPart::open(&path, &whole.header, 2).unwrap();
        let mut part = open();
        assert!(part.kept().is_empty());
        part.append(whole.rollouts[..2].to_vec()).unwrap();
        part.append(whole.rollouts[2..4].to_vec()).unwrap();
        let busy = RolloutPart::open(&path, &whole.header, 2).unwrap_err().to_string();
        assert!(busy.contains("another axiscap"), "{busy}");
        drop(part);
        let text = fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..text.len()).filter(|&at| text[at] == b'\n').map(|at| at + 1).collect();
        for (length, kept) in [
            (text.len(), 4),
            (text.len() - 1, 2),
            (lines[3], 2),
            (lines[3] - 9, 2),
            (lines[2], 2),
            (lines[2] - 1, 0),
            (lines[0], 0),
            (7, 0),
            (0, 0),
        ] {
            fs::write(&path, &text[..length]).unwrap();
            let mut part = open();
            assert_eq!(part.kept(), &whole.rollouts[..kept], "cut to {length} bytes");
            part.append(whole.rollouts[kept..].to_vec()).unwrap();
            assert_eq!(part.kept(), whole.rollouts);
            // The last group may be shorter.
            drop(part);
            assert_eq!(open().finish(), whole.rollouts);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_file_of_another_run_is_left_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.part");
        let whole = rollouts();
        RolloutPart::open(&path, &whole.header, 2).unwrap().append(whole.rollouts.clone()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let refused = |header: &RolloutHeader| RolloutPart::open(&path, header, 2).unwrap_err().to_string();
        let other = RolloutHeader { seed: 9, ..whole.header.clone() };
        assert!(refused(&other).contains("another seed (1, now 9); give the same options"));
        let other = RolloutHeader { limit_roles: Some(3), ..whole.header.clone() };
        assert!(refused(&other).contains("another limit_roles (null, now 3)"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        fs::write(&path, "A letter\nof two lines\n").unwrap();
        assert!(refused(&whole.header).contains("line 1: is not a line of"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "A letter\nof two lines\n");
    }
}
