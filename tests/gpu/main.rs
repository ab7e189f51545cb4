//! The CUDA kernels on a GPU, against the CPU twin, bit for bit (NaN payloads aside). Without a GPU every test says
//! why it is skipped; with AXISCAP_REQUIRE_GPU set it fails instead.
#![cfg(feature = "cuda")]

#[allow(dead_code, reason = "shared with tests/emulator, which needs the rest")]
#[path = "../support/case.rs"]
mod case;
mod device;
#[allow(dead_code, reason = "shared with tests/emulator, which needs the rest")]
#[path = "../support/literal.rs"]
mod literal;
#[allow(dead_code, reason = "shared with tests/cpu, which needs the rest")]
#[path = "../support/numbers.rs"]
mod numbers;
#[allow(dead_code, reason = "shared with tests/emulator, which needs the rest")]
#[path = "../support/sweep.rs"]
mod sweep;
#[path = "../support/twin.rs"]
mod twin;

use axiscap::backend::{Backend, Call, Cpu};
use axiscap::cpu::{self, Norm, Options, Rows, RowsMut};
use axiscap::cuda::{CudaError, Device, Dtype, Limits, Operation, Overlap, Path, probe};
use axiscap::interop::cudarc::{self as slices, ReadSlice, SliceNorm, SliceOptions};
use axiscap::{Bound, CapTable, RowStat};
use case::{Case, Profiles, Setup};
use cudarc::driver::sys;
use device::{can_launch, check, device, device_alone};
use numbers::Random;
use sweep::Space;

/// Rows as they come, their other features by turns.
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

fn sweep(space: Space) {
    let Some(device) = device() else { return };
    let cases = space.covering();
    let mut launches = 0;
    for case in &cases {
        let launched = check(&device, case);
        assert_eq!(launched, can_launch(&device, case), "{case:?}");
        launches += usize::from(launched);
    }
    println!("{launches} launches of {} cases gave the CPU twin's bits", cases.len());
}

/// A few shapes that reach every kernel: what the sanitizers run, which slow a kernel down a hundredfold.
#[test]
fn every_kernel_on_small_shapes() {
    sweep(Space::SMALL);
}

#[test]
fn every_kernel_on_every_shape() {
    sweep(Space::ODD);
}

#[test]
fn rows_longer_than_registers() {
    sweep(Space::LONG);
}

/// More rows than fit on the device at once: staged kernels go round their stages.
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

/// Launches that may overlap, one on the other's rows, many times in a row: every operation on every path, with one cap
/// and with several.
#[test]
fn programmatic_dependent_launches_wait_for_each_other() {
    let Some(device) = device() else { return };
    for operation in Operation::ALL {
        for path in Path::ALL {
            for caps in [1, 5] {
                // Aligned, so that each path takes it; the first cap goes half the way, so that it acts again and again.
                let case = Case {
                    caps,
                    gap: 0,
                    offset: 0,
                    profiles: Profiles::One,
                    aliased: operation.adds(),
                    path: Some(path),
                    ..case(operation, 7, 4096, 1)
                };
                let mut setup = Setup::<f32>::new(&case);
                let mut expected = setup.clone();
                for _ in 0..50 {
                    expected.on_twin(&case);
                }
                assert!(setup.on_gpu(&device, &case, Overlap::Programmatic, 50), "{case:?}");
                setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
            }
        }
    }
}

/// New bounds come from the caller's slice as it was at the call, also where the GPU could read it later: page-locked
/// memory, which the next turn changes while the GPU is still busy with the ones before.
#[test]
fn updates_do_not_look_at_the_callers_memory_later() {
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
    // SAFETY: the slice's own memory, registered until below and not moved meanwhile.
    let register = unsafe { sys::cuMemHostRegister_v2(params.as_mut_ptr().cast(), bytes, 0) };
    assert_eq!(register, sys::CUresult::CUDA_SUCCESS);
    let set = |table: &mut CapTable, turn: usize| {
        table.set_bound(0, Bound::floor(0.25 * turn as f32).expect("a bound")).expect("a cap");
    };
    // More turns than there can be updates under way.
    let turns = 0..20;
    for turn in turns.clone() {
        set(&mut table, turn);
        params.copy_from_slice(table.params());
        on_gpu.update_params(&params, (&*stream).into()).expect("an update");
        slices::cap_slice(&stream, &on_gpu, &mut on_device, SliceOptions::default()).expect("a launch");
    }
    let found = stream.clone_dtoh(&on_device).expect("a copy back");
    stream.synchronize().expect("a copy back");
    // SAFETY: registered above.
    let unregister = unsafe { sys::cuMemHostUnregister(params.as_mut_ptr().cast()) };
    assert_eq!(unregister, sys::CUresult::CUDA_SUCCESS);
    let mut expected = values;
    for turn in turns {
        set(&mut table, turn);
        let rows = RowsMut::from_slice(&mut expected, width).expect("rows");
        cpu::cap_rows(&table, rows, Options::new()).expect("the twin");
    }
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// Keeps cudarc from recording events of its own, until dropped.
struct Untracked<'a>(&'a Device);

