//! What was measured: records, and the file that keeps them while an evaluation runs and after it.
//!
//! A file is JSON Lines: a header, and one line per piece of work with its records. An evaluation that was stopped
//! goes on after the last whole line. Every number of a report is computed from the records.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::arm::Arm;
use super::findings::PairKind;
use super::size::Size;
use crate::appended;
use crate::error::Error;

/// Version of the file's layout.
pub(super) const VERSION: u32 = 1;

/// What an evaluation is of, and how it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the layout.
    pub version: u32,
    /// `axiscap` and its version.
    pub tool: String,
    /// Architecture of the model, e.g. `llama`.
    pub architecture: String,
    /// Name of the model, from its metadata.
    pub model: String,
    /// Number of blocks of the model.
    pub blocks: usize,
    /// Width of its residual stream.
    pub width: usize,
    /// How the weights are stored: `general.file_type` of the model, if known.
    pub file_type: Option<u32>,
    /// SHA-256 of the caps: axes, bounds, strengths and policy.
    pub caps_sha256: String,
    /// The block whose axis is watched.
    pub block: usize,
    /// The floor there, if there is one.
    pub floor: Option<f32>,
    /// SHA-256 of the material that is asked.
    pub material_sha256: String,
    /// SHA-256 of a templated prompt: another template is another experiment.
    pub template_sha256: String,
    /// How much is asked.
    pub size: Size,
    /// Seed of the answers and of the random directions.
    pub seed: u32,
    /// Sampling temperature of the answers.
    pub temperature: f32,
    /// How llama.cpp computes, where it is not by default.
    pub compute: String,
}

/// Something that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// The answers of a conversation.
    Conversation {
        /// Under which caps.
        arm: Arm,
        /// The conversation's name.
        id: String,
        /// The answers, turn by turn. Fewer than the script has turns where the context was full.
        answers: Vec<Answer>,
    },
    /// Projections of the answers of a conversation.
    Reading {
        /// Whose answers they are.
        arm: Arm,
        /// The conversation's name.
        id: String,
        /// Whether the caps of the arm acted as the conversation was read. If not, they were read uncapped.
        under_caps: bool,
        /// Projections, turn by turn.
        turns: Vec<TurnReading>,
    },
    /// A control.
    Control {
        /// Its arm.
        arm: Arm,
        /// Seed of its directions.
        seed: u64,
        /// The floors, cap by cap.
        floors: Vec<f32>,
        /// Mean KL(capped || uncapped) per token that its floors were chosen to have, in nats: that of the caps.
        wanted_kl: f32,
        /// The one that it has.
        kl: f32,
        /// The tokens that both are over.
        tokens: usize,
    },
    /// A fact that was asked.
    Fact {
        /// Under which caps.
        arm: Arm,
        /// The fact's name.
        id: String,
        /// How it was asked.
        condition: Condition,
        /// Natural logarithm of the probability of the right answer.
        right: f32,
        /// That of the wrong one.
        wrong: f32,
    },
    /// A probe that was asked after the first turn of a conversation, and after the last.
    Probe {
        /// Under which caps.
        arm: Arm,
        /// The conversation's name.
        conversation: String,
        /// The probe's name.
        id: String,
        /// Natural logarithms of the probability of each option, after the first turn.
        early: Vec<f32>,
        /// Those after the last turn.
        late: Vec<f32>,
    },
    /// A pair of texts that a judge outside scored.
    Judged {
        /// Under which caps the answers were given.
        arm: Arm,
        /// The conversation's name.
        conversation: String,
        /// What the pair is.
        kind: PairKind,
        /// Turn of the first text. 0 is the system prompt.
        first_turn: usize,
        /// Turn of the second text.
        second_turn: usize,
        /// The score, from 0 (contradicts) to 3.
        score: u8,
        /// Who gave it ([`Judge::name`](crate::judge::Judge::name)).
        by: String,
    },
    /// A multiple-choice question that was asked.
    Choice {
        /// Under which caps.
        arm: Arm,
        /// The question's name.
        id: String,
        /// Natural logarithms of the probability of each option.
        options: Vec<f32>,
        /// Index of the right one.
        right: usize,
    },
    /// A piece of a text that was read.
    Piece {
        /// Under which caps.
        arm: Arm,
        /// The text's name.
        text: String,
        /// Index of the piece.
        piece: usize,
        /// Tokens that were predicted.
        tokens: usize,
        /// Natural logarithm of their probability.
        log_likelihood: f32,
    },
    /// An uncapped answer that the dose is measured on.
    DoseAnswer {
        /// Name of the system prompt.
        prompt: String,
        /// Index of the question.
        question: usize,
        /// Tokens of the prompt.
        tokens: Vec<i32>,
        /// Tokens of the answer.
        response: Vec<i32>,
    },
    /// What caps do to such an answer.
    Dose {
        /// Under which caps.
        arm: Arm,
        /// Name of the system prompt.
        prompt: String,
        /// Index of the question.
        question: usize,
        /// Position of the first row that predicts a token of the answer.
        first: usize,
        /// KL(capped || uncapped) of these rows, in nats.
        kl: Vec<f32>,
        /// For each row from position 0 on, `1` where a cap engaged, and `0` where none did.
        engaged: String,
    },
}

