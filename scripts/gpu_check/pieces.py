"""What the llama.cpp part needs: found in the pack, put together, or made on the spot."""

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import device

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CAPS = "smollm2-135m-instruct.caps.gguf"


class Missing(Exception):
    """Something is not there; the message says what, and how to get it."""


class Pieces:
    """Programs, models and the environments that runs of them need."""

    def __init__(self, options):
        self.options = options
        self.scripts = Path(__file__).resolve().parent.parent
        self.axiscap = options.axiscap or options.bin / "axiscap"
        if not os.access(self.axiscap, os.X_OK):
            raise Missing(f"{self.axiscap} is missing; make it with scripts/gpu-pack on a machine with Rust, or name one with --axiscap")
        options.work.mkdir(parents=True, exist_ok=True)
        self._making = {}
        self.gpu = {}

    def model(self):
        """The real small model: as named, or joined from the parts of the pack."""
        if self.options.model:
            if not self.options.model.is_file():
                raise Missing(f"there is no model {self.options.model}")
            return self.options.model
        for folder in [self.options.bin, self.options.work]:
            if (folder / MODEL).is_file():
                return folder / MODEL
        sums = self.options.bin / f"{MODEL}.sha256"
        parts = sorted(self.options.bin.glob(f"{MODEL}.part-*"))
        if not sums.is_file():
            raise Missing(f"the real small model is not in {self.options.bin}; scripts/gpu-pack --model packs it in parts, or name one with --model")
        wanted, count = sums.read_text().split()[:2]
        if len(parts) != int(count):
            raise Missing(f"{len(parts)} of the {count} parts of {MODEL} are in {self.options.bin}; unpack the others there, too")
        joined = self.options.work / f"{MODEL}.unfinished"
        digest = hashlib.sha256()
        with joined.open("wb") as out:
            for part in parts:
                data = part.read_bytes()
                digest.update(data)
                out.write(data)
        if digest.hexdigest() != wanted:
            joined.unlink()
            raise Missing(f"the parts of {MODEL} do not give the model with the SHA-256 {wanted}; unpack them again")
        joined.replace(self.options.work / MODEL)
        return self.options.work / MODEL

    def caps(self):
        """The caps of the real small model."""
        places = [self.options.bin / CAPS, self.scripts.parent / "assets" / CAPS]
        found = next((place for place in places if place.is_file()), None)
        if not found:
            raise Missing(f"{CAPS} is not in {self.options.bin}; scripts/gpu-pack packs it")
        return found

    def bench_caps(self, blocks, width, first, last, floor="1.0"):
        """A cap file on random axes. Floors of 1 act on most rows; -inf never does."""
        file = self.options.work / f"caps-{blocks}x{width}-{first}-{last}-{floor}.gguf"
        command = [sys.executable, self.scripts / "make-bench-caps", file, blocks, width, f"{first}-{last}", floor]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing(f"make-bench-caps failed: {done.stderr.strip()[-300:]}")
        return file

    def start_synthetic(self, shape):
        """Begins to write a synthetic model, if it is not there yet."""
        file = self.options.work / f"synthetic-{shape}.gguf"
        if shape not in self._making and not file.exists():
            command = [sys.executable, str(self.scripts / "make-synthetic-model"), shape, str(file)]
            self._making[shape] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def synthetic(self, shape):
        """A synthetic model, once it is written."""
        self.start_synthetic(shape)
        file = self.options.work / f"synthetic-{shape}.gguf"
        if process := self._making.pop(shape, None):
            try:
                _, said = process.communicate(timeout=180)
            except subprocess.TimeoutExpired as late:
                process.kill()
                process.wait()
                raise Missing(f"{file.name} was not written within three minutes") from late
            if process.returncode != 0:
                raise Missing(said.strip()[-300:])
        return file

    def stop(self):
        """Ends what is still being written."""
        for process in self._making.values():
            process.kill()
            process.wait()

    def find_backend(self):
        """Sets the environment in which axiscap finds ggml's CUDA backend and what that is linked to. Without this
        environment axiscap runs on the CPU: that is how the reference is made."""
        named = self.options.cuda_backend
        places = [named] if named else [self.options.bin / f"cuda/libggml-cuda.so{end}" for end in ("", ".xz")]
        found = next((place for place in places if place.is_file()), None)
        if not found:
            raise Missing(f"there is no {' or '.join(map(str, places))}; build-ggml-cuda cuda ggml-sources.tar.xz (both are in the pack) makes one in minutes, gpu-pack --cuda-backend packs one, --cuda-backend names one")
        if found.suffix == ".xz":
            target = self.options.work / found.stem
            with lzma.open(found) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out)
            found = target
        data = found.read_bytes()
        releases = [release for release in (13, 12) if f"libcudart.so.{release}".encode() in data]
        folders, missing = device.runtime(releases[0]) if releases else ([], [])
        if missing:
            raise Missing(f"{found.name} needs {', '.join(missing)}, which is nowhere here: install CUDA {releases[0]}, or the Python packages nvidia-cuda-runtime and nvidia-cublas of that release, or set LD_LIBRARY_PATH")
        path = ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        # A backend that was linked without the driver at hand does not name it, but needs its symbols.
        self.gpu = {"GGML_BACKEND_PATH": str(found.resolve()), "LD_LIBRARY_PATH": path, "LD_PRELOAD": "libcuda.so.1"}
        return {"file": str(found), "sha256": hashlib.sha256(data).hexdigest(), "environment": self.gpu}
