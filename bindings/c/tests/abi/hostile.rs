//! Null, misaligned and absurd arguments of the functions for caps and tables.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

use axiscap::Bound;
use axiscap_c::{
    Caps, Status, Table, axiscap_caps_blocks, axiscap_caps_check_model, axiscap_caps_describe,
    axiscap_caps_free, axiscap_caps_get, axiscap_caps_parse, axiscap_caps_read, axiscap_caps_set_bound,
    axiscap_caps_set_strength, axiscap_table_describe, axiscap_table_free, axiscap_table_new,
    axiscap_table_set_bound, axiscap_table_set_strength,
};
use axiscap_testing::numbers::Random;

use crate::support::{cap, failed, file, open, table};

const NULL: Status = Status::NullPointer;
const MISALIGNED: Status = Status::Misaligned;

/// Every function that takes caps, with a handle that is none.
fn with_caps(caps: *mut Caps, expected: Status) {
    let (mut info, mut cap) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let (mut count, mut table) = (0, ptr::null_mut());
    // SAFETY: every call is refused.
    unsafe {
        failed(axiscap_caps_describe(caps, info.as_mut_ptr()), expected, "caps");
        failed(axiscap_caps_check_model(caps, 1, 1), expected, "caps");
        failed(axiscap_caps_blocks(caps, ptr::null_mut(), 0, &mut count), expected, "caps");
        failed(axiscap_caps_get(caps, 0, cap.as_mut_ptr()), expected, "caps");
        failed(axiscap_caps_set_bound(caps, 0, 0.0, 1.0), expected, "caps");
        failed(axiscap_caps_set_strength(caps, 0, 1.0), expected, "caps");
        failed(axiscap_table_new(&caps, 1, 0, &mut table), expected, "sets[0]");
    }
}

/// Every function that takes a table, with a handle that is none.
fn with_table(table: *mut Table, expected: Status) {
    let mut info = MaybeUninit::uninit();
    // SAFETY: every call is refused.
    unsafe {
        failed(axiscap_table_describe(table, info.as_mut_ptr()), expected, "table");
        failed(axiscap_table_set_bound(table, 0, 0.0, 1.0), expected, "table");
        failed(axiscap_table_set_strength(table, 0, 1.0), expected, "table");
    }
}

#[test]
fn handles_are_neither_null_nor_misaligned() {
    with_caps(ptr::null_mut(), NULL);
    with_caps(ptr::without_provenance_mut(1), MISALIGNED);
    with_table(ptr::null_mut(), NULL);
    with_table(ptr::without_provenance_mut(1), MISALIGNED);
    // SAFETY: a misaligned address is no handle, and is left alone.
    unsafe {
        axiscap_caps_free(ptr::without_provenance_mut(1));
        axiscap_table_free(ptr::without_provenance_mut(1));
    }
}

#[test]
fn results_need_a_place() {
    let caps = open(&file([(1, cap(&mut Random(1), 4, Bound::NONE))]));
    let table = table(&[&caps], 1);
    let bytes = [0_u8; 4];
    // SAFETY: the handles and bytes live, and every call is refused.
    unsafe {
        let path = c"none".as_ptr();
        failed(axiscap_caps_read(path, ptr::null_mut()), NULL, "out is NULL");
        failed(axiscap_caps_read(path, ptr::without_provenance_mut(1)), MISALIGNED, "out");
        failed(axiscap_caps_parse(bytes.as_ptr().cast(), 4, ptr::null_mut()), NULL, "out is NULL");
        failed(axiscap_caps_describe(caps.0, ptr::null_mut()), NULL, "out is NULL");
        failed(axiscap_caps_describe(caps.0, ptr::without_provenance_mut(2)), MISALIGNED, "out");
        failed(axiscap_caps_get(caps.0, 0, ptr::null_mut()), NULL, "out is NULL");
        failed(axiscap_table_new(&caps.0, 1, 1, ptr::null_mut()), NULL, "out is NULL");
        failed(axiscap_table_describe(table.0, ptr::null_mut()), NULL, "out is NULL");
    }
}

#[test]
fn inputs_are_there() {
    let mut caps = ptr::dangling_mut();
    let bytes = [0_u8; 4];
    // SAFETY: the bytes live, and every call is refused before more of them is read.
    unsafe {
        failed(axiscap_caps_read(ptr::null::<c_char>(), &mut caps), NULL, "path is NULL");
        assert!(caps.is_null());
        failed(axiscap_caps_parse(ptr::null(), 0, &mut caps), NULL, "bytes is NULL");
        failed(axiscap_caps_parse(ptr::null(), 7, &mut caps), NULL, "bytes is NULL");
        let huge = axiscap_caps_parse(bytes.as_ptr().cast(), usize::MAX, &mut caps);
        failed(huge, Status::Overflow, "do not fit the address space");
    }
}
