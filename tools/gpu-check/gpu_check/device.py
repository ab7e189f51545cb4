"""The GPU, and CUDA's tools and libraries on this machine."""

import ctypes
import os
import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path

from . import child

# The libraries that ggml's CUDA backend is linked to besides the driver's.
RUNTIME = ["libcudart.so", "libcublas.so", "libcublasLt.so"]
# Where containers and WSL put the driver's libraries without telling the dynamic loader.
DRIVER_FOLDERS = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"]
FIELDS = ["name", "uuid", "driver_version", "compute_cap"]


def find(logs: Path) -> dict[str, str] | None:
    """Asks nvidia-smi for the first GPU. Returns `None` where there is none or its driver does not answer."""
    os.environ["PATH"] += ":/usr/local/nvidia/bin:/usr/lib/wsl/lib"
    folders = [folder for folder in DRIVER_FOLDERS if os.path.exists(f"{folder}/libcuda.so.1")]
    path = [*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *folders]
    os.environ["LD_LIBRARY_PATH"] = ":".join(path)
    said = logs / "gpu.csv"
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    if child.run(command, 60, said) != 0:
        return None
    return dict(zip(FIELDS, said.read_text().splitlines()[0].split(", ")))


def describe(logs: Path, name: str) -> None:
    """Logs the state of the GPU (clocks, power, ECC, other processes), the kernel's messages and the versions."""
    packages = "from importlib.metadata import distributions as d; print(sorted(f'{p.name} {p.version}' for p in d()))"
    for command in (["nvidia-smi", "-q"], ["nvcc", "--version"], [sys.executable, "--version"],
                    [sys.executable, "-c", packages], ["sh", "-c", "dmesg | grep -iE 'xid|nvrm' | tail -50"]):
        if shutil.which(command[0]):
            child.run(command, 20, logs / f"{name}.log")


def _roots() -> list[Path]:
    """Returns where a CUDA installation may be."""
    roots = [Path(root) for name in ("CUDA_HOME", "CUDA_PATH") if (root := os.environ.get(name))]
    roots += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    if nvcc := shutil.which("nvcc"):
        roots.append(Path(nvcc).resolve().parent.parent)
    return roots


def sanitizer() -> str | None:
    """Returns the path of compute-sanitizer."""
    folders = [str(root / folder) for root in _roots() for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=":".join([os.environ.get("PATH", ""), *folders]))


def _folders() -> Iterator[Path]:
    """Yields where CUDA's run-time libraries may be: CUDA installations, then Python packages."""
    for root in _roots():
        yield from (root / "lib64", root / "lib", root / "targets/x86_64-linux/lib")
    for folder in [*sys.path, *site.getsitepackages(), site.getusersitepackages()]:
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
