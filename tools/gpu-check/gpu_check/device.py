"""The GPU, asked through its driver, and CUDA's tools and libraries on this machine."""

import ctypes
import json
import os
import shutil
import site
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import child

# The libraries that ggml's CUDA backend is linked to besides the driver's.
RUNTIME = ["libcudart.so", "libcublas.so", "libcublasLt.so"]
# Where containers and WSL put the driver's libraries without telling the dynamic loader.
DRIVER_FOLDERS = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib", "/usr/local/cuda/compat"]
Device = dict[str, Any]


def driver() -> tuple[Device | None, str | None]:
    """Returns what the driver says, or why it cannot be used. Asks in another process, since a driver may hang."""
    with tempfile.TemporaryDirectory() as folder:
        said, log = Path(folder) / "said", Path(folder) / "log"
        status = child.run([sys.executable, "-B", "-m", "gpu_check.device"], 60, said, log)
        if status != 0:
            return None, f"the NVIDIA driver could not be asked: {status} {log.read_text(errors='replace')[-300:]}".strip()
        found, reason = json.loads(said.read_text())
        return found, reason


def _load_driver() -> tuple[ctypes.CDLL, str | None]:
    """Loads the driver's library. Also returns its folder if the dynamic loader does not search it."""
    try:
        return ctypes.CDLL("libcuda.so.1"), None
    except OSError:
        for folder in DRIVER_FOLDERS:
            if os.path.exists(f"{folder}/libcuda.so.1"):
                return ctypes.CDLL(f"{folder}/libcuda.so.1"), folder
        raise


def _ask() -> tuple[Device | None, str | None]:
    """Asks the driver in this process."""
    try:
        cuda, folder = _load_driver()
        status = cuda.cuInit(0)
    except (OSError, AttributeError) as error:
        return None, f"no NVIDIA driver: {error}"
    if status != 0:
        return None, f"the NVIDIA driver does not start: cuInit returned {status}"
    numbers = {name: ctypes.c_int() for name in ("version", "count", "device", "major", "minor")}
    version, count, device, major, minor = map(ctypes.byref, numbers.values())
    cuda.cuDriverGetVersion(version)
    cuda.cuDeviceGetCount(count)
    if numbers["count"].value == 0:
        return None, "the NVIDIA driver shows no GPU"
    name, number = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    cuda.cuDeviceGet(device, 0)
    cuda.cuDeviceGetName(name, 255, numbers["device"])
    cuda.cuDeviceGetAttribute(major, 75, numbers["device"])
    cuda.cuDeviceGetAttribute(minor, 76, numbers["device"])
    ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    known = ask(number, numbers["device"]) == 0
    return {"name": name.value.decode(errors="replace"), "folder": folder,
            "compute_capability": f"{numbers['major'].value}.{numbers['minor'].value}",
            "uuid": str(uuid.UUID(bytes=number.raw)) if known else None, "driver_cuda": numbers["version"].value}, None


def describe(logs: Path, name: str) -> None:
    """Logs the state of the GPU (clocks, power, ECC, other processes), the kernel's messages and the versions."""
    packages = "import importlib.metadata as m; [print(n, m.version(n)) for n in ('torch', 'triton', 'transformers')]"
    for command in (["nvidia-smi", "-q"], ["nvcc", "--version"], [sys.executable, "--version"],
                    [sys.executable, "-c", packages], ["sh", "-c", "dmesg | grep -iE 'xid|nvrm' | tail -50"]):
        if shutil.which(command[0]):
            child.run(command, 20, logs / f"{name}.log")


def sanitizer() -> str | None:
    """Returns the path of compute-sanitizer."""
    places = [shutil.which("compute-sanitizer")]
    for root in [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]:
        if root:
            places += [f"{root}/bin/compute-sanitizer", f"{root}/compute-sanitizer/compute-sanitizer"]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def _folders() -> Iterator[Path]:
    """Yields where CUDA's run-time libraries may be: CUDA installations, then Python packages."""
    roots = [Path(root) for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if root]
    roots += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    if nvcc := shutil.which("nvcc"):
        roots.append(Path(nvcc).resolve().parent.parent)
    for root in roots:
        yield from (root / "lib64", root / "lib", root / "targets/x86_64-linux/lib")
    packages = [*sys.path, *site.getsitepackages(), site.getusersitepackages()]
    # The python3 on the PATH may belong to another environment than the one that runs this.
    if python := shutil.which("python3"):
        packages += map(str, Path(python).parent.parent.glob("lib/python3*/site-packages"))
    for folder in dict.fromkeys(packages):
        yield from sorted(Path(folder).glob("nvidia/*/lib"))


def runtime(release: int) -> tuple[list[str], list[str]]:
    """Returns folders that together hold CUDA's run-time libraries of a release, and the names of missing ones."""
    chosen, missing = [], []
    folders = list(dict.fromkeys(_folders()))
    for name in (f"{library}.{release}" for library in RUNTIME):
        if holder := next((folder for folder in folders if (folder / name).exists()), None):
            chosen.append(str(holder))
            continue
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return list(dict.fromkeys(chosen)), missing


if __name__ == "__main__":
    print(json.dumps(_ask()))
