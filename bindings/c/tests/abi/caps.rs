//! Caps: opening, describing and changing them.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::path::Path;
use std::{fs, ptr};

use axiscap::file::CapFile;
use axiscap::file::gguf::{self, Gguf};
use axiscap::{Axis, Bound, Cap, Policy};
use axiscap_c::{
    CapInfo, Caps, CapsInfo, Status, axiscap_caps_blocks, axiscap_caps_check_model, axiscap_caps_describe,
    axiscap_caps_free, axiscap_caps_get, axiscap_caps_parse, axiscap_caps_read, axiscap_caps_set_bound,
    axiscap_caps_set_strength, axiscap_version,
};
use axiscap_testing::numbers::Random;

use crate::support::{OpenCaps, SHIPPED, cap, failed, file, open, text};

fn read(path: &Path) -> (Status, OpenCaps) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let mut caps = ptr::dangling_mut();
    // SAFETY: the path is a C string, and the handle is writable.
    let status = unsafe { axiscap_caps_read(path.as_ptr(), &mut caps) };
    assert_eq!(status == Status::Ok, !caps.is_null());
    (status, OpenCaps(caps))
}

fn parse(bytes: &[u8]) -> (Status, OpenCaps) {
    let mut caps = ptr::dangling_mut();
    // SAFETY: the bytes live, and the handle is writable.
    let status = unsafe { axiscap_caps_parse(bytes.as_ptr().cast(), bytes.len(), &mut caps) };
    assert_eq!(status == Status::Ok, !caps.is_null());
    (status, OpenCaps(caps))
}

fn describe(caps: &OpenCaps) -> CapsInfo {
    let mut info = MaybeUninit::uninit();
    // SAFETY: the handle lives. The call stores a description.
    unsafe {
        assert_eq!(axiscap_caps_describe(caps.0, info.as_mut_ptr()), Status::Ok);
        info.assume_init()
    }
}

fn get(caps: &OpenCaps, index: usize) -> CapInfo {
    let mut info = MaybeUninit::uninit();
    // SAFETY: the handle lives. The call stores a description.
    unsafe {
        assert_eq!(axiscap_caps_get(caps.0, index, info.as_mut_ptr()), Status::Ok);
        info.assume_init()
    }
}

fn assert_same(caps: &OpenCaps, file: &CapFile) {
    let info = describe(caps);
    assert_eq!(info.width, file.caps.width());
    assert_eq!(info.cap_count, file.caps.caps().len());
    assert_eq!(info.block_count, file.model.blocks);
    assert_eq!(info.skip_positions, file.caps.policy().skip_positions);
    assert_eq!(text(info.architecture), file.model.architecture);
    let optional = |pointer: *const c_char| (!pointer.is_null()).then(|| text(pointer));
    assert_eq!(optional(info.model), file.model.name);
    assert_eq!(optional(info.orientation), file.orientation);
    let (mut blocks, mut count) = (vec![0; info.capped_block_count], 0);
    // SAFETY: the handle lives, and there is space for as many blocks.
    let status = unsafe { axiscap_caps_blocks(caps.0, blocks.as_mut_ptr(), blocks.len(), &mut count) };
    assert_eq!((status, count), (Status::Ok, blocks.len()));
    assert!(blocks.iter().eq(file.caps.blocks().keys()));
    for (index, entry) in file.caps.caps().iter().enumerate() {
        let info = get(caps, index);
        assert_eq!(info.block, entry.block);
        assert_eq!((info.floor, info.ceiling), (entry.cap.bound().lo(), entry.cap.bound().hi()));
        assert_eq!(info.strength, entry.cap.strength());
        assert_eq!(info.norm, entry.cap.axis().norm().unwrap_or(0.0));
        assert_eq!(optional(info.name).as_deref(), entry.cap.name());
        // SAFETY: an axis has as many values as the caps are wide.
        let axis = unsafe { std::slice::from_raw_parts(info.axis, file.caps.width()) };
        assert_eq!(axis, entry.cap.axis().values());
    }
}

