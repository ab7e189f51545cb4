//! Answers kept while they are generated, so that a run that was stopped goes on where it was.
//!
//! The file is the beginning of the file of answers that it becomes: the header, then answers in the order of the
//! plan.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::rollout_file::{Rollout, RolloutFileError, RolloutHeader};

/// An open file of answers that is not complete yet.
#[derive(Debug)]
pub struct RolloutPart {
    path: PathBuf,
    file: File,
    kept: Vec<Rollout>,
}

impl RolloutPart {
    /// Opens the file, or begins it when there is none. What is kept of one that is there are the whole groups of
    /// `group` answers ([`Generator::group_size`](crate::rollout::Generator::group_size)): the answers of a group that
    /// was not finished are generated anew.
    ///
    /// # Errors
    /// [`RolloutFileError`]: it cannot be read or written, is none of ours, or was begun with other settings than
    /// those of `header`.
    pub fn open(path: &Path, header: &RolloutHeader, group: usize) -> Result<Self, RolloutFileError> {
        let fail = |line, problem| RolloutFileError { path: path.into(), line, problem };
        let failed = |what: &str, error: io::Error| fail(None, format!("cannot be {what}: {error}"));
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| failed("opened", error))?;
        // Two programs that write to one file would make one useless file of it.
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                return Err(fail(
                    None,
                    "another axiscap is writing it; wait for it, or name another file".into(),
                ));
            }
            // File systems without locks are no reason to fail.
            Err(fs::TryLockError::Error(_)) | Ok(()) => {}
        }
        let text = fs::read(path).map_err(|error| failed("read", error))?;
        let (kept, length) = parse(&text, header, group).map_err(|(line, problem)| fail(line, problem))?;
        file.set_len(length as u64).map_err(|error| failed("cut to whole answers", error))?;
        if length == 0 {
            let mut line = serde_json::to_vec(header).map_err(|error| failed("written", error.into()))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|error| failed("written", error))?;
        }
        Ok(Self { path: path.into(), file, kept })
    }

    /// The answers that are in the file.
    #[must_use]
    pub fn kept(&self) -> &[Rollout] {
        &self.kept
    }

    /// Adds answers and has them written to the medium.
    ///
    /// # Errors
    /// [`RolloutFileError`]: the disk is full.
    pub fn append(&mut self, rollouts: Vec<Rollout>) -> Result<(), RolloutFileError> {
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
        written.map_err(|error| RolloutFileError {
            path: self.path.clone(),
            line: None,
            problem: format!("cannot be written: {error}"),
        })?;
        self.kept.extend(rollouts);
        Ok(())
    }

    /// Closes and removes the file and gives out its answers: they are kept elsewhere now.
    #[must_use]
    pub fn finish(self) -> Vec<Rollout> {
        drop(self.file);
        // One that stays is in nobody's way: it belongs to a file of answers that is there.
        let _ = fs::remove_file(&self.path);
        self.kept
    }
}

/// Line, and what is wrong there.
type Problem = (Option<usize>, String);

/// The answers of whole groups, and the number of bytes up to there.
fn parse(text: &[u8], header: &RolloutHeader, group: usize) -> Result<(Vec<Rollout>, usize), Problem> {
    const AGAIN: &str = "remove the file to begin anew";
    // What follows the last line feed is a line that was cut.
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let Some(first) = lines.next() else { return Ok((Vec::new(), 0)) };
    let utf8 = |line: &[u8], number| {
        let text = String::from_utf8(line.to_vec());
        text.map_err(|_| (Some(number), format!("is not UTF-8; {AGAIN}")))
    };
    let found = RolloutHeader::parse(&utf8(first, 1)?);
    let found = found.map_err(|problem| (Some(1), format!("{problem} ({AGAIN})")))?;
    if let Some(what) = difference(&found, header) {
        let problem = format!("was begun with {what}; give the same options again to go on, or {AGAIN}");
        return Err((None, problem));
    }
    let mut length = first.len();
    let (mut kept, mut whole) = (Vec::new(), (0, length));
    for (line, number) in lines.zip(2..) {
        let rollout = Rollout::parse(&utf8(line, number)?, header);
        kept.push(rollout.map_err(|problem| (Some(number), format!("{problem} ({AGAIN})")))?);
        length += line.len();
        if kept.len() % group.max(1) == 0 || Some(kept.len()) == header.answers {
            whole = (kept.len(), length);
        }
    }
    kept.truncate(whole.0);
    Ok((kept, whole.1))
}

/// The first setting in which two runs differ: what the file has, and what is wanted.
fn difference(file: &RolloutHeader, wanted: &RolloutHeader) -> Option<String> {
    let fields = |header: &RolloutHeader| -> Result<serde_json::Map<String, serde_json::Value>, _> {
        serde_json::to_string(header).and_then(|text| serde_json::from_str(&text))
    };
    let (file, wanted) = (fields(file).ok()?, fields(wanted).ok()?);
    let null = serde_json::Value::Null;
    // Another version of the program may draw otherwise, so the tool counts as well.
    file.keys().chain(wanted.keys()).find_map(|key| {
        let (found, expected) = (file.get(key).unwrap_or(&null), wanted.get(key).unwrap_or(&null));
        (found != expected).then(|| format!("another {key} ({found}, now {expected})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout_file::tests::rollouts;

    #[test]
    fn whole_groups_are_kept_and_everything_else_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.part");
        let mut whole = rollouts();
        whole.header.answers = Some(5);
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
            // The last group may be a short one.
            drop(part);
            assert_eq!(open().finish(), whole.rollouts);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_file_of_another_run_is_left_alone() {
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
