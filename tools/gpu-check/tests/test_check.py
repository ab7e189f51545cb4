"""A run's bookkeeping: what it writes and when, what is kept, what a short visit leaves open, and how it ends."""

import argparse
import contextlib
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from gpu_check import check, child, kernels, llama, pieces, summary, targets
from gpu_check.check import Check, Missing, Refused


def options(folder, **more):
    usual = {"out": Path(folder), "rehearse": False, "resume": False, "keep_failed": False, "minutes": 1.0, "steps": None,
             "archive": None, "bin": Path(folder), "work": Path(folder), "skip_bench": False, "skip_sanitizers": False,
             "model": None, "axiscap": None, "cuda_backend": None}
    return argparse.Namespace(**{**usual, **more})


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        quiet = contextlib.redirect_stderr(io.StringIO())
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)

    def visit(self, identity=None, **more):
        made = Check(options(self.folder, **more))
        made.begin(identity or {"gpu": "H100"}, "card")
        return made

    def written(self):
        def never(constant):
            raise AssertionError(f"{constant} is no JSON")

        return json.loads((self.folder / "gpu-check.json").read_text(), parse_constant=never)


class Steps(Folder):
    def test_a_step_is_written_before_it_runs_and_its_output_as_it_comes(self):
        made = self.visit()
        look = f"import json; print('here', json.load(open(r'{self.folder}/gpu-check.json'))['steps']['a']['status'], flush=True)"
        step, text = made.run("a", ["python3", "-c", look])
        self.assertEqual((step["status"], text), (0, "here running\n"))

    def test_a_late_step_ends_with_all_it_started(self):
        made = self.visit()
        begun = time.monotonic()
        step, text = made.run("a", ["sh", "-c", "echo begun; sleep 47 & echo $!; wait"], most=2)
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual(step["status"], "timeout after 2 s")
        self.assertIn("begun", text)
        self.assertFalse(alive(int(text.split()[1])))
        made.judge("a", False, "late")
        self.assertEqual(made.failures, ["a: late"])

    def test_what_outlives_its_program_is_ended_too(self):
        _, text = self.visit().run("a", ["sh", "-c", "sleep 47 & echo $!"])
        self.assertFalse(alive(int(text)))

    def test_nobody_waits_for_what_does_not_go(self):
        made = self.visit()
        with mock.patch.object(child.os, "killpg"), mock.patch.object(child, "GOES_WITHIN", 0.2):
            begun = time.monotonic()
            step, text = made.run("a", ["sh", "-c", "echo $$; exec sleep 8"], most=2)
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual(step["status"], "timeout, and it does not go when killed after 2 s")
        os.kill(int(text), 9)

    def test_no_time_is_no_failure(self):
        made = self.visit(minutes=0.01)
        step, _ = made.run("a", ["true"])
        made.judge("a", step["status"] == 0, "it did not run")
        made.lacks("b", "a file, for want of time")
        made.planned = ["a", "b", "c"]
        self.assertEqual(made.finish(None), 0)
        self.assertEqual(self.written()["not_run"], {"a": check.NO_TIME, "b": check.NO_TIME, "c": "not run"})
        self.assertFalse(self.written()["complete"])

    def test_a_step_cut_by_the_end_is_no_failure(self):
        made = self.visit(minutes=0.12)
        step, _ = made.run("a", ["sleep", "47"])
        made.judge("a", False, "late")
        self.assertTrue(step["status"].startswith(check.NO_TIME))
        self.assertEqual((made.failures, check.no_result(step)), ([], True))

    def test_what_goes_wrong_here_is_the_steps_failure(self):
        made = self.visit()
        with made.guarded("a"):
            made.run("a", ["echo", "said"])
            raise TypeError("'<' not supported")
        with made.guarded("b"):
            raise Missing("no file; make it")
        self.assertEqual(made.failures, ["a: gpu-check stumbled: TypeError: '<' not supported", "b: no file; make it"])
        log = (self.folder / "a.log").read_text()
        self.assertIn("said", log)
        self.assertIn("Traceback", log)
        self.assertEqual(made.finish(None), 1)

    def test_what_cannot_start_is_a_failure(self):
        made = self.visit()
        step, report = made.json("a", [self.folder / "nothing"])
        self.assertIsNone(report)
        self.assertIn("cannot start", step["status"])
        self.assertIsNone(made.json("b", ["echo", "no json"])[1])
        self.assertEqual(made.json("c", ["sh", "-c", "echo a warning >&2; echo '{}'"])[1], {})

    def test_numbers_that_json_does_not_have(self):
        made = self.visit()
        made.step("a").update(value=float("nan"), more=[{"x": float("inf")}])
        made.save()
        self.assertEqual(self.written()["steps"]["a"]["value"], None)
        self.assertEqual(self.written()["steps"]["a"]["more"], [{"x": None}])

    def test_the_archive_holds_everything_but_itself(self):
        made = self.visit(archive=self.folder / "all.tar.gz")
        made.run("a", ["true"])
        made.judge("a", True)
        made.finish(None)
        with tarfile.open(self.folder / "all.tar.gz") as pack:
            names = [Path(name).name for name in pack.getnames()][1:]
        self.assertEqual(sorted(names), ["a.log", "gpu-check.json"])