impl<'a> Untracked<'a> {
    fn new(device: &'a Device) -> Self {
        // SAFETY: the test that does this is alone on the device and uses one stream, so that there is nothing to order.
        unsafe { device.context().disable_event_tracking() };
        Self(device)
    }
}

impl Drop for Untracked<'_> {
    fn drop(&mut self) {
        // SAFETY: slices made meanwhile are used on the one stream only.
        unsafe { self.0.context().enable_event_tracking() };
    }
}

/// A captured launch, replayed while the table's values change: no new launch, no new graph.
#[test]
fn a_captured_launch_sees_new_bounds() {
    let Some(device) = device_alone() else { return };
    let case = case(Operation::Cap, 5, 4096, 0);
    let mut random = Random(7);
    let mut table = case::table(&Case { profiles: Profiles::One, ..case }, &mut random);
    let values: Vec<f32> = (0..5 * 4096).map(|_| random.value()).collect();
    // Events of cudarc's own would be recorded into the capture, and be of no use to anyone after it.
    let _untracked = Untracked::new(&device);
    let stream = device.context().new_stream().expect("a stream");
    let on_gpu = device.upload(&table).expect("a table");
    let mut rows = stream.clone_htod(&values).expect("device memory");
    stream.synchronize().expect("a copy");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture");
    device::cap_slice(&stream, &on_gpu, &mut rows, SliceOptions::default());
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
        axiscap::cpu::cap_rows(
            &table,
            RowsMut::from_slice(&mut expected, 4096).expect("rows"),
            Options::new(),
        )
        .expect("the twin");
    }
    let found = stream.clone_dtoh(&rows).expect("a copy back");
    stream.synchronize().expect("a copy back");
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
}

fn current() -> sys::CUcontext {
    let mut current = std::ptr::null_mut();
    // SAFETY: the pointer is valid and the driver is loaded.
    assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut current) }, sys::CUresult::CUDA_SUCCESS);
    current
}

