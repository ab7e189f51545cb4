//! Launches through C on a GPU against `axiscap_run`, byte for byte. Without a GPU each test prints why it is
//! skipped. With AXISCAP_REQUIRE_GPU set it fails instead.

#[path = "abi/support.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::ptr;
use std::sync::Arc;

use axiscap::cpu::Element;
use axiscap::{Bound, Dtype};
use axiscap_c::{
    AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BAD_PROFILE, AXISCAP_BF16, AXISCAP_CAP, AXISCAP_CAP_NORM,
    AXISCAP_F16, AXISCAP_F32, AXISCAP_OVERLAP_NONE, AXISCAP_OVERLAP_PROGRAMMATIC, Device, DeviceTable, Job,
    ProfileFaults, RowStat, Status, axiscap_device_free, axiscap_device_open,
    axiscap_device_table_clear_faults, axiscap_device_table_faults, axiscap_device_table_free,
    axiscap_device_table_new, axiscap_device_table_update, axiscap_launch, axiscap_run,
    axiscap_table_set_bound,
};
use axiscap_testing::numbers::Random;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtrMut};
use half::{bf16, f16};

use support::{OpenTable, cap, failed, file, job, message, ok, open, table};

const ROWS: usize = 5;
const WIDTH: usize = 576;
const STRIDE: usize = 584;
/// Caps of the longest profile.
const DEPTH: usize = 2;

/// A GPU of the library, and a stream of another owner on it.
struct Gpu {
    device: *mut Device,
    stream: Arc<CudaStream>,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: the handle is freed once.
        unsafe { axiscap_device_free(self.device) };
    }
}

fn gpu() -> Option<Gpu> {
    let mut device = ptr::null_mut();
    // SAFETY: the pointer is writable.
    if unsafe { axiscap_device_open(0, &mut device) } != Status::Ok {
        assert!(std::env::var_os("AXISCAP_REQUIRE_GPU").is_none(), "{}", message());
        println!("SKIPPED, nothing was tested on a GPU: {}", message());
        return None;
    }
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    Some(Gpu { device, stream })
}

/// A table on a GPU that is freed with the test.
struct OnGpu(*mut DeviceTable);

impl Drop for OnGpu {
    fn drop(&mut self) {
        // SAFETY: the handle is freed once.
        unsafe { axiscap_device_table_free(self.0) };
    }
}

impl Gpu {
    fn upload(&self, table: &OpenTable) -> OnGpu {
        let mut on_gpu = ptr::null_mut();
        // SAFETY: the handles live, and the pointer is writable.
        ok(unsafe { axiscap_device_table_new(self.device, table.0, &mut on_gpu) });
        OnGpu(on_gpu)
    }

    fn stream(&self) -> *mut std::ffi::c_void {
        self.stream.cu_stream().cast()
    }

    fn faults(&self, table: &OnGpu) -> ProfileFaults {
        let mut faults = ProfileFaults::default();
        // SAFETY: table and stream live, and the pointer is writable.
        ok(unsafe { axiscap_device_table_faults(table.0, self.stream(), &mut faults) });
        faults
    }
}

/// A table with two profiles: two caps, and one.
fn caps(random: &mut Random) -> OpenTable {
    let bound = Bound::band(-0.1, 0.1).unwrap();
    let two = open(&file([1, 1].map(|block| (block, cap(random, WIDTH, bound)))));
    let one = open(&file([(1, cap(random, WIDTH, bound))]));
    table(&[&two, &one], 1)
}

/// The memory of a call, as bytes: h, x, residual, normed, weight, profiles, statistics.
#[derive(Clone, PartialEq)]
struct Memory([Vec<u8>; 7]);

impl Memory {
    fn new<E: Element + Pod>(random: &mut Random, profiles: [u32; ROWS]) -> Self {
        let mut rows = || {
            let values: Vec<E> = (0..ROWS * STRIDE).map(|_| E::from_f32(random.value())).collect();
            cast_slice(&values).to_vec()
        };
        let (h, x, residual, normed) = (rows(), rows(), rows(), rows());
        let weight: Vec<f32> = (0..WIDTH).map(|_| random.signed()).collect();
        let stats = vec![0; ROWS * DEPTH * size_of::<RowStat>()];
        let (weight, profiles) = (cast_slice(&weight).to_vec(), cast_slice(&profiles).to_vec());
        Self([h, x, residual, normed, weight, profiles, stats])
    }

    /// Describes a call on memory whose parts are at these addresses.
    fn job(dtype: Dtype, operation: u32, at: [usize; 7]) -> Job {
        let [h, x, residual, normed, weight, profiles, stats] = at;
        let adds = operation == AXISCAP_ADD_CAP || operation == AXISCAP_ADD_CAP_NORM;
        let norms = operation == AXISCAP_CAP_NORM || operation == AXISCAP_ADD_CAP_NORM;
        let used = |address, used| ptr::with_exposed_provenance_mut(if used { address } else { 0 });
        Job {
            operation,
            dtype: match dtype {
                Dtype::F32 => AXISCAP_F32,
                Dtype::F16 => AXISCAP_F16,
                Dtype::BF16 => AXISCAP_BF16,
            },
            rows: ROWS,
            h: used(h, true),
            h_stride: STRIDE,
            x: used(x, adds),
            x_stride: STRIDE,
            residual: used(residual, adds),
            residual_stride: STRIDE,
            normed: used(normed, norms),
            normed_stride: STRIDE,
            weight: used(weight, norms).cast_const().cast(),
            epsilon: 1e-5,
            profiles: ptr::with_exposed_provenance(profiles),
            profile_count: ROWS,
            stats: ptr::with_exposed_provenance_mut(stats),
            stat_count: ROWS * DEPTH,
            ..job(WIDTH)
        }
    }

