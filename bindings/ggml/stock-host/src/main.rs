//! Hooks a stock build of ggml and checks that its rows are capped.
//!
//! No ggml is linked into this program. It loads the libraries in a folder, has the hook look up its
//! functions there, computes a small graph on the build's CPU backend, and compares the rows with those of
//! axiscap's CPU kernels, bit for bit:
//!
//! ```text
//! axiscap-stock-host FOLDER
//! ```
//!
//! With a plugin, the hook is that of the plugin, which the build has loaded as a backend
//! (`GGML_BACKEND_PATH`) or is attached to it, under caps that this program writes:
//!
//! ```text
//! AXISCAP_CAPS=CAPS.gguf axiscap-stock-host FOLDER --plugin LIBRARY
//! ```

mod ggml;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use axiscap::cpu::{Job, RowsMut};
use axiscap::file::{CapFile, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, CapTable};
use axiscap_ggml::{Hook, HookError, ModelShape, Route, RouteChoice, Session};

use ggml::{Ggml, OUTPUTS, ROWS, WIDTH};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (folder, result) = match arguments[..] {
        [folder] => (folder, check(folder)),
        [folder, "--plugin", library] => (folder, check_plugin(folder, library)),
        _ => {
            eprintln!(
                "usage: axiscap-stock-host FOLDER [--plugin LIBRARY] (with libggml-base.so, libggml.so and a CPU backend)"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(folder: &str) -> Result<String> {
    let ggml = Ggml::load(folder)?;
    // SAFETY: the symbols of one build of ggml, which is never unloaded.
    let hook = unsafe { Hook::install_in(&|name| ggml.symbol(name)) }?;
    let uncapped = compute(&hook, &ggml, None, RouteChoice::Auto)?;
    for (route, expected) in [(RouteChoice::Auto, Route::Inserted), (RouteChoice::Views, Route::HostViews)] {
        let capped = compute(&hook, &ggml, Some(&caps(0.75)?), route)?;
        if capped.routes != [expected] {
            return Err(format!("{route:?} took {:?} and not {expected:?}", capped.routes).into());
        }
        if capped.rows != expected_rows()? {
            return Err(format!("{expected:?} gives other rows than axiscap's CPU kernels").into());
        }
        if capped.rows == uncapped.rows {
            return Err("the caps of this check do not act".into());
        }
        let untouched = compute(&hook, &ggml, Some(&caps(f32::NEG_INFINITY)?), route)?;
        if untouched.rows != uncapped.rows {
            return Err(format!("{expected:?} changes rows within their bounds").into());
        }
    }
    refuses_a_missing_block(&hook, &ggml)?;
    let report = hook.report();
    let slots: Vec<_> = report.slots.iter().map(|(name, offset)| format!("  {name}: {offset}")).collect();
    drop(hook);
    if ggml.compute_unhooked()? != uncapped.rows {
        return Err("the build computes other rows after the hook was removed".into());
    }
    Ok(format!("ggml {}: capped\n{}", report.ggml, slots.join("\n")))
}

/// Has the plugin attach to the build, and checks that it caps a backend that nothing was bound to.
fn check_plugin(folder: &str, library: &str) -> Result<String> {
    let path = std::env::var_os("AXISCAP_CAPS").ok_or("AXISCAP_CAPS does not name the caps")?;
    let path = Path::new(&path);
    // Rows that were capped twice would differ.
    let caps = caps(0.75)?.with_strength(0.5)?;
    CapFile::new(caps, ModelInfo::new("llama", OUTPUTS)).write(path)?;
    let copy = path.with_file_name("another-copy.so");
    std::fs::copy(library, &copy)?;
    let ggml = Ggml::load(folder)?;
    let uncapped = ggml.compute_unhooked()?;
    if ggml.attach(library)? != 0 {
        return Err("the plugin could not be attached".into());
    }
    let devices = ggml.devices()?;
    if ggml.attach(library)? != 0 || ggml.devices()? != devices {
        return Err("the plugin was attached twice".into());
    }
    if ggml.attach(copy.to_str().ok_or("a path that is not UTF-8")?)? != 0 {
        return Err("another copy of the plugin fails".into());
    }
    let rows = ggml.compute_unhooked()?;
    if rows != rows_with(0.5)? || rows == uncapped {
        return Err("the plugin gives other rows than axiscap's CPU kernels".into());
    }
    Ok(format!("{folder}: capped by the plugin, {devices} devices"))
}

struct Computed {
    rows: [Vec<f32>; OUTPUTS],
    routes: Vec<Route>,
}

fn session(blocks: usize) -> Session {
    Session::new(ModelShape { architecture: "llama".into(), blocks, width: WIDTH })
}

/// Computes the graph on a backend of its own, with these caps.
fn compute(hook: &Hook, ggml: &Ggml, caps: Option<&CapSet>, route: RouteChoice) -> Result<Computed> {
    let session = session(OUTPUTS);
    session.set_caps(caps)?;
    session.update(|settings| settings.route = route);
    let backend = hook.bind(&session, || ggml.backend())?;
    if !session.is_bound() {
        return Err("the backend was not hooked".into());
    }
    let rows = session.watch(ROWS, ROWS, || ggml.compute(&backend).map_err(Failure::Compute))?;
    if caps.is_some() && session.stats().iter().any(|stats| stats.rows != ROWS as u64) {
        return Err(format!("not every row was counted: {:?}", session.stats()).into());
    }
    Ok(Computed { rows, routes: session.routes_used().into_iter().map(|used| used.route).collect() })
}

/// A model with one block more than the graph: its decode must fail.
fn refuses_a_missing_block(hook: &Hook, ggml: &Ggml) -> Result<()> {
    let session = session(OUTPUTS + 1);
    session.set_caps(Some(&CapSet::new([cap(OUTPUTS, 0.0)?])?))?;
    let backend = hook.bind(&session, || ggml.backend())?;
    let refused = session.watch(ROWS, ROWS, || ggml.compute(&backend).map_err(Failure::Compute));
    match refused {
        Err(Failure::Hook(HookError::NotSeen { block: OUTPUTS, .. })) => Ok(()),
        Err(error) => Err(format!("another error than NotSeen: {error}").into()),
        Ok(_) => Err("a block that was not capped passed".into()),
    }
}

#[derive(Debug)]
enum Failure {
    Hook(HookError),
    Compute(String),
}

impl From<HookError> for Failure {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hook(error) => error.fmt(f),
            Self::Compute(error) => f.write_str(error),
        }
    }
}

impl Error for Failure {}

/// Returns the axis of a block.
fn axis(block: usize) -> Result<Axis> {
    let direction: Vec<f32> = (0..WIDTH).map(|i| ((3 * i + 5 * block) % 7) as f32 - 2.5).collect();
    Ok(Axis::from_direction(&direction)?)
}

fn cap(block: usize, floor: f32) -> Result<BlockCap> {
    let bound = if floor == f32::NEG_INFINITY { Bound::NONE } else { Bound::floor(floor)? };
    Ok(BlockCap { block, cap: Cap::new(axis(block % OUTPUTS)?, bound) })
}

fn caps(floor: f32) -> Result<CapSet> {
    Ok(CapSet::new((0..OUTPUTS).map(|block| cap(block, floor)).collect::<Result<Vec<_>>>()?)?)
}

/// Computes the graph as [`ggml`] describes it, capped by axiscap's CPU kernels.
fn expected_rows() -> Result<[Vec<f32>; OUTPUTS]> {
    rows_with(1.0)
}

fn rows_with(strength: f32) -> Result<[Vec<f32>; OUTPUTS]> {
    let mut rows = ggml::input();
    let mut outputs = [const { Vec::new() }; OUTPUTS];
    for (block, output) in outputs.iter_mut().enumerate() {
        for (value, added) in rows.iter_mut().zip(ggml::added(block)) {
            *value += added;
        }
        let cap = Cap::new(axis(block)?, Bound::floor(0.75)?).with_strength(strength)?;
        let table = CapTable::new([&cap])?;
        Job::cap(RowsMut::from_slice(&mut rows, WIDTH)?).run(&table)?;
        output.clone_from(&rows);
    }
    Ok(outputs)
}
