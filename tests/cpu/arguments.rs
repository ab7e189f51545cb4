//! Arguments that do not fit are refused, and no row is written.

use axiscap::cpu::{Isa, Job, Rows, RowsMut};
use axiscap::{CapTable, Epsilon, Error, RowStat, RowsError};
use axiscap_testing::numbers::Random;

use crate::support::cap;

fn table(width: usize) -> CapTable {
    CapTable::new(&[cap(&mut Random(1), width), cap(&mut Random(2), width)]).unwrap()
}

fn ones() -> Vec<f32> {
    vec![1.0; 32]
}

fn epsilon() -> Epsilon {
    Epsilon::new(1e-5).unwrap()
}

fn rows_of(values: &mut [f32], width: usize) -> RowsMut<'_, f32> {
    RowsMut::from_slice(values, width).unwrap()
}

#[test]
fn widths_must_agree() {
    let (mut h, mut out, narrow) = (ones(), ones(), vec![1.0f32; 16]);
    let found = Job::cap(rows_of(&mut h, 8)).run(&table(4));
    assert!(matches!(found, Err(Error::Width { found: 8, expected: 4, .. })), "{found:?}");
    let x = Rows::from_slice(&narrow, 4).unwrap();
    let found = Job::add_cap(x, rows_of(&mut h, 8)).run(&table(8));
    assert!(matches!(found, Err(Error::Width { found: 4, expected: 8, .. })), "{found:?}");
    let (rows, to) = (rows_of(&mut h, 8), rows_of(&mut out, 8));
    let found = Job::cap(rows).norm(&narrow[..7], epsilon(), to).run(&table(8));
    assert!(matches!(found, Err(Error::Width { found: 7, expected: 8, .. })), "{found:?}");
    assert_eq!(found.unwrap_err().to_string().split(',').next(), Some("the norm's weight has width 7"));
    // Wider rows, with memory enough for them: only the check stops the call.
    let (mut wide, x) = (vec![0.0f32; 48], ones());
    let found = Job::cap(rows_of(&mut h, 8)).norm(&x[..8], epsilon(), rows_of(&mut wide, 12)).run(&table(8));
    assert!(
        matches!(&found, Err(Error::Width { what, found: 12, expected: 8, .. }) if what == "the normed output")
    );
    let (x, residual) = (Rows::from_slice(&x, 8).unwrap(), Rows::from_slice(&wide, 12).unwrap());
    let found = Job::add_cap_into(x, residual, rows_of(&mut h, 8)).run(&table(8));
    assert!(
        matches!(&found, Err(Error::Width { what, found: 12, expected: 8, .. }) if what == "the residual")
    );
    assert_eq!((h, wide), (ones(), vec![0.0; 48]));
}

#[test]
fn counts_must_agree() {
    let (mut h, fewer) = (ones(), vec![1.0f32; 24]);
    let x = Rows::from_slice(&fewer, 8).unwrap();
    let found = Job::add_cap(x, rows_of(&mut h, 8)).run(&table(8));
    assert_eq!(found, Err(Error::Rows(RowsError::Count { what: "x", found: 3, expected: 4 })));
    let found = Job::cap(rows_of(&mut h, 8)).row_profiles(&[1, 1, 1]).run(&table(8));
    assert!(matches!(found, Err(Error::Rows(RowsError::Count { found: 3, expected: 4, .. }))), "{found:?}");
    let mut stats = [RowStat::default(); 4];
    let found = Job::cap(rows_of(&mut h, 8)).stats(&mut stats).run(&table(8));
    assert!(matches!(found, Err(Error::Rows(RowsError::Count { found: 4, expected: 8, .. }))), "{found:?}");
    // More rows than are capped.
    let (mut more, x) = (vec![0.0f32; 48], ones());
    let found = Job::cap(rows_of(&mut h, 8)).norm(&x[..8], epsilon(), rows_of(&mut more, 8)).run(&table(8));
    assert_eq!(found, Err(RowsError::Count { what: "the normed output", found: 6, expected: 4 }.into()));
    let (x, residual) = (Rows::from_slice(&x, 8).unwrap(), Rows::from_slice(&more, 8).unwrap());
    let found = Job::add_cap_into(x, residual, rows_of(&mut h, 8)).run(&table(8));
    assert_eq!(found, Err(RowsError::Count { what: "the residual", found: 6, expected: 4 }.into()));
    assert_eq!((h, more), (ones(), vec![0.0; 48]));
}

/// The number of statistics is 2^64, which must not become 0.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_number_of_statistics_may_overflow() {
    let cap = cap(&mut Random(1), 1);
    let table = CapTable::new(vec![&cap; CapTable::MAX_CAPS]).unwrap();
    // SAFETY: the call is refused before a row is read or written.
    let rows = unsafe { RowsMut::from_raw(std::ptr::dangling_mut::<f32>(), 1 << 48, 1, 1) }.unwrap();
    let found = Job::cap(rows).stats(&mut []).run(&table);
    assert_eq!(found, Err(Error::Rows(RowsError::Overflow)));
}

#[test]
fn profiles_must_exist() {
    let mut h = ones();
    let found = Job::cap(rows_of(&mut h, 8)).row_profiles(&[1, 0, 2, 1]).run(&table(8));
    assert_eq!(found, Err(Error::Rows(RowsError::Profile { row: 2, profile: 2, profiles: 2 })));
    assert_eq!(h, ones());
}

#[test]
fn instruction_sets_that_the_machine_lacks_are_refused() {
    let mut h = ones();
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.available()) {
        let found = Job::cap(rows_of(&mut h, 8)).run_on(isa, &table(8));
        assert_eq!(found, Err(Error::Isa(isa)));
    }
    assert!(Isa::Portable.available() && Isa::best().available());
    assert_eq!(h, ones());
}
