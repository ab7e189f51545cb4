"""Stands in for the kernels' tests and benchmark in a rehearsal: the same output, no GPU."""

import json
import os
import sys
from pathlib import Path

from . import targets

CASE = ("thread 'every_kernel_on_small_shapes' panicked at tests/gpu/device.rs:164:49:\n"
        "Case { operation: Cap, dtype: F32, rows: 3, width: 4096, seed: 7 }: h, row 1, column 130: 0.25 instead of 0.5")

RIGHT = "44 launches of 44 cases gave the CPU twin's bits"


def tests(fails: bool) -> int:
    """Prints what Rust's test harness prints, with one kernel that differs if asked for."""
    print("running 2 tests")
    print("test a_captured_launch_sees_new_bounds ... ok")
    print(f"test every_kernel_on_small_shapes ... {CASE if fails else RIGHT}")
    print("FAILED" if fails else "ok")
    if fails:
        for name in ("input", "expected", "found"):
            Path(os.environ["AXISCAP_DUMP_DIR"], f"rows-{name}.bin").write_bytes(bytes(range(16)))
    print(f"\ntest result: {'FAILED' if fails else 'ok'}. {1 if fails else 2} passed; {int(fails)} failed; 0 ignored")
    return 101 if fails else 0


def bench(file: Path) -> int:
    """Writes every sample that the targets name, in the benchmark's format."""
    wanted = {("copy", shape) for shape in targets.MANY}
    for _, names, over, shapes, _ in targets.KERNELS:
        wanted |= {(name, shape) for name in [*names, *([over] if over else [])] for shape in shapes}
    samples = [{"name": name, "shape": shape, "us_q1": 0.9, "us_median": 1.0, "us_q3": 1.1, "bytes": 8, "runs": 60}
               for name, shape in sorted(wanted)]
    samples += [{"name": name, "shape": shape, "us_q1": 0.9, "us_median": 1.0, "us_q3": 1.1, "bytes": 8, "runs": 60,
                 "ratios": [0.999, 1.001] * 30} for _, name, shape, _ in targets.INDEX]
    file.write_text(json.dumps({"device": "none", "complete": True, "samples": samples}))
    return 0


if __name__ == "__main__":
    sys.exit(bench(Path(sys.argv[3])) if sys.argv[1] == "bench" else tests(sys.argv[1] == "failing-tests"))
