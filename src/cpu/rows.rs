//! Rows in memory: a pointer, how many rows, how wide, and how far apart.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::element::Element;
use crate::error::{Result, RowsError};

/// Where rows lie: checked once, then only read.
#[derive(Debug)]
pub(crate) struct Layout<E> {
    pub(crate) ptr: *mut E,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
}

// Derived implementations would ask for `E: Clone`, `E: Copy` where only the pointer is copied.
impl<E> Clone for Layout<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Layout<E> {}

impl<E: Element> Layout<E> {
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
            // An empty range may start at `self.rows`, where the next row would be beyond the memory: keep the
            // pointer.
            let skipped = if rows.is_empty() { 0 } else { rows.start * self.stride };
            Self { ptr: self.ptr.wrapping_add(skipped), rows: rows.len(), ..self }
        })
    }
}

/// Elements from the first to one past the last; an error where that does not fit an `isize` in bytes.
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

/// Rows that are only read.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, E> {
    pub(crate) layout: Layout<E>,
    lifetime: PhantomData<&'a [E]>,
}

/// Rows that are read and written.
#[derive(Debug)]
pub struct RowsMut<'a, E> {
    pub(crate) layout: Layout<E>,
    lifetime: PhantomData<&'a mut [E]>,
}

// SAFETY: a `Rows` is a `&[E]` with holes.
unsafe impl<E: Sync> Send for Rows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Rows<'_, E> {}
// SAFETY: a `RowsMut` is a `&mut [E]` with holes.
unsafe impl<E: Send> Send for RowsMut<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for RowsMut<'_, E> {}

impl<'a, E: Element> Rows<'a, E> {
    /// Rows one after the other: `values.len() / width` of them.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`]; [`RowsError::SliceTooShort`] when the last row is incomplete.
    pub fn from_slice(values: &'a [E], width: usize) -> Result<Self> {
        let layout = Layout::whole_slice(values.as_ptr().cast_mut(), values.len(), width)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// `rows` rows of `width` values, `stride` elements apart.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`], [`RowsError::StrideTooSmall`], [`RowsError::SliceTooShort`],
    /// [`RowsError::Overflow`].
    pub fn with_stride(values: &'a [E], rows: usize, width: usize, stride: usize) -> Result<Self> {
        let layout = Layout::in_slice(values.as_ptr().cast_mut(), values.len(), rows, width, stride)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Rows at a pointer that belongs to someone else. `stride` counts elements.
    ///
    /// # Errors
    /// [`RowsError::Null`] (unless there are 0 rows), [`RowsError::Misaligned`], [`RowsError::ZeroWidth`],
    /// [`RowsError::StrideTooSmall`], [`RowsError::Overflow`].
    ///
    /// # Safety
    /// For the lifetime `'a` every row must be valid for reads of initialised values, and not be written. One
    /// exception: the `out` rows of the call these rows are handed to may be exactly the same rows (same
    /// pointer, width and stride), because each element is read before it is written.
    pub unsafe fn from_raw(ptr: *const E, rows: usize, width: usize, stride: usize) -> Result<Self> {
        Ok(Self { layout: Layout::new(ptr.cast_mut(), rows, width, stride)?, lifetime: PhantomData })
    }

    /// Some of the rows; `None` beyond the end.
    #[must_use]
    pub fn range(self, rows: Range<usize>) -> Option<Self> {
        Some(Self { layout: self.layout.range(rows)?, lifetime: PhantomData })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Values per row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.layout.width
    }

    /// Elements from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.layout.stride
    }
}

impl<'a, E: Element> RowsMut<'a, E> {
    /// Rows one after the other: `values.len() / width` of them.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`]; [`RowsError::SliceTooShort`] when the last row is incomplete.
    pub fn from_slice(values: &'a mut [E], width: usize) -> Result<Self> {
        let layout = Layout::whole_slice(values.as_mut_ptr(), values.len(), width)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// `rows` rows of `width` values, `stride` elements apart. What lies between the rows is neither read nor
    /// written.
    ///
    /// # Errors
    /// [`RowsError::ZeroWidth`], [`RowsError::StrideTooSmall`], [`RowsError::SliceTooShort`],
    /// [`RowsError::Overflow`].
    pub fn with_stride(values: &'a mut [E], rows: usize, width: usize, stride: usize) -> Result<Self> {
        let layout = Layout::in_slice(values.as_mut_ptr(), values.len(), rows, width, stride)?;
        Ok(Self { layout, lifetime: PhantomData })
    }

    /// Rows at a pointer that belongs to someone else. `stride` counts elements.
    ///
    /// # Errors
    /// [`RowsError::Null`] (unless there are 0 rows), [`RowsError::Misaligned`], [`RowsError::ZeroWidth`],
    /// [`RowsError::StrideTooSmall`], [`RowsError::Overflow`].
    ///
    /// # Safety
    /// For the lifetime `'a` every row must be valid for reads and writes, initialised, and not be read or
    /// written by anyone else; except that read-only rows of the same call may be exactly the same rows, see
    /// [`Rows::from_raw`]. What lies between the rows is not touched and may be anyone's.
    pub unsafe fn from_raw(ptr: *mut E, rows: usize, width: usize, stride: usize) -> Result<Self> {
        Ok(Self { layout: Layout::new(ptr, rows, width, stride)?, lifetime: PhantomData })
    }

    /// The same rows for a shorter time, so that they can be handed out more than once.
    #[must_use]
    pub fn reborrow(&mut self) -> RowsMut<'_, E> {
        RowsMut { layout: self.layout, lifetime: PhantomData }
    }

    /// Some of the rows; `None` beyond the end.
    #[must_use]
    pub fn range(self, rows: Range<usize>) -> Option<Self> {
        Some(Self { layout: self.layout.range(rows)?, lifetime: PhantomData })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Values per row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.layout.width
    }

    /// Elements from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.layout.stride
    }
}

/// The rows that thread `ith` of `nth` takes when `rows` rows are shared out evenly and in order. Empty when
/// there is nothing left for it; `nth` 0 counts as 1.
///
/// ```
/// let shares: Vec<_> = (0..3).map(|ith| axiscap::cpu::share(7, ith, 3)).collect();
/// assert_eq!(shares, [0..3, 3..5, 5..7]);
/// ```
#[must_use]
pub fn share(rows: usize, ith: usize, nth: usize) -> Range<usize> {
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
        // SAFETY: refused, or no rows: nothing is read through these.
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
    fn shares_cover_the_rows_once() {
        for (rows, nth) in [(0, 3), (1, 2), (7, 3), (512, 5), (3, 8), (4, 0)] {
            let mut next = 0;
            for ith in 0..nth.max(1) {
                let share = share(rows, ith, nth);
                assert_eq!(share.start, next);
                next = share.end;
            }
            assert_eq!(next, rows);
            assert!(share(rows, nth.max(1), nth).is_empty());
        }
    }
}
