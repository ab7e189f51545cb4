//! Compiles `kernels/` into one fatbin, with the feature `cuda` and if an nvcc is found.
//!
//! Without nvcc the build succeeds with an empty image. Opening a GPU then fails with the remedy; the CPU
//! twin and cap files are unaffected. Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `NVCC` | the compiler to use; it must exist |
//! | `CUDA_HOME`, `CUDA_PATH` | a CUDA installation |
//! | `AXISCAP_CUDA_ARCHS` | compute capabilities to build for, e.g. `90` or `80,90,120`; the highest also as PTX; `none`: no device code, which builds faster |
//!
//! nvcc is then looked for on `PATH`, in `/usr/local/cuda`, in the active virtual environment (installed by
//! pip), and in the folder of `scripts/setup-nvcc`.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Default compute capabilities: A100, RTX 30, RTX 40, H100, B100, RTX 50. Code for a capability also runs on
/// later ones with the same major number.
const DEFAULT_ARCHS: &str = "80,86,89,90,100,120";

/// The remedy without the script, which is part of a checkout and not of the packaged crate.
const REMEDY: &str = "install the CUDA toolkit, install nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm and \
                      nvidia-cuda-runtime with pip into the active virtual environment, or set NVCC; then \
                      build again";
const REMEDY_IN_CHECKOUT: &str = "run scripts/setup-nvcc (a pinned nvcc, no CUDA installation needed), install \
                                  the CUDA toolkit, or set NVCC; then build again";

/// The default folder of a CUDA installation.
const CUDA_FOLDER: &str = "/usr/local/cuda";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Files only: the subfolders (emulator, ladder) are no part of the image.
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
        // Cargo shows each line as a separate error.
        println!("cargo::error={}", error.to_string().trim_end().replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let kernels = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?)
        .join("kernels");
    // docs.rs has no nvcc, and the documentation does not depend on the image.
    let unwanted =
        env::var_os("DOCS_RS").is_some() || env::var("AXISCAP_CUDA_ARCHS").is_ok_and(|v| v == "none");
    let nvcc = if unwanted { None } else { find_nvcc()? };
    let Some(nvcc) = nvcc else {
        if !unwanted {
            println!("cargo::warning=axiscap is built without device code: no nvcc was found; {}", remedy());
            watch_for_nvcc();
        }
        fs::write(out.join("axiscap.fatbin"), b"")?;
        fs::write(out.join("baselines.fatbin"), b"")?;
        return Ok(fs::write(out.join("image.rs"), image_source(&[], ""))?);
    };
    let version = version_of(&nvcc)?;
    let archs = archs(&nvcc)?;
    compile(&nvcc, &version, &archs, &kernels.join("axiscap.cu"), &out.join("axiscap.fatbin"))?;
    if env::var_os("CARGO_FEATURE_GPU_BENCH").is_some() {
        compile(&nvcc, &version, &archs, &kernels.join("baselines.cu"), &out.join("baselines.fatbin"))?;
    }
    Ok(fs::write(out.join("image.rs"), image_source(&archs, &version))?)
}

fn remedy() -> &'static str {
    if Path::new("scripts/setup-nvcc").is_file() { REMEDY_IN_CHECKOUT } else { REMEDY }
}

/// Returns the Rust source that `src/cuda/image.rs` includes: the capabilities in the image, and the version
/// of nvcc.
fn image_source(archs: &[u32], version: &str) -> String {
    format!(
        "pub(crate) const MACHINE_CODE: &[u32] = &{archs:?};\npub(crate) const NVCC: &str = {version:?};\n"
    )
}

/// Finds the nvcc to use. An `NVCC` that names no file is an error, because it was set on purpose.
fn find_nvcc() -> Result<Option<PathBuf>, Box<dyn Error>> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        return match on_path(Path::new(&nvcc)) {
            Some(nvcc) => Ok(Some(nvcc)),
            None => {
                Err(format!("NVCC is set to {nvcc:?}, which is no file; unset it, or {}", remedy()).into())
            }
        };
    }
    let installed =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|root| Path::new(&root).join("bin"));
    let nvcc = installed
        .map(|bin| bin.join(program("nvcc")))
        .find(|nvcc| nvcc.is_file())
        .or_else(|| on_path(Path::new("nvcc")))
        .or_else(|| Some(Path::new(CUDA_FOLDER).join("bin/nvcc")).filter(|nvcc| nvcc.is_file()))
        .or_else(|| env::var_os("VIRTUAL_ENV").and_then(|venv| in_site_packages(Path::new(&venv))))
        .or_else(from_setup_nvcc);
    Ok(nvcc)
}

