//! Arguments that do not fit are refused, and nothing is written.

use axiscap::cpu::{self, Isa, Norm, Options, Rows, RowsMut};
use axiscap::{CapTable, Error, RowStat, RowsError};

use crate::numbers::Random;
use crate::support::cap;

fn table(width: usize) -> CapTable {
    CapTable::new(&[cap(&mut Random(1), width), cap(&mut Random(2), width)]).unwrap()
}

fn ones() -> Vec<f32> {
    vec![1.0; 32]
}

fn rows_of(values: &mut [f32], width: usize) -> RowsMut<'_, f32> {
    RowsMut::from_slice(values, width).unwrap()
}

#[test]
fn widths_must_agree() {
    let (mut h, mut out, narrow) = (ones(), ones(), vec![1.0f32; 16]);
    let found = cpu::cap_rows(&table(4), rows_of(&mut h, 8), Options::new());
    assert!(matches!(found, Err(Error::Width { found: 8, expected: 4, .. })), "{found:?}");
    let x = Rows::from_slice(&narrow, 4).unwrap();
    let found = cpu::add_cap_rows_in_place(&table(8), x, rows_of(&mut h, 8), Options::new());
    assert!(matches!(found, Err(Error::Width { found: 4, expected: 8, .. })), "{found:?}");
    let norm = Norm::new(&narrow[..7], 1e-5).unwrap();
    let (rows, to) = (rows_of(&mut h, 8), rows_of(&mut out, 8));
    let found = cpu::cap_norm_rows(&table(8), rows, norm, to, Options::new());
    assert!(matches!(found, Err(Error::Width { found: 7, expected: 8, .. })), "{found:?}");
    assert_eq!(found.unwrap_err().to_string().split(',').next(), Some("the norm's weight has width 7"));
    // Wider ones, and memory enough for them: nothing but the check is in the way.
    let (mut wide, x) = (vec![0.0f32; 48], ones());
    let found = cpu::cap_norm_rows(
        &table(8),
        rows_of(&mut h, 8),
        Norm::new(&x[..8], 1e-5).unwrap(),
        rows_of(&mut wide, 12),
        Options::new(),
    );
    assert!(
        matches!(&found, Err(Error::Width { what, found: 12, expected: 8, .. }) if what == "the normed output")
    );
    let (x, residual) = (Rows::from_slice(&x, 8).unwrap(), Rows::from_slice(&wide, 12).unwrap());
    let found = cpu::add_cap_rows(&table(8), x, residual, rows_of(&mut h, 8), Options::new());
    assert!(
        matches!(&found, Err(Error::Width { what, found: 12, expected: 8, .. }) if what == "the residual")
    );
    assert_eq!((h, wide), (ones(), vec![0.0; 48]));
}

#[test]
fn counts_must_agree() {
    let (mut h, fewer) = (ones(), vec![1.0f32; 24]);
    let x = Rows::from_slice(&fewer, 8).unwrap();
    let found = cpu::add_cap_rows_in_place(&table(8), x, rows_of(&mut h, 8), Options::new());
    assert_eq!(found, Err(Error::Rows(RowsError::Count { what: "x", found: 3, expected: 4 })));
    let found = cpu::cap_rows(&table(8), rows_of(&mut h, 8), Options::new().profiles(&[1, 1, 1]));
    assert!(matches!(found, Err(Error::Rows(RowsError::Count { found: 3, expected: 4, .. }))), "{found:?}");
    let mut stats = [RowStat::default(); 4];
    let found = cpu::cap_rows(&table(8), rows_of(&mut h, 8), Options::new().stats(&mut stats));
    assert!(matches!(found, Err(Error::Rows(RowsError::Count { found: 4, expected: 8, .. }))), "{found:?}");
    // More rows than there are to be capped.
    let (mut more, x) = (vec![0.0f32; 48], ones());
    let norm = Norm::new(&x[..8], 1e-5).unwrap();
    let found =
        cpu::cap_norm_rows(&table(8), rows_of(&mut h, 8), norm, rows_of(&mut more, 8), Options::new());
    assert_eq!(found, Err(RowsError::Count { what: "the normed output", found: 6, expected: 4 }.into()));
    let (x, residual) = (Rows::from_slice(&x, 8).unwrap(), Rows::from_slice(&more, 8).unwrap());
    let found = cpu::add_cap_rows(&table(8), x, residual, rows_of(&mut h, 8), Options::new());
    assert_eq!(found, Err(RowsError::Count { what: "the residual", found: 6, expected: 4 }.into()));
    assert_eq!((h, more), (ones(), vec![0.0; 48]));
}

/// So many rows and caps that the number of statistics is 2^64, which is not 0.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_number_of_statistics_may_overflow() {
    let cap = cap(&mut Random(1), 1);
    let table = CapTable::new(vec![&cap; CapTable::MOST_CAPS]).unwrap();
    // SAFETY: refused before anything is read or written.
    let rows = unsafe { RowsMut::from_raw(std::ptr::dangling_mut::<f32>(), 1 << 48, 1, 1) }.unwrap();
    let found = cpu::cap_rows(&table, rows, Options::new().stats(&mut []));
    assert_eq!(found, Err(Error::Rows(RowsError::Overflow)));
}

#[test]
fn profiles_must_exist() {
    let mut h = ones();
    let found = cpu::cap_rows(&table(8), rows_of(&mut h, 8), Options::new().profiles(&[1, 0, 2, 1]));
    assert_eq!(found, Err(Error::Rows(RowsError::Profile { row: 2, profile: 2, profiles: 2 })));
    assert_eq!(h, ones());
}

#[test]
fn epsilon_must_be_a_finite_number_not_below_zero() {
    for eps in [-1e-5, f32::NAN, f32::INFINITY] {
        assert!(matches!(Norm::new(&[1.0], eps), Err(Error::Epsilon(_))), "{eps}");
    }
    assert!(Norm::new(&[1.0], 0.0).is_ok());
}

#[test]
fn instructions_that_are_not_there_are_refused() {
    let mut h = ones();
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.available()) {
        let found = cpu::cap_rows(&table(8), rows_of(&mut h, 8), Options::new().isa(isa));
        assert_eq!(found, Err(Error::Isa(isa)));
    }
    assert!(Isa::Portable.available() && Isa::best().available());
    assert_eq!(h, ones());
}
