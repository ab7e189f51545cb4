//! Importing takes memory in proportion to the file, for any counts, lengths and references in it.

use std::sync::atomic::Ordering::Relaxed;

use axiscap::file::ModelInfo;
use axiscap::import::{PointsTo, Request, Source, Target};

#[allow(dead_code, unreachable_pub)]
mod support;

use support::{P, Tensor, config, dict, entry, f32s, raw_pickle, text, torch, torch_of, zip};

#[path = "../memory/counting.rs"]
mod counting;

use counting::{Counting, MAX, NOW};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does everything with a file, and returns whether it was read.
#[track_caller]
fn check(bytes: Vec<u8>) -> bool {
    // A node of a pickle takes 32 bytes in memory for at least two in the file, and lists of them 4 to 12.
    let max = 48 * bytes.len() + (1 << 14);
    let length = bytes.len();
    let before = NOW.load(Relaxed) - length;
    MAX.store(before, Relaxed);
    let mut read = false;
    if let Ok(source) = Source::from_bytes(bytes) {
        read = true;
        let ids: Vec<String> = match source.describe() {
            Ok(description) => description.experiments.into_iter().map(|line| line.id).collect(),
            Err(_) => Vec::new(),
        };
        let target = Target { model: ModelInfo::new("llama", 4), width: 3 };
        for experiment in ids.iter().map(|id| Some(id.as_str())).chain([None]).take(9) {
            let request = Request { experiment, points_to: Some(PointsTo::Roles), ..Request::default() };
            drop(source.caps(&target, &request));
        }
    }
    let used = MAX.load(Relaxed) - before;
    assert!(used <= max, "{length} bytes took {used} bytes to read, more than {max}");
    read
}

// The only test of this process, because the counters belong to the process.
#[test]
fn memory_is_in_proportion_to_the_file() {
    assert!(check(config()));
    // Any bytes of a good file become an absurd count, length or place.
    let good = config();
    for at in 0..good.len() - 8 {
        for absurd in
            [&u64::MAX.to_le_bytes()[..], &(1u64 << 40).to_le_bytes(), &[0xff; 4], &[0xff; 2], &[0x7f; 4]]
        {
            let mut bytes = good.clone();
            bytes[at..at + absurd.len()].copy_from_slice(absurd);
            check(bytes);
        }
    }
    // Opcodes of a byte that make values.
    for code in [&b"]"[..], b"}", b"(t", b"(", b"N", b"K\x01", b"G12345678", b"]\x94", b"N\x85"] {
        check(torch_of(raw_pickle(&code.repeat(100_000 / code.len())), &[]));
    }
    // Archives of many small entries.
    let names: Vec<String> = (0..20_000).map(|index| index.to_string()).collect();
    check(zip(&names.iter().map(|name| entry(name, "")).collect::<Vec<_>>()));
    sharing();
}

/// Many tensors on one storage, each of them a vector of its own.
fn sharing() {
    const WIDTH: i32 = 50_000;
    let shifted = |offset: i32| {
        let whole = Tensor::whole("FloatStorage", "0", &[WIDTH]);
        P::Tensor(Tensor { count: 2 * WIDTH, offset, ..whole })
    };
    let storage = [("0", f32s(&vec![1.0; 2 * WIDTH as usize]))];
    let value = P::List((0..1000).map(shifted).collect());
    assert!(check(torch(&value, &storage)));
    let source = Source::from_bytes(torch(&value, &storage)).unwrap();
    let target = Target { model: ModelInfo::new("llama", 1000), width: WIDTH as usize };
    let error = source.caps(&target, &Request::default()).unwrap_err().to_string();
    assert!(error.contains("vectors that share at most half"), "{error}");
    assert!(source.describe().is_err());

    // One vector that many interventions name is one axis.
    let name = "contrast_role_x_default";
    let vector = dict([("vector", shifted(0)), ("layer", P::Int(1))]);
    let cap = dict([("vector", text(name)), ("cap", P::Float(1.0))]);
    let experiment = dict([("id", text("e")), ("interventions", P::List(vec![cap; 4000]))]);
    let value = dict([("vectors", dict([(name, vector)])), ("experiments", P::List(vec![experiment]))]);
    let bytes = torch(&value, &storage);
    let max = 48 * bytes.len();
    let before = NOW.load(Relaxed);
    MAX.store(before, Relaxed);
    let source = Source::from_bytes(bytes).unwrap();
    let imported = source.caps(&target, &Request::default()).unwrap();
    assert_eq!(imported.file.caps.caps().len(), 4000);
    let used = MAX.load(Relaxed) - before;
    assert!(used <= max, "{used} bytes, more than {max}");
}