#[test]
fn the_shipped_file_says_the_same_in_c_and_in_rust() {
    let file = CapFile::read(SHIPPED.as_ref()).unwrap();
    let (status, caps) = read(SHIPPED.as_ref());
    assert_eq!(status, Status::Ok);
    assert_same(&caps, &file);
    let (status, caps) = parse(&fs::read(SHIPPED).unwrap());
    assert_eq!(status, Status::Ok);
    assert_same(&caps, &file);
    assert_eq!(text(axiscap_version()), env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_part_of_a_file_arrives() {
    let random = &mut Random(1);
    let bound = Bound::band(-1.0, 2.0).unwrap();
    let named = cap(random, 24, bound).with_name("assistant").with_strength(0.5).unwrap();
    let axis = Axis::from_unit(&[&[1.0][..], &[0.0; 23]].concat(), None).unwrap();
    let mut file = file([(7, named), (0, Cap::new(axis, Bound::NONE)), (7, cap(random, 24, bound))]);
    file.caps = file.caps.with_policy(Policy::default().with_skip_positions(3));
    file.model.name = Some("a model".into());
    file.orientation = Some("more \u{e4}".into());
    assert_same(&open(&file), &file);
}

#[test]
fn bounds_and_strengths_change_and_axes_stay_where_they_are() {
    let caps = open(&file([(3, cap(&mut Random(1), 16, Bound::NONE).with_name("x"))]));
    let before = get(&caps, 0);
    // SAFETY: the handle lives, and nothing else uses it.
    unsafe {
        assert_eq!(axiscap_caps_set_bound(caps.0, 0, -2.0, f32::INFINITY), Status::Ok);
        assert_eq!(axiscap_caps_set_strength(caps.0, 0, 0.25), Status::Ok);
        let refused = axiscap_caps_set_bound(caps.0, 0, f32::NAN, 1.0);
        failed(refused, Status::Bound, "the lower bound is NaN");
        failed(axiscap_caps_set_bound(caps.0, 0, 2.0, 1.0), Status::Bound, "no projection is within");
        failed(axiscap_caps_set_bound(caps.0, 1, 0.0, 1.0), Status::NoSuchCap, "there is no cap 1");
        failed(axiscap_caps_set_strength(caps.0, 0, f32::NAN), Status::Strength, "outside [0, 1]");
        failed(axiscap_caps_set_strength(caps.0, usize::MAX, 1.0), Status::NoSuchCap, "there is no cap");
        let mut info = MaybeUninit::uninit();
        failed(axiscap_caps_get(caps.0, 1, info.as_mut_ptr()), Status::NoSuchCap, "there is no cap 1");
    }
    let after = get(&caps, 0);
    assert_eq!((after.floor, after.ceiling, after.strength), (-2.0, f32::INFINITY, 0.25));
    assert_eq!((after.axis, after.name), (before.axis, before.name));
}

#[test]
fn blocks_are_counted_before_they_are_listed() {
    let random = &mut Random(1);
    let caps = open(&file([5, 2, 5].map(|block| (block, cap(random, 4, Bound::NONE)))));
    let (mut blocks, mut count) = ([9; 3], 0);
    // SAFETY: the handle lives, and the capacity is at most that of the array.
    unsafe {
        assert_eq!(axiscap_caps_blocks(caps.0, ptr::null_mut(), 0, &mut count), Status::Ok);
        assert_eq!(count, 2);
        count = 0;
        let short = axiscap_caps_blocks(caps.0, blocks.as_mut_ptr(), 1, &mut count);
        failed(short, Status::TooShort, "2 blocks have caps, but there is space for 1");
        assert_eq!((blocks, count), ([9; 3], 2));
        assert_eq!(axiscap_caps_blocks(caps.0, blocks.as_mut_ptr(), 3, &mut count), Status::Ok);
        assert_eq!((blocks, count), ([2, 5, 9], 2));
        failed(
            axiscap_caps_blocks(caps.0, ptr::null_mut(), 3, &mut count),
            Status::NullPointer,
            "blocks is NULL",
        );
        let no_count = axiscap_caps_blocks(caps.0, blocks.as_mut_ptr(), 3, ptr::null_mut());
        failed(no_count, Status::NullPointer, "count is NULL");
    }
}

#[test]
fn caps_belong_to_their_model() {
    let caps = open(&file([(5, cap(&mut Random(1), 4, Bound::NONE))]));
    // SAFETY: the handle lives.
    unsafe {
        assert_eq!(axiscap_caps_check_model(caps.0, 4, 8), Status::Ok);
        failed(axiscap_caps_check_model(caps.0, 5, 8), Status::OtherModel, "width 4, not 5");
        failed(axiscap_caps_check_model(caps.0, 4, 9), Status::OtherModel, "a model of 8 blocks");
        failed(axiscap_caps_check_model(caps.0, 4, 5), Status::OtherModel, "on block 5");
    }
}

#[test]
fn files_that_cannot_be_used_say_why() {
    let folder = tempfile::tempdir().unwrap();
    failed(read(&folder.path().join("none.gguf")).0, Status::Io, "none.gguf: cannot open it");
    let text = folder.path().join("text.gguf");
    fs::write(&text, "no caps").unwrap();
    failed(read(&text).0, Status::Malformed, "text.gguf");
    failed(parse(&[]).0, Status::Malformed, "the cap file");
    let mut bytes = fs::read(SHIPPED).unwrap();
    bytes[4] = 2;
    failed(parse(&bytes).0, Status::Unsupported, "version");
    let mut bytes = fs::read(SHIPPED).unwrap();
    // The name of a required key, which is then missing.
    let key = bytes.windows(13).position(|part| part == b"axiscap.width").unwrap();
    bytes[key + 12] = b'x';
    failed(parse(&bytes).0, Status::InvalidFile, "axiscap.width");
    let plain = without_axiscap(&fs::read(SHIPPED).unwrap());
    failed(parse(&plain).0, Status::ControlVector, "plain control vector");
}

/// Removes every key of axiscap from a file, as another tool would write it.
fn without_axiscap(bytes: &[u8]) -> Vec<u8> {
    let gguf = Gguf::parse(bytes).unwrap();
    let vectors = gguf.vectors().unwrap();
    let tensors: Vec<_> = vectors.iter().map(|(name, values)| (name.to_string(), &values[..])).collect();
    let others = gguf.metadata.iter().filter(|(key, _)| !key.starts_with("axiscap."));
    gguf::to_bytes(&others.cloned().collect::<Vec<_>>(), &tensors).unwrap()
}

#[test]
fn a_file_that_is_cut_short_is_refused_at_every_length() {
    let bytes = fs::read(SHIPPED).unwrap();
    for length in 0..bytes.len() {
        let (status, _) = parse(&bytes[..length]);
        let expected = matches!(status, Status::Malformed | Status::Unsupported | Status::InvalidFile);
        assert!(expected, "{length} of {}: {status:?}", bytes.len());
    }
}

#[test]
fn nothing_is_freed_for_null() {
    // SAFETY: null is no handle.
    unsafe { axiscap_caps_free(ptr::null_mut::<Caps>()) };
}
