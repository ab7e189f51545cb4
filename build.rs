//! Compiles `kernels/` into one fatbin, with the feature `cuda` and where there is an nvcc.
//!
//! Without nvcc the build still works: the image is empty, opening a GPU says so with the remedy, and everything
//! else (the CPU twin, cap files) is there. Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `NVCC` | the compiler to use; it must exist |
//! | `CUDA_HOME`, `CUDA_PATH` | a CUDA installation |
//! | `AXISCAP_CUDA_ARCHS` | compute capabilities to build for, e.g. `90` or `80,90,120`; the highest also as PTX |
//!
//! Further places: `PATH`, `/usr/local/cuda`, a pip-installed toolkit of the active virtual environment, and what
//! `scripts/setup-nvcc` installed.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A100, RTX 30, RTX 40, H100, B100, RTX 50. Code for a capability also runs on later ones of the same major.
const ARCHS: &str = "80,86,89,90,100,120";

const REMEDY: &str = "run scripts/setup-nvcc (a pinned nvcc, no CUDA installation needed), install the CUDA \
                      toolkit, or set NVCC; then build again";

/// Where a CUDA toolkit without variables of its own is looked for.
const INSTALLED: &str = "/usr/local/cuda";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Not the whole folder: what the emulator and the ladder consist of is no part of the image.
    for source in fs::read_dir("kernels").into_iter().flatten().filter_map(Result::ok) {
        if source.path().is_file() {
            println!("cargo::rerun-if-changed={}", source.path().display());
        }
    }
    for variable in
        ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "AXISCAP_CUDA_ARCHS", "DOCS_RS"]
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(error) = run() {
        // Cargo shows the last of several error lines best when they come as one.
        println!("cargo::error={}", error.to_string().trim_end().replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let kernels = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?)
        .join("kernels");
    // The documentation is built without device code: nothing in it depends on the image.
    let nvcc = if env::var_os("DOCS_RS").is_some() { None } else { find_nvcc()? };
    let Some(nvcc) = nvcc else {
        if env::var_os("DOCS_RS").is_none() {
            println!("cargo::warning=axiscap is built without device code: no nvcc was found; {REMEDY}");
            watch_for_nvcc();
        }
        fs::write(out.join("axiscap.fatbin"), b"")?;
        fs::write(out.join("baselines.fatbin"), b"")?;
        return Ok(fs::write(out.join("image.rs"), describe(&[], ""))?);
    };
    let version = version_of(&nvcc)?;
    let archs = archs(&nvcc)?;
    compile(&nvcc, &version, &archs, &kernels.join("axiscap.cu"), &out.join("axiscap.fatbin"))?;
    if env::var_os("CARGO_FEATURE_GPU_BENCH").is_some() {
        compile(&nvcc, &version, &archs, &kernels.join("baselines.cu"), &out.join("baselines.fatbin"))?;
    }
    Ok(fs::write(out.join("image.rs"), describe(&archs, &version))?)
}

/// What `src/cuda/image.rs` includes: which capabilities the image has code for, and what built it.
fn describe(archs: &[u32], version: &str) -> String {
    format!(
        "pub(crate) const MACHINE_CODE: &[u32] = &{archs:?};\npub(crate) const NVCC: &str = {version:?};\n"
    )
}

/// The nvcc to use. An `NVCC` that is no program is an error: whoever set it meant it.
fn find_nvcc() -> Result<Option<PathBuf>, Box<dyn Error>> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        return match on_path(Path::new(&nvcc)) {
            Some(nvcc) => Ok(Some(nvcc)),
            None => Err(format!("NVCC is set to {nvcc:?}, which is no file; unset it, or {REMEDY}").into()),
        };
    }
    let installed =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|root| Path::new(&root).join("bin"));
    let nvcc = installed
        .map(|bin| bin.join(program("nvcc")))
        .find(|nvcc| nvcc.is_file())
        .or_else(|| on_path(Path::new("nvcc")))
        .or_else(|| Some(Path::new(INSTALLED).join("bin/nvcc")).filter(|nvcc| nvcc.is_file()))
        .or_else(|| env::var_os("VIRTUAL_ENV").and_then(|venv| in_site_packages(Path::new(&venv))))
        .or_else(by_setup_nvcc);
    Ok(nvcc)
}

/// Has Cargo look for nvcc again once there could be one, after a build without.
///
/// Cargo takes a path that does not exist for changed at every build, and looks through a whole folder. So what is
/// watched is the part of each place that exists, and of the folders on `PATH` only the one that packages install into:
/// others may be huge, or another machine's.
fn watch_for_nvcc() {
    println!("cargo::rerun-if-env-changed=PATH");
    let roots = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).filter(|root| !root.is_empty());
    let toolkits = roots.map(|root| vec![Path::new(&root).join("bin"), root.into()]);
    let installed = Path::new(INSTALLED);
    let fixed = [vec![installed.join("bin"), installed.into(), "/usr/local".into()], vec!["/usr/bin".into()]];
    for place in toolkits.chain(fixed) {
        if let Some(there) = place.iter().find(|part| part.is_dir()) {
            println!("cargo::rerun-if-changed={}", there.display());
        }
    }
}

