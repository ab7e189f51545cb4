//! Which answers play their role.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Result, ensure};
use axiscap_lab::ComputeOptions;
use axiscap_lab::judge::{Case, Endpoint, Judge, LEAST_LIKELIHOOD, MAX_SCORE, RoleCase, likelihoods};
use axiscap_lab::rollout::{Fault, Group, Judged, Plan, Rollout, RolloutHeader, Rollouts};
use axiscap_llama::Model;

use super::Answers;
use crate::interrupt::Catch;
use crate::progress::Progress;
use crate::template::TemplateArgs;
use crate::{interrupt, remedy};

/// Name of the built-in judge in files and options.
const LIKELIHOOD: &str = "likelihood";

/// Scores that are lost if the program is killed. Each saving writes the whole file.
const UNSAVED: usize = 32;

/// Who says whether an answer plays its role.
#[derive(Debug, clap::Args)]
pub(super) struct JudgeArgs {
    /// Who says whether an answer plays its role: likelihood (it is twenty times as likely in the role as without a
    /// system prompt), the base URL of a server with OpenAI's interface (http://127.0.0.1:8080/v1; a key in
    /// AXISCAP_JUDGE_KEY), or none. Answers that ignore their role are left out [default: who judged the file
    /// of --rollouts, or likelihood]
    #[arg(long, value_name = "JUDGE", value_parser = judge, conflicts_with = "judge_command")]
    judge: Option<Given>,

    /// A command that judges: it reads {"index", "role", "system", "question", "answer"} as JSON, one a line, and
    /// prints a score from 0 (refuses) to 3 (plays the role fully) for each line
    #[arg(long, value_name = "COMMAND")]
    judge_command: Option<String>,

    /// The model that --judge URL asks
    #[arg(long, value_name = "NAME", requires = "judge")]
    judge_model: Option<String>,

    /// Least score of a server or a command with which an answer plays its role [default: 3]
    #[arg(long, value_name = "SCORE", value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_SCORE)))]
    judge_min: Option<u8>,
}

/// What `--judge` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    None,
    Likelihood,
    Url(String),
}

fn judge(text: &str) -> Result<Given, String> {
    match text {
        "none" => Ok(Given::None),
        LIKELIHOOD => Ok(Given::Likelihood),
        url if url.starts_with("http://") || url.starts_with("https://") => Ok(Given::Url(url.into())),
        _ => Err(format!(
            "expected {LIKELIHOOD}, none, or a URL that begins with http:// or https://; a program is given with --judge-command"
        )),
    }
}

/// Who judges.
enum Wanted {
    None,
    Likelihood,
    Outside(Judge),
    /// The one that the file of answers names. It is not asked: a file may come from anyone, and must not have a
    /// command run or a server asked.
    Earlier(String),
}

/// What judging needs to know.
pub(super) struct Judging<'a> {
    pub(super) model: &'a Model,
    pub(super) template: &'a TemplateArgs,
    /// The whole plan, with every question that an answer may name.
    pub(super) plan: &'a Plan,
    pub(super) compute: &'a ComputeOptions,
    /// The file that keeps scores.
    pub(super) file: Option<&'a Path>,
    /// Faults that leave no answer out: answers with others are not judged.
    pub(super) keep: &'a [Fault],
}

impl Judging<'_> {
    /// Returns whether an outside judge has still to score an answer. Those with other faults are left out whatever
    /// it says.
    fn misses(&self, rollout: &Rollout) -> bool {
        let is_kept = rollout.faults.iter().all(|fault| self.keep.contains(fault));
        matches!(rollout.group, Group::Role(_)) && rollout.score.is_none() && is_kept
    }
}

impl JudgeArgs {
    /// Has the answers judged that were not judged before, and marks those that ignore their role.
    pub(super) fn judge(&self, judging: &Judging<'_>, answers: &mut Answers, caught: &Catch) -> Result<()> {
        let before = answers.header.judge.clone();
        let wanted = self.wanted(&answers.header)?;
        let by = match &wanted {
            Wanted::None => {
                answers.header.judge = None;
                answers.rollouts.iter_mut().for_each(|rollout| rollout.score = None);
                return Ok(());
            }
            Wanted::Earlier(by) => by.clone(),
            Wanted::Likelihood => LIKELIHOOD.to_owned(),
            Wanted::Outside(judge) => judge.name(),
        };
        if before.as_ref().is_none_or(|judged| judged.by != by) {
            answers.header.judge = Some(Judged { by: by.clone(), least: None });
            answers.rollouts.iter_mut().for_each(|rollout| rollout.score = None);
        }
        let (least, has_asked) = match wanted {
            Wanted::None => return Ok(()),
            Wanted::Likelihood => (by_likelihood(judging, answers, caught)?, false),
            Wanted::Earlier(_) => {
                let missing = answers.rollouts.iter().filter(|rollout| judging.misses(rollout)).count();
                ensure!(
                    missing == 0,
                    "{missing} of the answers in roles are not judged yet, and the others were by {by}; name that judge again to go on, or another with --judge"
                );
                (self.least(&answers.header), false)
            }
            Wanted::Outside(judge) => {
                let has_asked = by_judge(&judge, judging, answers, caught)?;
                (self.least(&answers.header), has_asked)
            }
        };
        let judged = answers.header.judge.as_mut().expect("it was set above");
        judged.least = Some(least);
        // A file that says the same already may be one that cannot be written.
        if before.as_ref() != Some(judged) || has_asked {
            save(judging.file, answers)?;
        }
        for rollout in answers.rollouts.iter_mut().filter(|r| matches!(r.group, Group::Role(_))) {
            if rollout.score.is_some_and(|score| score < least) {
                rollout.faults.push(Fault::RoleIgnored);
            }
        }
        Ok(())
    }