class Resumed(Folder):
    def run_once(self, made, name, status=0, passed=True):
        made.run(name, ["sh", "-c", f"exit {status}"])
        made.judge(name, passed, "because")

    def test_passed_steps_are_kept_and_others_are_run_again(self):
        first = self.visit()
        self.run_once(first, "good")
        self.run_once(first, "bad", 1, False)
        first.note("skipped", check.NO_TIME)
        first.run("noted", ["true"])
        first.note("noted")
        first.step("killed")
        first.run("unjudged", ["true"])
        first.save()
        second = self.visit(resume=True)
        names = ["good", "bad", "skipped", "noted", "killed", "unjudged", "never"]
        self.assertEqual([name for name in names if second.kept(name)], ["good", "noted"])
        kept = self.visit(resume=True, keep_failed=True)
        self.assertEqual([name for name in names if kept.kept(name)], ["good", "bad", "noted"])

    def test_a_failure_is_not_forgotten(self):
        self.run_once(self.visit(), "a", 1, False)
        second = self.visit(resume=True)
        self.run_once(second, "a")
        self.assertEqual(second.failures, [])
        self.assertEqual(second.result["steps"]["a"]["earlier"], [{"visit": 1, "status": 1, "passed": False, "why": "because"}])
        self.assertIn("failed before, not now: a", summary.text(second.result, 2))
        self.assertTrue((self.folder / "a.visit-1.log").exists())
        self.assertEqual(second.finish(None), 0)

    def test_a_failure_of_an_earlier_visit_counts(self):
        self.run_once(self.visit(), "a", 1, False)
        self.assertEqual(self.visit(resume=True, keep_failed=True).finish(None), 1)

    def test_a_group_that_failed_for_a_while(self):
        first = self.visit()
        with first.group("text-real"):
            raise Missing("a part of the model")
        self.assertEqual(first.finish(None), 1)
        second = self.visit(resume=True)
        with second.group("text-real"):
            self.run_once(second, "text-real-cpu")
        self.assertEqual(second.finish(None), 0)

    def test_results_are_not_overwritten(self):
        self.visit()
        with self.assertRaises(Refused):
            Check(options(self.folder))

    def test_not_on_another_gpu_nor_with_other_programs(self):
        self.visit({"gpu": "H100", "pack": "a"})
        before = (self.folder / "gpu-check.json").read_text()
        for other in [{"gpu": "H200", "pack": "a"}, {"gpu": "H100", "pack": "b"}]:
            with self.assertRaises(Refused):
                self.visit(other, resume=True)
        with self.assertRaises(Refused):
            self.visit({"gpu": "H100", "pack": "a"}, resume=True, rehearse=True)
        self.assertEqual((self.folder / "gpu-check.json").read_text(), before)
        self.visit({"gpu": "H100", "pack": "a", "axiscap": "c"}, resume=True)
        with self.assertRaises(Refused):
            self.visit({"gpu": "H100", "pack": "a", "axiscap": "d"}, resume=True)

    def test_resuming_nothing_is_a_beginning(self):
        self.assertEqual(self.visit(resume=True).visit["number"], 1)
        (self.folder / "gpu-check.json").write_text("{")
        with self.assertRaises(Refused):
            Check(options(self.folder, resume=True))


