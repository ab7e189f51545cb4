"""The whole of llama.cpp: what there is, then text, then speed."""

import re

from . import child, generation, speed
from .check import Missing
from .pieces import MODEL

# What a rehearsal puts in place of the large models.
REHEARSED = "tiny"
# Texts by model, and their tokens. The model that is soonest there comes first.
TEXTS = [("1b", 32), ("real", 64), ("8b", 24)]
HOOK_TESTS = "hook-tests"


def texts_planned():
    return [name for model, _ in TEXTS for name in generation.plan(model)]


def plan():
    """The names of this part's steps."""
    return [*texts_planned(), *speed.plan(), HOOK_TESTS]


def doctor(check, pieces):
    """Whether axiscap sees a GPU here, with a backend that is stock llama.cpp's. Asked at every visit."""
    step, report = check.json("doctor", [pieces.axiscap, "doctor", "--json"], pieces.gpu)
    check.result["doctor"] = report
    if check.options.rehearse:
        check.judge("doctor", report is not None, f"axiscap doctor: {step['status']}")
        return report is not None
    if report is None:
        check.judge("doctor", False, f"axiscap doctor: {step['status']}")
        return False
    why, usable = examined(report)
    check.result["stock"] = graphs_on(report)
    check.judge("doctor", why is None, why)
    return usable


def graphs_on(report):
    """Whether ggml's CUDA backend was built with CUDA graphs, as llama.cpp's own build does."""
    return re.search(r"CUDA : .*\bUSE_GRAPHS = 1\b", report["llama"]["system_info"]) is not None


def examined(report):
    """Why what `axiscap doctor` says is not as it should be, or None; and whether a GPU can be used all the same."""
    found = [device for device in report["devices"] if device["name"].startswith("CUDA")]
    if not found:
        complaints = [module["complaint"] for module in report["modules"]["found"] if module["complaint"]]
        return "; ".join(complaints) or "llama.cpp has no CUDA device", False
    if host := [device["capping"] for device in found if "on the GPU" not in (device["capping"] or "")]:
        return f"caps would not run on the GPU: {host}", True
    if not graphs_on(report):
        return ("ggml's CUDA backend was built without CUDA graphs, so that uncapped speed is not stock llama.cpp's; "
                "build-ggml-cuda makes one with them"), True
    return None, True


class Models:
    """The models by name, made when they are first needed, and their shapes, asked of axiscap once."""

    def __init__(self, check, pieces):
        self.check, self.pieces = check, pieces
        self.synthetic = {name: REHEARSED if check.options.rehearse else name for name in ("8b", "1b")}
        self.shapes = check.result.setdefault("models", {})
        self.unusable = {}

    def start(self, names):
        """Begins to write the synthetic ones of these."""
        for name in names:
            if name in self.synthetic:
                self.pieces.start_synthetic(self.synthetic[name])

    def file(self, name):
        return self.pieces.synthetic(self.synthetic[name]) if name in self.synthetic else self.pieces.model()

    def known(self, name):
        """A model's file and shape."""
        if name in self.unusable:
            raise Missing(self.unusable[name])
        file = self.file(name)
        if name not in self.shapes:
            step = f"shape-{name}"
            _, report = self.check.json(step, [self.pieces.axiscap, "run", "--model", file, "--raw", "--max-tokens", "1",
                                               "--prompt", "a", "--ctx", "64", "--json"], self.pieces.gpu)
            self.check.note(step)
            if report is None:
                # Once is enough: it may have taken its time to fail.
                self.unusable[name] = f"axiscap cannot run {file}; see the log of {step}"
                raise Missing(self.unusable[name])
            self.shapes[name] = report["model"]
        return file, self.shapes[name]


def has_fused_norm(check, pieces):
    log = check.options.out / "bench-help.log"
    log.unlink(missing_ok=True)
    return child.run([pieces.axiscap, "bench", "--help"], 30, log) == 0 and "--fused-norm" in log.read_text(errors="replace")


def open_models(check):
    """The models that steps without a result need: for texts, and for speeds."""
    def is_open(name):
        return check.wanted(name) and not check.kept(name)

    texts = [model for model, _ in TEXTS if any(map(is_open, generation.plan(model)))]
    speeds = list(dict.fromkeys(model for name, model, *_ in speed.PLAN if is_open(name)))
    return texts, speeds


def run(check, pieces):
    """Runs this part as far as there is time."""
    texts, speeds = open_models(check)
    hook = check.wanted(HOOK_TESTS) and not check.kept(HOOK_TESTS)
    if not (texts or speeds or hook) or not doctor(check, pieces):
        return
    models = Models(check, pieces)
    fused = has_fused_norm(check, pieces)
    # Written while texts are tried; nothing is timed meanwhile.
    models.start(name for name in ("1b", "8b") if name in texts or name in speeds)
    for model, tokens in TEXTS:
        if model in texts:
            with check.group(f"text-{model}"):
                generation.verify(check, pieces, model, lambda: models.known(model), caps_of(model, pieces),
                                  8 if check.options.rehearse else tokens, fused)
    # Nothing may be written any more while speeds are measured.
    for model in speeds:
        with check.group(f"model-{model}"):
            models.file(model)
    speed.bench(check, pieces, models.known, fused)
    if hook:
        with check.guarded(HOOK_TESTS):
            hook_tests(check, pieces)


def caps_of(model, pieces):
    """The caps that a model's texts are tried with, by its shape."""
    if model == "real":
        return lambda shape: pieces.caps()
    return lambda shape: pieces.bench_caps(shape["blocks"], shape["width"], *speed.blocks(8, shape))


def hook_tests(check, pieces):
    """The hook's own tests on the real model, as far as the pack has them. They were written for the CPU, some for its
    engine alone, so what fails on a GPU is noted, and no verdict."""
    program = check.options.bin / "hook-tests"
    if not program.exists():
        check.note(HOOK_TESTS, "not run: not in the pack")
        return
    models = check.options.work / "cache/axiscap/models"
    models.mkdir(parents=True, exist_ok=True)
    link = models / MODEL
    link.unlink(missing_ok=True)
    link.symlink_to(pieces.model().resolve())
    environment = {**pieces.gpu, "XDG_CACHE_HOME": str((check.options.work / "cache").resolve())}
    step, text = check.run(HOOK_TESTS, [program, "--test-threads", "1"], environment, most=60)
    if summary := re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", text):
        step["passed_tests"], step["failed_tests"] = int(summary[1]), int(summary[2])
        step["failed"] = sorted(set(re.findall(r"^    (\w+)$", text, re.MULTILINE)))
    check.note(HOOK_TESTS)
