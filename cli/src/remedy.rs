//! What to do about an error, in the words of this program: its flags, its commands, its scripts.
//!
//! The libraries say what is wrong and what their callers can do. This file adds the flag that does it, by
//! variant.

use std::error::Error;
use std::fmt;

use axiscap::file::{FileError, Problem};
use axiscap_lab::Error as LabError;
use axiscap_llama::{Error as LlamaError, HookError, LoadFailure};

/// Returns the message of an error, its causes, and a line for each remedy.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    for remedy in remedies(error) {
        text += "\nhint: ";
        text += &remedy;
    }
    text
}

/// Adds a note after the message of an error.
pub(crate) fn noted(error: impl Into<anyhow::Error>, note: impl Into<String>) -> anyhow::Error {
    Noted { error: error.into(), note: note.into() }.into()
}

/// An error and what the program says about it. The error is no source: its causes are part of the message.
#[derive(Debug)]
struct Noted {
    error: anyhow::Error,
    note: String,
}

impl fmt::Display for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}; {}", self.error, self.note)
    }
}

impl Error for Noted {}

/// Returns the remedies for an error and its causes.
fn remedies(error: &anyhow::Error) -> Vec<String> {
    let of_cause = |cause: &(dyn Error + 'static)| {
        if let Some(noted) = cause.downcast_ref::<Noted>() {
            return remedies(&noted.error);
        }
        let lab = cause.downcast_ref().and_then(lab);
        let llama = || cause.downcast_ref().and_then(llama);
        let hook = || cause.downcast_ref().and_then(hook);
        let file = || cause.downcast_ref().and_then(file);
        lab.or_else(llama).or_else(hook).or_else(file).into_iter().collect()
    };
    error.chain().flat_map(of_cause).collect()
}

fn lab(error: &LabError) -> Option<String> {
    match error {
        LabError::Llama(error) => llama(error),
        LabError::File(error) => file(error),
        LabError::Option { option, .. } => {
            let flags: Vec<_> = option.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
            flag(&flags)
        }
        LabError::AnswerTooLong { .. } => Some("--max-tokens N allows fewer tokens per answer".into()),
        LabError::MostAnswersLeftOut { .. } => Some(
            "--chat-template, --thinking off and --max-tokens N change how the model answers, with another --rollouts FILE; --keep FAULT,... measures these all the same".into(),
        ),
        LabError::EmptyGroup { .. } => {
            Some("--max-tokens N allows more tokens per answer, --limit-questions N more questions".into())
        }
        LabError::FewRoles { .. } => Some(
            "--answers-per-role N generates more answers, --keep FAULT,... keeps more, --min-answers N accepts fewer".into(),
        ),
        _ => None,
    }
}

fn llama(error: &LlamaError) -> Option<String> {
    const CONTEXT: &str = "--ctx N sets the size of the context";
    let remedy = match error {
        LlamaError::Hook(error) => return hook(error),
        LlamaError::Option { option, .. } => return flag(&[option]),
        LlamaError::ModelLoad { cause: LoadFailure::ControlVector, .. } => {
            "give the model with --model, and this file with --caps"
        }
        LlamaError::KvTypes { .. } => {
            "--cache-type-k and --cache-type-v TYPE set the types (--kv-type both), --flash-attn on|off|auto flash attention"
        }
        LlamaError::NotBound => "`axiscap doctor` lists the devices that the hook sees",
        LlamaError::ContextCreation { .. }
        | LlamaError::PromptTooLong { .. }
        | LlamaError::ContextFull { .. }
        | LlamaError::BatchRow { what: "position", .. } => CONTEXT,
        LlamaError::NoChatTemplate { .. } | LlamaError::ChatTemplate { .. } => {
            "--chat-template NAME names a template; `axiscap run --raw` takes a prompt with its markup"
        }
        LlamaError::TemplateRefuses { .. } | LlamaError::TemplateFails { .. } => {
            "--chat-template or --chat-template-file takes another template, --chat-template-kwargs sets its variables"
        }
        _ => return None,
    };
    Some(remedy.into())
}

