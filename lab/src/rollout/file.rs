//! Answers on disk, as JSON lines: one header and one line per answer. Calibration reads them instead of
//! generating them again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use axiscap_llama::ModelShape;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fault::Fault;
use super::plan::Group;
use crate::error::Error;
use crate::output::write_atomically;

/// Version of the file's layout.
const VERSION: u32 = 2;

/// One generated answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Whose answer it is.
    pub group: Group,
    /// System prompt, if any.
    pub system: Option<String>,
    /// Index of the question in the plan, among those that its group is asked.
    pub question: usize,
    /// Seed of this answer.
    pub seed: u32,
    /// Token ids of the templated prompt.
    pub prompt: Vec<i32>,
    /// Token ids of the answer, without the token that ends a turn.
    pub response: Vec<i32>,
    /// How many of these are thoughts, their markup included. They come first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub thoughts: usize,
    /// The answer as text.
    pub text: String,
    /// Natural logarithm of the probability of the response's tokens, as the model gives it. `None` where it is
    /// not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_likelihood: Option<f32>,
    /// What the judge said, on its own scale. `None` before it was asked, and for answers that are in no role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// What the answers were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutHeader {
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
    /// Size of its vocabulary.
    pub vocabulary: usize,
    /// SHA-256 of the roles file.
    pub roles_sha256: String,
    /// SHA-256 of the questions file.
    pub questions_sha256: String,
    /// SHA-256 of the traits file, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traits_sha256: Option<String>,
    /// Seed of the plan.
    pub seed: u32,
    /// Sampling temperature.
    pub temperature: f32,
    /// Maximum tokens of an answer.
    pub max_tokens: usize,
    /// The chat template used instead of the model's own, if any: its name, or `sha256:` and the digest of its
    /// text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The system prompt of conversations without one, if it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_system: Option<String>,
    /// The template's variable `enable_thinking`, if it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<bool>,
    /// Further variables of the template.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_variables: Map<String, Value>,
    /// The date in the prompts, if the template writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// SHA-256 of the prompts' tokens.
    pub prompts_sha256: String,
    /// How the weights were stored: `general.file_type` of the model, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_type: Option<u32>,
    /// Answers generated side by side.
    pub slots: usize,
    /// Answers of the default Assistant, `None` for every question under every system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_answers: Option<usize>,
    /// Answers per role, and per side of a trait, `None` for every question under every system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers_per_role: Option<usize>,
    /// Answers that are held out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_out_answers: usize,
    /// Number of the first roles used, `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_roles: Option<usize>,
    /// Number of the first questions used, `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_questions: Option<usize>,
    /// Number of answers planned, which a complete file holds.
    pub answers: usize,
    /// Who judged the answers, and from which score on an answer plays its role. `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judged>,
}

/// Who judged answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// The judge.
    pub by: String,
    /// From this score on an answer plays its role. `None` while some answers are not judged yet.
    pub least: Option<f32>,
}

impl RolloutHeader {
    /// The layout that this version writes and reads.
    pub const VERSION: u32 = VERSION;

    /// Returns the shape of the model.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        ModelShape { architecture: self.architecture.clone(), blocks: self.blocks, width: self.width }
    }

    /// Reads the first line of a file. The error says what is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let header: Self = serde_json::from_str(line).map_err(malformed)?;
        if header.version == VERSION {
            Ok(header)
        } else {
            Err(format!("layout version {} is not {VERSION}; make the file again", header.version))
        }
    }
}

impl Rollout {
    /// Returns the response's tokens after its thoughts.
    #[must_use]
    pub fn answer(&self) -> &[i32] {
        self.response.get(self.thoughts..).unwrap_or_default()
    }

    /// Returns whether it is an answer of the default Assistant.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.group == Group::Default
    }

    /// Reads any other line of a file. The error says what is wrong with it.
    pub(super) fn parse(line: &str, header: &RolloutHeader) -> Result<Self, String> {
        let rollout: Self = serde_json::from_str(line).map_err(malformed)?;
        let known = |&token: &i32| usize::try_from(token).is_ok_and(|t| t < header.vocabulary);
        if let Some(token) = rollout.prompt.iter().chain(&rollout.response).find(|t| !known(t)) {
            return Err(format!("token {token} is outside the vocabulary of {}", header.vocabulary));
        }
        if rollout.prompt.is_empty() {
            return Err("has an empty prompt; make the file again".into());
        }
        if rollout.thoughts > rollout.response.len() {
            return Err("has more tokens of thoughts than of its response; make the file again".into());
        }
        Ok(rollout)
    }
}

/// Reads a line without its end. Returns `None` at the end of the file. The error says what is wrong with it.
fn read_line(reader: &mut impl BufRead) -> Result<Option<String>, String> {
    /// Maximum bytes of a line: far more than the tokens and the text of an answer. A device may have no end.
    const MAX: u64 = 256 << 20;
    let mut line = Vec::new();
    reader.take(MAX + 1).read_until(b'\n', &mut line).map_err(|error| format!("cannot be read: {error}"))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 > MAX {
        return Err("is too long for a line of an axiscap rollouts file; make the file again".into());
    }
    if line.ends_with(b"\n") {
        line.pop();
    }
    String::from_utf8(line).map(Some).map_err(|_| "is not UTF-8; make the file again".into())
}

#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
fn malformed(error: serde_json::Error) -> String {
    format!("is not a line of an axiscap rollouts file: {error}; make the file again")
}

