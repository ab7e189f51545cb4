//! Rows in host memory: a pointer, how many rows, how wide they are, and how far apart.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::storage::Element;
use crate::error::{Result, RowsError};
use crate::op::Memory;
use crate::stats::RowStat;

/// Slices in host memory: the memory of a [`cpu::Job`](crate::cpu::Job).
#[derive(Debug, Clone, Copy)]
pub struct Host<'a, E>(PhantomData<&'a [E]>);

impl<'a, E: Element> Memory for Host<'a, E> {
    type Rows = Rows<'a, E>;
    type RowsMut = RowsMut<'a, E>;
    type Weight = &'a [f32];
    type Profiles = &'a [u32];
    type Stats = &'a mut [RowStat];
}

/// Where rows are: checked once, then only read.
#[derive(Debug)]
pub(crate) struct RowLayout<E> {
    pub(crate) ptr: *mut E,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
}

// Derived implementations would ask for `E: Clone`, `E: Copy` where only the pointer is copied.
impl<E> Clone for RowLayout<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for RowLayout<E> {}

impl<E: Element> RowLayout<E> {
    fn new(ptr: *mut E, rows: usize, width: usize, stride: usize) -> Result<Self, RowsError> {
        extent(rows, width, stride, size_of::<E>())?;
        if rows > 0 && ptr.is_null() {
            return Err(RowsError::Null);
        }
        if !ptr.is_aligned() {
            return Err(RowsError::Misaligned { align: align_of::<E>() });
        }
        Ok(Self { ptr, rows, width, stride })
    }

    fn in_slice(
        ptr: *mut E,
        len: usize,
        rows: usize,
        width: usize,
        stride: usize,
    ) -> Result<Self, RowsError> {
        let needed = extent(rows, width, stride, size_of::<E>())?;
        if needed > len {
            return Err(RowsError::SliceTooShort { needed, found: len });
        }
        Self::new(ptr, rows, width, stride)
    }

    fn whole_slice(ptr: *mut E, len: usize, width: usize) -> Result<Self, RowsError> {
        if width == 0 {
            return Err(RowsError::ZeroWidth);
        }
        let rows = len.div_ceil(width);
        Self::in_slice(ptr, len, rows, width, width)
    }

    fn range(self, rows: Range<usize>) -> Option<Self> {
        let inside = rows.start <= rows.end && rows.end <= self.rows;
        inside.then(|| {
            // An empty range may start at `self.rows`, where the next row would be beyond the memory. The
            // pointer stays where it is then.
            let skipped = if rows.is_empty() { 0 } else { rows.start * self.stride };
            Self { ptr: self.ptr.wrapping_add(skipped), rows: rows.len(), ..self }
        })
    }

    pub(crate) fn strided(&self) -> Strided<E> {
        Strided { ptr: self.ptr, stride: self.stride }
    }
}

/// Returns the number of elements from the first to one past the last; an error if they do not fit an `isize`
/// in bytes.
fn extent(rows: usize, width: usize, stride: usize, size: usize) -> Result<usize, RowsError> {
    if width == 0 {
        return Err(RowsError::ZeroWidth);
    }
    if stride < width {
        return Err(RowsError::StrideTooSmall { stride, width });
    }
    if rows == 0 {
        return Ok(0);
    }
    let elements = (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(width));
    let bytes = elements.and_then(|n| n.checked_mul(size)).filter(|&n| isize::try_from(n).is_ok());
    match (elements, bytes) {
        (Some(elements), Some(_)) => Ok(elements),
        _ => Err(RowsError::Overflow),
    }
}

/// Rows by pointer and stride, as the kernels see them.
#[derive(Clone, Copy)]
pub(crate) struct Strided<T> {
    pub(crate) ptr: *mut T,
    pub(crate) stride: usize,
}

impl<T> Strided<T> {
    /// Returns the address of a row.
    ///
    /// # Safety
    /// The row exists: its first element is inside the allocation, or one past its end.
    #[inline(always)]
    pub(crate) unsafe fn row(self, row: usize) -> *mut T {
        // SAFETY: the caller promises that the row is inside the allocation. `extent` has checked that the
        // product does not overflow.
        unsafe { self.ptr.add(row * self.stride) }
    }

    /// Returns the address of the row after `row`. Use it for prefetches only: there may be no such row.
    #[inline(always)]
    pub(crate) fn after(self, row: usize) -> *mut T {
        self.ptr.wrapping_add((row + 1).wrapping_mul(self.stride))
    }

    /// Returns the same rows with elements of another type.
    #[inline(always)]
    pub(crate) fn cast<U>(self) -> Strided<U> {
        Strided { ptr: self.ptr.cast(), stride: self.stride }
    }
}

/// Rows that are only read.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, E> {
    pub(crate) layout: RowLayout<E>,
    lifetime: PhantomData<&'a [E]>,
}