fn hook(error: &HookError) -> Option<String> {
    let remedy = match error {
        HookError::DeviceDiffers { .. } | HookError::DeviceStatsDiffer { .. } => {
            "--gpu-layers 0 keeps the model on the CPU"
        }
        HookError::DeviceNormDiffers { .. } => "run without --fused-norm",
        _ => return None,
    };
    Some(remedy.into())
}

fn file(error: &FileError) -> Option<String> {
    let remedy = match error {
        FileError::PlainControlVector { .. } => {
            "`axiscap calibrate` gives its directions bounds on this model"
        }
        FileError::Malformed(problem) | FileError::Unsupported(problem) | FileError::Invalid(problem) => {
            return field(problem);
        }
        _ => return None,
    };
    Some(remedy.into())
}

fn field(Problem { field, .. }: &Problem) -> Option<String> {
    let remedy = match field.as_str() {
        "general.architecture" | "file size" => "if this is a model, give it with --model",
        "magic" => "`axiscap calibrate` makes cap files, and `axiscap import` reads those of other tools",
        "experiments" => "--list shows the experiments of a file, --experiment ID names one",
        "orientation" => {
            "--default-vector and --role-vector decide what the vectors point to, --points-to says it"
        }
        "axiscap.version" => "`axiscap calibrate` and `axiscap run` take cap files as they are",
        field if field.starts_with("tensor") => "`axiscap extract` makes the axes again",
        field if field.starts_with("axiscap.") || field.starts_with("controlvector.") => {
            "`axiscap calibrate` makes the file again"
        }
        _ => return None,
    };
    Some(remedy.into())
}

/// Returns the flags of the libraries' options.
fn flag(options: &[&str]) -> Option<String> {
    let flag = |option: &&str| {
        Some(match *option {
            "sampling" | "" => return None,
            "temperature" => "--temp".to_owned(),
            option => format!("--{}", option.replace('_', "-")),
        })
    };
    match options.iter().filter_map(flag).collect::<Vec<_>>().as_slice() {
        [] => None,
        [flag] => Some(format!("{flag} sets it")),
        flags => Some(format!("{} set them", flags.join(", "))),
    }
}

/// Returns what to do about a GPU that cannot be used.
#[cfg(feature = "gpu")]
pub(crate) fn cuda(error: &axiscap::cuda::CudaError) -> Option<&'static str> {
    use axiscap::cuda::CudaError;
    match error {
        CudaError::NoDriver { .. } => Some(
            "for an NVIDIA GPU install the driver (Debian: nvidia-driver, or libcuda1 in a container with a GPU); without one nothing is missing, and caps run on the CPU",
        ),
        CudaError::NoDeviceCode { .. } => Some("run scripts/setup-nvcc and build again"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn full() -> LlamaError {
        LlamaError::ContextFull { rows: 1, context: 64 }
    }

    #[test]
    fn a_remedy_is_found_through_every_crate_and_every_kind_of_wrapping() {
        let hint = "\nhint: --ctx N sets the size of the context";
        let plain = anyhow::Error::from(full());
        let lab = anyhow::Error::from(LabError::from(full()));
        let context = Err::<(), _>(LabError::from(full())).context("turn 2").unwrap_err();
        let noted = noted(LabError::from(full()), "/undo takes back the last turn");
        for error in [plain, lab, context, noted] {
            let text = describe(&error);
            assert!(text.ends_with(hint) && text.matches("hint:").count() == 1, "{text}");
        }
    }

    #[test]
    fn options_have_the_names_of_their_flags() {
        let option = "prompt_tokens + sequences * generate_tokens";
        let error = LabError::Option { option, value: "9".into(), expected: "less".into() };
        let text = describe(&error.into());
        assert!(text.contains("--prompt-tokens, --sequences, --generate-tokens set them"), "{text}");
    }

    #[test]
    fn an_error_without_a_remedy_is_only_its_message() {
        assert_eq!(describe(&anyhow::anyhow!("no")), "no");
    }
}
