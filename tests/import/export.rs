//! What is exported is read by the formats' readers, and holds the same bits.

use axiscap::file::{CapFile, ControlVector, FileError, ModelInfo};
use axiscap::import::{PointsTo, Request, Warning, export};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use safetensors::SafeTensors;

use crate::{open, target};

fn file(blocks: &[usize]) -> CapFile {
    let caps = blocks.iter().enumerate().map(|(index, &block)| {
        let axis = Axis::from_direction(&[1.0 + index as f32, -2.0, 0.5]).unwrap();
        let bound = if index == 0 { Bound::band(-1.5, 2.5).unwrap() } else { Bound::floor(3.0).unwrap() };
        BlockCap { block, cap: Cap::new(axis, bound).with_strength(0.5).unwrap() }
    });
    let mut file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4));
    file.orientation = Some("more Assistant".into());
    file
}

#[test]
fn a_control_vector_holds_the_unit_axes() {
    let file = file(&[2, 1]);
    let bytes = export::control_vector(&file).unwrap();
    assert!(matches!(CapFile::from_bytes(&bytes), Err(FileError::PlainControlVector { .. })));
    let vector = ControlVector::from_bytes(&bytes).unwrap();
    assert_eq!(vector.architecture.as_deref(), Some("llama"));
    assert_eq!(vector.directions.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [1, 2]);

    let request = Request { points_to: Some(PointsTo::Assistant), ..Request::default() };
    let again = open(bytes).caps(&target(), &request).unwrap().file;
    for entry in file.caps.caps() {
        let read = again.caps.caps().iter().find(|other| other.block == entry.block).unwrap();
        assert_eq!(read.cap.axis().values(), entry.cap.axis().values());
    }
}

#[test]
fn caps_that_a_control_vector_cannot_hold_are_refused() {
    for blocks in [&[0, 1][..], &[1, 1]] {
        let error = export::control_vector(&file(blocks)).unwrap_err().to_string();
        assert!(error.contains("export to safetensors"), "{error}");
    }
}

#[test]
fn safetensors_hold_everything_about_the_caps() {
    let file = file(&[2, 0, 2]);
    let bytes = export::safetensors(&file).unwrap();
    assert_eq!(bytes, export::safetensors(&file).unwrap());
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = read.tensor(name).unwrap().data();
        data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let caps = file.caps.caps();
    let column = |of: &dyn Fn(&Cap) -> f32| caps.iter().map(|entry| of(&entry.cap)).collect::<Vec<_>>();
    let axes: Vec<f32> = caps.iter().flat_map(|entry| entry.cap.axis().values()).copied().collect();
    assert_eq!(floats("axis"), axes);
    assert_eq!(read.tensor("axis").unwrap().shape(), [3, 3]);
    assert_eq!(floats("floor"), column(&|cap| cap.bound().lo()));
    assert_eq!(floats("ceiling"), column(&|cap| cap.bound().hi()));
    assert_eq!(floats("ceiling")[1], f32::INFINITY);
    assert_eq!(floats("strength"), [0.5; 3]);
    assert_eq!(floats("norm"), column(&|cap| cap.axis().norm().unwrap()));
    let blocks: Vec<u8> = [2i64, 0, 2].iter().flat_map(|block| block.to_le_bytes()).collect();
    assert_eq!(read.tensor("block").unwrap().data(), blocks);
}

#[test]
fn exported_axes_are_read_again_and_their_bounds_are_not() {
    let file = file(&[2, 0]);
    let imported = open(export::safetensors(&file).unwrap()).caps(&target(), &Request::default()).unwrap();
    assert!(imported.warnings.contains(&Warning::BoundsIgnored));
    assert!(imported.file.is_unbounded());
    let read: Vec<_> =
        imported.file.caps.caps().iter().map(|entry| (entry.block, entry.cap.axis().values())).collect();
    let caps = file.caps.caps();
    assert_eq!(read, [(0, caps[1].cap.axis().values()), (2, caps[0].cap.axis().values())]);
}