/// Answers and what they were made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollouts {
    /// Where they come from.
    pub header: RolloutHeader,
    /// The answers, in the order of the plan.
    pub rollouts: Vec<Rollout>,
}

impl Rollouts {
    /// Reads a file written by [`Rollouts::write`].
    ///
    /// # Errors
    /// [`Error::RolloutFile`] names the line that cannot be read, is no header, is of another version, or
    /// holds a token outside the vocabulary. If answers are missing, it says how many.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |line, problem: String| Error::RolloutFile { path: path.into(), line, problem };
        let file = File::open(path).map_err(|e| fail(None, format!("cannot be opened: {e}")))?;
        let mut header: Option<RolloutHeader> = None;
        let mut rollouts = Vec::new();
        let mut reader = BufReader::new(file);
        for number in (1..).map(Some) {
            let Some(line) = read_line(&mut reader).map_err(|problem| fail(number, problem))? else { break };
            match &header {
                None => header = Some(RolloutHeader::parse(&line).map_err(|problem| fail(number, problem))?),
                Some(header) => {
                    rollouts.push(Rollout::parse(&line, header).map_err(|problem| fail(number, problem))?);
                }
            }
        }
        let Some(header) = header.filter(|_| !rollouts.is_empty()) else {
            return Err(fail(None, "holds no answers; make the file again".into()));
        };
        let (planned, found) = (header.answers, rollouts.len());
        if planned == found {
            return Ok(Self { header, rollouts });
        }
        let what = match planned.checked_sub(found) {
            Some(missing) => format!("{missing} of the {planned} answers are missing"),
            None => format!("there are {found} answers, but only {planned} were planned"),
        };
        Err(fail(None, format!("{what}: the file was cut or changed; fetch or make it again")))
    }

    /// Writes the answers. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be written or the disk is full.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_atomically(path, |out| {
            serde_json::to_writer(&mut *out, &self.header)?;
            for rollout in &self.rollouts {
                out.write_all(b"\n")?;
                serde_json::to_writer(&mut *out, rollout)?;
            }
            out.write_all(b"\n")
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::rollout) fn rollouts() -> Rollouts {
        let header = RolloutHeader {
            version: VERSION,
            tool: "axiscap 0".into(),
            architecture: "llama".into(),
            model: "tiny".into(),
            blocks: 2,
            width: 4,
            vocabulary: 10,
            roles_sha256: String::new(),
            questions_sha256: String::new(),
            seed: 1,
            temperature: 0.7,
            max_tokens: 3,
            chat_template: None,
            default_system: None,
            thinking: None,
            template_variables: Map::new(),
            template_date: None,
            traits_sha256: None,
            prompts_sha256: String::new(),
            file_type: Some(3),
            slots: 2,
            default_answers: Some(1),
            answers_per_role: None,
            held_out_answers: 0,
            limit_roles: None,
            limit_questions: Some(2),
            answers: 2,
            judge: None,
        };
        let rollout = |group, response: &[i32], thoughts| Rollout {
            group,
            system: None,
            question: 0,
            seed: 7,
            prompt: vec![1, 9],
            response: response.to_vec(),
            thoughts,
            text: "ah \"oh\"\n".into(),
            log_likelihood: Some(-2.5),
            score: None,
            faults: vec![],
        };
        let pirate = Group::Role("pirate".into());
        Rollouts { header, rollouts: vec![rollout(Group::Default, &[2, 3], 1), rollout(pirate, &[], 0)] }
    }

    #[test]
    fn a_written_file_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        rollouts().write(&path).unwrap();
        assert_eq!(Rollouts::read(&path).unwrap(), rollouts());
    }

    #[test]
    fn broken_files_are_refused_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        assert!(Rollouts::read(&path).unwrap_err().to_string().contains("cannot be opened"));
        rollouts().write(&path).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let read = |text: String| {
            std::fs::write(&path, text).unwrap();
            Rollouts::read(&path).unwrap_err().to_string()
        };
        assert!(read(String::new()).contains("holds no answers"));
        std::fs::write(&path, b"\xff\n").unwrap();
        assert!(Rollouts::read(&path).unwrap_err().to_string().contains("line 1: is not UTF-8"));
        #[cfg(target_os = "linux")]
        {
            let endless = Rollouts::read(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(endless.contains("/dev/zero, line 1: is too long"), "{endless}");
        }
        assert!(read(good.lines().next().unwrap().into()).contains("holds no answers"));
        assert!(read(good.replace("\"version\":2", "\"version\":1")).contains("line 1: layout version 1"));
        assert!(read(good.replace("[1,9]", "[1,10]")).contains("line 2: token 10 is outside"));
        assert!(read(good.replace("[1,9]", "[]")).contains("line 2: has an empty prompt"));
        assert!(
            read(good.replace("\"thoughts\":1", "\"thoughts\":3")).contains("line 2: has more tokens of")
        );
        assert!(read(good[..good.len() - 9].into()).contains("line 3"));
        let cut = good.lines().take(2).collect::<Vec<_>>().join("\n");
        assert!(read(cut.clone()).contains("1 of the 2 answers are missing"));
        let more = format!("{good}{}\n", good.lines().nth(1).unwrap());
        assert!(read(more).contains("3 answers, but only 2"));
        let nowhere = rollouts().write(Path::new("/nonexistent/r.jsonl")).unwrap_err();
        assert!(nowhere.to_string().contains("/nonexistent/r.jsonl"));
    }
}
