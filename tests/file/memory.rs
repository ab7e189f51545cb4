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

    let most = CapFile::MOST_CAPS;
    for caps in [most, most + 1, 10_000] {
        let bytes = sharing(caps, 10_000);
        check(&bytes);
        let read = CapFile::from_bytes(&bytes);
        if caps > most {
            let message = read.unwrap_err().to_string();
            assert!(message.contains("axiscap.cap.block: expected at most 4096 caps"), "{message}");
            continue;
        }
        // What is shared stays shared: in memory, and when it is written again, but for the first cap of the block. Names are
        // a few bytes longer.
        let read = read.unwrap();
        assert_eq!(read.caps.caps().len(), caps);
        let before = NOW.load(Relaxed);
        MOST.store(before, Relaxed);
        let again = read.to_bytes().unwrap();
        let used = MOST.load(Relaxed) - before;
        assert!(
            again.len() <= bytes.len() + 4 * 10_000 + 4 * caps + 4096,
            "{} bytes, from {}",
            again.len(),
            bytes.len()
        );
        assert!(used <= 16 * bytes.len(), "{used} bytes to write {}", bytes.len());
        assert_eq!(CapFile::from_bytes(&again).unwrap().caps, read.caps);
    }

    // First caps of their blocks have tensors of their own: more than a file may hold is refused before any memory
    // is asked for.
    let axis = Axis::from_direction(&vec![1.0; 1 << 20]).unwrap();
    let caps = (1..300).map(|block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) });
    let large = CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 300));
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let error = large.to_bytes().unwrap_err();
    assert_eq!(error.field(), Some("file size"), "{error}");
    assert!(MOST.load(Relaxed) - before < 1 << 20);

    // As many caps as a file may hold can be written, and no more.
    let axis = Axis::from_direction(&[1.0]).unwrap();
    let many = |count: usize| {
        let caps = (0..count).map(|_| BlockCap { block: 1, cap: Cap::new(axis.clone(), Bound::NONE) });
        CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 2)).to_bytes()
    };
    assert!(many(most).is_ok());
    assert_eq!(many(most + 1).unwrap_err().field(), Some("axiscap.cap.block"));
}

/// A file whose caps share one tensor.
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
