//! Vectors by layer: shapes, types, views and containers.

use axiscap::file::FileError;
use axiscap::import::{Format, Request, Source, Warning};

use crate::support::{P, Tensor, bf16s, dict, f32s, stacked, text, torch};
use crate::{assert_contains, open, refused, target};

const ROWS: [[f32; 3]; 4] = [[1.0, 2.0, -2.0], [0.0, 3.0, 4.0], [5.0, 0.0, 12.0], [8.0, 6.0, 0.0]];
const NORMS: [f32; 4] = [3.0, 5.0, 13.0, 10.0];

/// Asserts that a source holds `ROWS`.
#[track_caller]
fn assert_rows(source: &Source) {
    let imported = source.caps(&target(), &Request::default()).unwrap();
    let file = &imported.file;
    assert!(file.is_unbounded());
    assert_eq!(file.caps.caps().len(), 4);
    for (block, entry) in file.caps.caps().iter().enumerate() {
        let axis = entry.cap.axis();
        let unit = ROWS[block].map(|value| (f64::from(value) / f64::from(NORMS[block])) as f32);
        assert_eq!((entry.block, axis.values(), axis.norm()), (block, &unit[..], Some(NORMS[block])));
    }
    let norms: Vec<_> = source.describe().unwrap().vectors.into_iter().map(|line| line.norm as f32).collect();
    assert_eq!(norms, NORMS);
}

fn storage() -> Vec<(&'static str, Vec<u8>)> {
    vec![("0", f32s(ROWS.as_flattened()))]
}

fn tensor(size: &[i32]) -> Tensor {
    Tensor::whole("FloatStorage", "0", size)
}

#[test]
fn every_shape_of_one_vector_per_layer_is_read() {
    let whole = || P::Tensor(tensor(&[4, 3]));
    let row =
        |layer: i32| P::Tensor(Tensor { offset: 3 * layer, size: vec![3], stride: vec![1], ..tensor(&[12]) });
    let by = |key: &dyn Fn(i32) -> P| P::Dict((0..4).rev().map(|layer| (key(layer), row(layer))).collect());
    let values = [
        whole(),
        P::Tensor(tensor(&[4, 1, 3])),
        P::Parameter(tensor(&[4, 3])),
        dict([("metadata", dict([("seed", P::Int(1)), ("none", P::None)])), ("axis", whole())]),
        dict([("vector", whole())]),
        P::List((0..4).map(row).collect()),
        P::Tuple((0..4).map(row).collect()),
        by(&P::Int),
        by(&|layer| text(&layer.to_string())),
        by(&|layer| text(&format!("layer_{layer}"))),
        dict([("axis", by(&P::Int))]),
    ];
    for value in values {
        let source = open(torch(&value, &storage()));
        assert_eq!(source.format(), Format::Torch);
        assert_rows(&source);
    }
}

#[test]
fn every_type_and_view_is_read_exactly() {
    let flat = ROWS.as_flattened();
    let f64s: Vec<u8> = flat.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let f16s: Vec<u8> = flat.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    for (class, data) in [
        ("BFloat16Storage", bf16s(flat)),
        ("HalfStorage", f16s),
        ("FloatStorage", f32s(flat)),
        ("DoubleStorage", f64s),
    ] {
        assert_rows(&open(torch(&P::Tensor(Tensor::whole(class, "0", &[4, 3])), &[("0", data)])));
    }
    // Transposed, and a part of a larger storage with a step.
    let transposed: Vec<f32> = (0..12).map(|index| ROWS[index % 4][index / 4]).collect();
    let view = Tensor { stride: vec![1, 4], ..tensor(&[4, 3]) };
    assert_rows(&open(torch(&P::Tensor(view), &[("0", f32s(&transposed))])));
    let mut spread = vec![99.0; 40];
    for (index, &value) in flat.iter().enumerate() {
        spread[5 + index / 3 * 8 + index % 3 * 2] = value;
    }
    let view = Tensor { count: 40, offset: 5, stride: vec![8, 2], ..tensor(&[4, 3]) };
    assert_rows(&open(torch(&P::Tensor(view), &[("0", f32s(&spread))])));
}

