//! The reader of cap files on any bytes: it neither panics nor asks for much memory, and what it accepts it
//! can write and read again.
#![no_main]

use axiscap::file::{CapFile, ControlVector, ModelInfo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match CapFile::from_bytes(bytes) {
        Ok(file) => {
            let again = file.to_bytes().expect("what was read can be written");
            let again = CapFile::from_bytes(&again).expect("what was written can be read");
            assert_eq!(again.caps, file.caps);
            assert_eq!(again.model, file.model);
            assert_eq!(again.caps.policy(), file.caps.policy());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(vector) = ControlVector::from_bytes(bytes) {
        drop(vector.into_axes(ModelInfo::new("llama", 80)));
    }
});
