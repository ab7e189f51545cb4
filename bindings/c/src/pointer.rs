//! Pointers of the caller, checked as far as a pointer can be.

use crate::failure::Failure;
use crate::status::Status;

/// Checks that a pointer is neither null nor misaligned.
pub(crate) fn check<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::new(Status::NullPointer, format!("{name} is NULL")));
    }
    if !pointer.is_aligned() {
        let align = align_of::<T>();
        return Err(Failure::new(
            Status::Misaligned,
            format!("{name} is not a multiple of {align} bytes, the alignment of what it points to"),
        ));
    }
    Ok(())
}

/// Borrows what a pointer points to.
///
/// # Safety
/// A pointer that passes [`check`] points to a live value, which nothing changes during `'a`.
pub(crate) unsafe fn shared<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    check(pointer, name)?;
    // SAFETY: the pointer is aligned and not null. The caller promises the value.
    Ok(unsafe { &*pointer })
}

/// Borrows what a pointer points to, to change it.
///
/// # Safety
/// A pointer that passes [`check`] points to a live value, which nothing else uses during `'a`.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    check(pointer, name)?;
    // SAFETY: the pointer is aligned and not null. The caller promises the value and its exclusive use.
    Ok(unsafe { &mut *pointer })
}

/// Borrows an array. One without elements may be null.
///
/// # Safety
/// A pointer that passes [`check`] points to as many initialised elements, which nothing changes during `'a`.
pub(crate) unsafe fn array<'a, T>(pointer: *const T, length: usize, name: &str) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    check_array(pointer, length, name)?;
    // SAFETY: the pointer is aligned and not null, and the length fits an `isize` in bytes. The caller
    // promises the elements.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// Checks an array that has elements.
pub(crate) fn check_array<T>(pointer: *const T, length: usize, name: &str) -> Result<(), Failure> {
    check(pointer, name)?;
    match length.checked_mul(size_of::<T>()).map(isize::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => {
            let message = format!("{name}: {length} elements do not fit the address space");
            Err(Failure::new(Status::Overflow, message))
        }
    }
}

/// Stores a result.
///
/// # Safety
/// A pointer that passes [`check`] is writable.
pub(crate) unsafe fn store<T>(out: *mut T, name: &str, value: T) -> Result<(), Failure> {
    check(out, name)?;
    // SAFETY: the pointer is aligned and not null, and the caller promises that it is writable. `write` does
    // not drop what was there, which may be uninitialised.
    unsafe { out.write(value) };
    Ok(())
}

/// Makes a handle. On an error the caller's pointer becomes null, so that it names nothing.
///
/// # Safety
/// As for [`store`].
pub(crate) unsafe fn give<T>(
    out: *mut *mut T,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller promises the pointer.
    unsafe { store(out, "out", std::ptr::null_mut()) }?;
    let handle = Box::new(make()?);
    // SAFETY: as above.
    unsafe { store(out, "out", Box::into_raw(handle)) }
}

/// Frees a handle; nothing for null.
///
/// # Safety
/// The handle is null, or comes from [`give`] and is freed once. Nothing uses it any more.
pub(crate) unsafe fn free<T>(handle: *mut T) -> Result<(), Failure> {
    if handle.is_null() {
        return Ok(());
    }
    check(handle, "the handle")?;
    // SAFETY: `give` made the handle from a box of this type, and the caller promises that it is freed once.
    drop(unsafe { Box::from_raw(handle) });
    Ok(())
}
