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
    assert_eq!(h, ones());
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
    assert_eq!(h, ones());
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
