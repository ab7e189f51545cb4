//! ggml's own GGUF reader and writer against ours.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr;

use axiscap::file::gguf::{self, Array, Gguf, Value};
use axiscap::file::{CapFile, ModelInfo, NormDigest};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_sys_2 as sys;

use crate::theirs::{Theirs, quiet};

/// A value of every type, and an array of every type.
fn every_type() -> Vec<(String, Value)> {
    let values = [
        Value::from(200u8),
        (-100i8).into(),
        60_000u16.into(),
        (-30_000i16).into(),
        4_000_000_000u32.into(),
        (-2_000_000_000i32).into(),
        f32::NEG_INFINITY.into(),
        true.into(),
        "höchstens".into(),
        u64::MAX.into(),
        i64::MIN.into(),
        1e-300f64.into(),
        vec![1u8, 255].into(),
        vec![-1i8, 127].into(),
        vec![1u16, 65_535].into(),
        vec![-1i16].into(),
        vec![u32::MAX, 0].into(),
        vec![i32::MIN, 7].into(),
        vec![f32::INFINITY, -0.0, 1e-45].into(),
        vec![true, false, true].into(),
        vec!["a".to_owned(), String::new(), "zwei".into()].into(),
        vec![u64::MAX].into(),
        vec![i64::MIN, 3].into(),
        vec![f64::MIN_POSITIVE, 2.5].into(),
        Vec::<f32>::new().into(),
        Vec::<String>::new().into(),
    ];
    values.into_iter().enumerate().map(|(index, value)| (format!("test.{index}"), value)).collect()
}

fn cap_file() -> CapFile {
    let axis = |x: f32| Axis::from_direction(&[x, 1.0, -2.0, 0.5, 0.0, 3.0, x * x]).unwrap();
    let caps = [
        BlockCap { block: 4, cap: Cap::new(axis(1.0), Bound::floor(0.5).unwrap()).with_name("assistant") },
        BlockCap { block: 0, cap: Cap::new(axis(2.0), Bound::NONE).with_strength(0.25).unwrap() },
        BlockCap { block: 4, cap: Cap::new(axis(-3.0), Bound::band(-1.0, 9.0).unwrap()) },
        BlockCap { block: 1, cap: Cap::new(axis(0.0), Bound::ceiling(-2.0).unwrap()) },
    ];
    let mut file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 5));
    file.orientation = Some("more Assistant".into());
    let norm = |tensor: &str, byte| NormDigest { tensor: tensor.into(), sha256: [byte; 32] };
    file.model.norms = vec![norm("output_norm.weight", 7), norm("blk.0.attn_norm.weight", 0xff)];
    file.origin.set("tool", "axiscap").set("quantiles", vec![0.25f32, 0.5]).set("seed", 7u64);
    file
}

/// What ggml reads from our bytes is what we put in.
#[track_caller]
fn assert_reads_alike(bytes: &[u8]) {
    let ours = Gguf::parse(bytes).unwrap();
    let theirs = Theirs::parse(bytes).expect("ggml refuses what we accept");
    assert_eq!(theirs.metadata(), ours.metadata);
    let vectors = ours.vectors().unwrap();
    assert_eq!(
        theirs.vectors(),
        vectors.into_iter().map(|(name, v)| (name.to_owned(), v)).collect::<Vec<_>>()
    );
}

#[test]
fn ggml_reads_every_type_we_write() {
    let vectors =
        [("a".to_owned(), &[1.0f32, -2.5][..]), ("b".to_owned(), &[0.0; 9]), ("c".to_owned(), &[4.0; 8])];
    assert_reads_alike(&gguf::to_bytes(&every_type(), &vectors).unwrap());
    assert_reads_alike(&gguf::to_bytes(&every_type(), &[]).unwrap());
    assert_reads_alike(&gguf::to_bytes(&[], &vectors).unwrap());
    for power in 0..13 {
        let metadata = [("general.alignment".to_owned(), Value::from(1u32 << power))];
        assert_reads_alike(&gguf::to_bytes(&metadata, &vectors).unwrap());
    }
}

#[test]
fn ggml_reads_a_cap_file_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("caps.gguf");
    let file = cap_file();
    file.write(&path).unwrap();
    assert_reads_alike(&std::fs::read(&path).unwrap());
    let theirs = Theirs::open(&path).unwrap();
    let axes: Vec<_> = file.caps.caps().iter().map(|entry| entry.cap.axis().values().to_vec()).collect();
    let names = ["direction.4", "axiscap.axis.1", "axiscap.axis.2", "direction.1"].map(str::to_owned);
    assert_eq!(theirs.vectors(), names.into_iter().zip(axes).collect::<Vec<_>>());
}

/// Whatever single byte is changed: what our reader still accepts, ggml accepts too, and reads alike.
#[test]
fn we_accept_nothing_that_ggml_refuses() {
    quiet();
    let good = cap_file().to_bytes().unwrap();
    let (mut bytes, mut accepted) = (good.clone(), 0);
    for at in 0..good.len() {
        for change in [0x01, 0x20, 0x80, 0xff, good[at]] {
            bytes[at] = good[at] ^ change;
            let sound = Gguf::parse(&bytes).is_ok_and(|file| {
                // ggml hands texts out as C strings, which end at a zero; NaN is not equal to itself.
                let comparable = |(key, value): &(String, Value)| !key.contains('\0') && is_comparable(value);
                file.metadata.iter().all(comparable)
                    && file.vectors().is_ok_and(|vectors| {
                        vectors.iter().all(|(name, v)| !name.contains('\0') && v.iter().all(|v| !v.is_nan()))
                    })
            });
            if sound {
                accepted += 1;
                assert_reads_alike(&bytes);
            }
        }
        bytes[at] = good[at];
    }
    assert!(accepted > 1000, "{accepted}");
}

