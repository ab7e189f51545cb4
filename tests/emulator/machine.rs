//! Builds kernels/emulate into a shared library and runs kernels in it.

use std::ffi::{CStr, CString, c_char, c_uint};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use axiscap::cuda::raw::{CapArgs, Plan};
use libloading::{Library, Symbol};

/// `Launch` in kernels/emulate/machine.hpp.
#[repr(C)]
pub(crate) struct Launch {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) groups: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) cluster: u32,
}

type Emulate =
    unsafe extern "C" fn(*const c_char, *const CapArgs, *const Launch, c_uint, *mut c_char, usize) -> i32;

/// Runs a plan whose addresses are host addresses.
///
/// # Safety
/// The memory at the plan's addresses must be valid, and nothing else may use it during the call.
pub(crate) unsafe fn run(plan: &Plan, schedule: u32) -> Result<(), String> {
    let shape = plan.shape();
    let launch = Launch {
        blocks: shape.blocks,
        threads: shape.threads,
        groups: shape.groups,
        shared_bytes: shape.shared_bytes,
        cluster: shape.path.cluster(),
    };
    // SAFETY: the caller promises the memory at the plan's addresses.
    unsafe { run_named(&plan.kernel(), plan.args(), &launch, schedule) }
}

/// Runs a kernel by name.
///
/// # Safety
/// As for [`run`].
pub(crate) unsafe fn run_named(
    kernel: &str,
    args: &CapArgs,
    launch: &Launch,
    schedule: u32,
) -> Result<(), String> {
    // SAFETY: the symbol has this type in kernels/emulate/emulate.cpp.
    let emulate: Symbol<'_, Emulate> =
        unsafe { library().get(b"axiscap_emulate") }.expect("the symbol is there");
    let name = CString::new(kernel).expect("no NUL in a kernel's name");
    let mut message = [0 as c_char; 512];
    // SAFETY: the pointers are valid for the call. The caller promises the memory at the addresses in the
    // argument.
    let failed =
        unsafe { emulate(name.as_ptr(), args, launch, schedule, message.as_mut_ptr(), message.len()) };
    // SAFETY: the emulator ends its message with a NUL.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
    if failed == 0 { Ok(()) } else { Err(format!("{kernel}: {message}")) }
}

/// Converts an f16 as the emulator does.
pub(crate) fn widen_f16(bits: u16) -> f32 {
    // SAFETY: the symbol has this type in kernels/emulate/emulate.cpp.
    let widen: Symbol<'_, unsafe extern "C" fn(c_uint) -> f32> =
        unsafe { library().get(b"axiscap_emulate_widen_f16") }.expect("the symbol is there");
    // SAFETY: the function is pure and takes any number.
    unsafe { widen(bits.into()) }
}

/// Converts an f32 to f16 or bf16 as the emulator does.
pub(crate) fn narrow(symbol: &[u8], value: f32) -> u16 {
    // SAFETY: callers name one of two symbols, which have this type in kernels/emulate/emulate.cpp.
    let narrow: Symbol<'_, unsafe extern "C" fn(f32) -> c_uint> =
        unsafe { library().get(symbol) }.expect("the symbol is there");
    // SAFETY: the function is pure and takes any number.
    unsafe { narrow(value) as u16 }
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = build();
        // SAFETY: the library is ours, and its initialisers only fill a table.
        unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulate");
    let target =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libaxiscap-emulate-{}.so", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    // Without contraction a multiply-add is fused exactly where the source says so. _FORTIFY_SOURCE would
    // stop _longjmp between stacks.
    command.args([
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]);
    // Every step of every thread looks the machine up. This makes it one instruction instead of a call.
    command.args(["-ftls-model=initial-exec", "-fno-semantic-interposition"]);
    command.args(["-Wno-unknown-pragmas", "-fPIC", "-shared"]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        command.arg("-mfma");
    }
    command.arg("-o").arg(&target).args([source.join("emulate.cpp"), source.join("machine.cpp")]);
    let done =
        command.output().unwrap_or_else(|e| panic!("the emulator needs a C++ compiler ({compiler}: {e})"));
    assert!(done.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&done.stderr));
    target
}
