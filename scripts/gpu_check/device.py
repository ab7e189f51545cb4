"""The GPU, asked through its driver, and the tools and libraries for it on this machine."""

import ctypes
import json
import os
import shutil
import site
import sys
import tempfile
import uuid
from pathlib import Path

# What ggml's CUDA backend is linked to besides the driver, by the CUDA release of its build.
RUNTIME = ["libcudart.so", "libcublas.so", "libcublasLt.so"]


# Where containers and WSL put the driver's libraries without telling the dynamic loader.
DRIVER_FOLDERS = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib", "/usr/local/cuda/compat"]


def _load_driver():
    """The driver's library, and the folder it is in where the dynamic loader does not find it by itself."""
    try:
        return ctypes.CDLL("libcuda.so.1"), None
    except OSError:
        for folder in DRIVER_FOLDERS:
            if os.path.exists(f"{folder}/libcuda.so.1"):
                return ctypes.CDLL(f"{folder}/libcuda.so.1"), folder
        raise


def driver():
    """What the driver says, and why it cannot be used. Asked by another process: a driver may never answer."""
    from . import child

    with tempfile.TemporaryDirectory() as folder:
        said, log = Path(folder) / "said", Path(folder) / "log"
        status = child.run([sys.executable, "-B", __file__], 60, said, log)
        if status != 0:
            return None, f"the NVIDIA driver could not be asked: {status} {log.read_text(errors='replace')[-300:]}".strip()
        return json.loads(said.read_text())


def _ask():
    """What the driver says, and why it cannot be used."""
    try:
        cuda, folder = _load_driver()
    except OSError as error:
        return None, f"no NVIDIA driver: {error}"
    try:
        status = cuda.cuInit(0)
        if status != 0:
            return None, f"the NVIDIA driver does not start: cuInit returned {status}"
        version, count = ctypes.c_int(), ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        cuda.cuDeviceGetCount(ctypes.byref(count))
        if count.value == 0:
            return None, "the NVIDIA driver shows no GPU"
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        device = ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        cuda.cuDeviceGetName(name, 255, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    except AttributeError as error:
        return None, f"libcuda.so.1 is not the NVIDIA driver's: {error}"
    number = ctypes.create_string_buffer(16)
    ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or getattr(cuda, "cuDeviceGetUuid", None)
    known = ask is not None and ask(number, device) == 0
    return {"name": name.value.decode(errors="replace"), "compute_capability": f"{major.value}.{minor.value}",
            "uuid": str(uuid.UUID(bytes=number.raw)) if known else None,
            "driver_cuda": version.value, "count": count.value, "folder": folder}, None


def describe(check):
    """The state of the GPU at this visit, for whoever judges the figures: clocks, power, what else runs. In a log."""
    if tool := shutil.which("nvidia-smi"):
        from . import child

        child.run([tool, "-q"], 20, check.options.out / f"gpu-at-visit-{check.visit['number']}.log")


def sanitizer():
    """Where compute-sanitizer is."""
    places = [shutil.which("compute-sanitizer")]
    for root in [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]:
        if root:
            places += [f"{root}/bin/compute-sanitizer", f"{root}/compute-sanitizer/compute-sanitizer"]
    return next((p for p in places if p and os.access(p, os.X_OK)), None)


def _folders():
    """Where CUDA's run-time libraries may be: CUDA installations, then Python packages."""
    for variable in ["CUDA_HOME", "CUDA_PATH"]:
        if root := os.environ.get(variable):
            yield from (Path(root) / "lib64", Path(root) / "lib", Path(root) / "targets/x86_64-linux/lib")
    for root in [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]:
        yield from (root / "lib64", root / "targets/x86_64-linux/lib")
    if nvcc := shutil.which("nvcc"):
        yield from (Path(nvcc).resolve().parent.parent / "lib64", Path(nvcc).resolve().parent.parent / "lib")
    packages = [*sys.path, *site.getsitepackages(), site.getusersitepackages()]
    # The `python3` on the PATH may belong to another environment than the one that runs this.
    if python := shutil.which("python3"):
        packages += map(str, Path(python).parent.parent.glob("lib/python3*/site-packages"))
    for packages_folder in dict.fromkeys(packages):
        yield from sorted(Path(packages_folder).glob("nvidia/*/lib"))


def runtime(release):
    """Folders that together hold CUDA's run-time libraries of a release (13), and the names of those found nowhere."""
    chosen, missing = [], []
    folders = list(dict.fromkeys(_folders()))
    for library in RUNTIME:
        name = f"{library}.{release}"
        holder = next((folder for folder in folders if (folder / name).exists()), None)
        if holder:
            chosen.append(str(holder))
            continue
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return list(dict.fromkeys(chosen)), missing


if __name__ == "__main__":
    print(json.dumps(_ask()))
