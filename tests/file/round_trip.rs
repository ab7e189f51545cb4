//! A written file reads back bit for bit, and the same content gives the same bytes.

use axiscap::file::gguf::{self, Gguf, Value};
use axiscap::file::{CapFile, ControlVector, FileError, ModelInfo, NormDigest, Warning};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, Error, Policy};
use proptest::prelude::*;

fn bound() -> impl Strategy<Value = Bound> {
    let side = -1e6f32..1e6;
    prop_oneof![
        Just(Bound::NONE),
        side.clone().prop_map(|lo| Bound::floor(lo).unwrap()),
        side.clone().prop_map(|hi| Bound::ceiling(hi).unwrap()),
        (side.clone(), side).prop_map(|(a, b)| Bound::band(a.min(b), a.max(b)).unwrap()),
    ]
}

fn cap(width: usize) -> impl Strategy<Value = Cap> {
    let direction = prop::collection::vec(-100f32..100.0, width)
        .prop_filter("not zero", |direction| direction.iter().any(|&v| v != 0.0));
    (direction, any::<bool>(), bound(), 0f32..=1.0, prop::option::of("[a-zé ]{1,9}")).prop_map(
        |(direction, keep_norm, bound, strength, name)| {
            let axis = Axis::from_direction(&direction).unwrap();
            let axis = if keep_norm { axis } else { Axis::from_unit(axis.values(), None).unwrap() };
            let cap = Cap::new(axis, bound).with_strength(strength).unwrap();
            match name {
                Some(name) => cap.with_name(name),
                None => cap,
            }
        },
    )
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e30f32..1e30).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300f64..1e300).prop_map(Value::from),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(Value::from),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(Value::from),
        prop::collection::vec(-1f32..1.0, 0..5).prop_map(Value::from),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(Value::from),
        prop::collection::vec(".{0,9}", 0..5).prop_map(Value::from),
    ]
}

prop_compose! {
    fn cap_file()(width in 1usize..40, blocks in 1usize..12)(
        caps in prop::collection::vec((0..blocks, cap(width)), 1..9),
        blocks in Just(blocks),
        architecture in "[a-z0-9]{1,8}",
        name in prop::option::of(".{0,9}"),
        file_type in prop::option::of(any::<u32>()),
        norms in prop::collection::btree_map(".{1,15}", any::<[u8; 32]>(), 0..4),
        orientation in prop::option::of(".{0,20}"),
        skip_positions in prop_oneof![Just(0), Just(1), any::<u32>()],
        origin in prop::collection::btree_map("[a-z_.]{1,12}", value(), 0..6),
    ) -> CapFile {
        let caps = caps.into_iter().map(|(block, cap)| BlockCap { block, cap });
        let mut model = ModelInfo::new(architecture, blocks);
        (model.name, model.file_type) = (name, file_type);
        model.norms = norms.into_iter().map(|(tensor, sha256)| NormDigest { tensor, sha256 }).collect();
        let mut file = CapFile::new(CapSet::new(caps).unwrap(), model);
        file.orientation = orientation;
        file.caps = file.caps.with_policy(Policy::default().with_skip_positions(skip_positions));
        for (key, value) in origin {
            file.origin.set(key, value);
        }
        file
    }
}

proptest! {
    #[test]
    fn a_file_reads_back_as_it_was(file in cap_file()) {
        let bytes = file.to_bytes().unwrap();
        let read = CapFile::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&read, &file);
        prop_assert_eq!(read.to_bytes().unwrap(), bytes);
    }

    #[test]
    fn the_container_reads_back_as_it_was(
        values in prop::collection::btree_map("[a-z.]{1,9}", value(), 0..9),
        vectors in prop::collection::btree_map("[a-z.0-9]{1,9}", prop::collection::vec(-1f32..1.0, 0..20), 0..6),
        alignment in prop::option::of(0u32..12),
    ) {
        let mut values: Vec<_> = values.into_iter().collect();
        values.extend(alignment.map(|power| ("general.alignment".to_owned(), Value::from(1u32 << power))));
        let named: Vec<_> = vectors.iter().map(|(name, vector)| (name.clone(), vector.as_slice())).collect();
        let bytes = gguf::to_bytes(&values, &named).unwrap();
        let read = Gguf::parse(&bytes).unwrap();
        prop_assert_eq!(&read.metadata, &values);
        let expected: Vec<_> = vectors.iter().map(|(name, vector)| (name.as_str(), vector.clone())).collect();
        prop_assert_eq!(read.vectors().unwrap(), expected);
    }
}

fn small() -> CapFile {
    let axis = |x: f32| Axis::from_direction(&[x, 1.0, -2.0]).unwrap();
    let caps = [
        BlockCap { block: 2, cap: Cap::new(axis(1.0), Bound::floor(0.5).unwrap()) },
        BlockCap { block: 0, cap: Cap::new(axis(2.0), Bound::NONE) },
        BlockCap { block: 2, cap: Cap::new(axis(3.0), Bound::ceiling(9.0).unwrap()) },
    ];
    CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4))
}

