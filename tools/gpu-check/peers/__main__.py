"""Times the peers: python3 -m peers --out FILE --seconds N [--tiny] [WHEEL...]

Appends one JSON object a line, as they are measured: samples in the form of the kernels' benchmark, and notes on what
could not be measured. Wheels are unpacked and made importable.
"""

import argparse
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, TextIO

from .cases import Case, cases

# Largest relative deviation from f64 that a right implementation may have.
TOLERANCE = {"f32": 1e-4, "bf16": 5e-2}


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU where there is no GPU")
    parser.add_argument("wheels", type=Path, nargs="*")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, options.out.open("w", buffering=1) as out:
        for wheel in options.wheels:
            zipfile.ZipFile(wheel).extractall(folder)
        sys.path.append(folder)
        try:
            import torch
        except ImportError as error:
            return _write(out, {"note": f"PyTorch is not installed here: {error}"})
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and not options.tiny:
            return _write(out, {"note": "PyTorch sees no GPU"})
        _kernels(out, device, options.tiny, ends)
        if time.monotonic() < ends:
            try:
                from . import model
                _write(out, {"model": model.speeds(device, options.tiny)})
            except Exception as error:  # noqa: BLE001
                _write(out, {"note": f"transformers: {type(error).__name__}: {error}"[:300]})
    return 0


def _write(out: TextIO, line: dict[str, Any]) -> int:
    print(json.dumps(line), file=out)
    return 0


def _kernels(out: TextIO, device: str, tiny: bool, ends: float) -> None:
    """Times every available peer in every case until the time ends. A peer that failed in three cases is left out."""
    from . import implementations

    missing = implementations.unavailable(device)
    for peer, why in missing.items():
        _write(out, {"note": f"{peer}: {why}"})
    failures = {peer: 0 for peer in implementations.PEERS if peer not in missing}
    for case in cases(tiny):
        for peer in [peer for peer, count in failures.items() if count < 3]:
            if time.monotonic() > ends:
                _write(out, {"note": f"time ended at {case.name}, {case.shape}"})
                return
            try:
                _sample(out, device, peer, case)
            except Exception as error:  # noqa: BLE001
                failures[peer] += 1
                _write(out, {"note": f"{peer} at {case.name}, {case.shape}: {type(error).__name__}: {error}"[:300]})


def _sample(out: TextIO, device: str, peer: str, case: Case) -> None:
    import torch

    from . import implementations, timing

    made = implementations.PEERS[peer](case, device)
    rows = torch.randn(case.rows, case.width, generator=torch.Generator().manual_seed(case.width))
    rows = rows.to(device, implementations.DTYPES[case.dtype])
    if case.rows <= 16:
        apart = implementations.deviation(case, peer, made, rows.clone())
        if not apart <= TOLERANCE[case.dtype]:
            raise ValueError(f"deviates by {apart:.2e} from f64")
    cuda = device == "cuda"
    turns = [rows] if case.node else timing.buffers(rows, cuda)
    measure = timing.node if case.node else timing.launches
    low, median, high = measure(lambda turn: made(turns[turn % len(turns)]), cuda)
    _write(out, {"peer": peer, "name": case.name, "shape": case.shape, "us_q1": low, "us_median": median, "us_q3": high})


if __name__ == "__main__":
    sys.exit(main())
