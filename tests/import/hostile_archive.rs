//! Archives that are not what they seem.

use axiscap::import::Source;

use crate::support::{Entry, P, Tensor, config, entry, f32s, pickle, zip};
use crate::{assert_contains, refused};

/// The entries of a good file.
fn entries() -> Vec<Entry> {
    let value = P::Tensor(Tensor::whole("FloatStorage", "0", &[4, 3]));
    vec![
        entry("a/data.pkl", pickle(&value)),
        entry("a/byteorder", "little"),
        entry("a/data/0", f32s(&[1.0; 12])),
        entry("a/version", "3\n"),
    ]
}

#[track_caller]
fn changed(change: impl FnOnce(&mut Vec<Entry>)) -> String {
    let mut entries = entries();
    change(&mut entries);
    refused(zip(&entries))
}

#[test]
fn the_archive_is_right_before_it_is_made_wrong() {
    Source::from_bytes(zip(&entries())).unwrap();
    let mut with_descriptors = entries();
    with_descriptors.iter_mut().for_each(|entry| entry.flags |= 8);
    Source::from_bytes(zip(&with_descriptors)).unwrap();
}

#[test]
fn compressed_and_encrypted_entries_are_refused() {
    for method in [8, 9, 12, 14, 93, 99] {
        let message = changed(|entries| entries[2].method = method);
        assert_contains(&message, &["zip entry \"a/data/0\"", "stored as it is"]);
    }
    // A bomb: a few bytes that claim to become many.
    let bomb = changed(|entries| {
        entries[2].method = 8;
        entries[2].size = Some(u32::MAX - 1);
    });
    assert_contains(&bomb, &["zip "]);
    assert_contains(&changed(|entries| entries[0].flags |= 1), &["zip "]);
}

#[test]
fn ambiguous_archives_are_refused() {
    // Two entries of one name, and two pickles.
    assert_contains(&changed(|entries| entries.push(entry("a/data/0", f32s(&[2.0; 12])))), &["duplicate"]);
    assert_contains(
        &changed(|entries| entries.push(entry("b/data.pkl", "x"))),
        &["one data.pkl", "\"a/\"", "\"b/\""],
    );
    assert_contains(&changed(|entries| entries.push(entry("data.pkl", "x"))), &["one data.pkl"]);
    // An entry that lies within another.
    let overlap = changed(|entries| {
        let inner = zip(&[entry("a/data/1", f32s(&[3.0; 12]))]);
        let start = 30 + "a/data/2".len() as u32;
        entries.insert(0, entry("a/data/2", inner));
        let mut second = entry("a/data/1", f32s(&[3.0; 12]));
        second.offset = Some(start);
        entries.push(second);
    });
    assert_contains(&overlap, &["zip archive", "overlap"]);
    // An entry whose data run over the next.
    assert_contains(&changed(|entries| entries[0].size = Some(entries[0].data.len() as u32 + 40)), &["zip "]);
    // Directory and local header disagree.
    let mut bytes = zip(&entries());
    let at = bytes.windows(8).position(|part| part == b"a/data/0").unwrap();
    bytes[at + 7] = b'1';
    assert_contains(&refused(bytes), &["zip archive"]);
}

#[test]
fn damage_is_noticed_by_the_checksum() {
    let message = changed(|entries| entries[2].crc = Some(7));
    assert_contains(&message, &["zip entry \"a/data/0\"", "checksum"]);
}

#[test]
fn lies_about_sizes_and_places_are_refused() {
    for size in [0, 1, 49, 1 << 20, u32::MAX - 1, u32::MAX] {
        assert_contains(&changed(|entries| entries[2].size = Some(size)), &["zip "]);
    }
    for offset in [1, 1 << 20, u32::MAX - 1, u32::MAX] {
        assert_contains(&changed(|entries| entries[2].offset = Some(offset)), &["zip "]);
    }
    // The fields of the end record, each as large as it can be: number of entries, size and start of the
    // directory. 0xffff and 0xffffffff refer to records of zip64, which are not there.
    let good = zip(&entries());
    let end = good.len() - 22;
    for (at, width) in [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)] {
        for byte in [0xff, 0xfe, 0x7f] {
            let mut bytes = good.clone();
            bytes[end + at..end + at + width].fill(byte);
            drop(Source::from_bytes(bytes));
        }
    }
}

#[test]
fn records_of_zip64_that_lie_are_refused() {
    let good = zip(&entries());
    let end = good.len() - 22;
    for (count, size, start) in [
        (u64::MAX, 40, 0),
        (1 << 40, u64::MAX, 0),
        (4, 1 << 40, end as u64),
        (4, u64::MAX - 1, u64::MAX - 1),
        (1 << 20, 46 << 20, 0),
    ] {
        let mut bytes = good[..end].to_vec();
        let record = bytes.len() as u64;
        bytes.extend(b"PK\x06\x06");
        bytes.extend(44u64.to_le_bytes());
        bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for field in [count, count, size, start] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend(record.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        bytes.extend([0xff; 12]);
        bytes.extend([0, 0]);
        assert_contains(&refused(bytes), &["zip archive"]);
    }
}

#[test]
fn other_archives_are_refused_by_name() {
    assert_contains(&refused(zip(&[entry("x.npy", "NUMPY")])), &["NumPy"]);
    assert_contains(&refused(zip(&[entry("x", "y")])), &["no data.pkl"]);
    assert_contains(&changed(|entries| entries.push(entry("a/constants.pkl", "x"))), &["TorchScript"]);
    assert_contains(&changed(|entries| entries.push(entry("a/code/m.py", "x"))), &["TorchScript"]);
    assert_contains(&changed(|entries| entries[1].data = b"big".to_vec()), &["byteorder", "\"big\""]);
    // A file without the entry is of an older PyTorch, which wrote little endian.
    let mut old = entries();
    old.remove(1);
    Source::from_bytes(zip(&old)).unwrap();
}

#[test]
fn an_archive_cut_short_at_any_byte_is_refused() {
    let good = config();
    for length in 0..good.len() {
        refused(good[..length].to_vec());
    }
}
