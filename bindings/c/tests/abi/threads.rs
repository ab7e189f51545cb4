//! One table on several threads, and messages per thread.

use std::ptr;
use std::sync::Barrier;
use std::thread;

use axiscap::Bound;
use axiscap_c::{Job, Status, axiscap_run, axiscap_table_new};
use axiscap_testing::numbers::Random;

use crate::support::{OpenTable, cap, failed, file, job, message, ok, open, table};

const WIDTH: usize = 576;
const ROWS: usize = 16;

fn run(table: &OpenTable, seed: u64) -> Vec<f32> {
    let random = &mut Random(seed);
    let mut h: Vec<f32> = (0..ROWS * WIDTH).map(|_| random.value()).collect();
    let job = Job { rows: ROWS, h: h.as_mut_ptr().cast(), ..job(WIDTH) };
    // SAFETY: the job describes this vector, which nothing else uses.
    ok(unsafe { axiscap_run(table.0, &job) });
    h
}

#[test]
fn threads_share_a_table() {
    let bound = Bound::band(-0.1, 0.1).unwrap();
    let table = table(&[&open(&file([(1, cap(&mut Random(1), WIDTH, bound))]))], 1);
    let alone: Vec<_> = (0..8).map(|seed| run(&table, seed)).collect();
    let begin = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                begin.wait();
                for _ in 0..50 {
                    for (seed, expected) in alone.iter().enumerate() {
                        assert!(run(&table, seed as u64) == *expected);
                    }
                }
            });
        }
    });
}

#[test]
fn every_thread_has_its_own_message() {
    let fail = || {
        let mut table = ptr::null_mut();
        // SAFETY: the call is refused.
        unsafe { axiscap_table_new(ptr::null(), 0, 3, &mut table) }
    };
    failed(fail(), Status::NoCaps, "block 3");
    thread::spawn(|| assert_eq!(message(), "")).join().unwrap();
    assert!(message().contains("block 3"));
}
