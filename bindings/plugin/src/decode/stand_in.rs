//! Functions that stand in for llama.cpp's of the same names.
//!
//! A stand-in saves the registers that hold arguments, has them noted, and jumps to llama.cpp's function with
//! registers and stack as they were. It therefore suits whatever further arguments a version of llama.cpp has.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{batches, is_on};
use crate::host::library_of;

/// The arguments of a call, as the stand-ins save them.
#[cfg(target_arch = "x86_64")]
#[repr(C)]
pub(super) struct Call {
    /// r9, r8, rcx, rdx, rsi, rdi.
    registers: [usize; 6],
    caller: usize,
    /// The first argument that is passed in memory.
    memory: [usize; 0],
}

#[cfg(target_arch = "x86_64")]
impl Call {
    fn argument(&self, index: usize) -> usize {
        self.registers[5 - index]
    }

    /// Returns the address of the argument after the first, a structure that is passed in memory.
    fn second_in_memory(&self) -> *const c_void {
        self.memory.as_ptr().cast()
    }
}

/// The arguments of a call, as the stand-ins save them.
#[cfg(target_arch = "aarch64")]
#[repr(C)]
pub(super) struct Call {
    /// x29, x30.
    frame: [usize; 2],
    /// x0 to x7.
    registers: [usize; 8],
}

#[cfg(target_arch = "aarch64")]
impl Call {
    fn argument(&self, index: usize) -> usize {
        self.registers[index]
    }

    /// Returns the address of the argument after the first, a structure that is passed by its address.
    fn second_in_memory(&self) -> *const c_void {
        self.registers[1] as *const c_void
    }
}

impl Call {
    fn caller(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        return self.caller;
        #[cfg(target_arch = "aarch64")]
        return self.frame[1];
    }

    fn number(&self, index: usize) -> i32 {
        // The upper half of the register has no meaning.
        self.argument(index) as u32 as i32
    }
}

/// A function of llama.cpp's that is stood in for.
struct Own {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Own {
    const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(null_mut()) }
    }

    /// Returns llama.cpp's function for a caller. Without it the program cannot go on.
    fn find(&self, caller: usize) -> *mut c_void {
        let known = self.address.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        let found = look_up(self.name, caller);
        if found.is_null() {
            eprintln!("axiscap: error: {:?} is called, and no library of this process has it", self.name);
            std::process::abort();
        }
        self.address.store(found, Ordering::Release);
        found
    }
}

/// Returns the address of llama.cpp's function; null if there is none.
fn look_up(name: &CStr, caller: usize) -> *mut c_void {
    // SAFETY: a lookup in libraries that are loaded; the name is NUL-terminated.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if !next.is_null() {
        return next;
    }
    // llama.cpp was loaded for the caller alone, as by node: its dependencies have it.
    library_of(caller).and_then(|path| symbol_in(&path, name)).map_or(null_mut(), NonNull::as_ptr)
}

/// Returns the address of a function in a loaded library or its dependencies.
fn symbol_in(path: &Path, name: &CStr) -> Option<NonNull<c_void>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let path = if path.is_empty() { std::ptr::null() } else { path.as_ptr() };
    // SAFETY: the library is loaded already, so that no code of it runs. The handle is never closed.
    unsafe {
        let handle = NonNull::new(libc::dlopen(path, libc::RTLD_LAZY | libc::RTLD_NOLOAD))?;
        NonNull::new(libc::dlsym(handle.as_ptr(), name.as_ptr()))
    }
}

/// llama.cpp's functions that say something of a context; 0 where there is none.
#[derive(Debug)]
struct Getters {
    n_ubatch: usize,
    n_ctx: usize,
    n_ctx_seq: usize,
    n_seq_max: usize,
    get_model: usize,
    is_recurrent: usize,
    is_hybrid: usize,
}

impl Getters {
    fn of(caller: usize) -> &'static Self {
        static GETTERS: OnceLock<Getters> = OnceLock::new();
        GETTERS.get_or_init(|| {
            let find = |name: &CStr| look_up(name, caller) as usize;
            Self {
                n_ubatch: find(c"llama_n_ubatch"),
                n_ctx: find(c"llama_n_ctx"),
                n_ctx_seq: find(c"llama_n_ctx_seq"),
                n_seq_max: find(c"llama_n_seq_max"),
                get_model: find(c"llama_get_model"),
                is_recurrent: find(c"llama_model_is_recurrent"),
                is_hybrid: find(c"llama_model_is_hybrid"),
            }
        })
    }
}

