//! Number formats of the KV cache.

use std::fmt;

use llama_cpp_sys_2 as sys;

/// Number format of the keys or the values in the KV cache. These are all that llama.cpp offers
/// (`kv_cache_types` in its `common/arg.cpp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision, llama.cpp's default.
    #[default]
    F16,
    /// Half the bits of single precision, with its range.
    Bf16,
    /// 8 bits and a scale per 32 numbers.
    Q8_0,
    /// 4 bits and a scale per 32 numbers.
    Q4_0,
    /// 4 bits, a scale and an offset per 32 numbers.
    Q4_1,
    /// 4 bits on a curve and a scale per 32 numbers.
    Iq4Nl,
    /// 5 bits and a scale per 32 numbers.
    Q5_0,
    /// 5 bits, a scale and an offset per 32 numbers.
    Q5_1,
}

impl KvType {
    /// All types, in llama.cpp's order.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Iq4Nl,
        Self::Q5_0,
        Self::Q5_1,
    ];

    /// Returns llama.cpp's name of the type (`ggml_type_name`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Iq4Nl => "iq4_nl",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
        }
    }

    /// Returns the number of the type in llama.cpp.
    #[must_use]
    pub fn ggml(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Bf16 => sys::GGML_TYPE_BF16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q4_0 => sys::GGML_TYPE_Q4_0,
            Self::Q4_1 => sys::GGML_TYPE_Q4_1,
            Self::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
            Self::Q5_0 => sys::GGML_TYPE_Q5_0,
            Self::Q5_1 => sys::GGML_TYPE_Q5_1,
        }
    }

    /// Returns how many numbers share a scale, 1 for types without one.
    pub(crate) fn block(self) -> u64 {
        // SAFETY: the function reads a static table, and the number is one of its types.
        let block = unsafe { sys::ggml_blck_size(self.ggml()) };
        u64::try_from(block).unwrap_or(1).max(1)
    }

    /// Returns the bytes of a row of `numbers`, a multiple of [`KvType::block`].
    pub(crate) fn row_bytes(self, numbers: u64) -> u64 {
        // SAFETY: the function reads a static table, and the number is one of its types.
        let bytes = unsafe { sys::ggml_type_size(self.ggml()) } as u64;
        (numbers / self.block()).saturating_mul(bytes)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_ggml() {
        for kind in KvType::ALL {
            // SAFETY: the names are static NUL-terminated strings.
            let name = unsafe { CStr::from_ptr(sys::ggml_type_name(kind.ggml())) };
            assert_eq!(name.to_str(), Ok(kind.name()));
        }
        let bytes = KvType::ALL.map(|kind| kind.row_bytes(64));
        assert_eq!(bytes, [256, 128, 128, 68, 36, 40, 36, 44, 48]);
        assert_eq!((KvType::Bf16.block(), KvType::Iq4Nl.block()), (1, 32));
    }
}
