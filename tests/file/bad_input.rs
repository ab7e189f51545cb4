//! Each field of a cap file made wrong in turn. The file is refused, with a message that names the field and
//! the remedy.

use axiscap::file::gguf::{self, Gguf, Value};
use axiscap::file::{CapFile, FileError, ModelInfo, NormDigest};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, Policy};

/// The parts of a file, from which a file with one wrong part is made.
struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<f32>)>,
}

impl Parts {
    /// Two caps on block 1 and one on block 3 of a model of 5 blocks and width 6.
    fn new() -> Self {
        let axis = |x: f32| Axis::from_direction(&[x, 1.0, -2.0, 0.5, 0.0, 3.0]).unwrap();
        let cap = |block, x| BlockCap {
            block,
            cap: Cap::new(axis(x), Bound::band(-x, x).unwrap()).with_name("assistant"),
        };
        let caps = CapSet::new([cap(1, 1.0), cap(1, 2.0), cap(3, 3.0)]).unwrap();
        let mut file = CapFile::new(caps, ModelInfo::new("llama", 5));
        file.model.name = Some("A model".into());
        file.model.file_type = Some(3);
        let norm = |tensor: &str, byte| NormDigest { tensor: tensor.into(), sha256: [byte; 32] };
        file.model.norms = vec![norm("output_norm.weight", 0x1a), norm("blk.0.attn_norm.weight", 0x2b)];
        file.orientation = Some("more Assistant".into());
        file.caps = file.caps.with_policy(Policy::default().with_skip_positions(4));
        file.origin.set("tool", "test");
        let bytes = file.to_bytes().unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let tensors = gguf.vectors().unwrap();
        let tensors = tensors.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
        Self { metadata: gguf.metadata, tensors }
    }

    fn bytes(&self) -> Vec<u8> {
        let tensors: Vec<_> = self.tensors.iter().map(|(name, v)| (name.clone(), v.as_slice())).collect();
        gguf::to_bytes(&self.metadata, &tensors).unwrap()
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        let entry = self.metadata.iter_mut().find(|(k, _)| k == key);
        entry.unwrap_or_else(|| panic!("{key} is not in the file")).1 = value.into();
    }
}

fn refused(bytes: &[u8]) -> FileError {
    match CapFile::from_bytes(bytes) {
        Err(error) => error,
        Ok(file) => panic!("accepted: {file:?}"),
    }
}