class Summary(Folder):
    def test_it_is_short_and_ends_with_the_steps(self):
        made = self.visit()
        for name in llama.plan():
            made.step(name)
            made.judge(name, False, "word " * 500)
        made.planned = [f"step-with-a-rather-long-name-{number}" for number in range(500)]
        made.finish(None)
        made.result["targets"] = targets.compare({})
        said = summary.text(made.result, 1)
        self.assertLess(len(said), 12000)
        self.assertIn(f"{len(llama.plan())} failed", said.splitlines()[-1])
        self.assertIn("real-8-graph FAILED", said)

    def test_every_planned_name_is_one(self):
        names = [*kernels.plan(options(".")), *llama.plan()]
        self.assertEqual(len(names), len(set(names)))


class Sanitizer(Folder):
    def test_what_is_a_finding(self):
        clean = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
        self.assertIsNone(kernels.finding(0, clean))
        self.assertIsNone(kernels.finding("timeout after 90 s", "test every_kernel_on_small_shapes ..."))
        for status, text in [(9, ""), ("timeout after 90 s", "========= Invalid __global__ write of size 4 bytes\n"),
                             (0, "========= ERROR SUMMARY: 2 errors\n"), (1, "========= RACECHECK SUMMARY: 1 hazard displayed\n"),
                             ("timeout", "========= Error: Race reported between Write access at\n")]:
            self.assertIsNotNone(kernels.finding(status, text))

    def sanitized(self, script, minutes=1.0):
        """The verdicts with a compute-sanitizer that is this script."""
        tool = self.folder / "compute-sanitizer"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        made = self.visit(minutes=minutes)
        with mock.patch.object(kernels.device, "sanitizer", lambda: str(tool)):
            kernels.sanitizers(made)
        return {name: step.get("passed", step["status"]) for name, step in made.result["steps"].items()}

    def test_a_probe_that_finds_errors_is_a_failure(self):
        found = self.sanitized("echo '========= ERROR SUMMARY: 1 error'; exit 9")
        self.assertEqual(found, {name: False for name in [kernels.PROBE, *(f"sanitizer-{tool}" for tool in kernels.TOOLS)]})

    def test_a_machine_that_it_does_not_work_on(self):
        found = self.sanitized("echo '========= Error: device not supported'; echo '========= ERROR SUMMARY: 1 error'; exit 1")
        self.assertEqual(found.pop(kernels.PROBE), 1)
        self.assertTrue(all("does not work on this machine" in status for status in found.values()))

    def test_errors_count_though_time_ran_out(self):
        script = 'case "$*" in *small*) echo "========= Invalid __global__ read of size 4 bytes"; sleep 47;; esac'
        found = self.sanitized(script, minutes=0.12)
        self.assertEqual((found[kernels.PROBE], found["sanitizer-memcheck"]), (True, False))
        self.assertEqual(found["sanitizer-racecheck"], check.NO_TIME)

    def test_tests_that_failed_before_time_ran_out(self):
        for said, failures in [("test many_rows ... FAILED", 1), ("test many_rows ... ok", 0)]:
            with tempfile.TemporaryDirectory() as folder:
                made = Check(options(folder, minutes=0.12))
                made.begin({})
                program = Path(folder) / "gpu-tests"
                program.write_text(f"#!/bin/sh\necho '{said}'\nsleep 47\n")
                program.chmod(0o755)
                kernels.tests(made)
                self.assertEqual(len(made.failures), failures)


