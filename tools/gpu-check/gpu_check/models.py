"""The synthetic models, written in the background, and their caps."""

import subprocess
import sys
import time
from pathlib import Path

from . import cap_file, child
from .synthetic_model import SHAPES
from .visit import Failed, OutOfTime, Visit

# The model in place of the large ones in a rehearsal.
REHEARSED = "tiny"
# Writes several models in one process.
WRITER = """
import sys
from gpu_check import synthetic_model
folder, *shapes = sys.argv[1:]
for shape in shapes:
    sys.argv[1:] = [shape, f"{folder}/synthetic-{shape}.gguf", *(["--type", "q8_0"] if shape == "135m" else [])]
    synthetic_model.main()
"""


class Models:
    """Writes the models one after the other while other steps run."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.writer: subprocess.Popen[bytes] | None = None
        self.log = visit.logs / "synthetic-models.log"

    def _shape(self, name: str) -> str:
        return REHEARSED if self.visit.rehearsal else name

    def file(self, name: str) -> Path:
        """Returns where a model is or will be."""
        return self.visit.work / f"synthetic-{self._shape(name)}.gguf"

    def start(self, names: list[str]) -> None:
        """Begins to write these models in this order, unless they are there."""
        missing = list(dict.fromkeys(self._shape(name) for name in names if not self.file(name).exists()))
        if missing:
            with self.log.open("ab") as log:
                self.writer = child.start([sys.executable, "-B", "-c", WRITER, self.visit.work, *missing], log)

    def wait(self, name: str) -> Path:
        """Waits until a model is written."""
        file = self.file(name)
        while not file.exists():
            if self.writer is None or self.writer.poll() is not None:
                raise Failed(f"{file.name} was not written: {self.log.read_text(errors='replace')[-300:]}")
            if self.visit.left() < 1:
                raise OutOfTime
            time.sleep(0.1)
        return file

    def wait_for_all(self) -> None:
        """Waits for the writer, which would disturb measurements."""
        while self.writer is not None and self.writer.poll() is None and self.visit.left() > 1:
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the writer."""
        if self.writer is not None:
            child.end(self.writer)

    def caps(self, name: str, count: int | None, floor: float = 1.0) -> Path:
        """Writes caps for `count` blocks from five eighths of the model on, or for all of them."""
        shape = SHAPES[self._shape(name)]
        first, last = blocks(count, shape.blocks)
        file = self.visit.work / f"caps-{self._shape(name)}-{first}-{last}-{floor}.gguf"
        if not file.exists():
            cap_file.write(file, shape.blocks, shape.width, first, last, floor)
        return file


def blocks(count: int | None, of: int) -> tuple[int, int]:
    """Returns the first and the last capped block."""
    if count is None or count >= of:
        return 0, of - 1
    first = min(of * 5 // 8, of - count)
    return first, first + count - 1