#[test]
fn safetensors_are_read_like_pytorch() {
    let named = |tensors: &[(&str, &[usize], Vec<u8>)]| {
        let views = tensors.iter().map(|(name, shape, data)| {
            let dtype = if *name == "block" { safetensors::Dtype::I64 } else { safetensors::Dtype::F32 };
            (*name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    };
    let flat = f32s(ROWS.as_flattened());
    assert_rows(&open(named(&[("axis", &[4, 3], flat.clone())])));
    assert_rows(&open(named(&[("anything", &[4, 1, 3], flat.clone())])));
    let rows: Vec<_> = (0..4).map(|layer| (format!("layer_{layer}"), f32s(&ROWS[layer]))).collect();
    let rows: Vec<_> = rows.iter().map(|(name, data)| (name.as_str(), &[3usize][..], data.clone())).collect();
    let source = open(named(&rows));
    assert_eq!(source.format(), Format::Safetensors);
    assert_rows(&source);

    let reversed: Vec<f32> = ROWS.iter().rev().flatten().copied().collect();
    let blocks: Vec<u8> = (0..4i64).rev().flat_map(|block| block.to_le_bytes()).collect();
    assert_rows(&open(named(&[("axis", &[4, 3], f32s(&reversed)), ("block", &[4], blocks)])));

    assert_contains(
        &refused(named(&[("axis", &[2, 2, 3], flat.clone())])),
        &["tensor \"axis\"", "[2, 2, 3]"],
    );
    assert_contains(&refused(named(&[("a", &[3], f32s(&ROWS[0])), ("b", &[3], f32s(&ROWS[1]))])), &["\"a\""]);
    let good = named(&[("axis", &[4, 3], flat)]);
    for length in 0..good.len() {
        assert!(Source::from_bytes(good[..length].to_vec()).is_err(), "{length}");
    }
}

#[test]
fn a_single_vector_needs_a_block() {
    let source = open(torch(&P::Tensor(tensor(&[3])), &[("0", f32s(&ROWS[2]))]));
    let error = source.caps(&target(), &Request::default()).unwrap_err().to_string();
    assert_contains(&error, &["a single vector", "a range of one block"]);
    let request = Request { blocks: Some(2..3), ..Request::default() };
    let imported = source.caps(&target(), &request).unwrap();
    assert_eq!(imported.file.caps.caps()[0].block, 2);
    assert_eq!(imported.file.caps.caps()[0].cap.axis().norm(), Some(13.0));
}

#[test]
fn the_file_must_fit_the_model() {
    let source = open(stacked(&ROWS));
    let with = |blocks: usize, width: usize| {
        let mut target = target();
        (target.model.blocks, target.width) = (blocks, width);
        source.caps(&target, &Request::default()).unwrap_err()
    };
    assert!(matches!(with(4, 5), FileError::OtherModel { .. }));
    assert_contains(&with(4, 5).to_string(), &["width 3, not 5"]);
    assert_contains(
        &with(5, 3).to_string(),
        &["number of layers", "expected 5", "found 4", "for this model"],
    );
    assert_contains(&with(3, 3).to_string(), &["number of layers", "the embedding's"]);
    let request = Request { blocks: Some(7..9), ..Request::default() };
    assert_contains(&source.caps(&target(), &request).unwrap_err().to_string(), &["blocks", "7 to 8"]);
    let request = Request { experiment: Some("x"), ..Request::default() };
    assert_contains(&source.caps(&target(), &request).unwrap_err().to_string(), &["experiment", "\"x\""]);
}

#[test]
fn a_raw_axis_is_oriented_by_convention_with_a_warning() {
    let imported = open(stacked(&ROWS)).caps(&target(), &Request::default()).unwrap();
    assert!(matches!(imported.warnings.as_slice(), [Warning::ByConvention { .. }]));
    assert_eq!(imported.file.orientation.as_deref(), Some("more Assistant"));
}

/// The reference's pipeline writes the mean of a role as `{"vector", "type", "role"}`.
#[test]
fn the_means_of_a_role_are_no_axis() {
    let value =
        dict([("vector", P::Tensor(tensor(&[4, 3]))), ("type", text("pos_3")), ("role", text("pirate"))]);
    let error = open(torch(&value, &storage())).caps(&target(), &Request::default()).unwrap_err().to_string();
    assert_contains(&error, &["mean activations of a role", "default vector or role vector"]);
}

#[test]
fn other_contents_are_refused_by_name() {
    let with = |value: P| torch(&value, &storage());
    let ints = Tensor::whole("LongStorage", "0", &[2, 3]);
    assert_contains(&refused(with(P::Tensor(ints))), &["int64", "convert the tensor with .float()"]);
    assert_contains(&refused(with(P::Tensor(tensor(&[2, 2, 3])))), &["[layers, width]", "[2, 2, 3]"]);
    let empty = Tensor { size: vec![0, 3], stride: vec![3, 1], ..tensor(&[12]) };
    assert_contains(&refused(with(P::Tensor(empty))), &["at least one value"]);
    assert_contains(&refused(with(P::Float(1.0))), &["a tensor, a list or a dict of tensors, found a float"]);
    assert_contains(&refused(with(dict([("a", P::Int(1))]))), &["key of tensor", "\"a\""]);
    assert_contains(&refused(with(P::List(vec![P::Int(1)]))), &["tensor[0]", "an int"]);
    assert_contains(&refused(with(P::List(vec![]))), &["layers", "at least one"]);
    let short = Tensor { size: vec![2], stride: vec![1], ..tensor(&[12]) };
    let long = Tensor { size: vec![3], stride: vec![1], ..tensor(&[12]) };
    let mixed = P::List(vec![P::Tensor(long), P::Tensor(short)]);
    assert_contains(&refused(with(mixed)), &["layer 1", "3 values, as the first", "2 values"]);
}

#[test]
fn other_formats_are_refused_by_name() {
    let legacy = [b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", &[0; 99][..]].concat();
    assert_contains(&refused(legacy), &["before version 1.6", "save it again"]);
    assert_contains(&refused(b"\x80\x04K\x01.".to_vec()), &["a bare pickle"]);
    assert_contains(&refused(b"\x93NUMPY\x01\0v\0".to_vec()), &["file format", "NUMPY"]);
    assert_contains(&refused(Vec::new()), &["file format"]);
    let cap_file = open(stacked(&ROWS)).caps(&target(), &Request::default()).unwrap().file;
    assert_contains(&refused(cap_file.to_bytes().unwrap()), &["a cap file", "needs no import"]);
}

#[test]
fn files_are_opened_by_path_and_endless_input_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("assistant_axis.pt");
    std::fs::write(&path, stacked(&ROWS)).unwrap();
    let source = Source::open(&path).unwrap();
    assert_rows(&source);
    let imported = source.caps(&target(), &Request::default()).unwrap();
    assert_eq!(imported.file.origin.get("import.file"), Some(&"assistant_axis.pt".into()));
    let error = Source::open(&folder.path().join("absent")).unwrap_err().to_string();
    assert_contains(&error, &["absent: cannot open it"]);
    let mut other = target();
    other.width = 4;
    let error = source.caps(&other, &Request::default()).unwrap_err().to_string();
    assert!(error.starts_with(&*path.to_string_lossy()), "{error}");
    #[cfg(target_os = "linux")]
    assert_contains(
        &Source::open("/dev/zero".as_ref()).unwrap_err().to_string(),
        &["/dev/zero: file format"],
    );
}
