"""The kernels alone: their tests, the same under compute-sanitizer, their benchmark."""

import json
import os
import re

from . import device
from .check import not_run

TESTS, BENCH, PROBE = "kernel-tests", "kernel-bench", "sanitizer-probe"
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
SMALL = "every_kernel_on_small_shapes"
NEED = {"AXISCAP_REQUIRE_GPU": "1", "RUST_BACKTRACE": "0"}
# What compute-sanitizer's exit status says: the program was well, and the tool found errors.
FOUND = 9
# The same in its words: what it found in memory and at barriers, and its counts of any errors. That it cannot work on
# a machine is an error, too.
FINDING = re.compile(r"^=+ .*(Invalid __|Uninitialized __|Misaligned |[Rr]ace reported|hazard detected|Barrier error|"
                     r"Divergent thread)", re.MULTILINE)
COUNTED = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) ")


def missing(folder):
    """The programs that are not in the pack."""
    return [name for name in ["gpu-tests", "gpu-bench"] if not os.access(folder / name, os.X_OK)]


def plan(options):
    """The names of this part's steps."""
    return [TESTS, *([] if options.skip_bench else [BENCH]),
            *([] if options.skip_sanitizers else [f"sanitizer-{tool}" for tool in TOOLS])]


def tests(check):
    """Every kernel against its CPU twin, bit for bit."""
    if not check.wanted(TESTS) or check.kept(TESTS):
        return
    command = [check.options.bin / "gpu-tests", "--test-threads", "1", "--nocapture"]
    step, text = check.run(TESTS, command, NEED, most=240)
    if summary := re.search(r"test result: (\w+)\. (\d+) passed; (\d+) failed", text):
        step["passed_tests"], step["failed_tests"] = int(summary[2]), int(summary[3])
    step["launches_equal_to_the_cpu"] = sum(map(int, re.findall(r"(\d+) launches gave the CPU twin's bits", text)))
    if step["status"] != 0 and re.search(r"^test .*FAILED|panicked at", text, re.MULTILINE):
        # A failure is one, however the run ended.
        step["status"] = f"failed, {step['status']}"
    check.judge(TESTS, step["status"] == 0 and "SKIPPED" not in text, "see its log")


def finding(status, text):
    """What a tool of compute-sanitizer found, or None."""
    counts = [int(count) for count in COUNTED.findall(text)]
    if status == FOUND or FINDING.search(text) or any(counts):
        return f"compute-sanitizer found errors ({sum(counts) or 'uncounted'}), see its log"
    return None


def sanitizers(check):
    """The tests on small shapes under compute-sanitizer's tools, where that works."""
    names = [f"sanitizer-{tool}" for tool in TOOLS]
    names = [name for name in names if check.wanted(name) and not check.kept(name)]
    if not names:
        return
    tool_path = device.sanitizer()
    if not tool_path:
        for name in names:
            check.note(name, "not run: compute-sanitizer is not installed here")
        return
    program = check.options.bin / "gpu-tests"
    # On some virtual machines it refuses the device; that is no finding about the kernels.
    probe, text = check.run(PROBE, [tool_path, "--tool", "memcheck", "--error-exitcode", FOUND, program, "--exact",
                                    "the_threads_context_is_put_back"], NEED, most=90)
    status = probe["status"]
    if status == FOUND or FINDING.search(text):
        probe["status"] = f"errors found ({status})"
        check.judge(PROBE, False, finding(status, text))
    elif status == 0:
        check.judge(PROBE, True)
    else:
        check.note(PROBE)
        for name in names:
            check.note(name, status if not_run(status) else
                       f"not run: compute-sanitizer does not work on this machine, see the log of {PROBE}")
        return
    for name in names:
        command = [tool_path, "--tool", name.removeprefix("sanitizer-"), "--error-exitcode", FOUND, program, "--exact", SMALL]
        step, text = check.run(name, command, NEED, most=90)
        status = step["status"]
        step["errors"] = [int(count) for count in COUNTED.findall(text)]
        if why := finding(status, text):
            # However it ended: what was found was found.
            step["status"] = f"errors found ({status})"
            check.judge(name, False, why)
        elif str(status).startswith("timeout"):
            step["why"] = "no verdict: it takes longer than that here, and found nothing until then"
            check.note(name)
        else:
            check.judge(name, status == 0, f"exit status {status}, see its log")


def bench(check):
    """The kernels' own benchmark. What it wrote before it came to an end counts, too."""
    if not check.wanted(BENCH) or check.kept(BENCH):
        return
    file = check.options.out / "bench.json"
    file.unlink(missing_ok=True)
    step, _ = check.run(BENCH, [check.options.bin / "gpu-bench", "--json", file], most=150)
    if file.exists():
        check.result["bench"] = json.loads(file.read_text())
    whole = step["status"] == 0 and file.exists() and check.result["bench"].get("complete", True)
    check.judge(BENCH, whole, f"exit status {step['status']}, see its log")