/// Rows that are read and written.
#[derive(Debug)]
pub struct RowsMut<'a, E> {
    pub(crate) layout: RowLayout<E>,
    lifetime: PhantomData<&'a mut [E]>,
}

// SAFETY: `Rows` reads through its pointer as `&[E]` does. `&[E]` is `Send` if `E` is `Sync`.
unsafe impl<E: Sync> Send for Rows<'_, E> {}
// SAFETY: `&[E]` is `Sync` if `E` is `Sync`.
unsafe impl<E: Sync> Sync for Rows<'_, E> {}
// SAFETY: `RowsMut` has the exclusive use of its elements, as `&mut [E]` has. `&mut [E]` is `Send` if `E` is
// `Send`.
unsafe impl<E: Send> Send for RowsMut<'_, E> {}
// SAFETY: a shared reference to a `RowsMut` gives shape and pointer only, as one to `&mut [E]` gives shared
// reads only.
unsafe impl<E: Sync> Sync for RowsMut<'_, E> {}

/// The methods that `Rows` and `RowsMut` share.
macro_rules! shape_methods {
    () => {
        /// Returns a range of the rows; `None` beyond the end.
        #[must_use]
        pub fn range(self, rows: Range<usize>) -> Option<Self> {
            Some(Self { layout: self.layout.range(rows)?, lifetime: PhantomData })
        }

        /// Returns the number of rows.
        #[must_use]
        pub fn rows(&self) -> usize {
            self.layout.rows
        }

        /// Returns the number of values per row.
        #[must_use]
        pub fn width(&self) -> usize {
            self.layout.width
        }

        /// Returns the number of elements from one row to the next.
        #[must_use]
        pub fn stride(&self) -> usize {
            self.layout.stride
        }
    };
}

impl<'a, E: Element> Rows<'a, E> {
    /// Takes a slice as rows without gaps: `values.len() / width` of them.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`]; [`RowsError::SliceTooShort`] when the last row is incomplete.
    pub fn from_slice(values: &'a [E], width: usize) -> Result<Self> {
        let layout = RowLayout::whole_slice(values.as_ptr().cast_mut(), values.len(), width)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Takes `rows` rows of `width` values, `stride` elements apart.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`], [`RowsError::StrideTooSmall`], [`RowsError::SliceTooShort`],
    /// [`RowsError::Overflow`].
    pub fn with_stride(values: &'a [E], rows: usize, width: usize, stride: usize) -> Result<Self> {
        let layout = RowLayout::in_slice(values.as_ptr().cast_mut(), values.len(), rows, width, stride)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Takes rows at a pointer. `stride` counts elements.
    ///
    /// # Errors
    /// [`RowsError::Null`] (unless there are 0 rows), [`RowsError::Misaligned`], [`RowsError::ZeroWidth`],
    /// [`RowsError::StrideTooSmall`], [`RowsError::Overflow`].
    ///
    /// # Safety
    /// For the lifetime `'a` every row must be valid for reads of initialised values, and must not be
    /// written. One exception: the rows that the same call writes may be exactly the same rows (same pointer,
    /// width and stride), because each element is read before it is written.
    pub unsafe fn from_raw(ptr: *const E, rows: usize, width: usize, stride: usize) -> Result<Self> {
        Ok(Self { layout: RowLayout::new(ptr.cast_mut(), rows, width, stride)?, lifetime: PhantomData })
    }

    shape_methods!();
}

impl<'a, E: Element> RowsMut<'a, E> {
    /// Takes a slice as rows without gaps: `values.len() / width` of them.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`]; [`RowsError::SliceTooShort`] when the last row is incomplete.
    pub fn from_slice(values: &'a mut [E], width: usize) -> Result<Self> {
        let layout = RowLayout::whole_slice(values.as_mut_ptr(), values.len(), width)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Takes `rows` rows of `width` values, `stride` elements apart. The gaps between the rows are neither
    /// read nor written.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`], [`RowsError::StrideTooSmall`], [`RowsError::SliceTooShort`],
    /// [`RowsError::Overflow`].
    pub fn with_stride(values: &'a mut [E], rows: usize, width: usize, stride: usize) -> Result<Self> {
        let layout = RowLayout::in_slice(values.as_mut_ptr(), values.len(), rows, width, stride)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Takes rows at a pointer. `stride` counts elements.
    ///
    /// # Errors
    /// [`RowsError::Null`] (unless there are 0 rows), [`RowsError::Misaligned`], [`RowsError::ZeroWidth`],
    /// [`RowsError::StrideTooSmall`], [`RowsError::Overflow`].
    ///
    /// # Safety
    /// For the lifetime `'a` every row must be valid for reads and writes and initialised, and nothing else
    /// may read or write it. One exception: read-only rows of the same call may be exactly the same rows, see
    /// [`Rows::from_raw`]. The gaps between the rows are not accessed.
    pub unsafe fn from_raw(ptr: *mut E, rows: usize, width: usize, stride: usize) -> Result<Self> {
        Ok(Self { layout: RowLayout::new(ptr, rows, width, stride)?, lifetime: PhantomData })
    }

    /// Borrows the same rows for a shorter time, to hand them out more than once.
    #[must_use]
    pub fn reborrow(&mut self) -> RowsMut<'_, E> {
        RowsMut { layout: self.layout, lifetime: PhantomData }
    }

    /// Borrows the same rows for reading.
    #[must_use]
    pub fn as_rows(&self) -> Rows<'_, E> {
        Rows { layout: self.layout, lifetime: PhantomData }
    }

