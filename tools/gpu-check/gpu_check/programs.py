"""The programs of a pack, or of a build for a rehearsal, and the environment in which they find the GPU."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import device

BACKEND, MANIFEST = "cuda/libggml-cuda.so", "manifest.json"
# Variables that change what llama.cpp does.
NOT_INHERITED = ("GGML_", "LLAMA_", "AXISCAP_")
# ggml reads this one only once per process. With versions that the hook does not know, one graph per token needs it.
GGML_GRAPHS_OFF = {"GGML_CUDA_DISABLE_GRAPHS": "1"}
Command = list[Any]


class Damaged(Exception):
    """The pack is incomplete or not as it was packed. The message says what to do."""


@dataclass
class Programs:
    """The commands of the programs, the environment for runs on the GPU, and a digest that names the pack."""

    axiscap: Command
    tests: Command
    bench: Command
    digest: str
    commit: str = "unknown"
    hook_tests: Command = field(default_factory=list)
    gpu: dict[str, str] = field(default_factory=dict)


def digest_of(file: Path) -> str:
    """Returns a file's SHA-256."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def packed(folder: Path) -> Programs:
    """Finds the programs of an unpacked pack and checks that they are what was packed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except OSError as error:
        raise Damaged(f"no pack of scripts/gpu-pack in {folder}: {error}") from error
    wrong = [name for name, digest in manifest["sha256"].items()
             if not (folder / name).is_file() or digest_of(folder / name) != digest]
    if wrong:
        raise Damaged(f"{', '.join(wrong)} in {folder} is not what was packed; unpack it again")
    sums = json.dumps(manifest["sha256"], sort_keys=True).encode()
    return Programs([folder / "axiscap"], [folder / "gpu-tests"], [folder / "gpu-bench"],
                    hashlib.sha256(sums).hexdigest()[:16], manifest["commit"], [folder / "hook-tests"],
                    _gpu_environment(folder / BACKEND))


def rehearsed(folder: Path, inject: bool) -> Programs:
    """Finds the real `axiscap`. A script stands in for the kernels' tests and benchmark, which need a GPU."""
    axiscap = folder / "axiscap"
    if not os.access(axiscap, os.X_OK):
        raise Damaged(f"{axiscap} is missing; build it, or name another folder with --bin")
    stand_in = [sys.executable, "-B", "-m", "gpu_check.stand_in"]
    tests = [*stand_in, "failing-tests" if inject else "tests"]
    return Programs([axiscap], tests, [*stand_in, "bench"], digest_of(axiscap)[:16])


def _gpu_environment(backend: Path) -> dict[str, str]:
    """Returns the environment in which axiscap loads ggml's CUDA backend. Without it axiscap runs on the CPU."""
    if not backend.is_file():
        raise Damaged(f"the pack was made without --cuda-backend: there is no {backend}")
    data = backend.read_bytes()
    releases = [release for release in (13, 12) if f"libcudart.so.{release}".encode() in data]
    folders, missing = device.runtime(releases[0]) if releases else ([], [])
    if missing:
        raise Damaged(f"{backend.name} needs {', '.join(missing)}: install CUDA {releases[0]}, or the Python packages "
                      "nvidia-cuda-runtime and nvidia-cublas of that release, or set LD_LIBRARY_PATH")
    path = ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    # A backend that was linked without the driver at hand needs its symbols without naming it.
    return {"GGML_BACKEND_PATH": str(backend.resolve()), "LD_LIBRARY_PATH": path, "LD_PRELOAD": "libcuda.so.1"}
