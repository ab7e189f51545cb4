//! The CUDA kernels on a GPU against the CPU twin, bit for bit except for NaN payloads. Without a GPU every
//! test prints why it is skipped. With AXISCAP_REQUIRE_GPU set it fails instead.

mod device;

use std::process::Command;

use axiscap::cpu::{self, Rows, RowsMut};
use axiscap::cuda::raw::KernelPath;
use axiscap::cuda::{
    self, CudaError, Device, DeviceRows, DriverError, Limits, Overlap, RowProfileBuffer, probe,
};
use axiscap::interop::cudarc::Job;
use axiscap::{Axis, Bound, Cap, CapTable, Dtype, Operation, RowStat};
use axiscap_testing::case::{self, Case, Profiles, Setup};
use axiscap_testing::numbers::Random;
use axiscap_testing::sweep::Space;
use cudarc::driver::{CudaSlice, DevicePtrMut, sys};
use device::{can_launch, check, device, device_alone, run};

/// Makes a case whose other properties depend on `turn`.
fn case(operation: Operation, rows: usize, width: usize, turn: u64) -> Case {
    Case {
        operation,
        dtype: Dtype::F32,
        rows,
        width,
        caps: [1, 2, 5][turn as usize % 3],
        gap: [0, 1, 16][turn as usize / 3 % 3],
        offset: usize::from(turn % 4 == 1),
        profiles: if turn % 5 < 2 { Profiles::Several } else { Profiles::One },
        aliased: turn % 7 < 3,
        path: None,
        limits: Limits::HOPPER,
        schedule: 0,
        seed: turn,
    }
}

fn sweep(cases: &[Case]) {
    let Some(device) = device() else { return };
    let mut launches = 0;
    for case in cases {
        let launched = check(&device, case);
        assert_eq!(launched, can_launch(&device, case), "{case:?}");
        launches += usize::from(launched);
    }
    println!("{launches} launches of {} cases gave the CPU twin's bits", cases.len());
}

/// A few shapes that reach every kernel. The sanitizers run them, and slow a kernel down a hundredfold.
#[test]
fn every_kernel_on_small_shapes() {
    let mut cases = Space::SMALL.covering();
    // The rows of clusters have one width, which is not small.
    for operation in Operation::ALL {
        for dtype in Dtype::ALL {
            for profiles in [Profiles::One, Profiles::Several, Profiles::SomeMissing] {
                let seed = cases.len() as u64;
                let path = Some(KernelPath::Cluster);
                let case = case(operation, 3, 8192, seed);
                cases.push(Case { dtype, caps: 1, offset: 0, profiles, path, ..case });
            }
        }
    }
    sweep(&cases);
}

#[test]
fn every_kernel_on_every_shape() {
    sweep(&Space::ODD.covering());
}

#[test]
fn rows_longer_than_registers() {
    sweep(&Space::LONG.covering());
}

/// More rows than are resident on the device, so staged kernels use each stage repeatedly.
#[test]
fn many_rows() {
    let Some(device) = device() else { return };
    for operation in Operation::ALL {
        for (rows, width) in [(3000, 4096), (9000, 576), (20000, 8)] {
            assert!(check(&device, &case(operation, rows, width, 3)));
            assert!(check(&device, &Case { dtype: Dtype::F16, ..case(operation, rows, width, 6) }));
        }
    }
}

/// Overlapping launches on the same rows, many times: every operation on every path, with one cap and with
/// several.
#[test]
fn programmatic_dependent_launches_wait_for_each_other() {
    let Some(device) = device() else { return };
    for operation in Operation::ALL {
        for path in KernelPath::ALL {
            for caps in [1, 5] {
                let width = if path == KernelPath::Cluster { 8192 } else { 4096 };
                // The first cap has strength 0.5, so it acts in every launch.
                let case = Case {
                    caps,
                    gap: 0,
                    offset: 0,
                    profiles: Profiles::One,
                    aliased: operation.adds(),
                    path: Some(path),
                    ..case(operation, 7, width, 1)
                };
                if !case.is_for_its_path() || !can_launch(&device, &case) {
                    continue;
                }
                let mut setup = Setup::<f32>::new(&case);
                let mut expected = setup.clone();
                for _ in 0..50 {
                    expected.on_twin(&case);
                }
                assert!(run(&mut setup, &device, &case, Overlap::Programmatic, 50), "{case:?}");
                setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
            }
        }
    }
}

