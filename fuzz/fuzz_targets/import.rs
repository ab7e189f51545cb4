//! The importer on any bytes: it executes nothing, neither panics nor asks for much memory, and what it makes of a file
//! can be written and read as a cap file.
//!
//! The first byte chooses what the others are: a whole file, or a pickle in a right archive.
#![no_main]

use axiscap::file::{CapFile, ModelInfo};
use axiscap::import::{Evidence, PointsTo, Request, Source, Target, export};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/import/support.rs"]
mod support;

fuzz_target!(|bytes: &[u8]| {
    let file = match bytes {
        [b'p', pickle @ ..] => support::torch_of(pickle.to_vec(), &support::config_storages()),
        [_, file @ ..] => file.to_vec(),
        [] => return,
    };
    let source = match Source::from_bytes(file) {
        Ok(source) => source,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let target = Target { model: ModelInfo::new("llama", 4), width: 3 };
    if let Ok(evidence) = Evidence::new(&source, [&source]) {
        drop(evidence.axes(&target, None));
    }
    let Ok(description) = source.describe() else { return };
    let ids = description.experiments.iter().map(|line| Some(line.id.as_str()));
    for experiment in ids.chain([None]).take(4) {
        let request = Request { experiment, points_to: Some(PointsTo::Roles), ..Request::default() };
        let Ok(imported) = source.caps(&target, &request) else { continue };
        let bytes = imported.file.to_bytes().expect("what was imported can be written");
        assert_eq!(CapFile::from_bytes(&bytes).expect("what was written can be read"), imported.file);
        export::safetensors(&imported.file).expect("what was imported can be exported");
        drop(export::control_vector(&imported.file));
    }
});
