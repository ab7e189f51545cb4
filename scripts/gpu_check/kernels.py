"""The kernels alone: their tests, the same under compute-sanitizer, their benchmark."""

import json
import os
import re
import sys

from . import device

TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
SMALL = "every_kernel_on_small_shapes"
NEED = {"AXISCAP_REQUIRE_GPU": "1", "RUST_BACKTRACE": "0"}


def missing(folder):
    """The programs that are not in the pack."""
    return [name for name in ["gpu-tests", "gpu-bench"] if not os.access(folder / name, os.X_OK)]


def tests(check):
    """Every kernel against its CPU twin, bit for bit."""
    command = [check.options.bin / "gpu-tests", "--test-threads", "1", "--nocapture"]
    step, text, _ = check.run("kernel-tests", command, NEED, most=240)
    if summary := re.search(r"test result: (\w+)\. (\d+) passed; (\d+) failed", text):
        step["passed_tests"], step["failed_tests"] = int(summary[2]), int(summary[3])
    step["launches_equal_to_the_cpu"] = sum(map(int, re.findall(r"(\d+) launches gave the CPU twin's bits", text)))
    check.judge("kernel-tests", step["status"] == 0 and "SKIPPED" not in text, "see its log")


def sanitizers(check):
    """The tests on small shapes under compute-sanitizer's tools, where that works."""
    tool_path = device.sanitizer()
    if not tool_path:
        check.result["sanitizers"] = "compute-sanitizer is not installed here: not run"
        return
    program = check.options.bin / "gpu-tests"
    # On some virtual machines it refuses the device; that is no finding about the kernels.
    probe, text, _ = check.run("sanitizer-probe", [tool_path, "--tool", "memcheck", "--error-exitcode", "9", program,
                                                   "--exact", "the_threads_context_is_put_back"], NEED, most=90)
    if probe["status"] != 0:
        check.result["sanitizers"] = "compute-sanitizer does not work on this machine: " + text[-600:]
        return
    for tool in TOOLS:
        command = [tool_path, "--tool", tool, "--error-exitcode", "9", program, "--exact", SMALL]
        step, text, _ = check.run(f"sanitizer-{tool}", command, NEED, most=90)
        found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
        step["errors"] = [int(a or b) for a, b in found]
        if step["status"] in ("timeout", "no time left"):
            step["note"] = "ran out of time; what it saw until then is in the log"
        else:
            check.judge(f"sanitizer-{tool}", step["status"] == 0, "see its log")


def bench(check):
    """The kernels' own benchmark."""
    file = check.options.out / "bench.json"
    step, text, _ = check.run("kernel-bench", [check.options.bin / "gpu-bench", "--json", file], most=180)
    if step["status"] == 0 and file.exists():
        check.result["bench"] = json.loads(file.read_text())
        print(text, file=sys.stderr)
    check.judge("kernel-bench", step["status"] == 0 and file.exists(), "see its log")