/// An update takes the bounds from the caller's slice at the time of the call, even if the GPU could read the
/// slice later. The slice is in page-locked memory here, and the next turn changes it while the GPU is still
/// busy.
#[test]
fn updates_read_the_callers_memory_during_the_call() {
    let Some(device) = device() else { return };
    let case = Case { profiles: Profiles::One, ..case(Operation::Cap, 4096, 4096, 0) };
    let (rows, width) = (case.rows, case.width);
    let mut random = Random(11);
    let mut table = case::table(&case, &mut random);
    let values: Vec<f32> = (0..rows * width).map(|_| random.value()).collect();
    let stream = device.context().new_stream().expect("a stream");
    let on_gpu = device.upload(&table).expect("a table");
    let mut on_device = stream.clone_htod(&values).expect("device memory");
    let mut params = table.params().to_vec();
    let bytes = size_of_val(&params[..]);
    // SAFETY: the memory is the slice's. It is unregistered below, and the vector is not reallocated in
    // between.
    let register = unsafe { sys::cuMemHostRegister_v2(params.as_mut_ptr().cast(), bytes, 0) };
    assert_eq!(register, sys::CUresult::CUDA_SUCCESS);
    let set = |table: &mut CapTable, turn: usize| {
        table.set_bound(0, Bound::floor(0.25 * turn as f32).expect("a bound")).expect("a cap");
    };
    // More turns than updates that can be in progress.
    let turns = 0..20;
    for turn in turns.clone() {
        set(&mut table, turn);
        params.copy_from_slice(table.params());
        on_gpu.update_params(&params, (&*stream).into()).expect("an update");
        Job::cap(&mut on_device).launch(&on_gpu, &stream, Overlap::None).expect("a launch");
    }
    let found = stream.clone_dtoh(&on_device).expect("a copy back");
    stream.synchronize().expect("a copy back");
    // SAFETY: the memory was registered above.
    let unregister = unsafe { sys::cuMemHostUnregister(params.as_mut_ptr().cast()) };
    assert_eq!(unregister, sys::CUresult::CUDA_SUCCESS);
    let mut expected = values;
    for turn in turns {
        set(&mut table, turn);
        let rows = RowsMut::from_slice(&mut expected, width).expect("rows");
        cpu::Job::cap(rows).run(&table).expect("the twin");
    }
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// Stops cudarc from recording events, until this is dropped.
struct Untracked<'a>(&'a Device);

impl<'a> Untracked<'a> {
    fn new(device: &'a Device) -> Self {
        // SAFETY: the test is alone on the device and uses one stream, so no work has to be ordered by
        // events.
        unsafe { device.context().disable_event_tracking() };
        Self(device)
    }
}

impl Drop for Untracked<'_> {
    fn drop(&mut self) {
        // SAFETY: slices that were made without events are used on one stream only.
        unsafe { self.0.context().enable_event_tracking() };
    }
}

