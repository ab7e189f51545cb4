"""Processes that live at the same time and work in turns, never two at once.

A machine's speed drifts from one second to the next, so measurements that are compared lie close together.
`axiscap bench --turns` writes a line before each pair and waits for one.
"""

import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from . import child
from .visit import Data, Failed, OutOfTime, Visit

READY = b"ready for pair "
# Seconds that a process may take to load its model, and for a turn.
ANSWER_SECONDS = 120
# Seconds that processes may take to end after their input. One of them may be in its turn.
END_SECONDS = 8
# Exit status of a process whose input ended before its work.
CUT_SHORT = 130
# With what it adds to the environment.
Command = tuple[list[Any], dict[str, str]]


class Process:
    """A process that waits for its turns. What it says is logged, and its output goes to a file."""

    def __init__(self, name: str, command: Command, logs: Path) -> None:
        file = name.replace("/", "-")
        self.name, self.output = name, logs / f"{file}.json"
        self.said, self.seen = bytearray(), 0
        self.log = (logs / f"{file}.log").open("ab", buffering=0)
        self.log.write(" ".join(["$", *map(str, command[0])]).encode() + b"\n")
        with self.output.open("wb") as output:
            self.process = child.start(command[0], output, command[1], subprocess.PIPE, subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stderr is not None
        self.input, self.errors = self.process.stdin, self.process.stderr

    def go(self) -> None:
        """Gives it a turn."""
        # The next wait notices that it has ended.
        with contextlib.suppress(BrokenPipeError):
            self.input.write(b"\n")
            self.input.flush()

    def is_ready(self, end: float) -> bool:
        """Waits until it asks for its next turn. Returns `False` if it has ended instead.

        Raises `OutOfTime` at the time `end`, and `Failed` if it takes too long or has failed.
        """
        until = min(end, time.monotonic() + ANSWER_SECONDS)
        try:
            while not self._asked():
                if not self._read(until):
                    if self._status(until):
                        raise self._failed(self.process.returncode)
                    return False
        except TimeoutError:
            raise OutOfTime if until == end else self._failed(f"no answer within {ANSWER_SECONDS} s") from None
        return True

    def report(self, until: float) -> Data | None:
        """Waits until it has ended. Returns its JSON object, or `None` if it goes on."""
        try:
            while self._read(until):
                pass
            if self._status(until) not in (0, CUT_SHORT):
                raise self._failed(self.process.returncode)
        except TimeoutError:
            return None
        try:
            found = json.loads(self.output.read_text())
        except ValueError as error:
            raise self._failed(f"no JSON: {error}") from error
        if not isinstance(found, dict):
            raise self._failed("no JSON object")
        return found

    def end_input(self) -> None:
        """Gives it no more turns."""
        with contextlib.suppress(BrokenPipeError):
            self.input.close()

    def kill(self) -> None:
        """Kills it and everything it started, unless they have ended."""
        child.end(self.process)
        self.end_input()
        self.errors.close()
        self.log.close()

    def _asked(self) -> bool:
        """Goes through the whole lines that it said since the last turn. Returns whether one asks for a turn."""
        while (after := self.said.find(b"\n", self.seen) + 1) > 0:
            line, self.seen = self.said[self.seen:after], after
            if line.startswith(READY):
                return True
        return False

    def _read(self, until: float) -> bool:
        """Waits until it says more. Returns `False` if it has said everything."""
        if not select.select([self.errors], [], [], max(until - time.monotonic(), 0))[0]:
            raise TimeoutError
        more = os.read(self.errors.fileno(), 1 << 16)
        self.said += more
        self.log.write(more)
        return bool(more)

    def _status(self, until: float) -> int:
        try:
            return self.process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error

    def _failed(self, what: int | str) -> Failed:
        return Failed(f"{self.name}: {what}: {self.said.decode(errors='replace').strip()[-600:]}")


def run(visit: Visit, commands: dict[str, Command], limit: float) -> tuple[dict[str, Data], bool]:
    """Runs processes that each print a JSON object, for at most `limit` seconds. Their logs have their names.

    All load their models at once. Then each has a turn, again and again in this order, so that none follows itself: on
    an H200 a process was 3 % slower right after its own turn than after another's. Returns the objects, and whether all
    turns were taken. When the time ends, a process prints what it has measured. If one fails, all are killed.
    """
    end = time.monotonic() + min(limit, visit.left()) - END_SECONDS
    if end < time.monotonic():
        raise OutOfTime
    with contextlib.ExitStack() as running:
        processes = []
        for name, command in commands.items():
            try:
                processes.append(Process(name, command, visit.logs))
            except OSError as error:
                raise Failed(f"{name}: cannot start: {error}") from error
            running.callback(processes[-1].kill)
        complete = _take_turns(processes, end)
        for process in processes:
            process.end_input()
        until = time.monotonic() + END_SECONDS
        reports = {process.name: process.report(until) for process in processes}
    return {name: report for name, report in reports.items() if report is not None}, complete


def _take_turns(processes: list[Process], end: float) -> bool:
    """Returns whether all turns were taken before the time `end`."""
    try:
        waiting = [process for process in processes if process.is_ready(end)]
        while waiting:
            remaining = []
            for process in waiting:
                process.go()
                if process.is_ready(end):
                    remaining.append(process)
            waiting = remaining
    except OutOfTime:
        return False
    return True
