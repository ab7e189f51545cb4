//! Launches on a real GPU, through the real driver.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axiscap::Dtype;
use axiscap::cuda::raw::{KernelPath, Plan};
use axiscap::cuda::{CudaError, Device, DeviceRows, Job, Limits, Overlap};
use axiscap::op::{Norm, Summands};
use axiscap_testing::case::{Buffer, Case, Setup, Value};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use half::{bf16, f16};

/// The GPU for one test, shared with parallel tests or not.
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

/// Opens the GPU, or prints why there is none. `AXISCAP_REQUIRE_GPU` turns a skipped test into a failed one.
pub(crate) fn device() -> Option<Gpu> {
    // The panic of another test is no reason for this one to fail.
    let turn = Turn::Shared(TURNS.read().unwrap_or_else(PoisonError::into_inner));
    Some(Gpu { device: open()?, _turn: turn })
}

/// Opens the GPU without other tests on it. A test that frees memory waits for all streams, which breaks
/// captures.
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

/// Returns the device's limits, with no more blocks than in the case's limits. On a whole GPU every row of a
/// test would get a separate block, and no block or group would have a second row.
fn limits(device: &Device, case: &Case) -> Limits {
    let own = device.info().limits;
    Limits {
        multiprocessors: own.multiprocessors.min(case.limits.multiprocessors),
        blocks_per_multiprocessor: own.blocks_per_multiprocessor.min(case.limits.blocks_per_multiprocessor),
        ..own
    }
}

/// Whether the device can launch a case. The staged kernels need shared memory for at least one row, and those of
/// clusters need clusters.
pub(crate) fn can_launch(device: &Device, case: &Case) -> bool {
    if case.path == Some(KernelPath::Cluster) {
        return device.info().limits.clusters;
    }
    let inputs = if case.operation.adds() { 2 } else { 1 };
    let row = inputs * case.width.next_multiple_of(512) * case.dtype.size();
    // The slots of one group take 256 bytes.
    case.path != Some(KernelPath::Staged) || row + 256 <= device.info().limits.shared_per_block as usize
}

/// A buffer in device memory, with the same distance from 16-byte alignment.
struct Copy {
    memory: CudaSlice<u8>,
    pad: usize,
    rows: DeviceRows,
}

impl Copy {
    fn new<E: Value>(stream: &Arc<CudaStream>, buffer: &mut Buffer<E>) -> Self {
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
        Self { memory, pad, rows: DeviceRows { address, ..host } }
    }

    fn back<E: Value>(&self, stream: &Arc<CudaStream>, buffer: &mut Buffer<E>) {
        let bytes = stream.clone_dtoh(&self.memory).expect("a copy back");
        stream.synchronize().expect("a copy back");
        let (elements, _) = buffer.memory();
        bytemuck::cast_slice_mut::<E, u8>(elements).copy_from_slice(&bytes[self.pad..]);
    }
}

/// Runs a launch on the GPU, `times` times in succession. False if the path cannot take it.
pub(crate) fn run<E: Value>(
    setup: &mut Setup<E>,
    device: &Device,
    case: &Case,
    overlap: Overlap,
    times: usize,
) -> bool {
    let stream = device.context().new_stream().expect("a stream");
    let table = device.upload(&setup.table).expect("a table");
    let (h, x, r) = (
        Copy::new(&stream, &mut setup.h),
        Copy::new(&stream, &mut setup.x),
        Copy::new(&stream, &mut setup.r),
    );
    let (y, weight) = (Copy::new(&stream, &mut setup.y), Copy::new(&stream, &mut setup.weight));
    let profiles = stream.clone_htod(&[setup.profiles.as_slice(), &[0]].concat()).expect("device memory");
    let mut stats = stream.clone_htod(&setup.stats).expect("device memory");
    let host = setup.job(case);
    let first = if case.aliased { h.rows } else { x.rows };
    let job = Job {
        rows: h.rows,
        add: host.add.map(|_| Summands { x: first, residual: Some(r.rows) }),
        norm: host.norm.map(|norm| Norm { weight: weight.rows.address, out: y.rows, ..norm }),
        row_profiles: host.row_profiles.map(|_| profiles.device_ptr(&stream).0),
        stats: host.stats.map(|_| stats.device_ptr_mut(&stream).0),
    };
    let plan = Plan::on_path(&job, &table.view(), &limits(device, case), case.path).expect("a plan");
    let Some(plan) = plan else { return false };
    for _ in 0..times {
        // SAFETY: the job's memory lives until after the synchronisation below, and only this stream uses it.
        unsafe { plan.launch(device, (&*stream).into(), overlap) }.expect("a launch");
    }
    stream.synchronize().expect("the kernel ran");
    h.back(&stream, &mut setup.h);
    x.back(&stream, &mut setup.x);
    r.back(&stream, &mut setup.r);
    y.back(&stream, &mut setup.y);
    stream.memcpy_dtoh(&stats, &mut setup.stats).expect("a copy back");
    stream.synchronize().expect("a copy back");
    setup.faults = table.faults((&*stream).into()).expect("the record of faults");
    table.clear_faults((&*stream).into()).expect("the record of faults");
    assert_eq!(table.faults((&*stream).into()).expect("the record of faults"), None);
    true
}

/// Checks one case on the GPU against the CPU twin. False if there is no launch.
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
    let ran = run(&mut setup, device, case, Overlap::None, 1);
    if ran {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    ran
}