/// A captured launch is replayed while the table's values change, without a new launch or graph.
#[test]
fn a_captured_launch_sees_new_bounds() {
    let Some(device) = device_alone() else { return };
    let case = case(Operation::Cap, 5, 4096, 0);
    let mut random = Random(7);
    let mut table = case::table(&Case { profiles: Profiles::One, ..case }, &mut random);
    let values: Vec<f32> = (0..5 * 4096).map(|_| random.value()).collect();
    // cudarc would record its events into the capture, where they have no effect later.
    let _untracked = Untracked::new(&device);
    let stream = device.context().new_stream().expect("a stream");
    let on_gpu = device.upload(&table).expect("a table");
    let mut rows = stream.clone_htod(&values).expect("device memory");
    stream.synchronize().expect("a copy");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture");
    Job::cap(&mut rows).launch(&on_gpu, &stream, Overlap::None).expect("a launch");
    let inside = on_gpu.update_params(table.params(), (&*stream).into());
    assert_eq!(inside, Err(CudaError::Capturing));
    assert_eq!(on_gpu.faults((&*stream).into()), Err(CudaError::Capturing));
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph");

    let mut expected = values.clone();
    for turn in 0..4 {
        table.set_bound(0, Bound::floor(0.5 * turn as f32).expect("a bound")).expect("a cap");
        on_gpu.update_params(table.params(), (&*stream).into()).expect("an update");
        graph.launch().expect("a replay");
        let rows = RowsMut::from_slice(&mut expected, 4096).expect("rows");
        cpu::Job::cap(rows).run(&table).expect("the twin");
    }
    let found = stream.clone_dtoh(&rows).expect("a copy back");
    stream.synchronize().expect("a copy back");
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// A captured launch is replayed while the rows' profiles change, without a new launch or graph. A few rows
/// and many have different kernels.
#[test]
fn a_captured_launch_sees_new_profiles() {
    let Some(device) = device_alone() else { return };
    for rows in [7, 600] {
        replay_with_new_profiles(&device, rows, 4096);
    }
}

/// Makes a table in which two profiles have the same axis with disjoint bands, and the third has two caps.
fn table_of_three_profiles(width: usize, random: &mut Random) -> CapTable {
    let mut axis = || {
        let direction: Vec<f32> = (0..width).map(|_| random.signed()).collect();
        Axis::from_direction(&direction).expect("a direction")
    };
    let (first, second) = (axis(), axis());
    let cap = |axis: &Axis, lo, hi| Cap::new(axis.clone(), Bound::band(lo, hi).expect("a bound"));
    let (low, high) = (cap(&first, 0.25, 0.5), cap(&first, 1.0, 1.5));
    let (other, last) = (cap(&second, -0.5, -0.25), cap(&first, 0.75, 2.0));
    CapTable::with_profiles(&[&[&low], &[&high], &[&other, &last]]).expect("a table")
}

/// Replays a captured launch, each time after other indices were written, and compares the rows and
/// statistics of every replay with the CPU's. The caller's slice is in page-locked memory, which the GPU
/// could read later. It changes after each call, while the GPU is still busy.
fn replay_with_new_profiles(device: &Device, rows: usize, width: usize) {
    // More turns than updates that can be in progress.
    const TURNS: usize = 12;
    let mut random = Random(23);
    let table = table_of_three_profiles(width, &mut random);
    let values: Vec<f32> = (0..rows * width).map(|_| random.value()).collect();
    let old = RowStat { before: 77.0, after: 77.0, flags: 77 };
    let mut expected_stats = vec![old; rows * table.max_caps_per_row()];
    // cudarc would record its events into the capture, where they have no effect later.
    let _untracked = Untracked::new(device);
    let stream = device.context().new_stream().expect("a stream");
    let on_gpu = device.upload(&table).expect("a table");
    let buffer = RowProfileBuffer::new(device, rows).expect("a buffer");
    assert_eq!(buffer.rows(), rows);
    let mut h = stream.clone_htod(&values).expect("device memory");
    let mut stats = stream.clone_htod(&expected_stats).expect("device memory");
    let mut ballast = stream.alloc_zeros::<u8>(256 << 20).expect("device memory");
    let mut results: Vec<_> = (0..TURNS)
        .map(|_| {
            (stream.clone_dtod(&h).expect("device memory"), stream.clone_dtod(&stats).expect("device memory"))
        })
        .collect();
    let mut indices = vec![u32::MAX; rows];
    let bytes = size_of_val(&indices[..]);
    // SAFETY: the memory is the slice's. It is unregistered below, and the vector is not reallocated in
    // between.
    let register = unsafe { sys::cuMemHostRegister_v2(indices.as_mut_ptr().cast(), bytes, 0) };
    assert_eq!(register, sys::CUresult::CUDA_SUCCESS);
    stream.synchronize().expect("a copy");

    let address = h.device_ptr_mut(&stream).0;
    let job = cuda::Job::cap(DeviceRows { dtype: Dtype::F32, address, count: rows, stride: width })
        .row_profiles(buffer.address())
        .stats(stats.device_ptr_mut(&stream).0);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture");
    // SAFETY: the job's memory lives until the stream is synchronised below, and only this stream uses it.
    unsafe { job.launch(&on_gpu, (&*stream).into(), Overlap::None) }.expect("a launch");
    assert_eq!(buffer.write(&vec![0; rows], (&*stream).into()), Err(CudaError::Capturing));
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph");
    let too_many = buffer.write(&vec![0; rows + 1], (&*stream).into());
    assert!(matches!(too_many, Err(CudaError::TableShape { .. })), "{too_many:?}");

    // Every third turn replaces the indices of the first half only.
    let changed = |turn: usize| if turn % 3 == 2 { rows / 2 } else { rows };
    let profile = |turn: usize, row: usize| Random((turn * rows + row) as u64).below(4) as u32;
    // The GPU is busy while the first turns are submitted.
    for _ in 0..30 {
        stream.memset_zeros(&mut ballast).expect("a memset");
    }
    for (turn, (rows_after, stats_after)) in results.iter_mut().enumerate() {
        let written = &mut indices[..changed(turn)];
        written.iter_mut().enumerate().for_each(|(row, index)| *index = profile(turn, row));
        buffer.write(written, (&*stream).into()).expect("an update");
        // No profile of the table. A row that gets it would be a fault.
        indices.fill(u32::MAX);
        graph.launch().expect("a replay");
        stream.memcpy_dtod(&h, rows_after).expect("a copy");
        stream.memcpy_dtod(&stats, stats_after).expect("a copy");
    }
    stream.synchronize().expect("the replays");
    // SAFETY: the memory was registered above.
    let unregister = unsafe { sys::cuMemHostUnregister(indices.as_mut_ptr().cast()) };
    assert_eq!(unregister, sys::CUresult::CUDA_SUCCESS);
    assert_eq!(on_gpu.faults((&*stream).into()), Ok(None));

    let (mut expected, mut profiles) = (values, vec![0; rows]);
    let (mut capped, mut let_be) = (0, 0);
    for (turn, (rows_after, stats_after)) in results.iter().enumerate() {
        let (found, found_stats) = (stream.clone_dtoh(rows_after), stream.clone_dtoh(stats_after));
        let (found, found_stats) = (found.expect("a copy back"), found_stats.expect("a copy back"));
        stream.synchronize().expect("a copy back");
        for (row, index) in profiles[..changed(turn)].iter_mut().enumerate() {
            *index = profile(turn, row);
        }
        let to = RowsMut::from_slice(&mut expected, width).expect("rows");
        let job = cpu::Job::cap(to).row_profiles(&profiles).stats(&mut expected_stats);
        job.run(&table).expect("the CPU");
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&expected), "{rows} rows, turn {turn}");
        let differs = found_stats.iter().zip(&expected_stats).position(|(a, b)| {
            a.before.to_bits() != b.before.to_bits()
                || a.after.to_bits() != b.after.to_bits()
                || a.flags != b.flags
        });
        assert_eq!(differs, None, "{rows} rows, turn {turn}, statistics");
        capped += expected_stats.iter().filter(|stat| stat.engaged()).count();
        let_be += profiles.iter().filter(|&&profile| profile == 0).count();
    }
    assert!(capped > TURNS && let_be > TURNS, "{capped} times a cap engaged, {let_be} rows had profile 0");
    println!(
        "{TURNS} replays on {rows} rows gave the CPU's bits; caps engaged {capped} times, profile 0 left {let_be} rows"
    );
}

