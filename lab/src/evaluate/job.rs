//! The jobs of an evaluation: what is run, in which order, and what it gives.

use std::ops::ControlFlow;

use axiscap::CapSet;

use super::arm::{Arm, observed};
use super::ask::{Question, likelihoods};
use super::control::{matched, sample};
use super::material::Script;
use super::reading::read;
use super::record::{Answer, Condition, Record, Records};
use super::talk::{TalkOptions, talk, turns};
use super::{Evaluation, Suite};
use crate::dose::{Comparison, random_caps_with};
use crate::error::Error;
use crate::pass::Text;
use crate::rollout::{Generator, Group, Request, RolloutOptions};

/// Conversations of one job, and facts.
const CHUNK: usize = 12;
const FACTS: usize = 48;

/// Facts or choices that follow each other on one sequence. What comes before the question, a template's own system
/// prompt for example, is decoded once.
const LANE: usize = 3;

/// A piece of work that is done or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    work: Work,
    steps: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    /// The conversations of a chunk.
    Talk(Arm, usize),
    /// A control.
    Control(usize),
    /// Readings of a chunk, under the arm's caps or uncapped.
    Read(Arm, usize, bool),
    /// The facts of a chunk, under all conditions.
    Facts(Arm, usize),
    Probes(Arm, usize),
    Choices(Arm),
    Texts(Arm),
    DoseAnswers,
    Dose(Arm),
}

impl Job {
    /// Returns its name, by which records are known to be its own.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.work {
            Work::Talk(arm, chunk) => format!("conversations {arm} {chunk}"),
            Work::Control(number) => format!("control {number}"),
            Work::Read(arm, chunk, true) => format!("readings under caps {arm} {chunk}"),
            Work::Read(arm, chunk, false) => format!("readings {arm} {chunk}"),
            Work::Facts(arm, chunk) => format!("facts {arm} {chunk}"),
            Work::Probes(arm, chunk) => format!("probes {arm} {chunk}"),
            Work::Choices(arm) => format!("choices {arm}"),
            Work::Texts(arm) => format!("texts {arm}"),
            Work::DoseAnswers => "dose answers".into(),
            Work::Dose(arm) => format!("dose {arm}"),
        }
    }

    /// Returns how many steps it has, for progress. They take about as long in all jobs.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }
}

/// Returns the jobs of some suites. Controls are matched on uncapped conversations, which come first.
pub(super) fn jobs(evaluation: &Evaluation<'_>, suites: &[Suite]) -> Vec<Job> {
    let Evaluation { material, size, .. } = evaluation;
    let has = |suite| suites.contains(&suite);
    let arms = Arm::all(size.controls);
    let chunks = material.conversations.len().div_ceil(CHUNK);
    let turns = |chunk| scripts(evaluation, chunk).map(|(_, script)| script.turns.len()).sum::<usize>();
    let mut jobs = Vec::new();
    let mut add = |work, steps: usize| jobs.push(Job { work, steps });
    let has_talks = has(Suite::Drift) || has(Suite::Consistency);
    if has_talks || size.controls > 0 {
        (0..chunks).for_each(|chunk| add(Work::Talk(Arm::Uncapped, chunk), 4 * turns(chunk)));
    }
    for number in 1..=size.controls {
        add(Work::Control(number), 10 * size.control_conversations * material.domains().len());
    }
    for &arm in arms.iter().filter(|_| has_talks) {
        for chunk in 0..chunks {
            if arm != Arm::Uncapped {
                add(Work::Talk(arm, chunk), 4 * turns(chunk));
            }
            if has(Suite::Drift) {
                add(Work::Read(arm, chunk, false), turns(chunk));
                if arm == Arm::Capped {
                    add(Work::Read(arm, chunk, true), turns(chunk));
                }
            }
            if has(Suite::Consistency) {
                add(Work::Probes(arm, chunk), 2 * turns(chunk));
            }
        }
    }
    if has(Suite::Reliability) {
        for &arm in &arms {
            for chunk in 0..size.facts.div_ceil(FACTS) {
                let facts = FACTS.min(size.facts - chunk * FACTS);
                add(Work::Facts(arm, chunk), Condition::ALL.len() * facts / 2);
            }
        }
    }
    if has(Suite::Capability) {
        for &arm in &arms {
            add(Work::Choices(arm), size.choices);
            add(Work::Texts(arm), 4 * evaluation.texts.iter().map(|text| text.pieces.len()).sum::<usize>());
        }
    }
    if has(Suite::Dose) {
        let answers = size.dose_questions * material.dose.prompts.len();
        add(Work::DoseAnswers, 4 * answers);
        arms.iter().filter(|&&arm| arm != Arm::Uncapped).for_each(|&arm| add(Work::Dose(arm), 3 * answers));
    }
    jobs
}