/// Returns the bytes of `small` with further metadata.
fn small_with(key: &str, value: impl Into<Value>) -> Vec<u8> {
    let bytes = small().to_bytes().unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut metadata = gguf.metadata.clone();
    metadata.push((key.into(), value.into()));
    let vectors = gguf.vectors().unwrap();
    let tensors: Vec<_> =
        vectors.iter().map(|(name, values)| ((*name).to_owned(), values.as_slice())).collect();
    gguf::to_bytes(&metadata, &tensors).unwrap()
}

#[test]
fn a_policy_reads_back_as_it_was() {
    for skip_positions in [1, 4, u32::MAX] {
        let mut file = small();
        file.caps = file.caps.with_policy(Policy::default().with_skip_positions(skip_positions));
        let bytes = file.to_bytes().unwrap();
        // The file has no other optional values that follow it.
        assert_eq!(bytes, small_with("axiscap.policy.skip_positions", skip_positions));
        let read = CapFile::from_bytes(&bytes).unwrap();
        assert_eq!(read.caps.policy(), Policy::default().with_skip_positions(skip_positions));
        assert_eq!(read, file);
        assert!(read.unknown().is_empty());
    }
}

#[test]
fn a_file_without_a_policy_caps_every_row_and_keeps_its_bytes() {
    let bytes = small().to_bytes().unwrap();
    let metadata = Gguf::parse(&bytes).unwrap().metadata;
    assert!(metadata.iter().all(|(key, _)| !key.contains("policy")), "{metadata:?}");
    let read = CapFile::from_bytes(&bytes).unwrap();
    assert!(read.caps.policy().is_default());

    // A policy of 0 says the same as none.
    let zero = CapFile::from_bytes(&small_with("axiscap.policy.skip_positions", 0u32)).unwrap();
    assert_eq!(zero, read);
    assert_eq!(zero.to_bytes().unwrap(), bytes);
}

#[test]
fn tensor_names_let_llama_cpp_read_only_files_that_it_can_use_wholly() {
    let bytes = small().to_bytes().unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let names: Vec<_> = gguf.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["direction.2", "axiscap.axis.1", "axiscap.axis.2"]);
    assert!(!small().is_control_vector());
}

#[test]
fn caps_may_share_a_tensor_and_unknown_values_survive() {
    let bytes = small().to_bytes().unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut metadata = gguf.metadata.clone();
    for (key, value) in &mut metadata {
        if key == "axiscap.cap.tensor" {
            *value = vec!["direction.2".to_owned(); 3].into();
        }
    }
    metadata.push(("axiscap.tomorrow".into(), vec![1u8, 2].into()));
    metadata.push(("general.name".into(), "a name".into()));
    let vectors = gguf.vectors().unwrap();
    let tensors: Vec<_> =
        vectors.iter().map(|(name, values)| ((*name).to_owned(), values.as_slice())).collect();
    let read = CapFile::from_bytes(&gguf::to_bytes(&metadata, &tensors).unwrap()).unwrap();

    let caps = read.caps.caps();
    assert_eq!(caps[1].cap.axis().values(), caps[0].cap.axis().values());
    assert_eq!(caps[2].cap.axis().values(), caps[0].cap.axis().values());
    // Each cap keeps the norm that its own axis had.
    assert_ne!(caps[2].cap.axis().norm(), caps[0].cap.axis().norm());
    let unused = |index: usize| Warning::UnusedTensor { name: format!("axiscap.axis.{index}") };
    assert_eq!(read.warnings(), [unused(1), unused(2)]);

    let again = CapFile::from_bytes(&read.to_bytes().unwrap()).unwrap();
    assert_eq!(again.unknown(), &metadata[metadata.len() - 2..]);
    assert_eq!(again.caps, read.caps);
    assert!(again.warnings().is_empty());
}

#[test]
fn an_axis_is_written_once_except_for_the_directions_of_llama_cpp() {
    let axis = |x: f32| Axis::from_direction(&[x, 1.0, -2.0]).unwrap();
    // Equal values in separate memory as well.
    let caps = [(0, 1.0), (2, 1.0), (2, 1.0), (0, 5.0), (3, 1.0), (2, 5.0), (2, -0.0), (2, 0.0)];
    let caps = caps.map(|(block, x)| BlockCap { block, cap: Cap::new(axis(x), Bound::NONE) });
    let file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4));
    let bytes = file.to_bytes().unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let written: Vec<_> = gguf.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let own = [
        "axiscap.axis.0",
        "direction.2",
        "axiscap.axis.3",
        "direction.3",
        "axiscap.axis.6",
        "axiscap.axis.7",
    ];
    assert_eq!(written, own);
    let named = [own[0], own[1], own[0], own[2], own[3], own[2], own[4], own[5]];
    assert_eq!(gguf.get("axiscap.cap.tensor"), Some(&named.map(str::to_owned).to_vec().into()));
    let read = CapFile::from_bytes(&bytes).unwrap();
    assert_eq!(read, file);
    assert!(read.warnings().is_empty());

    // One cap per block is a control vector, shared axis or not.
    let caps = [1, 2, 3].map(|block| BlockCap { block, cap: Cap::new(axis(1.0), Bound::NONE) });
    let file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4));
    assert!(file.is_control_vector());
    let bytes = file.to_bytes().unwrap();
    let written: Vec<_> =
        Gguf::parse(&bytes).unwrap().tensors.into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(written, ["direction.1", "direction.2", "direction.3"]);
}