fn is_comparable(value: &Value) -> bool {
    match value {
        Value::F32(v) => !v.is_nan(),
        Value::F64(v) => !v.is_nan(),
        Value::String(text) => !text.contains('\0'),
        Value::Array(Array::F32(values)) => values.iter().all(|v| !v.is_nan()),
        Value::Array(Array::F64(values)) => values.iter().all(|v| !v.is_nan()),
        Value::Array(Array::String(texts)) => texts.iter().all(|text| !text.contains('\0')),
        _ => true,
    }
}

/// Has ggml write a file of these values and vectors.
fn write_theirs(path: &Path, metadata: &[(String, Value)], vectors: &[(&str, Vec<f32>)]) {
    let c = |text: &str| CString::new(text).unwrap();
    // SAFETY: all pointers are to live data of the stated type and length; ggml copies keys and values. The
    // tensors and their data outlive the writing, and both contexts are freed once.
    unsafe {
        let file = sys::gguf_init_empty();
        for (key, value) in metadata {
            let key = c(key);
            let key = key.as_ptr();
            let array =
                |kind, data: *const c_void, count| sys::gguf_set_arr_data(file, key, kind, data, count);
            match value {
                Value::U8(v) => sys::gguf_set_val_u8(file, key, *v),
                Value::I8(v) => sys::gguf_set_val_i8(file, key, *v),
                Value::U16(v) => sys::gguf_set_val_u16(file, key, *v),
                Value::I16(v) => sys::gguf_set_val_i16(file, key, *v),
                Value::U32(v) => sys::gguf_set_val_u32(file, key, *v),
                Value::I32(v) => sys::gguf_set_val_i32(file, key, *v),
                Value::F32(v) => sys::gguf_set_val_f32(file, key, *v),
                Value::Bool(v) => sys::gguf_set_val_bool(file, key, *v),
                Value::String(v) => sys::gguf_set_val_str(file, key, c(v).as_ptr()),
                Value::U64(v) => sys::gguf_set_val_u64(file, key, *v),
                Value::I64(v) => sys::gguf_set_val_i64(file, key, *v),
                Value::F64(v) => sys::gguf_set_val_f64(file, key, *v),
                Value::Array(Array::U8(v)) => array(sys::GGUF_TYPE_UINT8, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I8(v)) => array(sys::GGUF_TYPE_INT8, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U16(v)) => array(sys::GGUF_TYPE_UINT16, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I16(v)) => array(sys::GGUF_TYPE_INT16, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U32(v)) => array(sys::GGUF_TYPE_UINT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I32(v)) => array(sys::GGUF_TYPE_INT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::F32(v)) => array(sys::GGUF_TYPE_FLOAT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::Bool(v)) => array(sys::GGUF_TYPE_BOOL, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U64(v)) => array(sys::GGUF_TYPE_UINT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I64(v)) => array(sys::GGUF_TYPE_INT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::F64(v)) => array(sys::GGUF_TYPE_FLOAT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::String(v)) => {
                    let texts: Vec<_> = v.iter().map(|text| c(text)).collect();
                    let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
                    sys::gguf_set_arr_str(file, key, pointers.as_mut_ptr(), pointers.len());
                }
            }
        }
        let room = 1 << 20;
        let params = sys::ggml_init_params { mem_size: room, mem_buffer: ptr::null_mut(), no_alloc: false };
        let context = sys::ggml_init(params);
        for (name, values) in vectors {
            let tensor = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, values.len() as i64);
            sys::ggml_set_name(tensor, c(name).as_ptr());
            ptr::copy_nonoverlapping(values.as_ptr(), (*tensor).data.cast(), values.len());
            sys::gguf_add_tensor(file, tensor);
        }
        assert!(sys::gguf_write_to_file(file, c(path.to_str().unwrap()).as_ptr(), false));
        sys::gguf_free(file);
        sys::ggml_free(context);
    }
}

#[test]
fn we_read_what_ggml_writes_and_write_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.gguf");
    let vectors = [("direction.1", vec![1.0f32, -2.5, 1e-40]), ("b", vec![-0.0; 9])];
    write_theirs(&path, &every_type(), &vectors);
    let theirs = std::fs::read(&path).unwrap();

    let read = Gguf::parse(&theirs).unwrap();
    assert_eq!(read.metadata, every_type());
    assert_eq!(read.vectors().unwrap(), vectors);
    let named = vectors.each_ref().map(|(name, values)| ((*name).to_owned(), values.as_slice()));
    assert_eq!(gguf::to_bytes(&every_type(), &named).unwrap(), theirs);
}

#[test]
fn a_cap_file_written_by_ggml_is_the_cap_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("caps.gguf");
    let bytes = cap_file().to_bytes().unwrap();
    let ours = Gguf::parse(&bytes).unwrap();
    write_theirs(&path, &ours.metadata, &ours.vectors().unwrap());
    assert_eq!(CapFile::read(&path).unwrap(), cap_file());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}