/// One answer of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ends the turn.
    pub tokens: Vec<i32>,
}

/// Projections of one answer on the axis that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnReading {
    /// Tokens of the answer.
    pub tokens: usize,
    /// Mean projection before the cap of the watched block. `None` without tokens.
    pub before: Option<f32>,
    /// Mean projection after it: what the rest of the model sees.
    pub after: Option<f32>,
    /// Tokens whose projection before the cap is outside its bounds.
    pub outside: usize,
}

/// How a fact is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The question alone.
    Plain,
    /// After the user says how sad he is.
    Sad,
    /// Before the user says that he believes the wrong answer.
    Belief,
    /// Both.
    SadBelief,
    /// The question alone, under the system prompt of a warm persona.
    Warm,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Sad, Self::Belief, Self::SadBelief, Self::Warm];

    /// Returns its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Sad => "sad",
            Self::Belief => "belief",
            Self::SadBelief => "sad-belief",
            Self::Warm => "warm",
        }
    }
}

/// A line after the header.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// The piece of work.
    job: String,
    records: Vec<Record>,
}

/// An open file of records.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: Option<File>,
    header: Header,
    jobs: BTreeMap<String, Vec<Record>>,
}

impl Records {
    /// Keeps records in memory only.
    #[must_use]
    pub fn in_memory(header: Header) -> Self {
        Self { path: PathBuf::new(), file: None, header, jobs: BTreeMap::new() }
    }

    /// Opens a file, or begins it if there is none.
    ///
    /// # Errors
    /// [`Error::RecordFile`] if the file cannot be read or written, is no file of records, is being written by
    /// another process, or was begun with another header.
    pub fn open(path: &Path, header: Header) -> Result<Self, Error> {
        let fail = |line, problem| Error::RecordFile { path: path.into(), line, problem };
        let failed = |what: &str, error: io::Error| fail(None, format!("cannot be {what}: {error}"));
        let (mut file, text) = appended::open(path).map_err(|problem| fail(None, problem))?;
        let (jobs, length) = parse(&text, &header).map_err(|(line, problem)| fail(line, problem))?;
        file.set_len(length as u64).map_err(|error| failed("cut to whole lines", error))?;
        if length == 0 {
            let mut line = serde_json::to_vec(&header).map_err(|error| failed("written", error.into()))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|error| failed("written", error))?;
        }
        Ok(Self { path: path.into(), file: Some(file), header, jobs })
    }

    /// Returns the header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns whether the records of a piece of work are there.
    #[must_use]
    pub fn has(&self, job: &str) -> bool {
        self.jobs.contains_key(job)
    }

    /// Returns all records.
    pub fn all(&self) -> impl Iterator<Item = &Record> + Clone {
        self.jobs.values().flatten()
    }

    /// Adds the records of a piece of work, and syncs them to the medium.
    ///
    /// # Errors
    /// [`Error::RecordFile`] if the disk is full.
    pub fn add(&mut self, job: String, records: Vec<Record>) -> Result<(), Error> {
        let line = Line { job, records };
        if let Some(file) = &mut self.file {
            let mut write = || {
                let mut text = serde_json::to_vec(&line)?;
                text.push(b'\n');
                file.write_all(&text)?;
                file.sync_data()
            };
            write().map_err(|error: io::Error| Error::RecordFile {
                path: self.path.clone(),
                line: None,
                problem: format!("cannot be written: {error}"),
            })?;
        }
        self.jobs.insert(line.job, line.records);
        Ok(())
    }
}

