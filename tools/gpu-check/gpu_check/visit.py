"""One visit to a GPU machine: its time, its steps and their results.

Results are written before and after every step, which bounds the loss of a kill to the step that it hits. Results of
several visits add up: a step that passed in an earlier visit is not run again.
"""

import json
import math
import os
import platform
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import child

RESULTS, LOGS = "gpu-check.json", "logs.tar.gz"
# Seconds kept for what comes after the last step.
ENDING = 5
PASSED, FAILED, RUNNING, STOPPED, NOT_RUN = "passed", "failed", "running", "stopped", "not run"
Data = dict[str, Any]


class Failed(Exception):
    """A step failed. The message says why."""


class OutOfTime(Exception):
    """The visit's time ended."""


class Unavailable(Exception):
    """A step cannot run on this machine, which is no failure. The message says why."""


class Interrupted(BaseException):
    """A signal asked for an end."""


@dataclass
class Completed:
    """A process that ended: its exit status or what happened instead, and everything it wrote to its log."""

    status: int | str
    text: str


def json_numbers(value: Any) -> Any:
    """Replaces the numbers that JSON lacks by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_numbers(part) for key, part in value.items()}
    return [json_numbers(part) for part in value] if isinstance(value, (list, tuple)) else value


def write_whole(file: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = file.with_name(f"{file.name}.unfinished-{os.getpid()}")
    beside.write_text(text)
    beside.replace(file)


class Visit:
    """Runs steps within a budget of time and records them."""

    def __init__(self, out: Path, work: Path, minutes: float, rehearsal: bool = False) -> None:
        self.out, self.work, self.rehearsal = out, work, rehearsal
        self.begun = time.monotonic()
        self.seconds = minutes * 60
        self.logs = work / f"logs-{int(time.time())}"
        self.archived = 0.0
        self.known: dict[str, Data] = {}
        self.card: str | None = None
        self.name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.result: Data = {"visit": self.name, "rehearsal": rehearsal, "identity": {}, "machine": {
            "host": platform.platform(), "processors": os.cpu_count()}, "steps": {}}
        for folder in (out, work, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    def learn(self, files: list[Path]) -> list[str]:
        """Takes in the passed steps of earlier visits with the same programs and the same kind of GPU.

        Returns a line per file that was left out.
        """
        refused = []
        for file in files:
            try:
                earlier = json.loads(file.read_text())
                same = earlier["identity"] == self.result["identity"] and earlier["rehearsal"] == self.rehearsal
                if not same:
                    refused.append(f"{file}: of other programs or another kind of GPU")
                    continue
                self.known |= {name: step for name, step in earlier["steps"].items() if step["status"] == PASSED}
            except (OSError, ValueError, KeyError, TypeError) as error:
                refused.append(f"{file}: no results of gpu-check: {error!r}")
        return refused

    @property
    def steps(self) -> dict[str, Data]:
        """Every step of this visit, and the passed ones of earlier visits that it has not run."""
        steps: dict[str, Data] = self.result["steps"]
        return self.known | steps

    def left(self) -> float:
        """Returns the seconds left for steps."""
        return self.seconds - (time.monotonic() - self.begun) - ENDING

    def run(self, log: str, command: list[Any], limit: float, environment: dict[str, str] | None = None,
            output: Path | None = None) -> Completed:
        """Runs a process for at most `limit` seconds and logs it. Its standard output goes to `output` if given.

        Raises `OutOfTime` if the visit's end stopped it.
        """
        left = self.left()
        if left < 1:
            raise OutOfTime
        file = self.logs / f"{log}.log"
        with file.open("a") as text:
            print("$", *command, file=text)
        start = file.stat().st_size
        if output:
            output.unlink(missing_ok=True)
        status = child.run(command, min(limit, left), output or file, file if output else None, environment)
        if status == "timeout" and left < limit:
            raise OutOfTime
        with file.open("rb") as data:
            data.seek(start)
            return Completed(status, data.read().decode(errors="replace"))

    def run_json(self, log: str, command: list[Any], limit: float, environment: dict[str, str] | None = None) -> Data:
        """Runs a process that prints one JSON object. Raises `Failed` if it does not."""
        output = self.logs / f"{log}.json"
        done = self.run(log, command, limit, environment, output)
        if done.status != 0:
            raise Failed(f"{Path(str(command[0])).name}: {done.status}: {done.text.strip()[-600:]}")
        try:
            found = json.loads(output.read_text())
        except ValueError as error:
            raise Failed(f"no JSON: {error}") from error
        if not isinstance(found, dict):
            raise Failed("no JSON object")
        return found

    def step(self, name: str, work: Callable[[Data], None], seconds: float = 1) -> str:
        """Runs a step unless it is known or has less than `seconds`. Returns its status.

        `work` fills in the step's results. What it filled in stays if it fails or is stopped.
        """
        if name in self.known:
            return PASSED
        step: Data = {"status": RUNNING, "seconds": 0.0, "visit": self.name, "card": self.card}
        self.result["steps"][name] = step
        if self.left() < seconds:
            step |= {"status": NOT_RUN, "why": "no time left"}
            self.save()
            return NOT_RUN
        self.save()
        begun = time.monotonic()
        try:
            work(step)
            step["status"] = PASSED
        except Failed as error:
            step["status"], step["why"] = FAILED, str(error)
        except OutOfTime:
            step["status"], step["why"] = STOPPED, "the visit's time ended"
        except Unavailable as error:
            step["status"], step["why"] = NOT_RUN, str(error)
        except Exception as error:  # noqa: BLE001
            (self.logs / f"{name.replace('/', '-')}.log").open("a").write(traceback.format_exc())
            step["status"], step["why"] = FAILED, f"gpu-check itself: {type(error).__name__}: {error}"
        finally:
            step["seconds"] = round(time.monotonic() - begun, 1)
            self.save()
            why = f": {step['why'][:300]}" if "why" in step else ""
            print(f"[{time.monotonic() - self.begun:4.0f} s] {name}: {step['status']}{why}", file=sys.stderr, flush=True)
        self.archive()
        return str(step["status"])

    def save(self) -> None:
        """Writes the results to the output folder, and to the work folder for a later run on the same machine."""
        self.result["seconds"] = round(time.monotonic() - self.begun, 1)
        text = json.dumps(json_numbers(self.result), indent=1, allow_nan=False) + "\n"
        for file in (self.out / RESULTS, self.work / f"gpu-check-{self.name}.json"):
            write_whole(file, text)

    def archive(self, now: bool = False) -> None:
        """Packs the logs into one file, at most every ten seconds unless `now`."""
        if not now and time.monotonic() - self.archived < 10:
            return
        beside = self.out / f"{LOGS}.unfinished-{os.getpid()}"
        try:
            with tarfile.open(beside, "w:gz", compresslevel=3) as pack:
                pack.add(self.logs, "logs")
            beside.replace(self.out / LOGS)
        except OSError as error:
            print(f"gpu-check: the logs were not packed: {error}", file=sys.stderr)
        self.archived = time.monotonic()
