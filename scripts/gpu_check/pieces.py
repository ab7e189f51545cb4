"""What the llama.cpp part needs: found in the pack, put together, or made on the spot."""

import contextlib
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import child, device
from .check import ENDING, Missing, Refused

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CAPS = "smollm2-135m-instruct.caps.gguf"


def digest_of(file):
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pack(folder):
    """What the pack says of itself, if this is one. A program that is not what was packed is refused."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return None
    found = json.loads(manifest.read_text())
    wrong = [name for name, digest in found.get("sha256", {}).items()
             if not (folder / name).is_file() or digest_of(folder / name) != digest]
    if wrong:
        raise Refused(f"{', '.join(wrong)} in {folder} is not what was packed; unpack axiscap-gpu.tar.gz again")
    return found


@contextlib.contextmanager
def whole(file):
    """A file that is there whole, or not at all, whoever else writes it meanwhile."""
    handle, name = tempfile.mkstemp(prefix=f"{file.name}.unfinished-", dir=file.parent)
    try:
        with open(handle, "wb") as out:
            yield out
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


class Parts(io.RawIOBase):
    """Several files, read as one."""

    def __init__(self, files):
        self.files = iter(files)
        self.file = None

    def readable(self):
        return True

    def readinto(self, buffer):
        while True:
            if self.file is None:
                if (file := next(self.files, None)) is None:
                    return 0
                self.file = file.open("rb")
            if count := self.file.readinto(buffer):
                return count
            self.file.close()
            self.file = None


class Pieces:
    """Programs, models and the environments that runs of them need."""

    def __init__(self, options, left):
        """`left` says how many seconds there are."""
        self.options, self.left = options, left
        self.scripts = Path(__file__).resolve().parent.parent
        self.axiscap = options.axiscap or options.bin / "axiscap"
        if not os.access(self.axiscap, os.X_OK):
            raise Missing(f"{self.axiscap} is missing; make it with scripts/gpu-pack on a machine with Rust, or name one with --axiscap")
        options.work.mkdir(parents=True, exist_ok=True)
        self._making, self._late = {}, set()
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
        parts = sorted(self.options.bin.glob(f"{MODEL}.xz.part-*"))
        if not sums.is_file():
            raise Missing(f"the real small model is not in {self.options.bin}; scripts/gpu-pack --model packs it in parts, or name one with --model")
        wanted, count = sums.read_text().split()[:2]
        if len(parts) != int(count):
            raise Missing(f"{len(parts)} of the {count} parts of {MODEL} are in {self.options.bin}; unpack the others there, too")
        packed = Parts(parts)
        digest = hashlib.sha256()
        try:
            with whole(self.options.work / MODEL) as out, lzma.open(packed) as data:
                while block := data.read(1 << 20):
                    digest.update(block)
                    out.write(block)
                if digest.hexdigest() != wanted:
                    raise lzma.LZMAError("another model")
        except (EOFError, lzma.LZMAError) as error:
            raise Missing(f"the parts of {MODEL} do not give the model with the SHA-256 {wanted} ({error}); unpack them again") from error
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
        self._made(command, file, min(60, self.left() - ENDING))
        return file

    def _made(self, command, what, limit):
        """Runs one of the scripts that write files."""
        log = self.options.out / "made.log"
        status = child.run(command, max(limit, 1), log)
        if status != 0:
            raise Missing(f"{what.name} was not written ({status}): {log.read_text(errors='replace').strip()[-300:]}")

    def start_synthetic(self, shape):
        """Begins to write a synthetic model, if it is not there yet."""
        file = self.options.work / f"synthetic-{shape}.gguf"
        if shape not in self._making and not file.exists():
            log = self.options.out / f"synthetic-{shape}.log"
            command = [sys.executable, self.scripts / "make-synthetic-model", shape, file]
            with log.open("wb") as output:
                self._making[shape] = child.start(command, output), log

    def synthetic(self, shape):
        """A synthetic model, once it is written."""
        self.start_synthetic(shape)
        file = self.options.work / f"synthetic-{shape}.gguf"
        if shape in self._making:
            process, log = self._making[shape]
            # A second time nobody waits for what was late: other steps have a use for the time.
            ends = time.monotonic() + (0 if shape in self._late else min(180, self.left() - ENDING))
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.1)
            if process.poll() is None:
                # It goes on being written until gpu-check ends: a later step may find it.
                self._late.add(shape)
                raise Missing(f"{file.name} is not written yet")
            del self._making[shape]
            if process.returncode != 0:
                raise Missing(f"{file.name} was not written: {log.read_text(errors='replace').strip()[-300:]}")
            log.unlink()
        return file

    def stop(self):
        """Ends what is still being written."""
        for process, _ in self._making.values():
            child.end(process)

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
            try:
                with whole(target) as out, lzma.open(found) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
            except (EOFError, lzma.LZMAError) as error:
                raise Missing(f"{found} is damaged ({error}); unpack it again") from error
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
