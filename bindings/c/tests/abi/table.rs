//! Tables: making, describing and changing them.

use std::mem::MaybeUninit;
use std::ptr;

use axiscap::{Bound, CapTable};
use axiscap_c::{
    Caps, Status, Table, TableInfo, axiscap_table_describe, axiscap_table_free, axiscap_table_new,
    axiscap_table_set_bound, axiscap_table_set_strength,
};
use axiscap_testing::numbers::Random;

use crate::support::{OpenTable, cap, failed, file, ok, open, table};

fn describe(table: &OpenTable) -> (usize, usize, usize, usize) {
    let mut info = MaybeUninit::<TableInfo>::uninit();
    // SAFETY: the handle lives. The call stores a description.
    let info = unsafe {
        ok(axiscap_table_describe(table.0, info.as_mut_ptr()));
        info.assume_init()
    };
    (info.width, info.cap_count, info.profile_count, info.max_caps_per_row)
}

fn refused(sets: &[*mut Caps], block: usize) -> Status {
    let mut table = ptr::dangling_mut();
    // SAFETY: the handles live or are null, and the table's is writable.
    let status = unsafe { axiscap_table_new(sets.as_ptr(), sets.len(), block, &mut table) };
    assert!(table.is_null());
    status
}

#[test]
fn each_set_becomes_a_profile() {
    let random = &mut Random(1);
    let two = open(&file([5, 2, 5].map(|block| (block, cap(random, 12, Bound::NONE)))));
    let one = open(&file([(5, cap(random, 12, Bound::NONE))]));
    assert_eq!(describe(&table(&[&two], 5)), (12, 2, 2, 2));
    assert_eq!(describe(&table(&[&two], 2)), (12, 1, 2, 1));
    assert_eq!(describe(&table(&[&one, &two, &one], 5)), (12, 4, 4, 2));
    // The second set has nothing on block 2: profile 1 is empty.
    assert_eq!(describe(&table(&[&one, &two], 2)), (12, 1, 3, 1));
}

#[test]
fn a_table_outlives_its_sets() {
    let caps = open(&file([(1, cap(&mut Random(1), 12, Bound::NONE))]));
    let table = table(&[&caps], 1);
    drop(caps);
    assert_eq!(describe(&table), (12, 1, 2, 1));
}

#[test]
fn sets_that_make_no_table_are_refused() {
    let random = &mut Random(1);
    let caps = open(&file([(5, cap(random, 12, Bound::NONE))]));
    let narrow = open(&file([(5, cap(random, 11, Bound::NONE))]));
    failed(refused(&[caps.0], 4), Status::NoCaps, "no set has a cap on block 4");
    failed(refused(&[], 5), Status::NoCaps, "no set has a cap on block 5");
    failed(refused(&[caps.0, ptr::null_mut()], 5), Status::NullPointer, "sets[1] is NULL");
    failed(refused(&[caps.0, narrow.0], 5), Status::Width, "has width 11, not 12");
    let many = vec![caps.0; CapTable::MAX_CAPS + 1];
    failed(refused(&many, 5), Status::TooMany, "65537 sets");
    let mut table = ptr::null_mut();
    // SAFETY: the calls are refused before an element is read.
    unsafe {
        let null = axiscap_table_new(ptr::null(), 1, 5, &mut table);
        failed(null, Status::NullPointer, "sets is NULL");
        let huge = axiscap_table_new(&caps.0, usize::MAX, 5, &mut table);
        failed(huge, Status::Overflow, "sets: 18446744073709551615 elements");
    }
}

#[test]
fn values_of_a_table_can_change() {
    let random = &mut Random(1);
    let caps = open(&file([1, 1].map(|block| (block, cap(random, 12, Bound::NONE)))));
    let table = table(&[&caps], 1);
    // SAFETY: the handle lives, and nothing else uses it.
    unsafe {
        ok(axiscap_table_set_bound(table.0, 1, -1.0, 1.0));
        ok(axiscap_table_set_strength(table.0, 0, 0.0));
        failed(axiscap_table_set_bound(table.0, 2, -1.0, 1.0), Status::NoSuchCap, "there is no cap 2");
        failed(axiscap_table_set_bound(table.0, 0, 1.0, f32::NAN), Status::Bound, "upper bound is NaN");
        failed(axiscap_table_set_strength(table.0, 2, 1.0), Status::NoSuchCap, "there is no cap 2");
        failed(axiscap_table_set_strength(table.0, 0, -0.5), Status::Strength, "-0.5");
    }
}

#[test]
fn nothing_is_freed_for_null() {
    // SAFETY: null is no handle.
    unsafe { axiscap_table_free(ptr::null_mut::<Table>()) };
}