/// A program's file name here.
fn program(name: &str) -> String {
    format!("{name}{}", env::consts::EXE_SUFFIX)
}

/// A program by path, or by name on `PATH`.
fn on_path(name: &Path) -> Option<PathBuf> {
    // `nvcc` on Windows is `nvcc.exe`, as its shells have it.
    let named = [name.to_owned(), PathBuf::from(program(&name.to_string_lossy()))];
    if name.components().count() > 1 {
        return named.into_iter().find(|path| path.is_file());
    }
    env::split_paths(&env::var_os("PATH")?)
        .flat_map(|dir| named.each_ref().map(|name| dir.join(name)))
        .find(|path| path.is_file())
}

/// `pip install nvidia-cuda-nvcc` puts nvcc into `nvidia/cu13/bin`.
fn in_site_packages(venv: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).ok()?.filter_map(Result::ok);
    let bin = |python: fs::DirEntry| python.path().join("site-packages/nvidia/cu13/bin");
    pythons.map(|python| bin(python).join(program("nvcc"))).find(|nvcc| nvcc.is_file())
}

/// The newest of the toolkits that `scripts/setup-nvcc` installed.
fn by_setup_nvcc() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    let mut venvs: Vec<_> = fs::read_dir(cache.join("axiscap/nvcc")).ok()?.filter_map(Result::ok).collect();
    venvs.sort_by_key(fs::DirEntry::file_name);
    venvs
        .iter()
        .rev()
        .filter(|v| !v.file_name().as_encoded_bytes().starts_with(b"."))
        .find_map(|v| in_site_packages(&v.path()))
}

fn version_of(nvcc: &Path) -> Result<String, Box<dyn Error>> {
    let text = output(Command::new(nvcc).arg("--version"))?;
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let version = text.rsplit_once(", V").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(version
        .ok_or_else(|| format!("{} --version does not name its version:\n{text}", nvcc.display()))?
        .into())
}

/// The capabilities to build for, ascending: those asked for, or the default ones that this nvcc knows.
fn archs(nvcc: &Path) -> Result<Vec<u32>, Box<dyn Error>> {
    let asked = env::var("AXISCAP_CUDA_ARCHS").ok().filter(|v| !v.trim().is_empty());
    let known = output(Command::new(nvcc).arg("--list-gpu-code"))?;
    let known = |arch: u32| known.split_whitespace().any(|code| code == format!("sm_{arch}"));
    let mut archs = Vec::new();
    for arch in asked.as_deref().unwrap_or(ARCHS).split([',', ';', ' ']).filter(|a| !a.is_empty()) {
        let number: u32 = arch.trim().parse().map_err(|_| {
            format!("AXISCAP_CUDA_ARCHS: {arch:?} is no compute capability; write e.g. 80,90 for 8.0 and 9.0")
        })?;
        if number < 80 {
            return Err(format!(
                "AXISCAP_CUDA_ARCHS: the kernels need compute capability 8.0 (80) or later, not {number}"
            )
            .into());
        }
        if known(number) {
            archs.push(number);
        } else if asked.is_some() {
            return Err(format!("AXISCAP_CUDA_ARCHS: {} does not know sm_{number}", nvcc.display()).into());
        } else {
            println!(
                "cargo::warning=no device code for compute capability {number}: {} does not know it",
                nvcc.display()
            );
        }
    }
    archs.sort_unstable();
    archs.dedup();
    if archs.is_empty() { Err("AXISCAP_CUDA_ARCHS names no compute capability".into()) } else { Ok(archs) }
}

fn compile(
    nvcc: &Path,
    version: &str,
    archs: &[u32],
    source: &Path,
    target: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    // Every rounding is written out in the source (kernels/hardware.cuh); these say that nobody may change that.
    command.args(["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]);
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 13)
    {
        command.arg("--compress-mode=size");
    }
    let jobs = env::var("NUM_JOBS").unwrap_or_else(|_| "1".into());
    command.args(["--threads", &jobs]);
    for (index, arch) in archs.iter().enumerate() {
        let ptx = if index + 1 == archs.len() { format!(",compute_{arch}") } else { String::new() };
        command.arg(format!("-gencode=arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    command.arg("-o").arg(target).arg(source);
    output(&mut command).map(drop)
}

/// Standard output of a command; an error with everything it printed where it failed.
fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let shown = || -> String {
        let words: Vec<OsString> = std::iter::once(command.get_program().to_owned())
            .chain(command.get_args().map(Into::into))
            .collect();
        words.join(" ".as_ref()).to_string_lossy().into_owned()
    };
    let shown = shown();
    let done = command.output().map_err(|e| format!("cannot run {shown}: {e}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if done.status.success() {
        for line in stderr.lines().filter(|line| line.contains("warning")) {
            println!("cargo::warning={line}");
        }
        Ok(stdout.into_owned())
    } else {
        Err(format!("{shown} failed ({}):\n{stdout}{stderr}", done.status).into())
    }
}
