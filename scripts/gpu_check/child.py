"""Programs that are started, and that end: in time, with everything they started themselves, and with this one."""

import contextlib
import ctypes
import os
import signal
import subprocess

# Seconds that a killed program may take to go. One that is stuck in a driver never does.
GOES_WITHIN = 5
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _ends_with_its_parent():
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command, output, errors=subprocess.STDOUT, environment=None):
    """Starts a program in a session of its own, so that it can be killed with all that it started."""
    return subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                            env={**os.environ, **(environment or {})}, start_new_session=True,
                            preexec_fn=_ends_with_its_parent)


def end(process):
    """Kills a program and what it started. False if it does not go."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(GOES_WITHIN)
    except subprocess.TimeoutExpired:
        return False
    return True


def run(command, limit, output, errors=None, environment=None):
    """Runs a program for at most `limit` seconds; what it writes goes to files at once (errors: None, the same file).
    Returns its exit status, or what happened instead."""
    with contextlib.ExitStack() as files:
        standard = files.enter_context(open(output, "ab"))
        other = files.enter_context(open(errors, "ab")) if errors else subprocess.STDOUT
        try:
            process = start(command, standard, other, environment)
        except OSError as error:
            return f"cannot start: {error}"
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return "timeout" if end(process) else "timeout, and it does not go when killed"
        finally:
            end(process)
