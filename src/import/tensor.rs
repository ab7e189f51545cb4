//! Tensors as places in a file: nothing is copied before a row is asked for.

use std::cell::Cell;
use std::ops::Range;

use crate::file::{FileError, Result, invalid};
use crate::import::element::Element;
use crate::import::problem::{SAVE_AGAIN, malformed, unsupported};

/// Maximum number of dimensions.
const MAX_DIMENSIONS: usize = 8;

/// Elements of a storage, and how they form a tensor. Sizes and strides count elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    strides: Vec<usize>,
    /// Place of the first element in the file.
    start: usize,
}

/// A vector in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) element: Element,
    pub(super) width: usize,
    stride: usize,
    start: usize,
}

impl Tensor {
    /// Makes a tensor of the elements at `storage` in a file.
    ///
    /// # Errors
    /// [`FileError`] if an element lies outside the storage, or if there are more elements than the storage
    /// holds. Only tensors that were expanded along a dimension have more.
    pub(super) fn new(
        field: &str,
        element: Element,
        storage: &Range<usize>,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self> {
        let held = storage.len() / element.size();
        if shape.len() > MAX_DIMENSIONS || strides.len() != shape.len() {
            let expected = format!("at most {MAX_DIMENSIONS} dimensions, and a stride for each");
            let found = format!("{} and {}", shape.len(), strides.len());
            return Err(malformed(field, expected, found));
        }
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let outside = || malformed(field, format!("elements among the {held} of its storage"), "others");
        let count = count.ok_or_else(outside)?;
        // The last element, for a tensor with elements. An empty one reads none.
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
        if count > 0 && last.is_none_or(|last| last >= held) {
            return Err(outside());
        }
        if count > held {
            let found = format!("{count}, some of them several times");
            return Err(unsupported(field, format!("at most {held} elements"), found, SAVE_AGAIN));
        }
        let start = offset.checked_mul(element.size()).and_then(|offset| offset.checked_add(storage.start));
        Ok(Self { element, shape, strides, start: start.ok_or_else(outside)? })
    }

    /// Returns a tensor's contiguous strides.
    pub(super) fn contiguous(shape: &[usize]) -> Option<Vec<usize>> {
        let mut strides = vec![1usize; shape.len()];
        for index in (1..shape.len()).rev() {
            strides[index - 1] = strides[index].checked_mul(shape[index])?;
        }
        Some(strides)
    }

    /// Returns the shape as PyTorch writes it.
    pub(super) fn shape_text(&self) -> String {
        format!("{:?}", self.shape)
    }

    /// Returns the only vector of a tensor of shape `[width]`, and of `[1, width]` as well.
    pub(super) fn vector(&self, field: &str) -> Result<Row> {
        match self.rows(field)?.as_slice() {
            &[row] if self.shape.len() < 3 => Ok(row),
            _ => Err(self.other_shape(field, "[width]")),
        }
    }

    /// Returns the rows of a tensor of shape `[rows, width]` or `[rows, 1, width]`. A shape of `[width]` has
    /// one row.
    pub(super) fn rows(&self, field: &str) -> Result<Vec<Row>> {
        if !self.element.is_float() {
            let expected = "bfloat16, float16, float32 or float64";
            return Err(invalid(field, expected, self.element.name(), "convert the tensor with .float()"));
        }
        let (count, row_stride, width, stride) = match (self.shape.as_slice(), self.strides.as_slice()) {
            (&[width], &[stride]) => (1, 0, width, stride),
            (&[count, width], &[row_stride, stride]) => (count, row_stride, width, stride),
            (&[count, 1, width], &[row_stride, _, stride]) => (count, row_stride, width, stride),
            _ => return Err(self.other_shape(field, "[layers, width] or [layers, 1, width]")),
        };
        if count == 0 || width == 0 || count > MAX_LAYERS {
            return Err(self.other_shape(field, &format!("1 to {MAX_LAYERS} layers of at least one value")));
        }
        let size = self.element.size();
        // The last row lies in the file, as `new` has checked, so none of these products overflows.
        let row = |index: usize| Row {
            element: self.element,
            width,
            stride: stride * size,
            start: self.start + index * row_stride * size,
        };
        Ok((0..count).map(row).collect())
    }

    fn other_shape(&self, field: &str, expected: &str) -> FileError {
        invalid(
            field,
            format!("shape {expected}"),
            self.shape_text(),
            "save one vector per layer of the model",
        )
    }
}

/// Maximum number of layers of a file. No model has as many.
pub(super) const MAX_LAYERS: usize = 4096;

impl Row {
    /// Makes the vector of `width` values of f32 one after the other, from byte `start` of a file.
    pub(super) fn of_f32(start: usize, width: usize) -> Self {
        Self { element: Element::F32, width, stride: Element::F32.size(), start }
    }

    /// Returns the vector's values in f64.
    ///
    /// # Errors
    /// [`FileError`] if `budget` is spent.
    pub(super) fn values(&self, bytes: &[u8], budget: &Budget) -> Result<Vec<f64>> {
        budget.take(self.width)?;
        let size = self.element.size();
        let value = |index: usize| {
            let start = self.start + index * self.stride;
            // `Tensor::new` has checked the last element. NaN is refused by every user.
            bytes.get(start..start + size).map_or(f64::NAN, |bytes| self.element.read(bytes))
        };
        Ok((0..self.width).map(value).collect())
    }

    /// Returns the vector's values in f32. Those of a float64 tensor are rounded to the nearest, as by
    /// `Tensor.float()`; all others are exact.
    pub(super) fn floats(&self, bytes: &[u8], budget: &Budget) -> Result<Vec<f32>> {
        Ok(self.values(bytes, budget)?.into_iter().map(|value| value as f32).collect())
    }
}

/// How many values may still be read.
///
/// Many tensors of a small file may share a storage, and each of them would become a vector of its own. A file
/// of at least two bytes per value that is read once needs half of what there is.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// Makes the budget for one pass over a file.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Cell::new(bytes.len()))
    }

    fn take(&self, count: usize) -> Result<()> {
        let left = self.0.get().checked_sub(count).ok_or_else(|| {
            unsupported("tensors", "vectors that share at most half of their values", "more", SAVE_AGAIN)
        })?;
        self.0.set(left);
        Ok(())
    }
}
