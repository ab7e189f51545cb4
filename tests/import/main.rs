//! Files of other tools: read to the bit, oriented, refused.

mod config;
mod control_vector;
mod export;
mod hostile_archive;
mod hostile_pickle;
mod manifest;
mod orientation;
mod properties;
mod pytorch;
#[allow(dead_code, unreachable_pub)]
mod support;
mod vectors;

use axiscap::file::ModelInfo;
use axiscap::import::{Source, Target};

/// A model of four blocks and width 3.
fn target() -> Target {
    Target { model: ModelInfo::new("llama", 4), width: 3 }
}

fn open(bytes: Vec<u8>) -> Source {
    Source::from_bytes(bytes).unwrap()
}

/// Returns the message with which a file is refused.
#[track_caller]
fn refused(bytes: Vec<u8>) -> String {
    match Source::from_bytes(bytes) {
        Ok(source) => panic!("accepted: {source:?}"),
        Err(error) => {
            let message = error.to_string();
            for part in ["expected ", "found ", "; "] {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
            message
        }
    }
}

#[track_caller]
fn assert_contains(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}