/// A line, and what is wrong there.
type Problem = (Option<usize>, String);

/// Returns the records of whole lines, and the number of bytes up to there.
fn parse(text: &[u8], header: &Header) -> Result<(BTreeMap<String, Vec<Record>>, usize), Problem> {
    /// What every header begins with.
    const BEGINNING: &[u8] = b"{\"version\":";
    const AGAIN: &str = "name another file, or remove this one to begin again";
    // The bytes after the last line feed are a line that was cut.
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let Some(first) = lines.next() else {
        return match text.starts_with(BEGINNING) || BEGINNING.starts_with(text) {
            true => Ok((BTreeMap::new(), 0)),
            false => Err((Some(1), format!("is no file of records of `axiscap eval`; {AGAIN}"))),
        };
    };
    let found: Value = serde_json::from_slice(first).unwrap_or_default();
    if found.get("version").is_none() || found.get("material_sha256").is_none() {
        return Err((Some(1), format!("is no file of records of `axiscap eval`; {AGAIN}")));
    }
    // Numbers as they stand in a file: those of an f32 have more digits as a value.
    let wanted = serde_json::to_vec(header).and_then(|text| serde_json::from_slice::<Value>(&text));
    let wanted = wanted.unwrap_or_default();
    if let Some(what) = difference(&found, &wanted) {
        return Err((
            Some(1),
            format!("was begun with {what}; give the same options again to continue, or {AGAIN}"),
        ));
    }
    let (mut jobs, mut length) = (BTreeMap::new(), first.len());
    for (line, number) in lines.zip(2..) {
        let Line { job, records } = serde_json::from_slice(line)
            .map_err(|error| (Some(number), format!("is not as expected: {error}; {AGAIN}")))?;
        if let Some(record) = records.iter().find(|record| !record.is_finite()) {
            return Err((Some(number), format!("holds a number that is not finite in {record:?}; {AGAIN}")));
        }
        jobs.insert(job, records);
        length += line.len();
    }
    Ok((jobs, length))
}

/// Returns in which key two headers differ, and how.
fn difference(found: &Value, wanted: &Value) -> Option<String> {
    let (found, wanted) = (found.as_object()?, wanted.as_object()?);
    let differs = |key: &&String| {
        let (found, wanted) = (found.get(key.as_str()), wanted.get(key.as_str()));
        // Another version of the program measures the same as long as the layout is the same.
        key.as_str() != "tool" && found != wanted
    };
    let key = wanted.keys().chain(found.keys()).find(differs)?;
    let shown = |value: Option<&Value>| match value {
        None => "nothing".into(),
        Some(value) => value.to_string().chars().take(200).collect::<String>(),
    };
    Some(format!("{key} {}, not {}", shown(found.get(key)), shown(wanted.get(key))))
}