/// What was current on the thread before is current after, a foreign context or none.
#[test]
fn the_threads_context_is_put_back() {
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

/// Also when the last device goes, and with it the primary context. The tests share a device that stays, so that this
/// one runs itself again, alone in a process.
#[test]
fn the_threads_context_is_put_back_when_the_last_device_goes() {
    const ALONE: &str = "AXISCAP_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return the_last_device_goes();
    }
    let Some(_device) = device_alone() else { return };
    let this = std::env::current_exe().expect("this program");
    let name = "the_threads_context_is_put_back_when_the_last_device_goes";
    let mut command = std::process::Command::new(this);
    let child = command.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().expect("a process");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

fn the_last_device_goes() {
    let device = match Device::open(0) {
        Ok(device) => device,
        // The process that started this one has the GPU to itself.
        Err(CudaError::Driver { code: 46, .. }) => return println!("SKIPPED: the GPU is in exclusive mode"),
        Err(error) => panic!("{error}"),
    };
    assert!(current().is_null());
    drop(device);
    assert!(current().is_null());
    let device = Device::open(0).expect("a device");
    let mut foreign = std::ptr::null_mut();
    // SAFETY: the pointer is valid, and there is a GPU 0. It becomes current.
    let created = unsafe { sys::cuCtxCreate_v2(&mut foreign, 0, 0) };
    assert_eq!(created, sys::CUresult::CUDA_SUCCESS);
    drop(device);
    assert_eq!(current(), foreign);
    // SAFETY: created above, destroyed once.
    assert_eq!(unsafe { sys::cuCtxDestroy_v2(foreign) }, sys::CUresult::CUDA_SUCCESS);
}

/// The same call through the trait, on the GPU and on the CPU.
#[test]
fn backends_agree() {
    let Some(device) = device() else { return };
    let case = Case { profiles: Profiles::Several, ..case(Operation::AddCap, 33, 1000, 5) };
    let mut random = Random(3);
    let table = case::table(&case, &mut random);
    let mut values = || (0..33 * 1000).map(|_| random.value()).collect::<Vec<f32>>();
    let (x, r) = (values(), values());
    let profiles: Vec<u32> = (0..33).map(|i| i % 5).collect();
    let depth = table.deepest_profile();
    let run = |backend: &dyn Fn(Call<'_, f32>, Options<'_>)| {
        let mut out = vec![0.0f32; 33 * 1000];
        let mut stats = vec![RowStat::default(); 33 * depth];
        let rows = |v| Rows::from_slice(v, 1000).expect("rows");
        let call =
            Call::add_cap(&table, rows(&x), rows(&r), RowsMut::from_slice(&mut out, 1000).expect("rows"));
        backend(call, Options::new().profiles(&profiles).stats(&mut stats));
        (out, stats)
    };
    let gpu = run(&|call, options| device.run(call, options).expect("the GPU"));
    let cpu = run(&|call, options| Cpu.run(call, options).expect("the CPU"));
    assert!(gpu == cpu);
}

/// The safe functions on `CudaSlice`s, each form against the CPU; and a slice that is too short is refused.
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
    let norm = SliceNorm { weight: &gpu_weight, eps: case::EPS };

    let cpu_norm = Norm::new(&weight, case::EPS).expect("a norm");
    let (mut capped, mut sum) = (x.clone(), vec![0.0; rows * width]);
    let (mut of_capped, mut of_sum) = (sum.clone(), sum.clone());
    let from = |values| Rows::from_slice(values, width).expect("rows");
    let to = |values| RowsMut::from_slice(values, width).expect("rows");
    cpu::cap_norm_rows(&table, to(&mut capped), cpu_norm, to(&mut of_capped), Options::new())
        .expect("the CPU");
    cpu::add_cap_norm_rows(
        &table,
        from(&x),
        from(&r),
        to(&mut sum),
        cpu_norm,
        to(&mut of_sum),
        Options::new(),
    )
    .expect("the CPU");

    let same = |what: &str, found: &cudarc::driver::CudaSlice<f32>, expected: &[f32]| {
        let found = stream.clone_dtoh(found).expect("a copy back");
        stream.synchronize().expect("a copy back");
        assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
    };
    let none = SliceOptions::default;
    let empty = || up(&vec![0.0; rows * width]);
    let mut h = up(&x);
    slices::cap_slice(&stream, &on_gpu, &mut h, none()).expect("cap");
    same("cap", &h, &capped);
    let (mut h, mut out) = (up(&x), empty());
    slices::cap_norm_slice(&stream, &on_gpu, &mut h, norm, &mut out, none()).expect("cap + norm");
    same("cap + norm", &h, &capped);
    same("cap + norm, normed", &out, &of_capped);
    let mut h = up(&r);
    slices::add_cap_slice(&stream, &on_gpu, &gpu_x, &mut h, none()).expect("add + cap");
    same("add + cap", &h, &sum);
    let mut h = empty();
    slices::add_cap_slice_into(&stream, &on_gpu, [&gpu_x, &gpu_r], &mut h, none()).expect("add + cap");
    same("add + cap into", &h, &sum);
    let (mut h, mut out) = (up(&r), empty());
    slices::add_cap_norm_slice(&stream, &on_gpu, &gpu_x, &mut h, norm, &mut out, none()).expect("all");
    same("add + cap + norm", &h, &sum);
    same("add + cap + norm, normed", &out, &of_sum);
    let (mut h, mut out) = (empty(), empty());
    let summands: [&dyn ReadSlice<f32>; 2] = [&gpu_x, &gpu_r];
    slices::add_cap_norm_slice_into(&stream, &on_gpu, summands, &mut h, norm, &mut out, none()).expect("all");
    same("add + cap + norm into", &h, &sum);
    same("add + cap + norm into, normed", &out, &of_sum);

    let mut short = up(&x[width..]);
    let refused = slices::add_cap_slice(&stream, &on_gpu, &gpu_x, &mut short, none());
    assert!(matches!(refused, Err(CudaError::Invalid(_))), "{refused:?}");
}

/// Whatever this machine has, asking never panics, and what is missing has a remedy.
#[test]
fn probing_never_panics() {
    match probe() {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => {
            assert!(matches!(
                error,
                CudaError::NoDriver { .. } | CudaError::NoDevice { .. } | CudaError::Driver { .. }
            ));
            println!("{error}");
        }
    }
    match Device::open(1000) {
        Ok(device) => panic!("there is no GPU 1000: {device:?}"),
        Err(error) => assert!(error.to_string().len() > 20, "{error}"),
    }
}
