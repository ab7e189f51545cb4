//! The baseline kernels of kernels/baselines.cu.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::{CudaStream, sys};

/// An aligned value. The driver reads a fatbin's header as a struct of 8-byte words, and `include_bytes`
/// promises no alignment.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/baselines.fatbin")));

pub(crate) struct Baselines {
    module: sys::CUmodule,
}

fn check(result: sys::CUresult) {
    assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
}

impl Baselines {
    /// Loads the kernels into the current context.
    pub(crate) fn load() -> Self {
        assert!(!IMAGE.0.is_empty(), "built without nvcc: run scripts/setup-nvcc and build again");
        let mut module = ptr::null_mut();
        // SAFETY: the image is a complete fatbin.
        check(unsafe { sys::cuModuleLoadData(&mut module, IMAGE.0.as_ptr().cast()) });
        Self { module }
    }

    fn launch(
        &self,
        stream: &CudaStream,
        name: &str,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
    ) {
        let name = CString::new(name).expect("no NUL");
        let mut kernel = ptr::null_mut();
        // SAFETY: the module is live, and the name is a C string.
        check(unsafe { sys::cuModuleGetFunction(&mut kernel, self.module, name.as_ptr()) });
        // SAFETY: the methods below pass the arguments that the kernel takes.
        check(unsafe {
            sys::cuLaunchKernel(
                kernel,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.cu_stream(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        });
    }

    pub(crate) fn empty(&self, stream: &CudaStream) {
        self.launch(stream, "baseline_empty", 1, 32, &mut []);
    }

    pub(crate) fn add(&self, stream: &CudaStream, mut out: u64, mut a: u64, mut b: u64, elements: usize) {
        let mut quads = elements as i64 / 4;
        let blocks = (quads as u64).div_ceil(256).min(132 * 32) as u32;
        let mut arguments =
            [as_argument(&mut out), as_argument(&mut a), as_argument(&mut b), as_argument(&mut quads)];
        self.launch(stream, "baseline_add", blocks, 256, &mut arguments);
    }

    pub(crate) fn project(
        &self,
        stream: &CudaStream,
        mut p: u64,
        mut h: u64,
        mut axis: u64,
        [rows, width]: [usize; 2],
    ) {
        let mut quads = width as i32 / 4;
        let mut arguments =
            [as_argument(&mut p), as_argument(&mut h), as_argument(&mut axis), as_argument(&mut quads)];
        self.launch(stream, "baseline_project", rows as u32, 256, &mut arguments);
    }

    pub(crate) fn clamp(
        &self,
        stream: &CudaStream,
        mut delta: u64,
        mut p: u64,
        mut lo: f32,
        mut hi: f32,
        rows: usize,
    ) {
        let mut count = rows as i32;
        let mut arguments = [
            as_argument(&mut delta),
            as_argument(&mut p),
            as_argument(&mut lo),
            as_argument(&mut hi),
            as_argument(&mut count),
        ];
        self.launch(stream, "baseline_clamp", count.unsigned_abs().div_ceil(256), 256, &mut arguments);
    }

    pub(crate) fn axpy(
        &self,
        stream: &CudaStream,
        mut h: u64,
        mut delta: u64,
        mut axis: u64,
        [rows, width]: [usize; 2],
    ) {
        let mut quads = width as i32 / 4;
        let mut arguments =
            [as_argument(&mut h), as_argument(&mut delta), as_argument(&mut axis), as_argument(&mut quads)];
        self.launch(stream, "baseline_axpy", rows as u32, 256, &mut arguments);
    }

    pub(crate) fn rms_norm(
        &self,
        stream: &CudaStream,
        mut y: u64,
        mut h: u64,
        mut weight: u64,
        [rows, width]: [usize; 2],
    ) {
        let mut quads = width as i32 / 4;
        let mut eps = 1e-5f32;
        let mut arguments = [
            as_argument(&mut y),
            as_argument(&mut h),
            as_argument(&mut weight),
            as_argument(&mut eps),
            as_argument(&mut quads),
        ];
        // The row of a single token gets as many threads as it can use.
        let threads = if rows < 132 { (width as u32 / 4).next_multiple_of(32).min(1024) } else { 256 };
        self.launch(stream, "baseline_rms_norm", rows as u32, threads, &mut arguments);
    }
}

fn as_argument<T>(value: &mut T) -> *mut c_void {
    ptr::from_mut(value).cast()
}