class Doctor(unittest.TestCase):
    def report(self, info, devices=({"name": "CUDA0", "capping": "caps run on the GPU"},)):
        return {"devices": list(devices), "modules": {"found": []}, "llama": {"system_info": info}}

    def test_a_backend_without_graphs_is_a_failure(self):
        good = "CPU : SSE3 = 1 | CUDA : ARCHS = 900 | USE_GRAPHS = 1 | FA_QUANTS = f16-f16 |"
        self.assertEqual(llama.examined(self.report(good)), (None, True))
        why, usable = llama.examined(self.report(good.replace("USE_GRAPHS = 1 | ", "")))
        self.assertRegex(why, "without CUDA graphs")
        self.assertTrue(usable)
        self.assertEqual(llama.examined(self.report("", ()))[1], False)
        self.assertIsNotNone(llama.examined(self.report(good, [{"name": "CUDA0", "capping": "caps run on the host"}]))[0])


class Model(Folder):
    def pieces(self, data, wanted=None, drop=0, cut=0):
        packed = lzma.compress(data)
        packed = packed[: len(packed) - cut]
        size = -(-len(packed) // 3)
        for number in range(3 - drop):
            (self.folder / f"{pieces.MODEL}.xz.part-{number:02}").write_bytes(packed[number * size : (number + 1) * size])
        (self.folder / f"{pieces.MODEL}.sha256").write_text(f"{wanted or hashlib.sha256(data).hexdigest()} 3\n")
        (self.folder / "axiscap").write_text("")
        (self.folder / "axiscap").chmod(0o755)
        (self.folder / "work").mkdir(exist_ok=True)
        return pieces.Pieces(options(self.folder, work=self.folder / "work"), lambda: 60.0)

    def test_it_is_put_together_of_its_parts(self):
        data = os.urandom(3_000_001)
        self.assertEqual(self.pieces(data).model().read_bytes(), data)

    def test_wrong_parts_leave_nothing(self):
        for how in [{"wanted": "0" * 64}, {"drop": 1}, {"cut": 100}]:
            with self.subTest(how), self.assertRaises(Missing):
                self.pieces(os.urandom(10_000), **how).model()
            self.assertEqual(list((self.folder / "work").iterdir()), [])
            for part in self.folder.glob("*.part-*"):
                part.unlink()

    def test_a_pack_is_what_was_packed(self):
        self.assertIsNone(pieces.pack(self.folder))
        (self.folder / "axiscap").write_text("program")
        right = hashlib.sha256(b"program").hexdigest()
        for digest, refused in [(right, False), ("0" * 64, True)]:
            (self.folder / "manifest.json").write_text(json.dumps({"sha256": {"axiscap": digest}}))
            with self.assertRaises(Refused) if refused else contextlib.nullcontext():
                self.assertIn("sha256", pieces.pack(self.folder))

    def test_waiting_for_a_synthetic_model_ends_in_time(self):
        made = pieces.Pieces(options(self.folder, work=self.folder, axiscap=Path("/bin/true")), lambda: 5.0)
        made.scripts = self.folder
        (self.folder / "make-synthetic-model").write_text("import time; time.sleep(47)")
        begun = time.monotonic()
        with self.assertRaisesRegex(Missing, "not written yet"):
            made.synthetic("8b")
        begun_again = time.monotonic()
        self.assertLess(begun_again - begun, 5)
        with self.assertRaisesRegex(Missing, "not written yet"):
            made.synthetic("8b")
        self.assertLess(time.monotonic() - begun_again, 0.5)
        made.stop()


def alive(number):
    """Whether a process goes on running (a zombie does not). One that was just killed takes a moment to go."""
    with contextlib.suppress(OSError):
        for _ in range(50):
            if re.search(r"^State:\s+[ZX]", Path(f"/proc/{number}/status").read_text(), re.MULTILINE):
                return False
            time.sleep(0.05)
        return True
    return False


if __name__ == "__main__":
    unittest.main()