    shape_methods!();
}

/// Returns the rows that thread `ith` of `nth` takes when `rows` rows are shared out evenly and in order.
///
/// The range is empty if there are fewer rows than threads and none is left for this one. An `nth` of 0
/// counts as 1.
///
/// ```
/// let parts: Vec<_> = (0..3).map(|ith| axiscap::cpu::split_rows(7, ith, 3)).collect();
/// assert_eq!(parts, [0..3, 3..5, 5..7]);
/// ```
#[must_use]
pub fn split_rows(rows: usize, ith: usize, nth: usize) -> Range<usize> {
    let nth = nth.max(1);
    let (each, over) = (rows / nth, rows % nth);
    let start = |i: usize| each * i + i.min(over);
    if ith < nth { start(ith)..start(ith + 1) } else { rows..rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn refused<T>(result: Result<T>) -> RowsError {
        match result {
            Err(Error::Rows(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn shapes_are_checked() {
        let mut values = [0.0f32; 10];
        assert_eq!(RowsMut::from_slice(&mut values, 5).unwrap().rows(), 2);
        assert_eq!(RowsMut::from_slice(&mut values[..0], 5).unwrap().rows(), 0);
        assert_eq!(refused(RowsMut::from_slice(&mut values, 0)), RowsError::ZeroWidth);
        assert_eq!(
            refused(RowsMut::from_slice(&mut values, 3)),
            RowsError::SliceTooShort { needed: 12, found: 10 }
        );
        assert_eq!(Rows::with_stride(&values, 2, 4, 6).unwrap().rows(), 2);
        assert_eq!(
            refused(Rows::with_stride(&values, 3, 4, 6)),
            RowsError::SliceTooShort { needed: 16, found: 10 }
        );
        assert_eq!(
            refused(Rows::with_stride(&values, 2, 4, 3)),
            RowsError::StrideTooSmall { stride: 3, width: 4 }
        );
        assert_eq!(refused(Rows::with_stride(&values, usize::MAX, 4, 6)), RowsError::Overflow);
    }

    #[test]
    fn raw_pointers_are_checked() {
        let values = [0.0f32; 3];
        // SAFETY: each call is refused or has no rows. No element is read through the pointers.
        unsafe {
            assert_eq!(refused(Rows::<f32>::from_raw(std::ptr::null(), 1, 1, 1)), RowsError::Null);
            assert_eq!(Rows::<f32>::from_raw(std::ptr::null(), 0, 1, 1).unwrap().rows(), 0);
            let odd = values.as_ptr().cast::<u8>().wrapping_add(1).cast::<f32>();
            assert_eq!(refused(Rows::from_raw(odd, 1, 1, 1)), RowsError::Misaligned { align: 4 });
            let far = usize::MAX / 4;
            assert_eq!(refused(Rows::from_raw(values.as_ptr(), 2, far, far)), RowsError::Overflow);
        }
    }

    #[test]
    fn ranges_stay_inside() {
        let values = [0.0f32; 10];
        let rows = Rows::with_stride(&values, 2, 4, 6).unwrap();
        assert_eq!(rows.range(1..2).unwrap().layout.ptr.cast_const(), &raw const values[6]);
        assert_eq!(rows.range(2..2).unwrap().rows(), 0);
        assert!(rows.range(1..3).is_none());
        let backwards = Range { start: 2, end: 1 };
        assert!(rows.range(backwards).is_none());
        assert!(rows.range(usize::MAX - 1..usize::MAX).is_none());
        let mut values = values;
        let mut rows = RowsMut::with_stride(&mut values, 2, 4, 6).unwrap();
        assert!(rows.reborrow().range(usize::MAX / 2..usize::MAX).is_none());
        assert_eq!(rows.range(0..2).unwrap().rows(), 2);
    }

    #[test]
    fn parts_cover_the_rows_once() {
        for (rows, nth) in [(0, 3), (1, 2), (7, 3), (512, 5), (3, 8), (4, 0)] {
            let mut next = 0;
            for ith in 0..nth.max(1) {
                let part = split_rows(rows, ith, nth);
                assert_eq!(part.start, next);
                next = part.end;
            }
            assert_eq!(next, rows);
            assert!(split_rows(rows, nth.max(1), nth).is_empty());
        }
    }
}
