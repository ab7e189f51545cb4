//! Reading a file takes memory in proportion to its size, for any counts and lengths in it.

use std::sync::atomic::Ordering::Relaxed;

use axiscap::file::gguf::{self, Value};
use axiscap::file::{CapFile, ModelInfo, NormDigest};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

#[path = "../memory/counting.rs"]
mod counting;

use counting::{Counting, MAX, NOW};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads `bytes` and returns the maximum of the memory in use.
fn memory_to_read(bytes: &[u8]) -> usize {
    let before = NOW.load(Relaxed);
    MAX.store(before, Relaxed);
    drop(CapFile::from_bytes(bytes));
    MAX.load(Relaxed) - before
}

#[track_caller]
fn check(bytes: &[u8]) {
    let used = memory_to_read(bytes);
    let max = 16 * bytes.len() + 4096;
    assert!(used <= max, "{} bytes took {used} bytes to read, more than {max}", bytes.len());
}

fn file(width: usize) -> CapFile {
    let axis = Axis::from_direction(&vec![1.0; width]).unwrap();
    let caps = (1..4).map(|block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) });
    let mut file = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4));
    file.model.norms = norms(2);
    file
}

fn norms(count: usize) -> Vec<NormDigest> {
    (0..count).map(|index| NormDigest { tensor: index.to_string(), sha256: [7; 32] }).collect()
}

// The only test of this process, because the counters belong to the process.
#[test]
fn memory_is_in_proportion_to_the_file() {
    // Any eight bytes of a small file become an absurd count, length or extent.
    let good = file(8).to_bytes().unwrap();
    for at in 0..good.len() - 8 {
        for absurd in [u64::MAX, 1 << 62, 1 << 40, 1 << 31] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&absurd.to_le_bytes());
            check(&bytes);
        }
    }
    let mut named = file(8);
    named.model.norms = norms(50_000);
    check(&named.to_bytes().unwrap());
    // Values that take more in memory than in the file: empty texts, short keys, caps that share a wide
    // tensor.
    let metadata = |key: &str, value: Value| {
        let mut metadata = gguf::Gguf::parse(&good).unwrap().metadata;
        metadata.retain(|(k, _)| k != key);
        metadata.push((key.into(), value));
        metadata
    };
    check(&gguf::to_bytes(&metadata("x", vec![String::new(); 100_000].into()), &[]).unwrap());
    check(
        &gguf::to_bytes(&metadata("axiscap.cap.tensor", vec![String::new(); 100_000].into()), &[]).unwrap(),
    );
    let keys: Vec<_> = (0..20_000u32).map(|key| (format!("{key:x}"), Value::from(0u8))).collect();
    check(&gguf::to_bytes(&keys, &[]).unwrap());

    let max = CapFile::MAX_CAPS;
    for caps in [max, max + 1, 10_000] {
        let bytes = sharing(caps, 10_000);
        check(&bytes);
        let read = CapFile::from_bytes(&bytes);
        if caps > max {
            let message = read.unwrap_err().to_string();
            assert!(message.contains("axiscap.cap.block: expected at most 4096 caps"), "{message}");
            continue;
        }
        // Caps share their axis in memory and when they are written again, except for the first cap of the
        // block. Names are a few bytes longer.
        let read = read.unwrap();
        assert_eq!(read.caps.caps().len(), caps);
        let before = NOW.load(Relaxed);
        MAX.store(before, Relaxed);
        let again = read.to_bytes().unwrap();
        let used = MAX.load(Relaxed) - before;
        assert!(
            again.len() <= bytes.len() + 4 * 10_000 + 4 * caps + 4096,
            "{} bytes, from {}",
            again.len(),
            bytes.len()
        );
        assert!(used <= 16 * bytes.len(), "{used} bytes to write {}", bytes.len());
        assert_eq!(CapFile::from_bytes(&again).unwrap().caps, read.caps);
    }

    // First caps of their blocks have separate tensors. Too large a file is refused before memory is
    // allocated for it.
    let axis = Axis::from_direction(&vec![1.0; 1 << 20]).unwrap();
    let caps = (1..300).map(|block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) });
    let large = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 300));
    let before = NOW.load(Relaxed);
    MAX.store(before, Relaxed);
    let error = large.to_bytes().unwrap_err();
    assert_eq!(error.field(), Some("file size"), "{error}");
    assert!(MAX.load(Relaxed) - before < 1 << 20);

    // The maximum number of caps can be written, and one more is refused.
    let axis = Axis::from_direction(&[1.0]).unwrap();
    let many = |count: usize| {
        let caps = (0..count).map(|_| BlockCap { block: 1, cap: Cap::new(axis.clone(), Bound::NONE) });
        CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 2)).to_bytes()
    };
    assert!(many(max).is_ok());
    assert_eq!(many(max + 1).unwrap_err().field(), Some("axiscap.cap.block"));
}

/// Makes a file whose caps share one tensor.
fn sharing(caps: usize, width: usize) -> Vec<u8> {
    let axis = Axis::from_direction(&vec![1.0; width]).unwrap();
    let shared: Vec<(String, Value)> = vec![
        ("general.architecture".into(), "controlvector".into()),
        ("controlvector.model_hint".into(), "llama".into()),
        ("controlvector.layer_count".into(), 9i32.into()),
        ("axiscap.version".into(), 1u32.into()),
        ("axiscap.width".into(), (width as u32).into()),
        ("axiscap.cap.block".into(), vec![3i32; caps].into()),
        ("axiscap.cap.tensor".into(), vec!["direction.3".to_owned(); caps].into()),
        ("axiscap.cap.floor".into(), vec![0f32; caps].into()),
        ("axiscap.cap.ceiling".into(), vec![1f32; caps].into()),
        ("axiscap.cap.strength".into(), vec![1f32; caps].into()),
    ];
    gguf::to_bytes(&shared, &[("direction.3".into(), axis.values())]).unwrap()
}
