"""The first tier: everything once, in at most 100 seconds, until the first kind of failure."""

import re
import shutil
from collections.abc import Callable
from functools import partial

from . import device, kernels
from .models import Models
from .programs import Programs
from .text import WAYS, Texts
from .visit import PASSED, Data, Failed, Visit

NAME = "smoke"
# Seconds that each kind is expected to take, with the model's load times.
SECONDS = {"kernel-tests": 45, "doctor": 5, **{f"text-{way}": 6 for way in WAYS}}
Work = Callable[[Data], None]


def doctor(visit: Visit, programs: Programs, step: Data) -> None:
    """Checks that axiscap sees the GPU and caps there, with a backend that is stock llama.cpp's."""
    report = step["report"] = visit.run_json("doctor", [*programs.axiscap, "doctor", "--json"], 30, programs.gpu)
    if visit.rehearsal:
        return
    found = [one for one in report["devices"] if one["name"].startswith("CUDA")]
    if not found:
        complaints = [module["complaint"] for module in report["modules"]["found"] if module.get("complaint")]
        raise Failed("; ".join(complaints) or "llama.cpp has no CUDA device")
    capping = [str(one.get("capping") or one.get("route")) for one in found]
    if elsewhere := [how for how in capping if "on the GPU" not in how]:
        raise Failed(f"caps would not run on the GPU: {elsewhere}")
    if not re.search(r"CUDA : .*\bUSE_GRAPHS = 1\b", report["llama"]["system_info"]):
        raise Failed("ggml's CUDA backend was built without CUDA graphs, so uncapped speed is not stock llama.cpp's; "
                     "scripts/build-ggml-cuda makes one with them")


def run(visit: Visit, programs: Programs, models: Models) -> bool:
    """Runs the kinds in order. Returns whether all passed. After a failure brings back what explains it."""
    if NAME in visit.known:
        return True
    texts = Texts(visit, programs, models)
    kinds: list[tuple[str, Work]] = [("kernel-tests", partial(kernels.tests, visit, programs)),
                                     ("doctor", partial(doctor, visit, programs)),
                                     *((f"text-{way}", partial(texts.run, way)) for way in WAYS)]
    for name, work in kinds:
        if visit.step(name, work) != PASSED:
            _explain(visit, programs, name)
            return False
    return visit.step(NAME, lambda step: None) == PASSED


def _explain(visit: Visit, programs: Programs, name: str) -> None:
    """Adds to the logs what is needed to understand a failure without the card."""
    device.describe(visit.logs, "gpu-after-the-failure")
    if name == "kernel-tests":
        tests = visit.steps[name].get("tests", {})
        visit.step("kernel-tests-again", partial(kernels.again, visit, programs, tests))
    if name.startswith("text-"):
        for file in visit.work.glob("caps-*.gguf"):
            shutil.copy(file, visit.logs)
    visit.archive(now=True)
