//! The zip archive of `torch.save`: entries that are stored as they are, one after the other.

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use crate::file::{FileError, Result};
use crate::import::problem::{SAVE_AGAIN, malformed, quoted, unsupported};

/// First bytes of a zip archive with an entry.
pub(super) const MAGIC: [u8; 4] = *b"PK\x03\x04";

/// Maximum number of entries. A file of PyTorch has one per storage and a few more.
const MAX_ENTRIES: usize = 1 << 16;

/// The places of an archive's entries in the file.
pub(super) struct Archive {
    entries: HashMap<String, Range<usize>>,
    /// The folder of all entries, with a slash.
    folder: String,
    pickle: Range<usize>,
}

impl Archive {
    /// Reads an archive of `torch.save`, and checks the checksum of every entry.
    ///
    /// # Errors
    /// [`FileError`] for archives that are damaged, ambiguous (entries that overlap, share a name, or differ
    /// between directory and data), compressed, encrypted, or of another kind.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let failed =
            |error: zip::result::ZipError| malformed("zip archive", "a whole archive", error.to_string());
        // The directory has at least 46 bytes per entry, and the reader allocates for what it counts there.
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(failed)?;
        if zip.len() > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} entries");
            return Err(unsupported("zip archive", expected, zip.len().to_string(), SAVE_AGAIN));
        }
        refuse_other_kinds(&zip)?;
        zip.validate_header_consistency().map_err(failed)?;
        let mut entries = HashMap::with_capacity(zip.len());
        let mut pickle = None;
        for index in 0..zip.len() {
            let (name, range) = entry(&mut zip, index)?;
            if let Some(folder) = name.strip_suffix("data.pkl").filter(|folder| is_folder(folder))
                && let Some((first, _)) = pickle.replace((folder.to_owned(), range.clone()))
            {
                let found = format!("one in {} and one in {}", quoted(&first), quoted(folder));
                return Err(malformed("zip archive", "one data.pkl", found));
            }
            entries.insert(name, range);
        }
        let (folder, pickle) = pickle.ok_or_else(|| other_kind("no data.pkl"))?;
        let archive = Self { entries, folder, pickle };
        archive.check_byte_order(bytes)?;
        Ok(archive)
    }

    /// Returns the place of the pickle.
    pub(super) fn pickle(&self) -> Range<usize> {
        self.pickle.clone()
    }

    /// Returns the place of the storage with this key.
    pub(super) fn storage(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get(&format!("{}data/{key}", self.folder)).cloned()
    }

    fn check_byte_order(&self, bytes: &[u8]) -> Result<()> {
        match self.entries.get(&format!("{}byteorder", self.folder)).map(|range| &bytes[range.clone()]) {
            // Files of PyTorch before version 2.1 have no such entry.
            None | Some(b"little") => Ok(()),
            Some(other) => {
                let found = quoted(&String::from_utf8_lossy(&other[..other.len().min(64)]));
                let remedy = "save the file again on a little-endian machine";
                Err(unsupported("byteorder", "little", found, remedy))
            }
        }
    }
}

/// Recognises archives of other kinds by the names in them, whatever else is wrong with them.
fn refuse_other_kinds(zip: &ZipArchive<Cursor<&[u8]>>) -> Result<()> {
    for name in zip.file_names_raw() {
        let name = name.split(|&byte| byte == b'/').collect::<Vec<_>>();
        if matches!(name.as_slice(), [.., b"constants.pkl"] | [_, b"code", ..]) {
            return Err(other_kind("a TorchScript module, which holds a program"));
        }
        if name.last().is_some_and(|last| last.ends_with(b".npy")) {
            return Err(other_kind("an archive of NumPy (.npz)"));
        }
    }
    Ok(())
}

fn other_kind(found: &str) -> FileError {
    let remedy = "save the tensors alone with torch.save or safetensors";
    unsupported("zip archive", "tensors by torch.save", found, remedy)
}

/// Returns name and place of an entry, after its checksum was found right.
fn entry(zip: &mut ZipArchive<Cursor<&[u8]>>, index: usize) -> Result<(String, Range<usize>)> {
    fn failed(field: &str, error: impl std::fmt::Display) -> FileError {
        malformed(field, "a whole entry", error.to_string())
    }
    let number = format!("zip entry {index}");
    let data = zip.by_index_data(index).map_err(|error| failed(&number, error))?;
    let name = str::from_utf8(data.name_raw()).map_err(|error| failed(&number, error))?.to_owned();
    let field = format!("zip entry {}", quoted(&name));
    let kind = if data.encrypted() {
        Some("an encrypted one")
    } else if data.compression() != CompressionMethod::Stored {
        Some("a compressed one")
    } else if data.compressed_size() != data.size() {
        Some("one of two sizes")
    } else {
        None
    };
    if let Some(kind) = kind {
        let remedy = "torch.save stores entries as they are; save the file again with it";
        return Err(unsupported(field, "an entry that is stored as it is", kind, remedy));
    }
    let size = usize::try_from(data.size()).map_err(|error| failed(&field, error))?;
    let mut reader = zip.by_index(index).map_err(|error| failed(&field, error))?;
    let start = reader.data_start().and_then(|start| usize::try_from(start).ok());
    // The reader compares the checksum at the end of the entry.
    let read = io::copy(&mut reader, &mut io::sink()).map_err(|error| failed(&field, error))?;
    let range = start.and_then(|start| Some(start..start.checked_add(size)?));
    let range = range.filter(|_| read == size as u64);
    Ok((name, range.ok_or_else(|| failed(&field, format!("{read} of {size} bytes")))?))
}

/// Whether a text is empty or ends with a slash.
fn is_folder(text: &str) -> bool {
    text.is_empty() || text.ends_with('/')
}