#[test]
fn an_empty_name_reads_back_as_no_name() {
    let axis = Axis::from_direction(&[1.0, 1.0]).unwrap();
    let caps = ["", "assistant"].map(|name| {
        let cap = Cap::new(axis.clone(), Bound::NONE).with_name(name);
        BlockCap { block: 1, cap }
    });
    let file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 2));
    assert_eq!(CapFile::from_bytes(&file.to_bytes().unwrap()).unwrap(), file);
}

/// A norm that no f32 holds: the axis is sound, its norm is not known.
#[test]
fn a_norm_beyond_f32_is_not_kept() {
    let axis = Axis::from_direction(&[3e38, 3e38]).unwrap();
    assert_eq!(axis.norm(), None);
    let caps = [BlockCap { block: 1, cap: Cap::new(axis, Bound::NONE) }];
    let file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 2));
    assert_eq!(CapFile::from_bytes(&file.to_bytes().unwrap()).unwrap(), file);
}

#[test]
fn a_tensor_that_names_another_block_gives_a_warning() {
    let bytes = small().to_bytes().unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut metadata = gguf.metadata.clone();
    for (key, value) in &mut metadata {
        if key == "axiscap.cap.block" {
            *value = vec![3i32, 0, 2].into();
        }
    }
    let vectors = gguf.vectors().unwrap();
    let tensors: Vec<_> =
        vectors.iter().map(|(name, values)| ((*name).to_owned(), values.as_slice())).collect();
    let read = CapFile::from_bytes(&gguf::to_bytes(&metadata, &tensors).unwrap()).unwrap();
    assert_eq!(read.warnings(), [Warning::MisnamedTensor { name: "direction.2".into(), block: 3 }]);
}

#[test]
fn files_fit_their_model_or_are_refused() {
    let file = small();
    assert_eq!(file.check_model("llama", 3, 4).unwrap(), []);
    assert!(matches!(
        file.check_model("qwen3", 3, 4).unwrap().as_slice(),
        [Warning::OtherArchitecture { file, model }] if file == "llama" && model == "qwen3"
    ));
    let width = file.caps.check_model(4, 4).unwrap_err();
    let other_models = [
        (4, 4, width),
        (3, 5, Error::BlockCount { caps: 4, model: 5 }),
        (3, 3, Error::BlockCount { caps: 4, model: 3 }),
    ];
    for (width, blocks, expected) in other_models {
        let error = file.check_model("llama", width, blocks).unwrap_err();
        match &error {
            FileError::OtherModel { file: None, error } => assert_eq!(*error, expected),
            other => panic!("{other}"),
        }
        assert!(error.to_string().contains("extract and calibrate"), "{error}");
    }
}

#[test]
fn a_plain_control_vector_is_not_run_but_can_be_calibrated() {
    let metadata = [
        ("general.architecture".to_owned(), Value::from("controlvector")),
        ("controlvector.model_hint".to_owned(), "llama".into()),
        ("controlvector.layer_count".to_owned(), 2i32.into()),
    ];
    let tensors = [("direction.3".to_owned(), &[0.0f32, 5.0][..]), ("direction.1".to_owned(), &[3.0, -4.0])];
    let bytes = gguf::to_bytes(&metadata, &tensors).unwrap();

    let error = CapFile::from_bytes(&bytes).unwrap_err();
    assert!(matches!(error, FileError::PlainControlVector { .. }));
    assert!(error.to_string().contains("give it bounds that are measured on this model"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    std::fs::write(&path, &bytes).unwrap();
    assert!(CapFile::read(&path).unwrap_err().to_string().starts_with(&*path.to_string_lossy()));
    let axes = CapFile::read_axes(&path, &ModelInfo::new("llama", 4)).unwrap();
    assert!(axes.is_unbounded() && axes.is_control_vector());
    let caps = axes.caps.caps();
    assert_eq!((caps[0].block, caps[1].block), (1, 3));
    assert_eq!(caps[0].cap.axis().values(), [0.6, -0.8]);
    assert_eq!(caps[1].cap.axis().norm(), Some(5.0));

    let error = ControlVector::read(&path).unwrap().into_axes(ModelInfo::new("llama", 3)).unwrap_err();
    assert!(matches!(
        error,
        FileError::OtherModel { error: Error::Block { index: 1, block: 3, blocks: 3 }, .. }
    ));
}
