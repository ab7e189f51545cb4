//! Decodes that fail half way, and what follows them.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axiscap_ggml::Tap;
use axiscap_testing::llama::{ContextSettings, Row};

use crate::capped::{Capped, PINNED, bands, bits, check_pinned, rows};
use crate::script::in_eights;
use crate::subjects::{Subject, subjects};
use crate::support;

fn capped<'m>(subject: &'m Subject, change: impl Fn(&mut ContextSettings)) -> Capped<'m> {
    let hook = support::install();
    let capped = Capped::new(&hook, &subject.model, subject.architecture, change).unwrap();
    capped.set(&bands(0..subject.model.blocks(), subject.model.width(), PINNED, PINNED)).unwrap();
    capped
}

fn decode(capped: &mut Capped<'_>, subject: &Subject, batch: &[Row]) -> Vec<Vec<f32>> {
    let trace = capped.decode(batch).unwrap_or_else(|error| panic!("{}: {error}", subject.name));
    let blocks: Vec<_> = (0..subject.model.blocks()).collect();
    check_pinned(&trace, &blocks, &subject.model, batch)
        .unwrap_or_else(|error| panic!("{}: {error}", subject.name));
    (0..batch.len()).filter(|&row| batch[row].logits).map(|row| capped.context.logits(row)).collect()
}

/// Goes on after a failure in the second micro-batch of positions 0 to 19, and compares with a context in
/// which nothing failed.
fn go_on(mut capped: Capped<'_>, subject: &Subject) {
    let failed = capped.session.take_trace();
    let reached = capped.context.last_position(0);
    if subject.rolls_back {
        assert_eq!(reached, 7, "{}: the first micro-batch stays in the cache", subject.name);
        // Its rows were capped, and counted as such.
        let first: Vec<_> = failed.iter().filter(|traced| traced.rows.len() == 8).collect();
        assert!(first.len() >= subject.model.blocks() - 1, "{}", subject.name);
    } else {
        capped.context.clear();
        drop(decode(&mut capped, subject, &rows(0, 0, 8, |i| i == 7)));
    }
    let rest = decode(&mut capped, subject, &rows(0, 8, 12, |i| i > 5));
    let mut whole = self::capped(subject, in_eights);
    decode(&mut whole, subject, &rows(0, 0, 8, |i| i == 7));
    let expected = decode(&mut whole, subject, &rows(0, 8, 12, |i| i > 5));
    assert!(bits(&rest) == bits(&expected), "{}: something is stale", subject.name);
}

/// llama.cpp's abort callback ends a decode in the middle of a graph.
#[test]
fn a_decode_aborted_by_the_host() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    static END: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn abort(_: *mut c_void) -> bool {
        CALLS.fetch_add(1, Ordering::Relaxed) + 1 == END.load(Ordering::Relaxed)
    }
    let aborted = |params: &mut ContextSettings| {
        in_eights(params);
        params.abort_callback = Some(abort);
    };
    for subject in subjects() {
        // The number of calls in one micro-batch.
        END.store(usize::MAX, Ordering::Relaxed);
        let mut capped = self::capped(subject, aborted);
        CALLS.store(0, Ordering::Relaxed);
        decode(&mut capped, subject, &rows(0, 0, 8, |i| i == 7));
        let calls = CALLS.load(Ordering::Relaxed);
        assert!(calls > subject.model.blocks(), "{}: {calls} calls", subject.name);
        for part in [1, calls / 2, calls - 1] {
            let mut capped = self::capped(subject, aborted);
            END.store(calls + part, Ordering::Relaxed);
            CALLS.store(0, Ordering::Relaxed);
            let error = capped.decode(&rows(0, 0, 20, |i| i > 13)).unwrap_err();
            END.store(usize::MAX, Ordering::Relaxed);
            assert!(error.contains("llama_decode returned 2"), "{}: {error}", subject.name);
            go_on(capped, subject);
        }
    }
}

/// The hook itself fails a micro-batch.
#[test]
fn a_decode_failed_by_the_hook() {
    for subject in subjects() {
        let mut capped = self::capped(subject, in_eights);
        let seen = Arc::new(AtomicUsize::new(0));
        let tap = Tap {
            blocks: vec![1],
            see: Arc::new(move |_, _| {
                assert_ne!(seen.fetch_add(1, Ordering::Relaxed), 1, "the second micro-batch");
            }),
        };
        capped.session.set_tap(Some(tap)).unwrap();
        let error = capped.decode(&rows(0, 0, 20, |i| i > 13)).unwrap_err();
        assert!(error.contains("the second micro-batch"), "{}: {error}", subject.name);
        capped.session.set_tap(None).unwrap();
        go_on(capped, subject);
    }
}

/// A batch for which the cache has no room is refused before anything is computed.
#[test]
fn a_batch_that_does_not_fit() {
    for subject in subjects().iter().filter(|subject| subject.rolls_back) {
        let mut capped = self::capped(subject, |params| {
            in_eights(params);
            params.n_ctx = 256;
            params.n_batch = 256;
        });
        decode(&mut capped, subject, &rows(0, 0, 250, |i| i == 249));
        let error = capped.decode(&rows(0, 250, 12, |i| i == 11)).unwrap_err();
        assert!(error.contains("llama_decode returned 1"), "{}: {error}", subject.name);
        assert!(capped.session.take_trace().is_empty());
        assert_eq!(capped.context.last_position(0), 249);
        decode(&mut capped, subject, &rows(0, 250, 4, |i| i == 3));
    }
}

/// A batch that llama.cpp refuses, and one with a gap.
#[test]
fn a_batch_that_is_not_valid() {
    for subject in subjects() {
        let mut capped = self::capped(subject, in_eights);
        decode(&mut capped, subject, &rows(0, 0, 8, |i| i == 7));
        for wrong in [rows(0, 3, 4, |_| true), vec![Row { token: -5, ..rows(0, 8, 1, |_| true)[0] }]] {
            let error = capped.decode(&wrong).unwrap_err();
            assert!(error.contains("llama_decode returned -1"), "{}: {error}", subject.name);
            assert!(capped.session.take_trace().is_empty());
        }
        decode(&mut capped, subject, &rows(0, 8, 5, |i| i == 4));
    }
}