/// Returns the conversations of a chunk, with their numbers. A chunk has some of each domain.
fn scripts<'e>(evaluation: &'e Evaluation<'_>, chunk: usize) -> impl Iterator<Item = (usize, &'e Script)> {
    let all = &evaluation.material.conversations;
    let chunks = all.len().div_ceil(CHUNK).max(1);
    all.iter().enumerate().filter(move |(number, _)| number % chunks == chunk)
}

/// Runs a job.
pub(super) fn run(
    evaluation: &Evaluation<'_>,
    job: &Job,
    records: &Records,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Record>>, Error> {
    let run = Run { evaluation, records };
    match &job.work {
        Work::Talk(arm, chunk) => run.talk(*arm, *chunk, |done| go_on(4 * done)),
        // How many comparisons a control needs is not known.
        Work::Control(number) => run.control(*number, |done| go_on(done.min(job.steps))),
        Work::Read(arm, chunk, under_caps) => run.read(*arm, *chunk, *under_caps, go_on),
        Work::Facts(arm, chunk) => run.facts(*arm, *chunk, |done| go_on(done / 4)),
        Work::Probes(arm, chunk) => {
            run.probes(*arm, *chunk, |share| go_on((share * job.steps as f64) as usize))
        }
        Work::Choices(arm) => run.choices(*arm, |share| go_on((share * job.steps as f64) as usize)),
        Work::Texts(arm) => run.texts(*arm, |done| go_on(4 * done)),
        Work::DoseAnswers => run.dose_answers(|done| go_on(4 * done)),
        Work::Dose(arm) => run.dose(*arm, |done| go_on(3 * done)),
    }
}

/// An evaluation with the records so far.
struct Run<'e, 'a> {
    evaluation: &'e Evaluation<'a>,
    records: &'e Records,
}

impl Run<'_, '_> {
    /// Returns the caps of an arm.
    fn caps(&self, arm: Arm) -> Result<Option<CapSet>, Error> {
        let caps = self.evaluation.caps;
        let control = |record: &Record| match record {
            Record::Control { arm: of, seed, floors, .. } if *of == arm => Some((*seed, floors.clone())),
            _ => None,
        };
        match arm {
            Arm::Uncapped => Ok(None),
            Arm::Capped => Ok(Some(caps.clone())),
            Arm::Random(_) => {
                let control = self.records.all().find_map(control);
                let control = control.filter(|(_, floors)| floors.len() == caps.caps().len());
                let (seed, floors) = control.ok_or_else(missing)?;
                Ok(Some(random_caps_with(caps, seed, &floors)?))
            }
        }
    }

    /// Returns the answers of a conversation.
    fn answers(&self, arm: Arm, id: &str) -> Result<&[Answer], Error> {
        let answers = |record| match record {
            &Record::Conversation { arm: of, id: ref name, ref answers } if of == arm && name == id => {
                Some(&answers[..])
            }
            _ => None,
        };
        self.records.all().find_map(answers).ok_or_else(missing)
    }

    fn talk(
        &self,
        arm: Arm,
        chunk: usize,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, size, temperature, seed, compute, .. } = self.evaluation;
        let scripts: Vec<_> = scripts(self.evaluation, chunk).collect();
        let options =
            TalkOptions { max_tokens: size.answer_tokens, temperature: *temperature, seed: *seed, compute };
        let answers = talk(template, &scripts, self.caps(arm)?.as_ref(), options, go_on)?;
        let record = |((_, script), answers): ((usize, &Script), _)| Record::Conversation {
            arm,
            id: script.id.clone(),
            answers,
        };
        Ok(answers.map(|answers| scripts.into_iter().zip(answers).map(record).collect()))
    }

    fn control(
        &self,
        number: usize,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, material, caps, size, seed, compute, .. } = self.evaluation;
        let mut conversations = Vec::new();
        for domain in material.domains() {
            let of_domain = material.conversations.iter().filter(|script| script.domain == domain);
            for script in of_domain.take(size.control_conversations) {
                let said = turns(template, script, self.answers(Arm::Uncapped, &script.id)?)?;
                conversations.extend(said.texts.into_iter().rev().find(|(_, answer)| !answer.is_empty()));
            }
        }
        let seed = u64::from(*seed) + number as u64;
        let known = self.records.all().find_map(|record| match record {
            Record::Control { wanted_kl, .. } => Some(f64::from(*wanted_kl)),
            _ => None,
        });
        let answers = sample(conversations);
        let found = matched(template.model(), caps, &answers, seed, known, compute, go_on)?;
        let record = |found: super::control::Matched| Record::Control {
            arm: Arm::Random(number),
            seed,
            floors: found.floors,
            wanted_kl: found.wanted_kl as f32,
            kl: found.kl as f32,
            tokens: found.tokens,
        };
        Ok(found.map(|found| vec![record(found)]))
    }

    fn read(
        &self,
        arm: Arm,
        chunk: usize,
        under_caps: bool,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, caps, watched, compute, .. } = self.evaluation;
        let acting = if under_caps { self.caps(arm)? } else { None };
        let (acting, first) = observed(caps, acting.as_ref())?;
        let scripts: Vec<_> = scripts(self.evaluation, chunk).map(|(_, script)| script).collect();
        let mut said = Vec::new();
        for script in &scripts {
            said.push(turns(template, script, self.answers(arm, &script.id)?)?.texts);
        }
        let bound = caps.caps()[*watched].cap.bound();
        let readings = read(template.model(), &said, &acting, first + watched, bound, compute, go_on)?;
        let record =
            |(script, turns): (&Script, _)| Record::Reading { arm, id: script.id.clone(), under_caps, turns };
        Ok(readings.map(|readings| scripts.into_iter().zip(readings).map(record).collect()))
    }

    fn facts(
        &self,
        arm: Arm,
        chunk: usize,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, material, compute, .. } = self.evaluation;
        let facts: Vec<_> = material.facts.iter().enumerate().skip(chunk * FACTS).take(FACTS).collect();
        let (mut questions, mut asked, mut lanes) = (Vec::new(), Vec::new(), Vec::new());
        // What begins alike follows each other: a question with and without a belief, facts under one persona.
        let mut ask = |number: usize, fact: &super::Fact, condition| {
            questions.push(Question::of_fact(template, material, number, fact, condition)?);
            asked.push((fact.id.clone(), condition));
            Ok::<_, Error>(())
        };
        for lane in facts.chunks(LANE) {
            for &(number, fact) in lane {
                for condition in [Condition::Plain, Condition::Belief, Condition::Sad, Condition::SadBelief] {
                    ask(number, fact, condition)?;
                }
            }
            lanes.push(4 * lane.len());
        }
        for persona in 0..material.warm.len() {
            let of: Vec<_> =
                facts.iter().filter(|(number, _)| number % material.warm.len() == persona).collect();
            for lane in of.chunks(2 * LANE) {
                for &&(number, fact) in lane {
                    ask(number, fact, Condition::Warm)?;
                }
                lanes.push(lane.len());
            }
        }
        let caps = self.caps(arm)?;
        let found = likelihoods(template.model(), &questions, &lanes, caps.as_ref(), compute, go_on)?;
        let record = |((id, condition), found): (_, Vec<f32>)| Record::Fact {
            arm,
            id,
            condition,
            right: found[0],
            wrong: found[1],
        };
        Ok(found.map(|found| asked.into_iter().zip(found).map(record).collect()))
    }

    fn probes(
        &self,
        arm: Arm,
        chunk: usize,
        mut go_on: impl FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, material, compute, .. } = self.evaluation;
        let model = template.model();
        // A conversation that ended early, or before its second answer, has no late questions.
        let (mut questions, mut lanes, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        for (_, script) in scripts(self.evaluation, chunk) {
            let answers = self.answers(arm, &script.id)?;
            if answers.len() < 2 {
                continue;
            }
            let said = turns(template, script, answers)?;
            let before = questions.len();
            for chat in [&said.first, &said.last] {
                for probe in &material.probes {
                    let prompt = super::talk::ids(chat.ask(&probe.question)?.tokens());
                    questions.push(Question::after(model, prompt, &probe.options)?);
                }
            }
            lanes.push(questions.len() - before);
            asked.push(script.id.clone());
        }
        let all = questions.iter().map(|question| question.answers.len()).sum::<usize>() as f64;
        let caps = self.caps(arm)?;
        let found = likelihoods(model, &questions, &lanes, caps.as_ref(), compute, |done| {
            go_on(done as f64 / all.max(1.0))
        })?;
        let Some(found) = found else { return Ok(None) };
        let mut records = Vec::new();
        for (conversation, found) in asked.into_iter().zip(found.chunks(2 * material.probes.len())) {
            let (early, late) = found.split_at(material.probes.len());
            for ((probe, early), late) in material.probes.iter().zip(early).zip(late) {
                records.push(Record::Probe {
                    arm,
                    conversation: conversation.clone(),
                    id: probe.id.clone(),
                    early: early.clone(),
                    late: late.clone(),
                });
            }
        }
        Ok(Some(records))
    }

    fn choices(
        &self,
        arm: Arm,
        mut go_on: impl FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, material, compute, .. } = self.evaluation;
        let mut questions = Vec::new();
        for choice in &material.choices {
            questions.push(Question::new(template, None, &choice.question, &choice.options)?);
        }
        let lanes: Vec<usize> = questions.chunks(LANE).map(<[_]>::len).collect();
        let all = questions.iter().map(|question| question.answers.len()).sum::<usize>() as f64;
        let caps = self.caps(arm)?;
        let found = likelihoods(template.model(), &questions, &lanes, caps.as_ref(), compute, |done| {
            go_on(done as f64 / all.max(1.0))
        })?;
        let record = |(choice, options): (&super::Choice, _)| Record::Choice {
            arm,
            id: choice.id.clone(),
            options,
            right: choice.right,
        };
        Ok(found.map(|found| material.choices.iter().zip(found).map(record).collect()))
    }

    fn texts(
        &self,
        arm: Arm,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, texts, compute, .. } = self.evaluation;
        let (mut questions, mut records) = (Vec::new(), Vec::new());
        for given in texts {
            for (piece, (first, rest)) in given.pieces.iter().map(crate::dose::Piece::tokens).enumerate() {
                questions.push(Question { prompt: first.to_vec(), answers: vec![rest.to_vec()] });
                records.push((given.name.clone(), piece, rest.len()));
            }
        }
        let lanes = vec![1; questions.len()];
        let caps = self.caps(arm)?;
        let found = likelihoods(template.model(), &questions, &lanes, caps.as_ref(), compute, go_on)?;
        let record = |((text, piece, tokens), found): (_, Vec<f32>)| Record::Piece {
            arm,
            text,
            piece,
            tokens,
            log_likelihood: found[0],
        };
        Ok(found.map(|found| records.into_iter().zip(found).map(record).collect()))
    }

    fn dose_answers(
        &self,
        mut go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, material, size, temperature, seed, compute, .. } = self.evaluation;
        let mut requests = Vec::new();
        let mut names = Vec::new();
        for prompt in &material.dose.prompts {
            for (question, text) in material.dose.questions.iter().enumerate() {
                let seed = seed.wrapping_add(u32::try_from(requests.len()).unwrap_or(u32::MAX));
                let (group, system) = (Group::Default, prompt.text.clone());
                requests.push(Request { group, system, question, text: text.clone(), seed });
                names.push(prompt.name.clone());
            }
        }
        let options = RolloutOptions {
            max_tokens: size.answer_tokens,
            sampling: axiscap_llama::Sampling { temperature: *temperature, ..Default::default() },
            compute: compute.clone(),
            ..RolloutOptions::default()
        };
        let mut generator = Generator::new(template, &requests, &options)?;
        let mut answers = Vec::new();
        while answers.len() < requests.len() {
            let Some(group) = generator.group(answers.len(), &mut go_on)? else { return Ok(None) };
            answers.extend(group);
        }
        let record = |(prompt, answer): (String, crate::rollout::Rollout)| Record::DoseAnswer {
            prompt,
            question: answer.question,
            tokens: answer.prompt,
            response: answer.response,
        };
        Ok(Some(names.into_iter().zip(answers).map(record).collect()))
    }

    fn dose(
        &self,
        arm: Arm,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        let Evaluation { template, compute, .. } = self.evaluation;
        let answers: Vec<_> = self.records.all().filter_map(dose_answer).collect();
        let texts: Vec<Text<'_>> = answers.iter().map(|answer| answer.2).collect();
        let Some(caps) = self.caps(arm)? else { return Ok(Some(Vec::new())) };
        if texts.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let mut kl = vec![Vec::new(); texts.len()];
        let mut engaged: Vec<Vec<bool>> = texts.iter().map(|text| vec![false; text.length()]).collect();
        let mut comparison = Comparison::new(template.model(), &texts, &caps, compute)?;
        comparison.trace()?;
        let is_done = comparison.run(
            |text, token| kl[text].push(token.kl as f32),
            |text, line| {
                let row = usize::try_from(line.position).ok().and_then(|at| engaged[text].get_mut(at));
                if let Some(row) = row.filter(|_| line.engaged) {
                    *row = true;
                }
            },
            go_on,
        )?;
        let found = answers.iter().zip(kl).zip(engaged);
        let record =
            |((&(prompt, question, text), kl), engaged): ((&(&str, usize, Text<'_>), _), Vec<bool>)| {
                Record::Dose {
                    arm,
                    prompt: prompt.into(),
                    question,
                    first: text.prompt.len().saturating_sub(1),
                    kl,
                    engaged: engaged.iter().map(|&engaged| if engaged { '1' } else { '0' }).collect(),
                }
            };
        Ok(is_done.then(|| found.map(record).collect()))
    }
}

fn dose_answer(record: &Record) -> Option<(&str, usize, Text<'_>)> {
    match record {
        Record::DoseAnswer { prompt, question, tokens, response } if !response.is_empty() => {
            Some((prompt, *question, Text { prompt: tokens, response }))
        }
        _ => None,
    }
}

/// Refuses a job whose records of earlier jobs are not there.
fn missing() -> Error {
    Error::Empty { place: "the records of an earlier job".into(), remedy: "run the jobs in their order" }
}
