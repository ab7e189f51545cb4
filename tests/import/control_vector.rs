//! Control vectors as llama.cpp's generator and repeng write them.

use axiscap::file::gguf;
use axiscap::file::gguf::Value;
use axiscap::import::{Format, PointsTo, Request, Warning};

use crate::{assert_contains, open, refused, target};

fn file(layer_count: Option<Value>, hint: &str, names: &[&str]) -> Vec<u8> {
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".into(), "controlvector".into()),
        ("controlvector.model_hint".into(), hint.into()),
    ];
    metadata.extend(layer_count.map(|count| ("controlvector.layer_count".into(), count)));
    let tensors: Vec<_> = names.iter().map(|name| ((*name).to_owned(), &[0.0f32, 3.0, 4.0][..])).collect();
    gguf::to_bytes(&metadata, &tensors).unwrap()
}

fn blocks(bytes: Vec<u8>) -> Vec<usize> {
    let imported = open(bytes).caps(&target(), &Request::default()).unwrap();
    imported.file.caps.caps().iter().map(|entry| entry.block).collect()
}

#[test]
fn layer_numbers_are_those_of_each_tool() {
    // repeng: u32, the number of directions, and the layers that were asked for.
    assert_eq!(
        blocks(file(Some(3u32.into()), "llama", &["direction.3", "direction.2", "direction.1"])),
        [1, 2, 3]
    );
    assert_eq!(blocks(file(Some(2u32.into()), "llama", &["direction.0", "direction.2"])), [0, 2]);
    assert_eq!(blocks(file(Some(2u32.into()), "llama", &["direction.-1", "direction.-3"])), [1, 3]);
    // No count at all.
    assert_eq!(blocks(file(None, "llama", &["direction.2"])), [2]);
}

#[test]
fn a_file_of_llama_cpps_generator_is_recognised() {
    let source = open(file(Some(3i32.into()), "llama", &["direction.1", "direction.2", "direction.3"]));
    assert_eq!(source.format(), Format::ControlVector);
    let imported = source.caps(&target(), &Request::default()).unwrap();
    assert!(imported.warnings.contains(&Warning::Generator));
    // The count of a cap file's export is that of the model's blocks.
    let exported = open(file(Some(4i32.into()), "llama", &["direction.1", "direction.2", "direction.3"]));
    assert!(!exported.caps(&target(), &Request::default()).unwrap().warnings.contains(&Warning::Generator));
}

#[test]
fn a_control_vector_has_no_orientation_unless_it_is_said() {
    let source = open(file(Some(1u32.into()), "qwen3", &["direction.2"]));
    let imported = source.caps(&target(), &Request::default()).unwrap();
    assert_eq!(imported.file.orientation, None);
    assert!(imported.warnings.contains(&Warning::UnknownDirection));
    let other = Warning::OtherArchitecture { file: "qwen3".into(), model: "llama".into() };
    assert!(imported.warnings.contains(&other));
    assert_eq!(imported.file.model.architecture, "llama");
    assert_eq!(imported.file.caps.caps()[0].cap.axis().values(), [0.0, 0.6, 0.8]);
    assert_eq!(imported.file.caps.caps()[0].cap.axis().norm(), Some(5.0));

    let request = Request { points_to: Some(PointsTo::Roles), ..Request::default() };
    let imported = source.caps(&target(), &request).unwrap();
    assert_eq!(imported.file.orientation.as_deref(), Some("more Assistant"));
    assert_eq!(imported.file.caps.caps()[0].cap.axis().values(), [-0.0, -0.6, -0.8]);
}

#[test]
fn what_no_tool_writes_is_refused() {
    for name in ["direction.x", "direction.", "direction.01", "direction.+1", "direction.-0", "layer.1"] {
        let message = refused(file(None, "llama", &[name]));
        assert_contains(&message, &[&format!("tensor {name}"), "direction.N"]);
    }
    let error = |names: &[&str]| {
        let source = open(file(None, "llama", names));
        source.caps(&target(), &Request::default()).unwrap_err().to_string()
    };
    assert_contains(&error(&["direction.4"]), &["a block of the model, from 0 to 3", "found 4"]);
    assert_contains(&error(&["direction.-5"]), &["a layer of 4 blocks", "-5"]);
    assert_contains(&error(&["direction.3", "direction.-1"]), &["block 3", "one vector", "two"]);
    let model = gguf::to_bytes(&[("general.architecture".into(), "llama".into())], &[]).unwrap();
    assert_contains(&refused(model), &["general.architecture", "\"llama\""]);
    assert_contains(&refused(file(None, "llama", &[])), &["layers", "at least one"]);
    let good = file(Some(1u32.into()), "llama", &["direction.2"]);
    for length in 4..good.len() {
        refused(good[..length].to_vec());
    }
}
