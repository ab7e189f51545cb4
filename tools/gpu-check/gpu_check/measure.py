"""The second tier: measurements in order of value, each with the seconds that it is expected to take."""

import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import kernels, speed
from .models import Models
from .programs import Programs
from .visit import Data, OutOfTime, Unavailable, Visit

BENCH, PEERS, HOOK, SANITIZERS = "kernel-bench", "peers", "hook-tests", "sanitizers"
# The name under which the tests look for their model. A synthetic one of the same shape stands in.
TEST_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Seconds without which a step is not worth beginning.
LEAST = 20
# docs/gpu-check.md has the same table.
PLAN = {
    "8b-8": 70,
    BENCH: 60,
    "8b-all": 65,
    "8b-8-prefill": 15,
    "8b-8-batch16": 45,
    "1b-8": 30,
    "8b-8-cb-eval": 25,
    "8b-8-ggml-ops": 18,
    "8b-8-statistics": 40,
    PEERS: 130,
    HOOK: 30,
    SANITIZERS: 60,
}


def steps() -> list[str]:
    """Returns the names of all steps of this tier."""
    found = {name: list(case.parts(name)) for name, case in speed.CASES.items()}
    found[SANITIZERS] = [f"sanitizer-{tool}" for tool in kernels.TOOLS]
    return [part for name in PLAN for part in found.get(name, [name])]


def run(visit: Visit, programs: Programs, models: Models, wheels: Path) -> None:
    """Runs the plan as far as there is time. A later step that fits is run even if an earlier one does not fit."""
    others: dict[str, Callable[[Data], None]] = {
        BENCH: partial(kernels.bench, visit, programs),
        PEERS: partial(_peers, visit, programs, wheels),
        HOOK: partial(_hook_tests, visit, programs, models),
    }
    for name, seconds in PLAN.items():
        if name in speed.CASES:
            models.wait_for_all()
            speed.measure(visit, programs, models, name, seconds)
        elif name == SANITIZERS:
            for tool in kernels.TOOLS:
                visit.step(f"sanitizer-{tool}", partial(kernels.sanitize, visit, programs, tool), LEAST)
        else:
            # What is stopped half way counts.
            visit.step(name, others[name], 0 if visit.rehearsal else LEAST)


def _peers(visit: Visit, programs: Programs, wheels: Path, step: Data) -> None:
    """Runs other implementations of the same arithmetic, beside the kernels' benchmark of the same visit.

    What they measured before they were stopped counts.
    """
    ours = visit.steps.get(BENCH, {})
    if ours.get("visit") == visit.name and "bench" in ours:
        step["bench"] = ours["bench"]
    else:
        kernels.bench(visit, programs, step)
    file = visit.logs / "peers.jsonl"
    carried = [wheel.resolve() for wheel in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-B", "-m", "peers", "--out", file, "--seconds", max(visit.left() - 5, 1),
               *(["--tiny"] if visit.rehearsal else []), *carried]
    try:
        done = visit.run("peers", command, 200, {"TORCHINDUCTOR_CACHE_DIR": os.path.abspath(visit.work / "inductor")})
    finally:
        if file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
            step["samples"] = [line for line in lines if "peer" in line]
            step["notes"] = [line["note"] for line in lines if "note" in line]
            step["model"] = [one for line in lines for one in line.get("model", [])]
    if done.status == "timeout" or any("time ended" in note for note in step.get("notes", [])):
        raise OutOfTime
    if not step.get("samples"):
        raise Unavailable(f"no peer was measured: {'; '.join(step.get('notes', [])) or done.text[-300:]}")


def _hook_tests(visit: Visit, programs: Programs, models: Models, step: Data) -> None:
    """Runs the hook's own tests. Some of them are about the CPU's routes alone, so a failure is noted, no verdict."""
    if not programs.hook_tests:
        raise Unavailable("not part of a rehearsal")
    folder = visit.work / "cache/axiscap/models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TEST_MODEL).unlink(missing_ok=True)
    (folder / TEST_MODEL).symlink_to(models.wait("135m").resolve())
    environment = programs.gpu | {"XDG_CACHE_HOME": str((visit.work / "cache").resolve())}
    done = visit.run("hook-tests", [*programs.hook_tests, "--test-threads", "1"], 100, environment)
    step["tests"] = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", done.text, re.MULTILINE))