    /// Returns who judges.
    fn wanted(&self, header: &RolloutHeader) -> Result<Wanted> {
        if let Some(command) = &self.judge_command {
            return Ok(Wanted::Outside(Judge::Command(command.clone())));
        }
        let wanted = match &self.judge {
            Some(Given::None) => Wanted::None,
            Some(Given::Likelihood) => Wanted::Likelihood,
            Some(Given::Url(url)) => {
                let key = std::env::var("AXISCAP_JUDGE_KEY").ok();
                let model = self.judge_model.clone();
                Wanted::Outside(Judge::Endpoint(Endpoint { model, key, ..Endpoint::new(url) }))
            }
            None => match &header.judge {
                Some(Judged { by, .. }) if by != LIKELIHOOD => Wanted::Earlier(by.clone()),
                _ => Wanted::Likelihood,
            },
        };
        ensure!(
            self.judge_min.is_none() || matches!(wanted, Wanted::Outside(_) | Wanted::Earlier(_)),
            "--judge-min is for the scores of a server or a command; name it with --judge URL or --judge-command"
        );
        Ok(wanted)
    }

    /// Returns the least score of an answer that plays its role, on an outside judge's scale.
    fn least(&self, header: &RolloutHeader) -> f32 {
        let earlier = header.judge.as_ref().and_then(|judged| judged.least);
        self.judge_min.map(f32::from).or(earlier).unwrap_or(f32::from(MAX_SCORE))
    }
}

/// Compares likelihoods, unless the file has them. Returns the least score of an answer that plays its role.
fn by_likelihood(judging: &Judging<'_>, answers: &mut Answers, caught: &Catch) -> Result<f32> {
    if let Some(least) = answers.header.judge.as_ref().and_then(|judged| judged.least) {
        return Ok(least);
    }
    // What there is to say about the template was said when the answers were made.
    let template = judging.model.chat_template(&judging.template.options()?)?;
    let scores = answers.measured("answers judged", answers.rollouts.len(), caught, |go_on| {
        likelihoods(&template, &judging.plan.questions, &answers.rollouts, judging.compute, go_on)
    })?;
    answers.rollouts.iter_mut().zip(scores).for_each(|(rollout, score)| rollout.score = score);
    Ok(LEAST_LIKELIHOOD)
}

/// Asks an outside judge for the scores that are missing. Returns whether there were any.
fn by_judge(judge: &Judge, judging: &Judging<'_>, answers: &mut Answers, caught: &Catch) -> Result<bool> {
    let places: Vec<usize> =
        (0..answers.rollouts.len()).filter(|&place| judging.misses(&answers.rollouts[place])).collect();
    if places.is_empty() {
        return Ok(false);
    }
    let texts: Vec<Rollout> = places.iter().map(|&place| answers.rollouts[place].clone()).collect();
    let cases: Vec<Case<'_>> = texts
        .iter()
        .map(|rollout| {
            Case::Role(RoleCase {
                role: if let Group::Role(name) = &rollout.group { name } else { "" },
                system: rollout.system.as_deref().unwrap_or_default(),
                question: &judging.plan.questions[rollout.question].text,
                answer: &rollout.text,
            })
        })
        .collect();
    let progress = Progress::new("answers judged", cases.len());
    let (mut done, mut unsaved) = (0, None);
    let result = judge.judge(&cases, |index, score| {
        answers.rollouts[places[index]].score = Some(score.into());
        done = index + 1;
        progress.set(done);
        if done % UNSAVED == 0
            && let Err(error) = save(judging.file, answers)
        {
            unsaved = Some(error);
            return ControlFlow::Break(());
        }
        caught.go_on()
    });
    if let Some(error) = unsaved {
        return Err(error);
    }
    let failure = match result {
        Ok(true) => {
            progress.finish();
            return Ok(true);
        }
        Ok(false) => None,
        Err(error) => Some(error),
    };
    progress.clear();
    // A judge that gave no score leaves the scores of an earlier one in the file.
    if done > 0 {
        save(judging.file, answers)?;
    }
    let kept = match judging.file {
        Some(file) if done == 0 => format!("{} is as it was", file.display()),
        Some(file) => format!(
            "{done} of {} scores are kept in {}, and the same command goes on from there",
            cases.len(),
            file.display()
        ),
        None => "no score is kept, because there is no --rollouts FILE".into(),
    };
    Err(match failure {
        Some(error) => remedy::noted(axiscap_lab::Error::from(error), kept),
        None => interrupt::error(&kept),
    })
}

/// Writes the answers with their scores.
fn save(file: Option<&Path>, answers: &Answers) -> Result<()> {
    // What is no file, a pipe for example, cannot be replaced.
    if let Some(file) = file.filter(|file| file.is_file()) {
        let (header, rollouts) = (answers.header.clone(), answers.rollouts.clone());
        Rollouts { header, rollouts }.write(file)?;
    }
    Ok(())
}

/// Returns the options that name the judge, for the origin of a file.
pub(super) fn words(header: &RolloutHeader) -> String {
    let Some(Judged { by, least }) = &header.judge else { return " --judge none".into() };
    if by == LIKELIHOOD {
        return format!(" --judge {LIKELIHOOD}");
    }
    let least = least.map_or(String::new(), |least| format!(" --judge-min {least}"));
    match by.strip_prefix("command: ") {
        // A command line may hold secrets.
        Some(_) => format!(" --judge-command ...{least}"),
        None => match by.split_once(' ') {
            Some((url, model)) => format!(" --judge {url} --judge-model {model:?}{least}"),
            None => format!(" --judge {by}{least}"),
        },
    }
}
