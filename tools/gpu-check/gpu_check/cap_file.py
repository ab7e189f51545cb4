"""Writes a cap file that costs as much as capping can: random axes whose floor lies above nearly every projection.

    scripts/make-bench-caps OUT.gguf BLOCKS WIDTH CAPPED [FLOOR]

BLOCKS and WIDTH are the model's. CAPPED is the first and last block to cap, e.g. 20-27. For measurements, where the
caps have to act and need no meaning. The same arguments give the same bytes.
"""

import math
import random
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, values: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def _f32s(values: Sequence[float]) -> list[bytes]:
    return [struct.pack("<f", value) for value in values]


def write(file: Path, blocks: int, width: int, first: int, last: int, floor: float = 1.0) -> None:
    """Writes caps for the blocks from `first` to `last` of a model."""
    capped = range(first, last + 1)
    # A direction.0 would be no control vector.
    names = [f"direction.{block}" if block else f"axiscap.axis.{cap}" for cap, block in enumerate(capped)]
    pairs = [
        ("general.architecture", STRING, _string("controlvector")),
        ("controlvector.model_hint", STRING, _string("llama")),
        ("controlvector.layer_count", I32, struct.pack("<i", blocks)),
        ("axiscap.version", U32, struct.pack("<I", 1)),
        ("axiscap.width", U32, struct.pack("<I", width)),
        ("axiscap.cap.block", ARRAY, _array(I32, [struct.pack("<i", block) for block in capped])),
        ("axiscap.cap.tensor", ARRAY, _array(STRING, [_string(name) for name in names])),
        ("axiscap.cap.floor", ARRAY, _array(F32, _f32s([floor] * len(names)))),
        ("axiscap.cap.ceiling", ARRAY, _array(F32, _f32s([math.inf] * len(names)))),
        ("axiscap.cap.strength", ARRAY, _array(F32, _f32s([1.0] * len(names)))),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(pairs))
    for key, kind, value in pairs:
        head += _string(key) + struct.pack("<I", kind) + value
    data = b""
    numbers = random.Random(1)
    for name in names:
        head += _string(name) + struct.pack("<IQIQ", 1, width, 0, len(data))
        axis = [numbers.gauss(0, 1) for _ in range(width)]
        norm = math.sqrt(sum(value * value for value in axis))
        data += b"".join(_f32s([value / norm for value in axis]))
        data += bytes(-len(data) % 32)
    head += bytes(-len(head) % 32)
    file.write_bytes(head + data)


def main(arguments: list[str]) -> None:
    """Runs the command line of scripts/make-bench-caps."""
    if len(arguments) not in (4, 5):
        sys.exit(__doc__)
    out, blocks, width, capped, *floor = arguments
    first, last = map(int, capped.split("-"))
    write(Path(out), int(blocks), int(width), first, last, float(floor[0]) if floor else 1.0)


if __name__ == "__main__":
    main(sys.argv[1:])
