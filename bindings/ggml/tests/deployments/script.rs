//! A use of a context, run without the hook, with infinite bounds, with tight bands, and with the same bands under a
//! guard, as in a program that does not know of the hook.

use axiscap_ggml::Reaction;
use axiscap_testing::llama::{ContextSettings, Row, TestContext};

use crate::capped::{Capped, PINNED, bands, bits, check_pinned, shape};
use crate::guarded::{Guarded, model_caps};
use crate::subjects::Subject;
use crate::support;

/// Has contexts compute in micro-batches of eight tokens.
pub(crate) fn in_eights(params: &mut ContextSettings) {
    params.n_ubatch = 8;
}

/// How a run of a script is capped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Infinite,
    Tight,
    Guarded,
}

/// A run of a script on one context.
pub(crate) struct Run<'m> {
    subject: &'m Subject,
    mode: Mode,
    under: Under<'m>,
    results: Vec<Vec<f32>>,
    read: fn(&TestContext<'_>, &[Row]) -> Vec<Vec<f32>>,
}

enum Under<'m> {
    Plain(TestContext<'m>),
    Caps(Capped<'m>),
    Guard(TestContext<'m>, Guarded),
}

/// Returns the logits of the rows that have some.
fn logits(context: &TestContext<'_>, rows: &[Row]) -> Vec<Vec<f32>> {
    (0..rows.len()).filter(|&row| rows[row].logits).map(|row| context.logits(row)).collect()
}

impl<'m> Run<'m> {
    pub(crate) fn context(&mut self) -> &mut TestContext<'m> {
        match &mut self.under {
            Under::Plain(context) | Under::Guard(context, _) => context,
            Under::Caps(capped) => &mut capped.context,
        }
    }

    /// Decodes a batch. Its results are compared with those of the other runs.
    #[track_caller]
    pub(crate) fn decode(&mut self, rows: &[Row]) {
        self.decode_with(rows, |context| context.decode(rows));
    }

    /// Decodes a batch by this call.
    #[track_caller]
    pub(crate) fn decode_with(&mut self, rows: &[Row], decode: impl FnOnce(&mut TestContext<'m>) -> i32) {
        let name = self.subject.name;
        match &mut self.under {
            Under::Plain(context) => assert_eq!(decode(context), 0, "{name}: llama_decode"),
            Under::Guard(context, guarded) => {
                let before = guarded.guard.counts().capped;
                let status = decode(context);
                assert_eq!((status, guarded.faults()), (0, vec![]), "{name}: guarded");
                assert!(guarded.guard.counts().capped > before, "{name}: no micro-batch was accounted for");
            }
            Under::Caps(capped) => {
                let trace =
                    capped.decode_with(rows, decode).unwrap_or_else(|error| panic!("{name}: {error}"));
                if self.mode == Mode::Tight {
                    let blocks: Vec<_> = (0..self.subject.model.blocks()).collect();
                    check_pinned(&trace, &blocks, &self.subject.model, rows)
                        .unwrap_or_else(|error| panic!("{name}: {error}"));
                }
            }
        }
        let read = self.read;
        let results = read(self.context(), rows);
        self.results.extend(results);
    }

    /// Adds a result that is compared with those of the other runs.
    pub(crate) fn compare(&mut self, result: Vec<f32>) {
        self.results.push(result);
    }

    /// Returns the results so far.
    pub(crate) fn results(&self) -> &[Vec<f32>] {
        &self.results
    }

    /// Makes a second context with the same caps, for the same script.
    pub(crate) fn another(&self, settings: impl Fn(&mut ContextSettings)) -> Run<'m> {
        start(self.subject, self.mode, &settings, self.read)
    }
}

/// Runs a script in each way.
#[track_caller]
pub(crate) fn run(subject: &Subject, settings: impl Fn(&mut ContextSettings), script: impl Fn(&mut Run<'_>)) {
    run_reading(subject, settings, logits, script);
}

/// Runs a script in each way, and compares what `read` returns after each decode.
#[track_caller]
pub(crate) fn run_reading(
    subject: &Subject,
    settings: impl Fn(&mut ContextSettings),
    read: fn(&TestContext<'_>, &[Row]) -> Vec<Vec<f32>>,
    script: impl Fn(&mut Run<'_>),
) {
    let results = [Mode::Plain, Mode::Infinite, Mode::Tight, Mode::Guarded].map(|mode| {
        let mut run = start(subject, mode, &settings, read);
        script(&mut run);
        run.results
    });
    let [plain, infinite, tight, guarded] = &results;
    let name = subject.name;
    assert!(!plain.is_empty() && plain.iter().flatten().all(|value| value.is_finite()), "{name}: results");
    assert!(bits(plain) == bits(infinite), "{name}: infinite bounds change results");
    assert!(bits(tight) == bits(guarded), "{name}: a guard caps otherwise");
    assert_eq!(plain.len(), tight.len());
    for (row, (plain, tight)) in plain.iter().zip(tight).enumerate() {
        assert!(plain != tight, "{name}: tight bands leave result {row} as it is");
        assert!(tight.iter().all(|value| value.is_finite()), "{name}: capped result {row}");
    }
}

#[track_caller]
fn start<'m>(
    subject: &'m Subject,
    mode: Mode,
    settings: &dyn Fn(&mut ContextSettings),
    read: fn(&TestContext<'_>, &[Row]) -> Vec<Vec<f32>>,
) -> Run<'m> {
    let model = &subject.model;
    let under = match mode {
        Mode::Plain => {
            Under::Plain(model.context(settings).unwrap_or_else(|e| panic!("{}: {e}", subject.name)))
        }
        Mode::Guarded => {
            let shape = shape(model, subject.architecture);
            let caps = bands(0..shape.blocks, shape.width, PINNED, PINNED);
            let models = vec![model_caps(subject.name, shape, caps, &[])];
            let guarded = Guarded::new(&support::install(), models, Reaction::Fail);
            let context = guarded.guard.bind(|| model.context(settings));
            Under::Guard(context.unwrap_or_else(|error| panic!("{}: {error}", subject.name)), guarded)
        }
        Mode::Infinite | Mode::Tight => {
            let hook = support::install();
            let capped = Capped::new(&hook, model, subject.architecture, settings)
                .unwrap_or_else(|error| panic!("{}: {error}", subject.name));
            let infinite = (f32::NEG_INFINITY, f32::INFINITY);
            let (lo, hi) = if mode == Mode::Tight { (PINNED, PINNED) } else { infinite };
            capped.set(&bands(0..model.blocks(), model.width(), lo, hi)).expect("the caps fit");
            Under::Caps(capped)
        }
    };
    Run { subject, mode, under, results: Vec::new(), read }
}
