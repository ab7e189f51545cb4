//! Tensors of PyTorch in a pickle and its archive.

use std::ops::Range;

use crate::file::{Result, invalid};
use crate::import::archive::Archive;
use crate::import::pickle::{Document, Global, Id, Node};
use crate::import::problem::{SAVE_AGAIN, malformed, quoted, unsupported};
use crate::import::tensor::Tensor;

/// A file of `torch.save`: its values, and the places of its storages.
pub(super) struct Torch<'a> {
    pub(super) document: Document<'a>,
    archive: Archive,
}

impl<'a> Torch<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let archive = Archive::parse(bytes)?;
        let document = Document::parse(&bytes[archive.pickle()])?;
        Ok(Self { document, archive })
    }

    /// Returns the tensor that a value is, `None` for other values.
    ///
    /// # Errors
    /// [`FileError`](crate::file::FileError) for a tensor that is not wholly in its storage.
    pub(super) fn tensor(&self, id: Id, field: &str) -> Result<Option<Tensor>> {
        let document = &self.document;
        let arguments = match document.node(id) {
            Node::Call(Global::Tensor, arguments) => *arguments,
            Node::Call(Global::Parameter, arguments) => {
                // A parameter is a tensor and what training needs. One of another parameter does not exist.
                match document.tuple::<1>(*arguments).map(|[tensor]| document.node(tensor)) {
                    Some(Node::Call(Global::Tensor, arguments)) => *arguments,
                    _ => return Err(malformed(field, "a parameter that is a tensor", "another value")),
                }
            }
            _ => return Ok(None),
        };
        let Some([storage, offset, size, stride]) = document.tuple::<4>(arguments) else {
            return Err(malformed(field, "storage, offset, size and stride", "fewer arguments"));
        };
        let (element, storage) = self.storage(storage, field)?;
        let offset = self.extent(offset, &format!("storage offset of {field}"))?;
        let shape = self.extents(size, &format!("size of {field}"))?;
        let strides = self.extents(stride, &format!("stride of {field}"))?;
        Tensor::new(field, element, &storage, offset, shape, strides).map(Some)
    }

    fn storage(&self, id: Id, field: &str) -> Result<(crate::import::element::Element, Range<usize>)> {
        let document = &self.document;
        let field = format!("storage of {field}");
        let other = || malformed(field.as_str(), "a storage of this file", "another value");
        let Node::Persistent(description) = document.node(id) else { return Err(other()) };
        let [kind, class, key, _, count] = document.tuple::<5>(*description).ok_or_else(other)?;
        let (Some("storage"), &Node::Global(Global::Storage(element)), Some(key)) =
            (document.text(kind), document.node(class), document.text(key))
        else {
            return Err(other());
        };
        let count = self.extent(count, &field)?;
        let Some(range) = self.archive.storage(key) else {
            return Err(malformed(field, format!("an entry data/{}", quoted(key)), "none"));
        };
        if count.checked_mul(element.size()) != Some(range.len()) {
            let expected = format!("{count} elements of {} bytes", element.size());
            return Err(malformed(field, expected, format!("{} bytes", range.len())));
        }
        Ok((element, range))
    }

    fn extents(&self, id: Id, field: &str) -> Result<Vec<usize>> {
        let sizes =
            self.document.items(id)?.ok_or_else(|| malformed(field, "a tuple", self.document.kind(id)))?;
        sizes.iter().take(64).map(|&size| self.extent(size, field)).collect()
    }

    fn extent(&self, id: Id, field: &str) -> Result<usize> {
        let int = self.document.int(id);
        int.and_then(|int| usize::try_from(int).ok()).ok_or_else(|| {
            let found = int.map_or_else(|| self.document.kind(id).to_owned(), |int| int.to_string());
            invalid(field, "an integer from 0", found, SAVE_AGAIN)
        })
    }
}

/// Recognises PyTorch's format before version 1.6, a pickle that is followed by its storages.
pub(super) fn refuse_legacy(bytes: &[u8]) -> Result<()> {
    if !matches!(bytes, [0x80, 1..=5, ..]) {
        return Ok(());
    }
    // LONG1 with the magic number of `torch.save`, as Python pickles it.
    const NUMBER: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let (found, remedy) = if bytes[2..].starts_with(&NUMBER) {
        (
            "the format of torch.save before version 1.6",
            "load it in PyTorch and save it again: torch.save writes the newer format by default",
        )
    } else {
        ("a bare pickle", SAVE_AGAIN)
    };
    Err(unsupported("file format", "a zip archive by torch.save", found, remedy))
}