fn current() -> sys::CUcontext {
    let mut current = std::ptr::null_mut();
    // SAFETY: the pointer is valid and the driver is initialised.
    assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut current) }, sys::CUresult::CUDA_SUCCESS);
    current
}

/// The context that was current before a call is current after it, a foreign context or none.
#[test]
fn the_threads_context_is_restored() {
    let Some(device) = device() else { return };
    let device: &Device = &device;
    let table = case::table(&case(Operation::Cap, 1, 64, 1), &mut Random(1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(current().is_null());
            let _table = device.upload(&table).expect("a table");
            let _again = Device::open(0).expect("a device");
            assert!(current().is_null());
        });
    });
}

/// The same when the last device is dropped, and the primary context with it. The tests share a device that
/// is never dropped, so this test runs itself again in a separate process.
#[test]
fn the_threads_context_is_restored_when_the_last_device_is_dropped() {
    const ALONE: &str = "AXISCAP_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return drop_the_last_device();
    }
    let Some(_device) = device_alone() else { return };
    let this = std::env::current_exe().expect("this program");
    let name = "the_threads_context_is_restored_when_the_last_device_is_dropped";
    let mut command = Command::new(this);
    let child = command.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().expect("a process");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

fn drop_the_last_device() {
    let device = match Device::open(0) {
        Ok(device) => device,
        // The process that started this one has exclusive use of the GPU.
        Err(CudaError::Driver(DriverError {
            code: sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE, ..
        })) => {
            return println!("SKIPPED: the GPU is in exclusive mode");
        }
        Err(error) => panic!("{error}"),
    };
    assert!(current().is_null());
    drop(device);
    assert!(current().is_null());
    let device = Device::open(0).expect("a device");
    let mut foreign = std::ptr::null_mut();
    // SAFETY: the pointer is valid, and GPU 0 exists. The new context becomes current.
    let created = unsafe { sys::cuCtxCreate_v2(&mut foreign, 0, 0) };
    assert_eq!(created, sys::CUresult::CUDA_SUCCESS);
    drop(device);
    assert_eq!(current(), foreign);
    // SAFETY: the context was created above, and is destroyed once.
    assert_eq!(unsafe { sys::cuCtxDestroy_v2(foreign) }, sys::CUresult::CUDA_SUCCESS);
}