/// Asserts that the error is in `field`, and that its message holds each of `words`.
#[track_caller]
fn check(error: &FileError, field: &str, words: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.field(), Some(field), "{message}");
    for word in ["expected ", "found ", "; "].iter().chain(words) {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

#[track_caller]
fn wrong_value(key: &str, value: impl Into<Value>, field: &str, words: &[&str]) {
    let mut parts = Parts::new();
    parts.set(key, value);
    let error = refused(&parts.bytes());
    check(&error, field, words);
}

#[track_caller]
fn wrong_tensor(change: impl FnOnce(&mut Vec<f32>), words: &[&str]) {
    let mut parts = Parts::new();
    change(&mut parts.tensors[0].1);
    let error = refused(&parts.bytes());
    check(&error, "tensor direction.1", words);
}

#[test]
fn the_file_is_right_before_it_is_made_wrong() {
    assert_eq!(CapFile::from_bytes(&Parts::new().bytes()).unwrap().caps.caps().len(), 3);
}

#[test]
fn values_out_of_range() {
    let again = "make the file again";
    wrong_value(
        "general.architecture",
        "llama",
        "general.architecture",
        &["controlvector", "another kind of GGUF file"],
    );
    wrong_value("controlvector.layer_count", 0i32, "controlvector.layer_count", &["above 0", again]);
    wrong_value("controlvector.layer_count", -5i32, "controlvector.layer_count", &["-5", again]);
    wrong_value("axiscap.version", 0u32, "axiscap.version", &["expected 1", "found 0"]);
    wrong_value("axiscap.version", 2u32, "axiscap.version", &["found 2", "newer axiscap"]);
    wrong_value("axiscap.width", 0u32, "axiscap.width", &["above 0", again]);
    wrong_value("axiscap.width", 7u32, "axiscap.model.width", &["expected 7, as axiscap.width", "found 6"]);
    wrong_value("axiscap.cap.block", vec![1i32, -1, 3], "axiscap.cap.block[1]", &["0 to 4", "-1", again]);
    wrong_value("axiscap.cap.block", vec![1i32, 1, 5], "axiscap.cap.block[2]", &["0 to 4", "found 5", again]);
    wrong_value("axiscap.cap.block", vec![i32::MIN, 1, 3], "axiscap.cap.block[0]", &["0 to 4", again]);
    let absent: Vec<_> = ["direction.1", "axiscap.axis.1", "direction.4"].map(str::to_owned).into();
    wrong_value("axiscap.cap.tensor", absent, "axiscap.cap.tensor[2]", &["direction.4", "not there", again]);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    wrong_value("axiscap.cap.floor", vec![0.0, nan, 0.0], "axiscap.cap.floor[1]", &["NaN", "-inf", again]);
    wrong_value("axiscap.cap.floor", vec![0.0, inf, 0.0], "axiscap.cap.floor[1]", &["inf", "-inf", again]);
    wrong_value(
        "axiscap.cap.floor",
        vec![0.0, 0.0, 3.5f32],
        "axiscap.cap.floor[2]",
        &["ceiling, 3", "3.5", again],
    );
    wrong_value(
        "axiscap.cap.ceiling",
        vec![nan, 9.0, 9.0],
        "axiscap.cap.ceiling[0]",
        &["NaN", "+inf", again],
    );
    wrong_value(
        "axiscap.cap.ceiling",
        vec![-inf, 9.0, 9.0],
        "axiscap.cap.ceiling[0]",
        &["-inf", "+inf", again],
    );
    for strength in [-0.1, 1.1, nan, inf] {
        wrong_value(
            "axiscap.cap.strength",
            vec![1.0, strength, 1.0],
            "axiscap.cap.strength[1]",
            &["from 0 to 1"],
        );
    }
    for norm in [-1.0, nan, inf] {
        wrong_value("axiscap.cap.norm", vec![1.0, 1.0, norm], "axiscap.cap.norm[2]", &["finite norm", again]);
    }
    wrong_value(
        "axiscap.model.architecture",
        "qwen3",
        "axiscap.model.architecture",
        &["llama", "qwen3", again],
    );
    wrong_value(
        "axiscap.model.block_count",
        6u32,
        "axiscap.model.block_count",
        &["expected 5", "layer_count"],
    );
    wrong_value("axiscap.model.width", 7u32, "axiscap.model.width", &["expected 6", "axiscap.width"]);
}

#[test]
fn a_width_that_no_tensor_has() {
    let mut parts = Parts::new();
    parts.set("axiscap.width", 7u32);
    parts.metadata.retain(|(key, _)| key != "axiscap.model.width");
    check(&refused(&parts.bytes()), "tensor direction.1", &["7 values", "axiscap.width", "6 values"]);
}

#[test]
fn arrays_of_other_lengths() {
    let columns = [
        ("axiscap.cap.tensor", Value::from(vec!["direction.1".to_owned(); 2])),
        ("axiscap.cap.floor", vec![0f32; 4].into()),
        ("axiscap.cap.ceiling", vec![9f32; 2].into()),
        ("axiscap.cap.strength", Vec::<f32>::new().into()),
        ("axiscap.cap.name", vec![String::new(); 1].into()),
        ("axiscap.cap.norm", vec![1f32; 2].into()),
    ];
    for (key, value) in columns {
        wrong_value(key, value, key, &["3 values, one per cap", "make the file again"]);
    }
    wrong_value("axiscap.cap.block", vec![1i32; 2], "axiscap.cap.tensor", &["2 values", "3 values"]);

    let mut parts = Parts::new();
    for key in ["block", "tensor", "floor", "ceiling", "strength", "name", "norm"] {
        let key = format!("axiscap.cap.{key}");
        let empty = match parts.metadata.iter().find(|(k, _)| *k == key).unwrap().1.type_name() {
            "array of i32" => Value::from(Vec::<i32>::new()),
            "array of string" => Vec::<String>::new().into(),
            _ => Vec::<f32>::new().into(),
        };
        parts.set(&key, empty);
    }
    check(&refused(&parts.bytes()), "axiscap.cap.block", &["at least one cap", "none"]);
}

#[test]
fn values_of_another_type_and_absent_ones() {
    let optional = [
        "cap.name",
        "cap.norm",
        "orientation",
        "model.architecture",
        "model.name",
        "model.block_count",
        "model.width",
        "model.file_type",
        "policy.skip_positions",
    ]
    .map(|key| format!("axiscap.{key}"));
    for index in 0..Parts::new().metadata.len() {
        let mut parts = Parts::new();
        let (key, value) = &mut parts.metadata[index];
        let (key, type_name) = (key.clone(), value.type_name());
        if key.starts_with("axiscap.origin.") {
            continue;
        }
        *value = 1u8.into();
        check(&refused(&parts.bytes()), &key, &["type", type_name, "found u8", "make the file again"]);
        // The same numbers in a similar type.
        parts.metadata[index].1 = vec![1f64; 3].into();
        check(&refused(&parts.bytes()), &key, &["type", type_name, "found array of f64"]);

        parts.metadata.remove(index);
        if optional.contains(&key) {
            CapFile::from_bytes(&parts.bytes()).unwrap();
        } else {
            check(&refused(&parts.bytes()), &key, &["no such key", "make the file again"]);
        }
    }
}

#[test]
fn digests_of_norms() {
    let again = "make the file again";
    let [digest, tensor, sha256] =
        ["norm_digest", "norm.tensor", "norm.sha256"].map(|key| format!("axiscap.model.{key}"));
    let (first, second) = ("1a".repeat(32), "2b".repeat(32));
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    for wrong in ["", "1a", &first[1..], &first[2..], &first.to_uppercase(), &first.replacen('1', "g", 1)] {
        wrong_value(&digest, wrong, &digest, &["64 lower-case hexadecimal digits", "found \"", again]);
        let at = format!("{sha256}[1]");
        wrong_value(&sha256, texts(&[&first, wrong]), &at, &["64 lower-case hexadecimal digits", again]);
    }
    wrong_value(&digest, second.as_str(), &digest, &[&format!("expected {first}, as {sha256}[0]"), again]);
    wrong_value(&sha256, texts(&[&first]), &sha256, &["2 values, one per tensor", "found 1 values", again]);
    wrong_value(&tensor, texts(&["a", "b", "c"]), &sha256, &["3 values", "found 2 values", again]);
    for (names, found) in [
        (texts(&["a", ""]), "an empty name"),
        (texts(&["a", "a"]), "\"a\" twice"),
        (texts(&["a", &"n".repeat(64)]), "64 bytes"),
    ] {
        wrong_value(
            &tensor,
            names,
            &format!("{tensor}[1]"),
            &["distinct names of 1 to 63 bytes", found, again],
        );
    }
    let mut parts = Parts::new();
    parts.set(&tensor, Vec::<String>::new());
    parts.set(&sha256, Vec::<String>::new());
    check(&refused(&parts.bytes()), &tensor, &["at least one tensor", "none", again]);

    // The digest alone is that of the output norm.
    let mut parts = Parts::new();
    parts.metadata.retain(|(key, _)| *key != tensor && *key != sha256);
    let file = CapFile::from_bytes(&parts.bytes()).unwrap();
    let norms = [NormDigest { tensor: "output_norm.weight".into(), sha256: [0x1a; 32] }];
    assert_eq!(file.model.norms, norms);
    assert_eq!(CapFile::from_bytes(&file.to_bytes().unwrap()).unwrap(), file);

    // Files of before have none.
    parts.metadata.retain(|(key, _)| *key != digest);
    assert!(CapFile::from_bytes(&parts.bytes()).unwrap().model.norms.is_empty());
}

/// A policy changes which rows are capped. No reader may ignore one.
#[test]
fn policies_that_are_not_known() {
    let values = [(Value::from(3u8), "found 3;"), (vec![1i32, 2].into(), "found array of i32 of 2;")];
    for key in ["axiscap.policy.skip_roles", "axiscap.policy.skip_positions.1", "axiscap.policy."] {
        for (value, found) in &values {
            let mut parts = Parts::new();
            parts.metadata.push((key.into(), value.clone()));
            let error = refused(&parts.bytes());
            assert!(matches!(error, FileError::Unsupported(_)), "{error:?}");
            let words = ["a policy that this version knows", found, "which rows are capped", "newer axiscap"];
            check(&error, key, &words);
            // It does not depend on another policy.
            parts.metadata.retain(|(key, _)| key != "axiscap.policy.skip_positions");
            check(&refused(&parts.bytes()), key, &words);
        }
    }
    // Another prefix.
    let mut parts = Parts::new();
    parts.metadata.push(("axiscap.policyholder".into(), 1u8.into()));
    assert_eq!(CapFile::from_bytes(&parts.bytes()).unwrap().unknown().len(), 1);
}

/// The values themselves are any u32. Their type is checked like that of other keys.
#[test]
fn policies_of_another_type() {
    let key = "axiscap.policy.skip_positions";
    let again = "make the file again";
    wrong_value(key, 1i32, key, &["type u32", "found i32 1", again]);
    wrong_value(key, -1i32, key, &["type u32", "found i32 -1", again]);
    wrong_value(key, 1u64, key, &["type u32", "found u64 1", again]);
    wrong_value(key, "1", key, &["type u32", "found string \"1\"", again]);
    wrong_value(key, vec![1u32], key, &["type u32", "found array of u32", again]);
}

/// A file with a policy and without a version is an incomplete cap file. As a control vector it would lose
/// its policy.
#[test]
fn policies_without_a_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    for key in ["axiscap.policy.skip_positions", "axiscap.policy.skip_roles"] {
        let mut parts = Parts::new();
        parts.metadata.retain(|(key, _)| !key.starts_with("axiscap."));
        parts.tensors.truncate(1);
        let plain = parts.bytes();
        assert!(matches!(refused(&plain), FileError::PlainControlVector { .. }));
        parts.metadata.push((key.into(), 1u32.into()));
        let bytes = parts.bytes();
        check(&refused(&bytes), "axiscap.version", &["expected 1", "no such key", "make the file again"]);

        let model = ModelInfo::new("llama", 5);
        std::fs::write(&path, &plain).unwrap();
        CapFile::read_axes(&path, &model).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let error = CapFile::read_axes(&path, &model).unwrap_err();
        check(&error, "axiscap.version", &["v.gguf", "expected 1", "no such key"]);
    }
}

