"""One run of gpu-check: its time, its steps, its results. A run may be made in several visits to the machine."""

import contextlib
import json
import math
import os
import platform
import sys
import tarfile
import time
import traceback

from . import child

RESULTS = "gpu-check.json"
NOT_ASKED_FOR = "not asked for"
NO_TIME = "not run: no time left"
# Seconds kept for what comes after the last step.
ENDING = 4


class Stopped(BaseException):
    """A signal asks for an end."""


class Missing(Exception):
    """Something is not there; the message says what, and how to get it."""


class Refused(Exception):
    """This run cannot be made here, or not like this: the message says why."""


def plain(value):
    """The same without numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def not_run(status):
    return str(status).startswith("not run")


def no_result(step):
    """Whether a step says nothing yet: it was not started, not finished, or stopped for want of time."""
    return not step.get("done") or not_run(step["status"])


def failed(step):
    return step.get("done", False) and step.get("passed") is False


class Check:
    """Runs commands under a budget of time. What is known is written before and after every step: a cut loses no more
    than the step that it falls into."""

    def __init__(self, options):
        self.options = options
        self.start = time.monotonic()
        self.archived = 0.0
        self.planned = []
        self.card = None
        self.result = {"ok": False, "complete": False, "rehearsal": options.rehearse, "visits": [], "steps": {}}
        file = options.out / RESULTS
        if file.exists():
            if not options.resume:
                raise Refused(f"{file} is there already: --resume goes on with it, --out names another folder")
            try:
                self.result = json.loads(file.read_text())
                self.result["visits"], self.result["steps"], self.result["rehearsal"]
            except (ValueError, KeyError) as error:
                raise Refused(f"{file} cannot be resumed, it holds no results of this gpu-check: {error}") from error
        self.visit = {"number": len(self.result["visits"]) + 1, "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                      "host": platform.platform(), "processors": os.cpu_count(), "ended": None}

    def begin(self, identity, card=None):
        """Begins this visit. What was measured on another GPU, or with other programs, is not gone on with. Of two
        cards of one kind each step notes its own."""
        self.card = card
        before = self.result.setdefault("identity", identity)
        other = [f"{key} was {before[key]}, here it is {identity[key]}" for key in before.keys() & identity.keys()
                 if before[key] != identity[key]]
        if self.result["rehearsal"] != self.options.rehearse:
            other.append("one is a rehearsal, the other is not")
        if other:
            raise Refused(f"{self.options.out / RESULTS} cannot be resumed here: {'; '.join(sorted(other))}")
        before.update(identity)
        self.result["visits"].append(self.visit)
        self.save()

    def left(self):
        """Seconds."""
        return self.options.minutes * 60 - (time.monotonic() - self.start)

    def wanted(self, name):
        return not self.options.steps or bool(self.options.steps.search(name))

    def kept(self, name):
        """Whether a step has its result from an earlier visit."""
        step = self.result["steps"].get(name, {})
        if not step or step.get("visit") == self.visit["number"] or no_result(step):
            return False
        return not failed(step) or self.options.keep_failed

    def step(self, name):
        """A new step, in place of what an earlier visit left of it. That one's files get its visit's number."""
        old = self.result["steps"].pop(name, None)
        step = {"status": "running", "seconds": 0.0, "visit": self.visit["number"], "card": self.card}
        if old and old.get("visit") != step["visit"]:
            verdict = {key: old[key] for key in ("visit", "status", "passed", "why") if key in old}
            step["earlier"] = [*old.get("earlier", []), verdict]
            for end in (".log", ".json", ".trace.jsonl"):
                with contextlib.suppress(FileNotFoundError):
                    (self.options.out / f"{name}{end}").rename(self.options.out / f"{name}.visit-{old.get('visit')}{end}")
        elif old and "earlier" in old:
            step["earlier"] = old["earlier"]
        self.result["steps"][name] = step
        return step

    def run(self, name, command, environment=None, most=120, output=None):
        """Runs a command for at most `most` seconds and no longer than there is time. What it writes goes to a log;
        its standard output to a file of its own where one is named. Returns what is noted of the step, and its log."""
        begun = time.monotonic()
        step = self.step(name)
        limit = min(self.left() - ENDING, most)
        if limit < 2:
            self.note(name, NO_TIME)
            return step, ""
        self.save()
        log = self.options.out / f"{name}.log"
        shown = f"$ {' '.join(str(c) for c in command)}\n"
        log.write_text(shown)
        if output:
            output.unlink(missing_ok=True)
        status = child.run(command, limit, output or log, log if output else None, environment)
        if str(status).startswith("timeout"):
            stopped = f"after {limit:.0f} s"
            status = f"{NO_TIME} (stopped {stopped})" if limit < most and status == "timeout" else f"{status} {stopped}"
        text = log.read_text(errors="replace")[len(shown):]
        step["status"], step["seconds"] = status, round(time.monotonic() - begun, 1)
        if status != 0:
            step["tail"] = text[-2000:] or None
        self.progress(f"{name}: {'ok' if status == 0 else status} ({step['seconds']} s)")
        self.save()
        return step, text

    def json(self, name, command, environment=None, most=120):
        """Runs a command that prints one JSON object. Returns what is noted of the step, and the object or None."""
        output = self.options.out / f"{name}.json"
        step, _ = self.run(name, command, environment, most, output)
        if step["status"] != 0:
            return step, None
        try:
            report = json.loads(output.read_text())
            if not isinstance(report, dict):
                raise ValueError("no object")
            return step, report
        except ValueError as error:
            step["status"] = f"no JSON: {error}"
            return step, None

    def note(self, name, status=None):
        """A step without a verdict: it ran, or `status` says why not."""
        step = self.result["steps"].get(name)
        if step is None or (status and step["visit"] != self.visit["number"]):
            step = self.step(name)
        step["done"] = True
        if status:
            step["status"] = status
        self.save()

    def judge(self, name, passed, why=None):
        """Notes a verdict. Any that is not passed makes the whole fail. No verdict for want of time."""
        step = self.result["steps"].get(name) or self.step(name)
        if str(step["status"]).startswith(NO_TIME):
            self.note(name)
            return
        if step["status"] == "running":
            step["status"] = 0 if passed else 1
        step["done"], step["passed"] = True, bool(passed)
        if not passed:
            step["why"] = why
            self.progress(f"{name}: FAILED: {why}")
        self.save()
        self.archive()

    def lacks(self, name, what):
        """A step that cannot run because something is missing. What could not be made in time is no failure."""
        if self.left() - ENDING < 2:
            self.note(name, NO_TIME)
            return
        self.step(name)["status"] = f"not run: {what}"
        self.judge(name, False, what)

    @contextlib.contextmanager
    def guarded(self, name):
        """What goes wrong in here is this step's failure, never the run's end."""
        try:
            yield
        except Missing as missing:
            self.lacks(name, str(missing))
        except Exception as error:  # noqa: BLE001
            with (self.options.out / f"{name}.log").open("a") as log:
                log.write(traceback.format_exc())
            self.judge(name, False, f"gpu-check stumbled: {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def group(self, name):
        """The same for what several steps need. It is no step of its own unless it fails, and not for longer."""
        self.result["steps"].pop(name, None)
        with self.guarded(name):
            yield

    @property
    def failures(self):
        return [f"{name}: {step.get('why')}" for name, step in self.result["steps"].items() if failed(step)]

    def open_steps(self):
        """The planned steps that have no result, with the reason."""
        reasons = {}
        for name in self.planned:
            step = self.result["steps"].get(name)
            if step is None:
                reasons[name] = "not run" if self.wanted(name) else NOT_ASKED_FOR
            elif no_result(step):
                reasons[name] = str(step["status"])
        return reasons

    def progress(self, line):
        print(line, file=sys.stderr, flush=True)

    def save(self):
        self.visit["seconds"] = round(time.monotonic() - self.start, 1)
        self.result["failures"] = self.failures
        file = self.options.out / RESULTS
        unfinished = file.with_suffix(f".unfinished-{os.getpid()}")
        unfinished.write_text(json.dumps(plain(self.result), indent=1, allow_nan=False) + "\n")
        unfinished.replace(file)

    def archive(self, now=False):
        """Packs all results in one file, if one is asked for; not too often, unless `now`."""
        file = self.options.archive
        if not file or not now and time.monotonic() - self.archived < 10:
            return
        unfinished = file.with_name(f"{file.name}.unfinished-{os.getpid()}")
        try:
            with tarfile.open(unfinished, "w:gz", compresslevel=3) as pack:
                pack.add(self.options.out, self.options.out.resolve().name,
                         filter=lambda entry: None if ".unfinished-" in entry.name or entry.name.endswith(file.name) else entry)
            unfinished.replace(file)
        except OSError as error:
            self.progress(f"cannot write {file}: {error}")
        self.archived = time.monotonic()

    def finish(self, ended):
        """Ends this visit. Returns the exit status."""
        code = 1 if self.failures or ended else 0
        missing = self.open_steps()
        self.visit["ended"] = ended or "by itself"
        self.result |= {"ok": code == 0, "complete": not missing, "not_run": missing}
        self.save()
        self.archive(now=True)
        return code
