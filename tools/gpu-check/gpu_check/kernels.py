"""The kernels alone: their tests against the CPU twin, their benchmark, and the tests under compute-sanitizer."""

import json
import re
from typing import Any

from . import device
from .programs import Programs
from .visit import Data, Failed, OutOfTime, Unavailable, Visit

TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
# Shapes that reach every kernel. The sanitizers slow a kernel down a hundredfold.
SMALL = "every_kernel_on_small_shapes"
# compute-sanitizer's exit status where the program was well and the tool found errors.
FOUND = 9
FINDING = re.compile(r"^=+ .*(Invalid __|Uninitialized __|Misaligned |[Rr]ace reported|hazard detected|Barrier error|"
                     r"Divergent thread)", re.MULTILINE)
# Some virtual machines refuse it the device, which is no finding about the kernels.
UNSUPPORTED = re.compile(r"[Dd]evice not supported")
COUNTED = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) ")


def environment(visit: Visit) -> dict[str, str]:
    """Returns the environment of the kernels' tests. A test that differs may leave its rows in the dump folder."""
    dump = visit.logs / "kernel-dump"
    dump.mkdir(exist_ok=True)
    required = {} if visit.rehearsal else {"AXISCAP_REQUIRE_GPU": "1"}
    return {**required, "RUST_BACKTRACE": "0", "AXISCAP_DUMP_DIR": str(dump.resolve())}


def tests(visit: Visit, programs: Programs, step: Data) -> None:
    """Runs every kernel on every type and path against its CPU twin, bit for bit, capture and replay included."""
    command = [*programs.tests, "--test-threads", "1", "--nocapture"]
    done = visit.run("kernel-tests", command, 120, environment(visit))
    step["tests"] = dict(re.findall(r"^test (\S+) \.\.\.(?:.*\n)*?.*?\b(ok|FAILED)$", done.text, re.MULTILINE))
    step["launches_equal_to_the_cpu"] = sum(map(int, re.findall(r"(\d+) launches of \d+ cases gave the CPU twin's bits", done.text)))
    failures = [name for name, verdict in step["tests"].items() if verdict == "FAILED"]
    if done.status == 0 and "SKIPPED" not in done.text:
        return
    # A panic's message follows the line that names its place.
    step["messages"] = re.findall(r"panicked at [^\n]*\n(.{1,2000})", done.text)[:5]
    skipped = "a test was skipped" if done.status == 0 else f"exit status {done.status}"
    message = step["messages"][0][:400] if step["messages"] else "see its log"
    raise Failed(f"{', '.join(failures) or skipped}: {message}")


def again(visit: Visit, programs: Programs, tests: dict[str, str], step: Data) -> None:
    """Repeats failed kernel tests with synchronous launches. A message that changes between runs points to a race."""
    failed = [name for name, verdict in tests.items() if verdict == "FAILED"]
    for log, more in (("kernel-tests-again", {}), ("kernel-tests-blocking", {"CUDA_LAUNCH_BLOCKING": "1"})):
        command = [*programs.tests, *failed, "--test-threads", "1", "--nocapture"]
        done = visit.run(log, command, 20, environment(visit) | more)
        step[log] = re.findall(r"panicked at [^\n]*\n(.{1,2000})", done.text)[:5]


def bench(visit: Visit, programs: Programs, step: Data) -> None:
    """Runs the kernels' benchmark. Finished phases count even if it is stopped."""
    file = visit.logs / "kernel-bench.json"
    try:
        done = visit.run("kernel-bench", [*programs.bench, "--json", file], 150)
    finally:
        if file.exists():
            step["bench"] = json.loads(file.read_text())
    if done.status != 0 or not step.get("bench", {}).get("complete"):
        raise Failed(f"exit status {done.status}: {done.text[-300:]}")


def finding(status: int | str, text: str) -> str | None:
    """Returns what a tool of compute-sanitizer found, or `None`."""
    counts = [int(count) for count in COUNTED.findall(text)]
    if FINDING.search(text) or not UNSUPPORTED.search(text) and (status == FOUND or any(counts)):
        return f"compute-sanitizer found errors ({sum(counts) or 'uncounted'}), see its log"
    return None


def sanitize(visit: Visit, programs: Programs, tool: str, step: Data) -> None:
    """Runs the tests on small shapes under one tool of compute-sanitizer, where that works."""
    path, log = device.sanitizer(), f"sanitizer-{tool}"
    if not path:
        raise Unavailable("compute-sanitizer is not installed here")
    command: list[Any] = [path, "--tool", tool, "--error-exitcode", FOUND, *programs.tests, "--exact", SMALL]
    try:
        done = visit.run(log, command, 120, environment(visit))
    except OutOfTime:
        if why := finding(0, (visit.logs / f"{log}.log").read_text(errors="replace")):
            raise Failed(why) from None
        raise
    if why := finding(done.status, done.text):
        raise Failed(why)
    if UNSUPPORTED.search(done.text):
        raise Unavailable("compute-sanitizer does not support the device on this machine")
    if done.status == "timeout":
        raise Unavailable("no verdict: it takes longer than that here, and found nothing until then")
    if done.status != 0 or "1 passed" not in done.text:
        raise Failed(f"exit status {done.status}: {done.text.strip()[-300:]}")
