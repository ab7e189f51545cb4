"""A visit: its time, its steps, what a kill leaves, and how visits add up."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from gpu_check import child, kernels, measure, programs, report
from gpu_check.visit import FAILED, NOT_RUN, PASSED, STOPPED, Failed, Interrupted, Visit

TOOL = Path(__file__).resolve().parent.parent


class Folder(unittest.TestCase):
    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = Path(made.name)
        # Progress goes to standard error.
        quiet = contextlib.redirect_stderr(io.StringIO())
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)

    def visit(self, minutes=1.0, pack="a", number=1):
        made = Visit(self.folder / f"out-{number}", self.folder / "work", minutes)
        made.result["identity"] = {"pack": pack, "gpu": "H100"}
        return made

    def written(self, number=1):
        def never(constant):
            raise AssertionError(f"{constant} is no JSON")

        return json.loads((self.folder / f"out-{number}/gpu-check.json").read_text(), parse_constant=never)


class Steps(Folder):
    def test_a_step_is_written_before_it_runs(self):
        made = self.visit()
        seen = []
        made.step("a", lambda step: seen.append(self.written()["steps"]["a"]["status"]))
        self.assertEqual((seen, self.written()["steps"]["a"]["status"]), (["running"], PASSED))

    def test_what_a_step_measured_stays_when_it_fails_or_is_interrupted(self):
        def work(error):
            def fill(step):
                step["value"] = float("nan")
                raise error
            return fill

        made = self.visit()
        self.assertEqual(made.step("a", work(Failed("because"))), FAILED)
        self.assertEqual(made.step("b", work(TypeError("'<' not supported"))), FAILED)
        with self.assertRaises(Interrupted):
            made.step("c", work(Interrupted("SIGTERM")))
        steps = self.written()["steps"]
        self.assertEqual((steps["a"]["why"], steps["a"]["value"]), ("because", None))
        self.assertIn("TypeError", steps["b"]["why"])
        self.assertEqual((steps["c"]["status"], "value" in steps["c"]), ("running", True))

    def test_a_late_process_ends_with_everything_it_started(self):
        made = self.visit()
        begun = time.monotonic()
        done = made.run("a", ["sh", "-c", "echo begun; sleep 47 & echo $!; wait"], 1)
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual((done.status, done.text.split()[0]), ("timeout", "begun"))
        self.assertFalse(alive(int(done.text.split()[1])))

    def test_a_process_that_does_not_go_is_left(self):
        with mock.patch.object(child.os, "killpg"), mock.patch.object(child, "KILL_SECONDS", 0.2):
            done = self.visit().run("a", ["sh", "-c", "echo $$; exec sleep 8"], 1)
        self.assertEqual(done.status, "timeout, and the killed process does not go")
        os.kill(int(done.text), 9)

    def test_the_end_of_the_visit_stops_a_step_without_a_failure(self):
        made = self.visit(minutes=0.12)
        self.assertEqual(made.step("a", lambda step: made.run("a", ["sleep", "47"], 60)), STOPPED)
        self.assertEqual(made.step("b", lambda step: None, seconds=30), NOT_RUN)

    def test_a_process_without_json_is_a_failure(self):
        made = self.visit()
        for command in (["echo", "no json"], ["sh", "-c", "echo '{}'; exit 3"], [self.folder / "nothing"]):
            with self.assertRaises(Failed):
                made.run_json("a", command, 5)
        self.assertEqual(made.run_json("b", ["sh", "-c", "echo a warning >&2; echo '{}'"], 5), {})


class Visits(Folder):
    def test_passed_steps_are_known_and_others_are_run_again(self):
        first = self.visit()
        first.step("good", lambda step: step.update(value=1))
        first.step("bad", mock.Mock(side_effect=Failed("because")))
        second = self.visit(number=2)
        self.assertEqual(second.learn([self.folder / "out-1/gpu-check.json"]), [])
        again = mock.Mock()
        second.step("good", again)
        second.step("bad", again)
        self.assertEqual((again.call_count, second.steps["good"]["value"]), (1, 1))
        merged, = report.merged([self.folder / f"out-{number}/gpu-check.json" for number in (1, 2)])
        self.assertEqual({step["status"] for step in merged["steps"].values()}, {PASSED})

    def test_other_programs_are_left_out(self):
        self.visit().step("good", lambda step: None)
        (self.folder / "broken").write_text("{")
        other = self.visit(pack="b", number=2)
        self.assertEqual(len(other.learn([self.folder / "out-1/gpu-check.json", self.folder / "broken"])), 2)
        self.assertEqual(other.known, {})

    def test_the_summary_is_short_and_ends_with_the_verdict(self):
        made = self.visit()
        for name in measure.steps():
            made.step(name, mock.Mock(side_effect=Failed("word " * 500)))
        said = report.text(made.result, made.steps)
        self.assertLess(len(said), 12000)
        self.assertRegex(said.splitlines()[-1], r"^smoke NOT PASSED; 0 steps passed, \d+ failed, \d+ open$")


class Pack(Folder):
    def test_a_pack_is_what_was_packed(self):
        (self.folder / "axiscap").write_text("program")
        (self.folder / "manifest.json").write_text(json.dumps({"commit": "c", "sha256": {"axiscap": "0" * 64}}))
        with self.assertRaisesRegex(programs.Damaged, "axiscap .* is not what was packed"):
            programs.packed(self.folder)
        with self.assertRaisesRegex(programs.Damaged, "no pack"):
            programs.packed(self.folder / "elsewhere")


class Kernels(Folder):
    CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"

    def test_findings_of_the_sanitizer(self):
        self.assertIsNone(kernels.finding(0, self.CLEAN))
        self.assertIsNone(kernels.finding("timeout", "test every_kernel_on_small_shapes ..."))
        for status, text in [(9, ""), ("timeout", "========= Invalid __global__ write of size 4 bytes\n"),
                             (0, "========= ERROR SUMMARY: 2 errors\n"), (1, "========= RACECHECK SUMMARY: 1 hazard\n"),
                             ("timeout", "========= Error: Race reported between Write access at\n")]:
            self.assertIsNotNone(kernels.finding(status, text))

    def sanitized(self, script, minutes=1.0):
        tool = self.folder / "compute-sanitizer"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        made, program = self.visit(minutes), programs.Programs([], ["true"], [], "")
        with mock.patch.object(kernels.device, "sanitizer", lambda: str(tool)):
            made.step("s", lambda step: kernels.sanitize(made, program, "memcheck", step))
        return made.steps["s"]["status"]

    def test_a_machine_that_the_sanitizer_does_not_work_on_is_no_failure(self):
        script = "echo '========= Error: Device not supported'; echo '========= ERROR SUMMARY: 1 error'; exit 9"
        self.assertEqual(self.sanitized(script), NOT_RUN)

    def test_a_finding_counts_though_the_time_ended(self):
        script = 'case "$*" in *small*) echo "========= Invalid __global__ read of size 4 bytes"; sleep 47;; esac'
        self.assertEqual(self.sanitized(script, 0.12), FAILED)
        self.assertEqual(self.sanitized("exit 9"), FAILED)
        self.assertEqual(self.sanitized("echo 'test result: ok. 1 passed; 0 failed'"), PASSED)
        # No test has the name.
        self.assertEqual(self.sanitized("echo 'test result: ok. 0 passed; 0 failed'"), FAILED)


class Rehearsed(Folder):
    def start(self, *more):
        (self.folder / "axiscap").write_text("#!/bin/sh\nsleep 47\n")
        (self.folder / "axiscap").chmod(0o755)
        command = [sys.executable, "-B", "-m", "gpu_check", "--rehearse", "--bin", self.folder, "--out",
                   self.folder / "out-1", "--work", self.folder / "work", *more]
        return subprocess.Popen(command, cwd=TOOL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def test_smoke_stops_at_a_kernel_that_differs_and_brings_back_what_explains_it(self):
        process = self.start("--inject")
        said, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        steps = self.written()["steps"]
        self.assertEqual({name: step["status"] for name, step in steps.items()},
                         {"kernel-tests": FAILED, "kernel-tests-again": PASSED})
        for evidence in ("every_kernel_on_small_shapes", "seed: 7", "row 1, column 130: 0.25 instead of 0.5"):
            self.assertIn(evidence, steps["kernel-tests"]["why"])
            self.assertIn(evidence, said)
        # It is the same again, and with synchronous launches.
        again = steps["kernel-tests-again"]
        self.assertEqual(again["kernel-tests-again"], again["kernel-tests-blocking"])
        self.assertIn("smoke NOT PASSED", said.splitlines()[-1])
        with tarfile.open(self.folder / "out-1/logs.tar.gz") as pack:
            names = pack.getnames()
        for name in ("kernel-tests.log", "kernel-dump/rows-input.bin", "kernel-dump/rows-expected.bin",
                     "kernel-dump/rows-found.bin", "gpu-after-the-failure.log"):
            self.assertIn(f"logs/{name}", names)

    def test_a_signal_leaves_what_was_measured(self):
        process = self.start()
        file = self.folder / "out-1/gpu-check.json"
        for _ in range(600):
            if file.exists() and '"doctor"' in file.read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        self.assertEqual((process.returncode, said.splitlines()[-1]), (1, "stopped by SIGTERM"))
        self.assertEqual(self.written()["steps"]["kernel-tests"]["status"], PASSED)
        self.assertTrue((self.folder / "out-1/logs.tar.gz").exists())


def alive(number):
    """Returns whether a process goes on running. A zombie does not, and a killed process takes a moment to go."""
    with contextlib.suppress(OSError):
        for _ in range(50):
            if re.search(r"^State:\s+[ZX]", Path(f"/proc/{number}/status").read_text(), re.MULTILINE):
                return False
            time.sleep(0.05)
        return True
    return False


if __name__ == "__main__":
    unittest.main()
