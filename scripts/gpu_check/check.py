"""One run of gpu-check: its time, its steps, its results."""

import json
import os
import platform
import subprocess
import sys
import time


class Check:
    """Runs commands under a budget of time. What is known is written after every step: a cut loses nothing."""

    def __init__(self, options):
        self.options = options
        self.start = time.monotonic()
        self.failures = []
        self.result = {"ok": False, "complete": False, "rehearsal": options.rehearse, "host": platform.platform(),
                       "processors": os.cpu_count(), "steps": {}}

    def left(self):
        """Seconds."""
        return self.options.minutes * 60 - (time.monotonic() - self.start)

    def wanted(self, name):
        return not self.options.steps or self.options.steps.search(name)

    def run(self, name, command, environment=None, most=120):
        """Runs a command for at most `most` seconds and no longer than there is time; its output goes to a log.
        Returns what is noted of the step, its output, and its standard output alone."""
        begun = time.monotonic()
        step = {"status": None, "seconds": 0.0}
        self.result["steps"][name] = step
        limit = min(self.left(), most)
        out = err = ""
        if limit < 2:
            step["status"] = "no time left"
        else:
            try:
                done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace",
                                      timeout=limit, env={**os.environ, **(environment or {})}, check=False)
                step["status"], out, err = done.returncode, done.stdout, done.stderr
            except subprocess.TimeoutExpired as late:
                step["status"] = "timeout"
                out, err = (text.decode(errors="replace") if isinstance(text, bytes) else text or ""
                            for text in (late.stdout, late.stderr))
            except OSError as error:
                step["status"], err = "not run", str(error)
        step["seconds"] = round(time.monotonic() - begun, 1)
        shown = " ".join(str(c) for c in command)
        (self.options.out / f"{name}.log").write_text(f"$ {shown}\n{out}{err}")
        if step["status"] != 0:
            step["tail"] = (out[-1000:] + err[-2000:]) or None
        print(f"{name}: {'ok' if step['status'] == 0 else step['status']} ({step['seconds']} s)", file=sys.stderr)
        self.save()
        return step, out + err, out

    def json(self, name, command, environment=None, most=120):
        """Runs a command that prints one JSON object. Returns what is noted of the step, and the object or None."""
        step, _, out = self.run(name, command, environment, most)
        if step["status"] != 0:
            return step, None
        try:
            return step, json.loads(out)
        except ValueError as error:
            step["status"], step["tail"] = f"no JSON: {error}", out[-1000:]
            return step, None

    def judge(self, name, passed, why=None):
        """Notes a verdict. Any that is not passed makes the whole fail."""
        step = self.result["steps"].setdefault(name, {})
        step["passed"] = bool(passed)
        if not passed:
            step["why"] = why
            self.failures.append(f"{name}: {why}")
            print(f"{name}: FAILED: {why}", file=sys.stderr)
        self.save()

    def save(self):
        self.result["seconds"] = round(time.monotonic() - self.start, 1)
        self.result["failures"] = self.failures
        file = self.options.out / "gpu-check.json"
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.result, indent=1) + "\n")
        unfinished.replace(file)

    def finish(self, code):
        self.result["complete"] = True
        self.result["ok"] = code == 0
        self.save()
        return code