    fn run(&mut self, dtype: Dtype, operation: u32, table: &OpenTable) {
        // Vectors of bytes may lie anywhere, so words are copied to where they are aligned.
        let mut words = self.0.each_ref().map(|part| vec![0_u64; part.len().div_ceil(8)]);
        for (words, part) in words.iter_mut().zip(&self.0) {
            cast_slice_mut(words)[..part.len()].copy_from_slice(part);
        }
        let at = words.each_mut().map(|words| words.as_mut_ptr().expose_provenance());
        // SAFETY: the job describes these words, which nothing else uses.
        ok(unsafe { axiscap_run(table.0, &Self::job(dtype, operation, at)) });
        for (words, part) in words.iter().zip(&mut self.0) {
            let length = part.len();
            part.copy_from_slice(&cast_slice(words)[..length]);
        }
    }

    fn launch(&mut self, dtype: Dtype, operation: u32, gpu: &Gpu, table: &OnGpu, overlap: u32) {
        let stream = &gpu.stream;
        let mut slices: [CudaSlice<u8>; 7] = self.0.each_ref().map(|part| stream.clone_htod(part).unwrap());
        let at = slices.each_mut().map(|slice| slice.device_ptr_mut(stream).0 as usize);
        let job = Self::job(dtype, operation, at);
        // SAFETY: the job describes these slices, which live until the copies below are done. All work is on
        // one stream.
        ok(unsafe { axiscap_launch(table.0, &job, gpu.stream(), overlap) });
        for (slice, part) in slices.iter().zip(&mut self.0) {
            *part = stream.clone_dtoh(slice).unwrap();
        }
        stream.synchronize().unwrap();
    }
}

fn compare<E: Element + Pod>(gpu: &Gpu, random: &mut Random) {
    let table = caps(random);
    let on_gpu = gpu.upload(&table);
    for operation in [AXISCAP_CAP, AXISCAP_ADD_CAP, AXISCAP_CAP_NORM, AXISCAP_ADD_CAP_NORM] {
        for overlap in [AXISCAP_OVERLAP_NONE, AXISCAP_OVERLAP_PROGRAMMATIC] {
            let mut expected = Memory::new::<E>(random, [1, 0, 2, 1, 2]);
            let (before, mut found) = (expected.clone(), expected.clone());
            expected.run(E::DTYPE, operation, &table);
            found.launch(E::DTYPE, operation, gpu, &on_gpu, overlap);
            assert!(found == expected && found != before, "{} {operation} {overlap}", E::DTYPE.name());
        }
    }
    assert_eq!(gpu.faults(&on_gpu), ProfileFaults::default());
}

#[test]
fn a_launch_has_the_bits_of_a_run() {
    let Some(gpu) = gpu() else { return };
    let random = &mut Random(1);
    compare::<f32>(&gpu, random);
    compare::<f16>(&gpu, random);
    compare::<bf16>(&gpu, random);
}

#[test]
fn new_bounds_reach_the_gpu() {
    let Some(gpu) = gpu() else { return };
    let random = &mut Random(2);
    let (table, other) = (caps(random), open(&file([(1, cap(random, WIDTH, Bound::NONE))])));
    let on_gpu = gpu.upload(&table);
    // SAFETY: the handles live, and nothing else uses the table that changes.
    unsafe {
        ok(axiscap_table_set_bound(table.0, 0, 3.0, f32::INFINITY));
        ok(axiscap_device_table_update(on_gpu.0, table.0, gpu.stream()));
        let other = support::table(&[&other], 1);
        let refused = axiscap_device_table_update(on_gpu.0, other.0, gpu.stream());
        failed(refused, Status::TableShape, "another shape");
    }
    let mut expected = Memory::new::<f32>(random, [1; ROWS]);
    let mut found = expected.clone();
    expected.run(Dtype::F32, AXISCAP_CAP, &table);
    found.launch(Dtype::F32, AXISCAP_CAP, &gpu, &on_gpu, AXISCAP_OVERLAP_NONE);
    assert!(found == expected);
}

#[test]
fn a_row_without_a_profile_is_told() {
    let Some(gpu) = gpu() else { return };
    let random = &mut Random(3);
    let on_gpu = gpu.upload(&caps(random));
    let mut memory = Memory::new::<f32>(random, [1, 9, 1, 1, 1]);
    let row = |memory: &Memory| memory.0[0][STRIDE * 4..][..WIDTH * 4].to_vec();
    let before = row(&memory);
    memory.launch(Dtype::F32, AXISCAP_CAP, &gpu, &on_gpu, AXISCAP_OVERLAP_NONE);
    assert!(row(&memory) == before);
    let flags = &memory.0[6][DEPTH * size_of::<RowStat>() + 8..][..4];
    assert_eq!(flags, AXISCAP_BAD_PROFILE.to_ne_bytes());
    assert_eq!(gpu.faults(&on_gpu), ProfileFaults { rows: 1, row: 1, profile: 9 });
    // SAFETY: table and stream live.
    ok(unsafe { axiscap_device_table_clear_faults(on_gpu.0, gpu.stream()) });
    assert_eq!(gpu.faults(&on_gpu), ProfileFaults::default());
}
