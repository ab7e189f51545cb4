//! However much a file claims to hold, reading it takes memory in proportion to what it does hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axiscap::file::gguf::{self, Value};
use axiscap::file::{CapFile, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call is handed to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads `bytes` and gives the most memory that took.
fn memory_to_read(bytes: &[u8]) -> usize {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    drop(CapFile::from_bytes(bytes));
    MOST.load(Relaxed) - before
}

#[track_caller]
fn check(bytes: &[u8]) {
    let used = memory_to_read(bytes);
    let most = 16 * bytes.len() + 4096;
    assert!(used <= most, "{} bytes took {used} bytes to read, more than {most}", bytes.len());
}

fn file(width: usize) -> CapFile {
    let axis = Axis::from_direction(&vec![1.0; width]).unwrap();
    let caps = (1..4).map(|block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) });
    CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 4))
}

// One test alone: the counters are the whole process's.
#[test]
fn memory_is_in_proportion_to_the_file() {
    // Every eight bytes of a small file as a count, a length or an extent that nothing can hold.
    let good = file(8).to_bytes().unwrap();
    for at in 0..good.len() - 8 {
        for absurd in [u64::MAX, 1 << 62, 1 << 40, 1 << 31] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&absurd.to_le_bytes());
            check(&bytes);
        }
    }
    // Much of what takes more in memory than in the file: empty texts, short keys, caps that share a wide tensor.
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

    let (caps, width) = (10_000, 10_000);
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
    let bytes = gguf::to_bytes(&shared, &[("direction.3".into(), axis.values())]).unwrap();
    assert_eq!(CapFile::from_bytes(&bytes).unwrap().caps.caps().len(), caps);
    check(&bytes);
}
