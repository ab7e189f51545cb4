"""Tests and measures axiscap on a GPU machine without Rust, in two tiers: smoke, then measure.

What it needs comes from scripts/gpu-pack. Writes gpu-check.json, summary.txt and logs.tar.gz to --out, before and
after every step. docs/gpu-check.md describes the steps and how to read the results.

Exit status: 0 everything that ran passed; 1 something failed or a signal stopped it; 2 wrong usage or a damaged pack;
3 no usable GPU.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from . import device, measure, programs, report, smoke
from .models import Models
from .visit import FAILED, Interrupted, Visit, write_whole

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, metavar="FOLDER", help="the unpacked pack, or for --rehearse a build")
    parser.add_argument("--out", type=Path, default=Path("gpu-check-results"), metavar="FOLDER", help="for the results")
    parser.add_argument("--work", type=Path, default=Path("gpu-check-work"), metavar="FOLDER",
                        help="for models (6 GB) and logs")
    parser.add_argument("--minutes", type=float, default=9, help="everything ends within this time")
    parser.add_argument("--known", type=Path, nargs="*", default=[], metavar="FILE",
                        help="gpu-check.json of earlier visits: their passed steps are not run again")
    parser.add_argument("--smoke", action="store_true", help="stop after the first tier")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on tiny models; the CPU stands in")
    parser.add_argument("--inject", action="store_true", help="with --rehearse: a kernel differs from its CPU twin")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="only print what these results come to")
    return parser.parse_args()


def main() -> int:
    """Runs one visit."""
    options = arguments()
    here = Path(__file__).resolve().parent.parent
    if options.report:
        for result in report.merged(options.report):
            print(f"visits {result['visit']}: {result['identity']}\n{report.text(result, result['steps'])}")
        return 0
    _clean_environment(here)
    visit = Visit(options.out, options.work, options.minutes, options.rehearse)
    found = None if options.rehearse else device.find(visit.logs)
    if found is None and not options.rehearse:
        print("gpu-check: nvidia-smi finds no GPU; nothing was tested", file=sys.stderr)
        return 3
    folder = options.bin or here
    try:
        ready = programs.rehearsed(folder, options.inject) if options.rehearse else programs.packed(folder)
    except programs.Damaged as damaged:
        print(f"gpu-check: {damaged}", file=sys.stderr)
        return 2
    visit.result["identity"] = {"pack": ready.digest, "gpu": found and found["name"]}
    visit.result["machine"] |= {"device": found, "commit": ready.commit}
    visit.card = found["uuid"] if found else None
    for line in visit.learn(options.known):
        print(f"gpu-check: left out {line}", file=sys.stderr)
    return _tiers(visit, ready, options.smoke, folder / "wheels")


def _clean_environment(here: Path) -> None:
    """Drops variables that change what llama.cpp does, and lets child processes find this package."""
    for name in [name for name in os.environ if name.startswith(programs.NOT_INHERITED)]:
        print(f"gpu-check: {name} is not passed on", file=sys.stderr)
        del os.environ[name]
    os.environ["PYTHONPATH"] = ":".join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])


def _tiers(visit: Visit, ready: programs.Programs, only_smoke: bool, wheels: Path) -> int:
    """Runs both tiers and writes the summary. Returns the exit status."""
    for number in SIGNALS:
        # A signal that nohup ignores stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    models, ended = Models(visit), ""
    try:
        models.start(["1b", "8b", "135m"])
        device.describe(visit.logs, "gpu-at-the-start")
        if smoke.run(visit, ready, models) and not only_smoke:
            measure.run(visit, ready, models, wheels)
    except Interrupted as interrupted:
        ended = f"\nstopped by {interrupted}"
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        models.stop()
    said = report.text(visit.result, visit.steps) + ended
    visit.save()
    write_whole(visit.out / "summary.txt", said + "\n")
    visit.archive(now=True)
    print(said, flush=True)
    return 1 if ended or any(step["status"] == FAILED for step in visit.steps.values()) else 0


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