/// Every form of a call on `CudaSlice`s against the CPU. A slice that is too short is refused.
#[test]
fn slices_in_every_form() {
    let Some(device) = device() else { return };
    let (rows, width) = (9, 1000);
    let mut random = Random(3);
    let table = case::table(&Case { width, ..case(Operation::Cap, rows, width, 0) }, &mut random);
    let mut values = |count: usize| (0..count).map(|_| random.value()).collect::<Vec<f32>>();
    let (x, r, weight) = (values(rows * width), values(rows * width), values(width));
    let on_gpu = device.upload(&table).expect("a table");
    let stream = device.context().new_stream().expect("a stream");
    let up = |values: &[f32]| stream.clone_htod(values).expect("device memory");
    let (gpu_x, gpu_r, gpu_weight) = (up(&x), up(&r), up(&weight));
    let epsilon = case::epsilon();
    let (mut capped, mut sum) = (x.clone(), vec![0.0; rows * width]);
    let (mut of_capped, mut of_sum) = (sum.clone(), sum.clone());
    let from = |values| Rows::from_slice(values, width).expect("rows");
    let to = |values| RowsMut::from_slice(values, width).expect("rows");
    let job = cpu::Job::cap(to(&mut capped)).norm(&weight, epsilon, to(&mut of_capped));
    job.run(&table).expect("the CPU");
    let job = cpu::Job::add_cap_into(from(&x), from(&r), to(&mut sum));
    job.norm(&weight, epsilon, to(&mut of_sum)).run(&table).expect("the CPU");

    let same = |what: &str, found: &CudaSlice<f32>, expected: &[f32]| {
        let found = stream.clone_dtoh(found).expect("a copy back");
        stream.synchronize().expect("a copy back");
        assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
    };
    let launch = |job: Job<'_, f32>| job.launch(&on_gpu, &stream, Overlap::None);
    let empty = || up(&vec![0.0; rows * width]);
    let mut h = up(&x);
    launch(Job::cap(&mut h)).expect("cap");
    same("cap", &h, &capped);
    let (mut h, mut out) = (up(&x), empty());
    launch(Job::cap(&mut h).norm(&gpu_weight, epsilon, &mut out)).expect("cap + norm");
    same("cap + norm", &h, &capped);
    same("cap + norm, normed", &out, &of_capped);
    let mut h = up(&r);
    launch(Job::add_cap(&gpu_x, &mut h)).expect("add + cap");
    same("add + cap", &h, &sum);
    let mut h = empty();
    launch(Job::add_cap_into(&gpu_x, &gpu_r, &mut h)).expect("add + cap into");
    same("add + cap into", &h, &sum);
    let (mut h, mut out) = (up(&r), empty());
    launch(Job::add_cap(&gpu_x, &mut h).norm(&gpu_weight, epsilon, &mut out)).expect("all");
    same("add + cap + norm", &h, &sum);
    same("add + cap + norm, normed", &out, &of_sum);
    let (mut h, mut out) = (empty(), empty());
    let job = Job::add_cap_into(&gpu_x, &gpu_r, &mut h).norm(&gpu_weight, epsilon, &mut out);
    launch(job).expect("all into");
    same("add + cap + norm into", &h, &sum);
    same("add + cap + norm into, normed", &out, &of_sum);

    let mut short = up(&x[width..]);
    let refused = launch(Job::add_cap(&gpu_x, &mut short));
    assert!(matches!(refused, Err(CudaError::Invalid(_))), "{refused:?}");
}

/// Probing never panics on any machine, and errors name a remedy.
#[test]
fn probing_never_panics() {
    match probe() {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => {
            assert!(matches!(
                error,
                CudaError::NoDriver { .. } | CudaError::NoDevice { .. } | CudaError::Driver(_)
            ));
            println!("{error}");
        }
    }
    match Device::open(1000) {
        Ok(device) => panic!("there is no GPU 1000: {device:?}"),
        Err(error) => assert!(error.to_string().len() > 20, "{error}"),
    }
}
