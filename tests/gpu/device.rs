//! Cases on a real GPU: the emulator's, through the real driver.

use std::ops::Deref;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axiscap::cuda::{CudaError, Device, DeviceRows, Dtype, Job, Limits, Overlap, Path, Plan};
use axiscap::interop::cudarc as slices;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use half::{bf16, f16};

use crate::case::{Buffer, Case, Setup, Value};

/// The GPU, for as long as a test runs: shared with the tests beside it, or alone.
pub(crate) struct Gpu {
    device: &'static Device,
    _turn: Turn,
}

#[expect(dead_code, reason = "held, not read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

static TURNS: RwLock<()> = RwLock::new(());

impl Deref for Gpu {
    type Target = Device;

    fn deref(&self) -> &Device {
        self.device
    }
}

/// The GPU, or why there is none. `AXISCAP_REQUIRE_GPU` turns a skipped test into a failed one.
pub(crate) fn device() -> Option<Gpu> {
    // Another test's panic says nothing about this one.
    let turn = Turn::Shared(TURNS.read().unwrap_or_else(PoisonError::into_inner));
    Some(Gpu { device: open()?, _turn: turn })
}

/// The GPU without any other test on it: one that frees memory waits for all streams, which a capture does not survive.
pub(crate) fn device_alone() -> Option<Gpu> {
    let turn = Turn::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner));
    Some(Gpu { device: open()?, _turn: turn })
}

fn open() -> Option<&'static Device> {
    static DEVICE: OnceLock<Result<Device, CudaError>> = OnceLock::new();
    match DEVICE.get_or_init(|| Device::open(0)) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("AXISCAP_REQUIRE_GPU").is_some() => panic!("{error}"),
        Err(error) => {
            println!("SKIPPED, nothing was tested on a GPU: {error}");
            None
        }
    }
}

/// The device's limits, with no more blocks than the case has: a whole GPU would give every row of a test a block of its
/// own, and no block or group would ever go on to a second one.
fn limits(device: &Device, case: &Case) -> Limits {
    let own = device.info().limits;
    Limits {
        multiprocessors: own.multiprocessors.min(case.limits.multiprocessors),
        blocks_per_multiprocessor: own.blocks_per_multiprocessor.min(case.limits.blocks_per_multiprocessor),
        ..own
    }
}

/// Whether the device can launch a case at all: the staged kernels need shared memory for at least one row.
pub(crate) fn can_launch(device: &Device, case: &Case) -> bool {
    let inputs = if case.operation.adds() { 2 } else { 1 };
    let row = inputs * case.width.next_multiple_of(512) * case.dtype.size();
    // And the slots of its one group.
    case.path != Some(Path::Staged) || row + 256 <= device.info().limits.shared_per_block as usize
}

/// Device memory that holds a buffer at the same distance from 16-byte alignment.
struct Copy {
    memory: CudaSlice<u8>,
    pad: usize,
    rows: DeviceRows,
}

impl Copy {
    fn new<E: Value>(stream: &std::sync::Arc<CudaStream>, buffer: &mut Buffer<E>) -> Self {
        let host = buffer.rows();
        let (elements, start) = buffer.memory();
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let first = start * size_of::<E>();
        // Device allocations are aligned to 256 bytes.
        let pad = (host.address as usize).wrapping_sub(first) % 16;
        let mut padded = vec![0xff; pad];
        padded.extend_from_slice(bytes);
        let memory = stream.clone_htod(&padded).expect("device memory");
        let address = memory.device_ptr(stream).0 + (pad + first) as u64;
        Self { memory, pad, rows: DeviceRows { address, stride: host.stride } }
    }

    fn back<E: Value>(&self, stream: &std::sync::Arc<CudaStream>, buffer: &mut Buffer<E>) {
        let bytes = stream.clone_dtoh(&self.memory).expect("a copy back");
        stream.synchronize().expect("a copy back");
        let (elements, _) = buffer.memory();
        bytemuck::cast_slice_mut::<E, u8>(elements).copy_from_slice(&bytes[self.pad..]);
    }
}

impl<E: Value> Setup<E> {
    /// Runs it on the GPU, `times` times one after the other; false where the path cannot take it.
    pub(crate) fn on_gpu(&mut self, device: &Device, case: &Case, overlap: Overlap, times: usize) -> bool {
        let stream = device.context().new_stream().expect("a stream");
        let table = device.upload(&self.table).expect("a table");
        let (h, x, r) = (
            Copy::new(&stream, &mut self.h),
            Copy::new(&stream, &mut self.x),
            Copy::new(&stream, &mut self.r),
        );
        let (y, weight) = (Copy::new(&stream, &mut self.y), Copy::new(&stream, &mut self.weight));
        let profiles = stream.clone_htod(&[self.profiles.as_slice(), &[0]].concat()).expect("device memory");
        let mut stats = stream.clone_htod(&self.stats).expect("device memory");
        let host = self.job(case);
        let job = Job {
            rows: h.rows,
            add: host.add.map(|_| [if case.aliased { h.rows } else { x.rows }, r.rows]),
            norm: host.norm.map(|norm| axiscap::cuda::DeviceNorm {
                weight: weight.rows.address,
                out: y.rows,
                ..norm
            }),
            profiles: host.profiles.map(|_| profiles.device_ptr(&stream).0),
            stats: host.stats.map(|_| stats.device_ptr_mut(&stream).0),
            ..host
        };
        let plan = Plan::on_path(&job, &table.view(), &limits(device, case), case.path).expect("a plan");
        let Some(plan) = plan else { return false };
        for _ in 0..times {
            // SAFETY: the job's memory lives until after the synchronisation below, on this stream alone.
            unsafe { device.launch_plan(&plan, (&*stream).into(), overlap) }.expect("a launch");
        }
        stream.synchronize().expect("the kernel ran");
        h.back(&stream, &mut self.h);
        x.back(&stream, &mut self.x);
        r.back(&stream, &mut self.r);
        y.back(&stream, &mut self.y);
        stream.memcpy_dtoh(&stats, &mut self.stats).expect("a copy back");
        stream.synchronize().expect("a copy back");
        self.faults = table.faults((&*stream).into()).expect("the record of faults");
        table.clear_faults((&*stream).into()).expect("the record of faults");
        assert_eq!(table.faults((&*stream).into()).expect("the record of faults"), None);
        true
    }
}

/// Checks one case on the GPU against the CPU twin; false where there is nothing to launch.
pub(crate) fn check(device: &Device, case: &Case) -> bool {
    match case.dtype {
        Dtype::F32 => check_rows::<f32>(device, case),
        Dtype::F16 => check_rows::<f16>(device, case),
        Dtype::BF16 => check_rows::<bf16>(device, case),
    }
}

fn check_rows<E: Value>(device: &Device, case: &Case) -> bool {
    let mut setup = Setup::<E>::new(case);
    let mut expected = setup.clone();
    expected.on_twin(case);
    let ran = setup.on_gpu(device, case, Overlap::None, 1);
    if ran {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    ran
}

/// In-place caps on a `CudaSlice`, the safe way.
pub(crate) fn cap_slice(
    stream: &CudaStream,
    table: &axiscap::cuda::DeviceTable,
    rows: &mut CudaSlice<f32>,
    options: slices::SliceOptions<'_>,
) {
    slices::cap_slice(stream, table, rows, options).expect("a launch");
}