/// Returns what llama.cpp says of the context that a call is made with.
fn context_of(call: &Call) -> batches::Context {
    let &Getters { n_ubatch, n_ctx, n_ctx_seq, n_seq_max, get_model, is_recurrent, is_hybrid } =
        Getters::of(call.caller());
    let context = call.argument(0);
    let number = |function: usize| {
        // SAFETY: llama.cpp's getters of a context have this signature, and the first argument of the calls that
        // decode is a context.
        (function != 0).then(|| unsafe {
            let function: extern "C" fn(usize) -> u32 = std::mem::transmute(function);
            function(context)
        })
    };
    let is = |function: usize| {
        // SAFETY: as above; the model's getters return a bool.
        (function != 0 && get_model != 0).then(|| unsafe {
            let model: extern "C" fn(usize) -> usize = std::mem::transmute(get_model);
            let function: extern "C" fn(usize) -> bool = std::mem::transmute(function);
            function(model(context))
        })
    };
    // A model that keeps states takes rows in another order, whatever its KV cache.
    let has_cache_alone = is(is_recurrent) == Some(false) && is(is_hybrid) == Some(false);
    let unified = match (number(n_ctx), number(n_ctx_seq), number(n_seq_max)) {
        // In one cache, each sequence may fill the whole context.
        (Some(all), Some(each), Some(2..)) if has_cache_alone => Some(all == each),
        _ => None,
    };
    batches::Context { ubatch: number(n_ubatch).map_or(0, |rows| rows as usize), unified }
}

/// `llama_decode(context, batch)` and `llama_encode`.
fn decodes(call: &Call) {
    let batch = call.second_in_memory().cast::<batches::Batch>();
    // SAFETY: the batch that the program passes to llama.cpp, which reads the same fields.
    unsafe { batches::read(&*batch, context_of(call)) }.begin();
}

/// `llama_process(context, type, batch)`.
fn processes(call: &Call) {
    batches::made(call.argument(2), context_of(call)).begin();
}

/// `llama_batch_ext_add(batch, sequence)`.
fn adds(call: &Call) {
    batches::added(call.argument(0), call.number(1), None);
}

/// `llama_batch_ext_add_token(batch, sequence, token)`.
fn adds_token(call: &Call) {
    batches::added(call.argument(0), call.number(1), Some(call.number(2)));
}

/// `llama_batch_ext_add_seq(batch, row, sequence)`.
fn adds_sequence(call: &Call) {
    batches::added_to(call.argument(0), call.number(1), call.number(2));
}

/// `llama_batch_ext_set_pos(batch, row, positions)`.
fn sets_position(call: &Call) {
    let positions = call.argument(2) as *const i32;
    if !positions.is_null() {
        // SAFETY: llama.cpp reads one position or more there.
        batches::positioned(call.argument(0), call.number(1), unsafe { positions.read() });
    }
}

fn clears(call: &Call) {
    batches::cleared(call.argument(0));
}

fn frees(call: &Call) {
    batches::freed(call.argument(0));
}

macro_rules! stand_in {
    ($name:ident, $note:ident) => {
        #[doc = concat!("Notes the arguments, and goes on in llama.cpp's `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for llama.cpp's function.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name() {
            /// Notes the arguments, and returns llama.cpp's function.
            extern "C" fn note(call: &Call) -> *mut c_void {
                const NAME: &CStr =
                    match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                static OWN: Own = Own::new(NAME);
                if is_on() {
                    $note(call);
                }
                OWN.find(call.caller())
            }
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!(
                "push rdi",
                "push rsi",
                "push rdx",
                "push rcx",
                "push r8",
                "push r9",
                "mov rdi, rsp",
                "sub rsp, 8",
                "call {note}",
                "add rsp, 8",
                "pop r9",
                "pop r8",
                "pop rcx",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "jmp rax",
                note = sym note,
            );
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!(
                "stp x29, x30, [sp, #-80]!",
                "mov x29, sp",
                "stp x0, x1, [sp, #16]",
                "stp x2, x3, [sp, #32]",
                "stp x4, x5, [sp, #48]",
                "stp x6, x7, [sp, #64]",
                "mov x0, sp",
                "bl {note}",
                "mov x16, x0",
                "ldp x0, x1, [sp, #16]",
                "ldp x2, x3, [sp, #32]",
                "ldp x4, x5, [sp, #48]",
                "ldp x6, x7, [sp, #64]",
                "ldp x29, x30, [sp], #80",
                "br x16",
                note = sym note,
            );
        }
    };
}

stand_in!(llama_decode, decodes);
stand_in!(llama_encode, decodes);
stand_in!(llama_process, processes);
stand_in!(llama_batch_ext_add, adds);
stand_in!(llama_batch_ext_add_token, adds_token);
stand_in!(llama_batch_ext_add_embd, adds);
stand_in!(llama_batch_ext_add_seq, adds_sequence);
stand_in!(llama_batch_ext_set_pos, sets_position);
stand_in!(llama_batch_ext_clear, clears);
stand_in!(llama_batch_ext_free, frees);
