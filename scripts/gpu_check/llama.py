"""The whole of llama.cpp: what there is, then text, then speed."""

import re
import subprocess

from . import generation, speed, targets
from .pieces import MODEL, Missing, Pieces

# What a rehearsal puts in place of the large models.
REHEARSED = "tiny"


def run(check):
    """Runs this part. Says in the results what could not be run, and why."""
    options = check.options
    try:
        pieces = Pieces(options)
        if not options.rehearse:
            check.result["cuda_backend"] = pieces.find_backend()
    except Missing as missing:
        check.judge("llama-pieces", False, str(missing))
        return
    try:
        _run(check, pieces)
    finally:
        pieces.stop()


def hook_tests(check, pieces):
    """The hook's own tests on the real model, as far as the pack has them. They were written for the CPU, some for its
    engine alone, so what fails on a GPU is noted, and no verdict."""
    program = check.options.bin / "hook-tests"
    if not program.exists() or not check.wanted("hook-tests"):
        return
    try:
        models = check.options.work / "cache/axiscap/models"
        models.mkdir(parents=True, exist_ok=True)
        link = models / MODEL
        link.unlink(missing_ok=True)
        link.symlink_to(pieces.model().resolve())
    except Missing as missing:
        check.result["steps"]["hook-tests"] = {"status": f"not run: {missing}"}
        return
    environment = {**pieces.gpu, "XDG_CACHE_HOME": str((check.options.work / "cache").resolve())}
    step, text, _ = check.run("hook-tests", [program, "--test-threads", "1"], environment, most=60)
    if summary := re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", text):
        step["passed_tests"], step["failed_tests"] = int(summary[1]), int(summary[2])
        step["failed"] = sorted(set(re.findall(r"^    (\w+)$", text, re.MULTILINE)))


def _run(check, pieces):
    options = check.options
    synthetic = {shape: REHEARSED if options.rehearse else shape for shape in ("8b", "1b")}
    # Written while the small model is tried; nothing is timed meanwhile.
    if not options.steps or options.steps.search("8b"):
        pieces.start_synthetic(synthetic["8b"])

    step, doctor = check.json("doctor", [pieces.axiscap, "doctor", "--json"], pieces.gpu)
    check.result["doctor"] = doctor
    found = doctor and [d for d in doctor["devices"] if d["name"].startswith("CUDA")]
    if not options.rehearse:
        complaints = [m["complaint"] for m in doctor["modules"]["found"] if m["complaint"]] if doctor else []
        why = "; ".join(complaints) or (f"axiscap doctor: {step['status']}" if not doctor else "llama.cpp has no CUDA device")
        check.judge("doctor", found, why)
        if not found:
            return
        host = [d["capping"] for d in found if "on the GPU" not in (d["capping"] or "")]
        check.judge("doctor", not host, f"caps would not run on the GPU: {host}")
    help_text = subprocess.run([pieces.axiscap, "bench", "--help"], capture_output=True, text=True, check=False).stdout
    fused = "--fused-norm" in help_text

    shapes = {}

    def known(name, file):
        """A model's file and shape, asked of axiscap once."""
        if name not in shapes:
            _, report = check.json(f"shape-{name}", [pieces.axiscap, "run", "--model", file, "--raw", "--max-tokens", "1",
                                                     "--prompt", "a", "--ctx", "64", "--json"], pieces.gpu)
            if report is None:
                raise Missing(f"axiscap cannot run {file}; see the log of shape-{name}")
            shapes[name] = report["model"]
            check.result.setdefault("models", {})[name] = report["model"]
        return file, shapes[name]

    models = {
        "real": lambda: known("real", pieces.model()),
        "8b": lambda: known("8b", pieces.synthetic(synthetic["8b"])),
        "1b": lambda: known("1b", pieces.synthetic(synthetic["1b"])),
    }
    for name, tokens in [("real", 64), ("1b", 32), ("8b", 24)]:
        if not check.wanted(f"text-{name}"):
            continue
        try:
            file, shape = models[name]()
            caps = pieces.caps() if name == "real" else pieces.bench_caps(shape["blocks"], shape["width"], *speed.blocks(8, shape))
        except Missing as missing:
            check.judge(f"text-{name}", False, str(missing))
            continue
        generation.verify(check, pieces, name, file, caps, 8 if options.rehearse else tokens, fused)
    # Nothing may be written any more while speeds are measured.
    for shape in set(synthetic.values()):
        try:
            if any(check.wanted(name) and synthetic.get(model) == shape for name, model, *_ in speed.PLAN):
                pieces.synthetic(shape)
        except Missing as missing:
            check.judge(f"synthetic-{shape}", False, str(missing))
    speed.bench(check, pieces, models, fused)
    check.result["targets"] = targets.compare(check.result["steps"], options.rehearse)
    check.save()
    hook_tests(check, pieces)
