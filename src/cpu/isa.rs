//! Which instructions this machine has, found out at run time.

use std::fmt;

use crate::cpu::element::Element;
use crate::cpu::row::{self, Pass};
#[cfg(target_arch = "aarch64")]
use crate::cpu::simd::neon::Neon;
use crate::cpu::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set the operation is written for. All of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: everywhere. Slow where the target has no fused multiply-add.
    Portable,
    /// AVX2, FMA and F16C (x86-64).
    Avx2,
    /// AVX-512F (x86-64).
    Avx512,
    /// NEON (AArch64).
    Neon,
}

impl Isa {
    /// All of them, the fastest last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon];

    /// Whether this machine has it. The answer is remembered by the standard library.
    #[must_use]
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }

    /// The fastest one this machine has.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.available()).unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Neon => "NEON",
        })
    }
}

/// Runs a pass with the instructions of `isa`.
///
/// # Safety
/// As stated at [`Pass`]; `isa` is available.
pub(crate) unsafe fn run<E: Element>(isa: Isa, pass: &mut Pass<'_, E>) {
    // SAFETY: the caller's promise; each function below is entered only where its instructions are available.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => with_avx2(pass),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => with_avx512(pass),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => with_neon(pass),
            _ => row::run::<Portable, E>(pass),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<E: Element>(pass: &mut Pass<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe { row::run::<Avx2, E>(pass) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn with_avx512<E: Element>(pass: &mut Pass<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe { row::run::<Avx512, E>(pass) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn with_neon<E: Element>(pass: &mut Pass<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe { row::run::<Neon, E>(pass) }
}
