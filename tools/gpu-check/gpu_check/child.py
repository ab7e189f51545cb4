"""Child processes that end in time, together with everything they started and with this process."""

import contextlib
import ctypes
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

# Seconds that a killed process may take to go. One that is stuck in a driver never does.
KILL_SECONDS = 5
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: list[Any], output: Any, environment: dict[str, str] | None = None,
          errors: Any = subprocess.STDOUT) -> "subprocess.Popen[bytes]":
    """Starts a process in its own session, which can be killed as a whole."""
    return subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                            env={**os.environ, **(environment or {})}, start_new_session=True,
                            preexec_fn=_die_with_parent)


def end(process: "subprocess.Popen[bytes]") -> bool:
    """Kills a process and everything it started. Returns whether it has gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def run(command: list[Any], limit: float, output: Path, errors: Path | None = None,
        environment: dict[str, str] | None = None) -> int | str:
    """Runs a process for at most `limit` seconds and appends its output to files as it comes.

    Without `errors` both outputs go to one file. Returns the exit status, or a text that says what happened instead.
    """
    with contextlib.ExitStack() as files:
        standard = files.enter_context(open(output, "ab"))
        other = files.enter_context(open(errors, "ab")) if errors else subprocess.STDOUT
        try:
            process = start(command, standard, environment, other)
        except OSError as error:
            return f"cannot start: {error}"
        try:
            return process.wait(max(limit, 0))
        except subprocess.TimeoutExpired:
            return "timeout" if end(process) else "timeout, and the killed process does not go"
        finally:
            end(process)