#[test]
fn axes_that_are_none() {
    let again = "extract the axes again";
    wrong_tensor(|values| values.fill(0.0), &["zeros only", again]);
    wrong_tensor(|values| values[4] = f32::NAN, &["NaN at index 4 of 6", again]);
    wrong_tensor(|values| values[0] = f32::INFINITY, &["inf at index 0 of 6", again]);
    wrong_tensor(
        |values| values.iter_mut().for_each(|v| *v *= 1.002),
        &["norm 1.00", "divide it by its norm"],
    );
    wrong_tensor(|values| values.push(0.0), &["6 values", "7 values", "axiscap.width"]);
    wrong_tensor(Vec::clear, &["6 values", "0 values"]);
}

/// Replaces the only (or the first) occurrence of `old`.
fn patched(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(old.len()).position(|window| window == old).expect("not in the file");
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

/// Replaces bytes by others of another length before the tensors' data, and keeps the data aligned.
fn padded(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    // Three tensors of six values, each padded to 32 bytes.
    const DATA: usize = 3 * 32;
    let (list, data) = bytes.split_at(bytes.len() - DATA);
    // The list is padded by less than 32 zeros. They follow the last offset, whose upper bytes are zeros as
    // well.
    let last = list.len() - list.iter().rev().take_while(|&&byte| byte == 0).count();
    let end = last - 1 + 8;
    let mut list = patched(&list[..end], old, new);
    list.resize(list.len().next_multiple_of(32), 0);
    [list, data.to_vec()].concat()
}

/// Returns the entry of `direction.1` in the list of tensors: name, 1 dimension, extent 6, type 0, offset 0.
fn tensor_info(dimensions: u32, extent: u64, element_type: u32, offset: u64) -> Vec<u8> {
    let mut bytes = b"direction.1".to_vec();
    bytes.extend(dimensions.to_le_bytes());
    bytes.extend(extent.to_le_bytes());
    bytes.extend(element_type.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn containers_that_are_none() {
    let good = Parts::new().bytes();
    let header = |at: usize, new: &[u8]| [&good[..at], new, &good[at + new.len()..]].concat();
    let repair = "make it again";
    check(&refused(b""), "magic", &["an empty file", repair]);
    check(&refused(b"PK\x03\x04"), "magic", &["GGUF", "PK", "name a cap file"]);
    check(&refused(&header(4, &1u32.to_le_bytes())), "version", &["expected 3", "found 1", "rewrite"]);
    check(&refused(&header(4, &2u32.to_le_bytes())), "version", &["expected 3", "found 2", "rewrite"]);
    check(&refused(&header(4, &4u32.to_le_bytes())), "version", &["found 4", "newer axiscap"]);
    check(&refused(&header(4, &0u32.to_le_bytes())), "version", &["found 0"]);
    check(
        &refused(&header(4, &3u32.to_be_bytes())),
        "version",
        &["little endian", "3, big endian", "rewrite"],
    );
    for count in [u64::MAX, 1 << 40, 1000] {
        check(&refused(&header(8, &count.to_le_bytes())), "tensor count", &["bytes left", repair]);
        check(&refused(&header(16, &count.to_le_bytes())), "metadata count", &["bytes left", repair]);
    }
    check(&refused(&header(24, &u64::MAX.to_le_bytes())), "metadata key 0", &["bytes left", repair]);
    check(&refused(&header(24, &0u64.to_le_bytes())), "metadata key 0", &["1 to 65535", "0 bytes"]);

    let named = |name: &str| [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    let (longest, longer) = ("k".repeat(65_535), "k".repeat(65_536));
    let key = named("axiscap.origin.tool");
    CapFile::from_bytes(&padded(&good, &key, &named(&longest))).unwrap();
    let message = refused(&padded(&good, &key, &named(&longer))).to_string();
    assert!(message.contains("expected 1 to 65535 bytes, found 65536 bytes"), "{message}");
    // The name of the tensor, and the field that holds it.
    let tensor = named("axiscap.axis.1");
    let both = |name: &str| {
        let column = padded(&good, &tensor, &named("x"));
        padded(&padded(&column, &tensor, &named(name)), &named("x"), &named(name))
    };
    CapFile::from_bytes(&both(&"n".repeat(63))).unwrap();
    for (name, bytes) in [("n".repeat(64), "64 bytes"), (String::new(), "0 bytes")] {
        check(&refused(&both(&name)), "name of tensor 1", &["1 to 63 bytes", bytes, repair]);
    }

    let utf8 = patched(&good, b"A model", b"A m\xff\xfeel");
    check(&refused(&utf8), "axiscap.model.name", &["UTF-8", "invalid sequence", repair]);
    let twice = patched(&good, b"axiscap.cap.floor", b"axiscap.cap.block");
    check(&refused(&twice), "axiscap.cap.block", &["same key twice", repair]);
    let escape = patched(&good, b"axiscap.version", b"axiscap.\x1b[31m!!");
    let message = CapFile::from_bytes(&patched(&escape, b"\x04\0\0\0\x01\0\0\0", b"\x63\0\0\0\x01\0\0\0"));
    let message = message.unwrap_err().to_string();
    assert!(!message.contains('\x1b') && message.contains("\\u{1b}[31m"), "{message}");
    let text = |length: u64| [&length.to_le_bytes(), &b"A model"[..]].concat();
    let long = patched(&good, &text(7), &text(u64::MAX));
    check(&refused(&long), "axiscap.model.name", &["bytes left", repair]);

    let array = |element: u32, count: u64| {
        let mut bytes = b"axiscap.cap.floor\x09\0\0\0".to_vec();
        bytes.extend(element.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes
    };
    for count in [u64::MAX, u64::MAX / 4 + 1, 1 << 33, 1 << 12] {
        let long = patched(&good, &array(6, 3), &array(6, count));
        check(&refused(&long), "axiscap.cap.floor", &["f32, at least 4 bytes each", "bytes left", repair]);
        let long = patched(&good, &array(6, 3), &array(8, count));
        check(&refused(&long), "axiscap.cap.floor", &["string, at least 8 bytes each", "bytes left", repair]);
    }
    check(
        &refused(&patched(&good, &array(6, 3), &array(9, 3))),
        "axiscap.cap.floor",
        &["nested array", "flat"],
    );
    check(&refused(&patched(&good, &array(6, 3), &array(13, 3))), "axiscap.cap.floor", &["0 to 12", "13"]);
}

/// Text from a file must not control a terminal, whichever part of a message quotes it.
#[track_caller]
fn check_escaped(message: &str, words: &str) {
    assert!(!message.contains('\x1b') && message.contains(words), "{message:?}");
}

#[test]
fn what_was_found_is_printable() {
    let mut parts = Parts::new();
    parts.set("axiscap.model.architecture", "a\x1b[2Jb");
    check_escaped(&refused(&parts.bytes()).to_string(), "found a\\u{1b}[2Jb;");
}

/// One key contradicts another. The message names the other key's value as expected.
#[test]
fn what_was_expected_is_printable() {
    let mut parts = Parts::new();
    parts.set("controlvector.model_hint", "a\x1b[2Jb");
    check_escaped(&refused(&parts.bytes()).to_string(), "expected a\\u{1b}[2Jb, as");
}

#[test]
fn warnings_are_printable() {
    let mut parts = Parts::new();
    parts.tensors.push(("a\x1b[2Jb".into(), vec![0.5; 6]));
    let file = CapFile::from_bytes(&parts.bytes()).unwrap();
    let [warning] = file.warnings() else { panic!("{:?}", file.warnings()) };
    check_escaped(&warning.to_string(), "tensor a\\u{1b}[2Jb is");
}

#[test]
fn tensors_that_are_misplaced_or_of_another_kind() {
    let good = Parts::new().bytes();
    let right = tensor_info(1, 6, 0, 0);
    let with = |info: Vec<u8>| refused(&patched(&good, &right, &info));
    let field = "tensor direction.1";
    check(&with(tensor_info(1, 6, 1, 0)), field, &["F32", "ggml type 1", "convert"]);
    check(&with(tensor_info(1, 6, u32::MAX, 0)), field, &["F32", "4294967295"]);
    check(&with(tensor_info(5, 6, 0, 0)), field, &["at most 4", "found 5"]);
    check(&with(tensor_info(u32::MAX, 6, 0, 0)), field, &["at most 4"]);
    for width in [u64::MAX, u64::MAX / 4, u64::MAX / 4 + 1, 1 << 62, 1 << 40, 1000] {
        check(
            &with(tensor_info(1, width, 0, 0)),
            field,
            &["values of 4 bytes", "bytes of data left", "cut short"],
        );
    }
    for offset in [4, 32, 1 << 63, u64::MAX] {
        check(
            &with(tensor_info(1, 6, 0, offset)),
            "offset of tensor direction.1",
            &["expected 0", "damaged"],
        );
    }
    let renamed = patched(&good, &right, &[&b"direction.3"[..], &right[11..]].concat());
    check(&refused(&renamed), "tensor direction.3", &["one tensor of this name", "two"]);
    let square =
        [&b"direction.1\x02\0\0\0"[..], &6u64.to_le_bytes(), &1u64.to_le_bytes(), &right[23..]].concat();
    check(&with(square), field, &["1 dimension", "2 dimensions [6, 1]"]);

    let mut longer = good.clone();
    longer.push(0);
    check(&refused(&longer), "tensor data", &["end of the file", "1 bytes after", "appended"]);
}

#[test]
fn alignments() {
    for power in [0, 3, 5, 9, 12, 20] {
        let mut parts = Parts::new();
        parts.metadata.push(("general.alignment".into(), (1u32 << power).into()));
        let file = CapFile::from_bytes(&parts.bytes()).unwrap();
        assert!(file.unknown().is_empty(), "files are written with the default alignment");
    }
    for wrong in
        [Value::from(0u32), 33u32.into(), (1u32 << 21).into(), 32i32.into(), 32u64.into(), "32".into()]
    {
        let mut parts = Parts::new();
        parts.metadata.push(("general.alignmenx".into(), wrong));
        let bytes = patched(&parts.bytes(), b"general.alignmenx", b"general.alignment");
        check(&refused(&bytes), "general.alignment", &["power of two", "make it again"]);
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let good = Parts::new().bytes();
    for length in 0..good.len() {
        let error = refused(&good[..length]);
        assert!(matches!(error, FileError::Malformed(_)), "{length} bytes: {error}");
    }
}

#[test]
fn a_changed_byte_never_panics_and_what_is_accepted_is_sound() {
    let good = Parts::new().bytes();
    let mut bytes = good.clone();
    let mut accepted = 0;
    for at in 0..good.len() {
        for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, good[at], !good[at]] {
            bytes[at] = good[at] ^ change;
            if let Ok(file) = CapFile::from_bytes(&bytes) {
                accepted += 1;
                let again = CapFile::from_bytes(&file.to_bytes().unwrap()).unwrap();
                assert_eq!(again.caps, file.caps, "byte {at} changed by {change:#x}");
                assert_eq!(again.caps.policy(), file.caps.policy(), "byte {at} changed by {change:#x}");
            }
        }
        bytes[at] = good[at];
    }
    assert!(accepted > 0, "names and texts can be changed without harm");
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let absent = CapFile::read(&folder.path().join("absent.gguf")).unwrap_err().to_string();
    assert!(absent.contains("absent.gguf") && absent.contains("does not exist"), "{absent}");
    let directory = CapFile::read(folder.path()).unwrap_err().to_string();
    assert!(directory.contains("name a file"), "{directory}");

    let long = folder.path().join("long.gguf");
    std::fs::File::create(&long).unwrap().set_len((1 << 30) + 1).unwrap();
    let error = CapFile::read(&long).unwrap_err();
    check(&error, "file size", &["long.gguf", "1073741824 bytes", "1073741825 bytes", "no cap file"]);
}

/// Only the first bytes of an endless device are read.
#[cfg(unix)]
#[test]
fn endless_files() {
    for device in ["/dev/zero", "/dev/null"] {
        let error = CapFile::read(device.as_ref()).unwrap_err();
        check(&error, "magic", &[device]);
    }
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let mut file = CapFile::from_bytes(&Parts::new().bytes()).unwrap();
    file.model.blocks = 3;
    check(&file.to_bytes().unwrap_err(), "axiscap.cap.block[2]", &["0 to 2", "found 3"]);
    file.model.blocks = 0;
    check(&file.to_bytes().unwrap_err(), "controlvector.layer_count", &["from 1"]);
    file.model.blocks = usize::MAX;
    check(&file.to_bytes().unwrap_err(), "controlvector.layer_count", &["from 1"]);
    file.model.blocks = 5;
    for name in [String::new(), "n".repeat(64), "output_norm.weight".into()] {
        let norm = file.model.norms[1].clone();
        file.model.norms[1].tensor = name;
        let field = "axiscap.model.norm.tensor[1]";
        check(&file.to_bytes().unwrap_err(), field, &["distinct names of 1 to 63 bytes"]);
        file.model.norms[1] = norm;
    }
    file.to_bytes().unwrap();
    file.origin.set("x".repeat(70_000), 1u8);
    check(&file.to_bytes().unwrap_err(), "metadata key", &["1 to 65535 bytes"]);
    for name in [String::new(), "n".repeat(64)] {
        let error = gguf::to_bytes(&[], &[(name, &[1.0])]).unwrap_err();
        check(&error, "tensor name", &["1 to 63 bytes"]);
    }
    gguf::to_bytes(&[], &[("n".repeat(63), &[1.0])]).unwrap();
}
