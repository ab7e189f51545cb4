//! Types of tensor elements, and the exact way from each to f32.

use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Element {
    Bf16,
    F16,
    F32,
    F64,
    /// A type that holds no axis. The name is the file format's.
    Other(&'static str, usize),
}

impl Element {
    /// Returns the type of a storage class of `torch`, e.g. `BFloat16Storage`.
    pub(super) fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "BFloat16Storage" => Self::Bf16,
            "HalfStorage" => Self::F16,
            "FloatStorage" => Self::F32,
            "DoubleStorage" => Self::F64,
            "LongStorage" => Self::Other("int64", 8),
            "IntStorage" => Self::Other("int32", 4),
            "ShortStorage" => Self::Other("int16", 2),
            "CharStorage" => Self::Other("int8", 1),
            "ByteStorage" => Self::Other("uint8", 1),
            "BoolStorage" => Self::Other("bool", 1),
            "ComplexFloatStorage" => Self::Other("complex64", 8),
            "ComplexDoubleStorage" => Self::Other("complex128", 16),
            _ => return None,
        })
    }

    /// Returns the type's name in PyTorch without `torch.`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::Other(name, _) => name,
        }
    }

    /// Returns the size of an element in bytes.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }

    /// Whether the type holds floating-point numbers that can be read.
    pub(super) fn is_float(self) -> bool {
        !matches!(self, Self::Other(..))
    }

    /// Returns the number in `bytes`, little endian. There are [`Element::size`] of them.
    ///
    /// Every type but `F64` fits f64 without rounding, and all but `F64` fit f32. For other types and lengths
    /// the result is NaN, which no axis accepts.
    pub(super) fn read(self, bytes: &[u8]) -> f64 {
        let number = match self {
            Self::Bf16 => bytes.try_into().map(|b| bf16::from_le_bytes(b).into()),
            Self::F16 => bytes.try_into().map(|b| f16::from_le_bytes(b).into()),
            Self::F32 => bytes.try_into().map(|b| f32::from_le_bytes(b).into()),
            Self::F64 => bytes.try_into().map(f64::from_le_bytes),
            Self::Other(..) => return f64::NAN,
        };
        number.unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            for (element, expected) in [
                (Element::Bf16, bf16::from_bits(bits).to_f32()),
                (Element::F16, f16::from_bits(bits).to_f32()),
            ] {
                let read = element.read(&bytes) as f32;
                assert!(
                    read.to_bits() == expected.to_bits() || (read.is_nan() && expected.is_nan()),
                    "{element:?} {bits:04x}"
                );
            }
        }
        assert!(Element::F32.read(&[0; 3]).is_nan());
    }
}