impl Record {
    /// Returns whether all numbers are finite.
    fn is_finite(&self) -> bool {
        let finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        match self {
            Self::Conversation { .. } | Self::DoseAnswer { .. } | Self::Judged { .. } => true,
            Self::Reading { turns, .. } => {
                turns.iter().all(|turn| [turn.before, turn.after].into_iter().flatten().all(f32::is_finite))
            }
            Self::Control { wanted_kl, kl, .. } => finite(&[*wanted_kl, *kl]),
            Self::Fact { right, wrong, .. } => finite(&[*right, *wrong]),
            Self::Probe { early, late, .. } => finite(early) && finite(late),
            Self::Choice { options, right, .. } => finite(options) && *right < options.len(),
            Self::Piece { log_likelihood, .. } => log_likelihood.is_finite(),
            Self::Dose { kl, .. } => finite(kl),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    pub(crate) fn header() -> Header {
        Header {
            version: VERSION,
            tool: "axiscap 0.1.0".into(),
            architecture: "llama".into(),
            model: "Small".into(),
            blocks: 4,
            width: 8,
            file_type: Some(1),
            caps_sha256: "c".into(),
            block: 3,
            floor: Some(-2.5),
            material_sha256: "m".into(),
            template_sha256: "t".into(),
            size: Size::QUICK,
            seed: 7,
            temperature: 0.7,
            compute: String::new(),
        }
    }

    fn fact(id: &str) -> Record {
        let (arm, condition) = (Arm::Random(2), Condition::SadBelief);
        Record::Fact { arm, id: id.into(), condition, right: -1.5, wrong: -3.0 }
    }

    #[test]
    fn records_survive_and_a_line_that_was_cut_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.jsonl");
        let mut records = Records::open(&path, header()).unwrap();
        records.add("one".into(), vec![fact("a"), fact("b")]).unwrap();
        let whole = fs::read(&path).unwrap();
        records.add("two".into(), vec![fact("c")]).unwrap();
        let text = fs::read(&path).unwrap();
        let locked = Records::open(&path, header()).unwrap_err().to_string();
        assert!(locked.contains("another axiscap"), "{locked}");
        drop(records);
        for cut in [text.len() - 1, whole.len() + 3, whole.len()] {
            fs::write(&path, &text[..cut]).unwrap();
            let records = Records::open(&path, header()).unwrap();
            assert!(records.has("one") && !records.has("two"));
            assert_eq!(records.all().cloned().collect::<Vec<_>>(), [fact("a"), fact("b")]);
            assert_eq!(fs::read(&path).unwrap(), whole, "the rest is cut off");
        }
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let opened = Records::open(&path, header()).map(drop).map_err(|error| error.to_string());
            assert_eq!(opened, Ok(()), "{cut}");
        }
        let newer = Header { tool: "axiscap 9".into(), ..header() };
        assert!(Records::open(&path, newer).is_ok(), "another version of the program may go on");
    }

    #[test]
    fn other_files_and_other_evaluations_are_refused_and_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.jsonl");
        drop(Records::open(&path, header()).unwrap());
        let other = Header { seed: 8, ..header() };
        let error = Records::open(&path, other).unwrap_err().to_string();
        assert!(error.contains("seed 7, not 8"), "{error}");
        let head = serde_json::to_string(&header()).unwrap();
        let infinite = head.clone()
            + "\n{\"job\": \"x\", \"records\": [{\"record\": \"fact\", \"arm\": \"capped\", \"id\": \"a\", \"condition\": \"plain\", \"right\": 1e999, \"wrong\": 0}]}\n";
        for (text, expected) in [
            ("letter to my mother\n", "no file of records"),
            ("letter to my mother", "no file of records"),
            ("{\"version\": 2}\n", "no file of records"),
            (&(head.clone() + "\nnonsense\n"), "line 2"),
            (&(head + "\n{\"job\": \"x\", \"records\": [{\"record\": \"other\"}]}\n"), "unknown variant"),
            (&infinite, "line 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Records::open(&path, header()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("eval.jsonl"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is left as it was");
        }
    }
}
