//! Texts for C.

use std::ffi::CString;

/// Returns a text for C. A NUL, which would end it early, becomes the replacement character.
pub(crate) fn to_c(text: &str) -> CString {
    // No NUL is left, so the default is never used.
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_nul_does_not_end_a_text() {
        assert_eq!(super::to_c("a\0b").to_str(), Ok("a\u{fffd}b"));
    }
}