/// Makes Cargo run this script again after an nvcc may have been installed.
///
/// Cargo treats a missing path as changed in every build, and scans a watched folder as a whole. Therefore
/// only the existing part of each place is watched. Of the folders on `PATH` only `/usr/bin` is watched,
/// since others may be large or remote.
fn watch_for_nvcc() {
    println!("cargo::rerun-if-env-changed=PATH");
    let roots = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).filter(|root| !root.is_empty());
    let toolkits = roots.map(|root| vec![Path::new(&root).join("bin"), root.into()]);
    let installed = Path::new(CUDA_FOLDER);
    let fixed = [vec![installed.join("bin"), installed.into(), "/usr/local".into()], vec!["/usr/bin".into()]];
    for place in toolkits.chain(fixed) {
        if let Some(folder) = place.iter().find(|part| part.is_dir()) {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
    }
}

/// Returns a program's file name on this platform.
fn program(name: &str) -> String {
    format!("{name}{}", env::consts::EXE_SUFFIX)
}

/// Finds a program by path, or by name on `PATH`.
fn on_path(name: &Path) -> Option<PathBuf> {
    // On Windows `nvcc` may stand for `nvcc.exe`.
    let named = [name.to_owned(), PathBuf::from(program(&name.to_string_lossy()))];
    if name.components().count() > 1 {
        return named.into_iter().find(|path| path.is_file());
    }
    env::split_paths(&env::var_os("PATH")?)
        .flat_map(|dir| named.each_ref().map(|name| dir.join(name)))
        .find(|path| path.is_file())
}

/// Finds nvcc in a virtual environment, where `pip install nvidia-cuda-nvcc` puts it into `nvidia/cu13/bin`.
fn in_site_packages(venv: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).ok()?.filter_map(Result::ok);
    let bin = |python: fs::DirEntry| python.path().join("site-packages/nvidia/cu13/bin");
    pythons.map(|python| bin(python).join(program("nvcc"))).find(|nvcc| nvcc.is_file())
}

/// Finds the newest nvcc that `scripts/setup-nvcc` installed.
fn from_setup_nvcc() -> Option<PathBuf> {
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

/// Returns the version of an nvcc, e.g. `13.0.88`.
fn version_of(nvcc: &Path) -> Result<String, Box<dyn Error>> {
    let text = output(Command::new(nvcc).arg("--version"))?;
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let version = text.rsplit_once(", V").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(version
        .ok_or_else(|| format!("{} --version does not name its version:\n{text}", nvcc.display()))?
        .into())
}

/// Returns the capabilities to build for, ascending: those of `AXISCAP_CUDA_ARCHS`, or the default ones that
/// this nvcc knows.
fn archs(nvcc: &Path) -> Result<Vec<u32>, Box<dyn Error>> {
    let requested = env::var("AXISCAP_CUDA_ARCHS").ok().filter(|v| !v.trim().is_empty());
    let known = output(Command::new(nvcc).arg("--list-gpu-code"))?;
    let known = |arch: u32| known.split_whitespace().any(|code| code == format!("sm_{arch}"));
    let mut archs = Vec::new();
    for arch in requested.as_deref().unwrap_or(DEFAULT_ARCHS).split([',', ';', ' ']).filter(|a| !a.is_empty())
    {
        let number: u32 = arch.trim().parse().map_err(|_| {
            format!("AXISCAP_CUDA_ARCHS: {arch:?} is no compute capability; write e.g. 80,90 for 8.0 and 9.0, or none")
        })?;
        if number < 80 {
            return Err(format!(
                "AXISCAP_CUDA_ARCHS: the kernels need compute capability 8.0 (80) or later, not {number}"
            )
            .into());
        }
        if known(number) {
            archs.push(number);
        } else if requested.is_some() {
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

/// Compiles `source` to a fatbin with machine code for each capability, and PTX for the highest.
fn compile(
    nvcc: &Path,
    version: &str,
    archs: &[u32],
    source: &Path,
    target: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    // The source fixes every rounding (kernels/hardware.cuh). These flags forbid the compiler to change one.
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

/// Runs a command and returns its standard output. The error of a failed command contains everything that it
/// printed.
fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let words: Vec<&OsStr> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let shown = words.join(" ".as_ref()).to_string_lossy().into_owned();
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
