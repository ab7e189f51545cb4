"""The second tier: measurements in order of value, each with the seconds that it is expected to take."""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

from . import kernels, speed
from .models import Models
from .programs import Programs
from .visit import Data, OutOfTime, Unavailable, Visit

BENCH, PEERS, HOOK, SANITIZER = "kernel-bench", "peers", "hook-tests", "sanitizer-"
# The name under which the tests look for their model. A synthetic one of the same shape stands in.
TEST_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# docs/gpu-check.md has the same table. A step begins only if its seconds are left.
PLAN = {
    "8b-8": 150,
    BENCH: 60,
    "8b-all": 150,
    "8b-8-prefill": 20,
    "8b-8-batch16": 30,
    "1b-8": 75,
    "8b-8-cb-eval": 30,
    "8b-8-ggml-ops": 20,
    "8b-8-statistics": 85,
    PEERS: 100,
    HOOK: 30,
    **{f"{SANITIZER}{tool}": 40 for tool in kernels.TOOLS},
}


def steps(rehearsal: bool) -> list[str]:
    """Returns the names of all steps of this tier."""
    names: list[str] = []
    for name in PLAN:
        names += [part for part, _ in speed.CASES[name].parts(name, rehearsal)] if name in speed.CASES else [name]
    return names


def run(visit: Visit, programs: Programs, models: Models, peers: Path) -> None:
    """Runs the plan as far as there is time. A later step that fits is run even if an earlier one does not fit."""
    for name, seconds in PLAN.items():
        if name in speed.CASES:
            models.wait_for_all()
            speed.measure(visit, programs, models, name, seconds)
            continue
        if name == BENCH:
            work = partial(kernels.bench, visit, programs)
        elif name == PEERS:
            work = partial(_peers, visit, programs, peers)
        elif name == HOOK:
            work = partial(_hook_tests, visit, programs, models)
        else:
            work = partial(kernels.sanitize, visit, programs, name.removeprefix(SANITIZER))
        visit.step(name, work, 0 if visit.rehearsal else min(seconds, 20))


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
