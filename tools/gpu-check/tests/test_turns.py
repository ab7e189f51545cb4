"""Processes that take turns: their order, their end, and what a failure leaves."""

import contextlib
import sys
import time
from unittest import mock

from gpu_check import report, speed, targets, turns
from gpu_check.visit import FAILED, NOT_RUN, PASSED, RUNNING, STOPPED, Failed, Interrupted, OutOfTime
from test_visit import Folder, alive

# Takes turns as `axiscap bench --turns` does: a folder, the name, the number of pairs, and what a turn does.
SCRIPT = """
import os, sys
folder, name, pairs, turn = sys.argv[1:]
print(os.getpid(), file=open(f"{folder}/processes", "a"))
done = 0
while done < int(pairs):
    print(f"ready for pair {done + 1} of {pairs}", file=sys.stderr, flush=True)
    if not sys.stdin.readline():
        break
    for what in ("begins", "ends"):
        print(name, what, file=open(f"{folder}/turns", "a"))
        exec(turn if what == "begins" else "")
    done += 1
print('{"pairs": %d}' % done)
sys.exit(0 if done == int(pairs) else 130)
"""


class Turns(Folder):
    def run_turns(self, pairs=3, limit=60.0, **each):
        commands = {f"x/{name}": ([sys.executable, "-c", SCRIPT, self.folder, name, pairs, each.get(name, "")], {})
                    for name in "abc"}
        return turns.run(self.visit(), commands, limit)

    def taken(self):
        return (self.folder / "turns").read_text().split("\n")[:-1]

    def assert_gone(self):
        processes = (self.folder / "processes").read_text().split()
        self.assertEqual((len(processes), [one for one in processes if alive(one)]), (3, []))

    def test_one_at_a_time_and_none_after_itself(self):
        reports, complete = self.run_turns()
        self.assertEqual((reports, complete), ({f"x/{name}": {"pairs": 3} for name in "abc"}, True))
        self.assertEqual(self.taken(), [f"{name} {what}" for name in "abcabcabc" for what in ("begins", "ends")])
        self.assert_gone()

    def test_the_end_of_the_time_keeps_the_pairs_that_are_complete(self):
        # One is in its turn when the time ends.
        slow = "import time; time.sleep(0.1 if done else 0)"
        with mock.patch.object(turns, "END_SECONDS", 2):
            reports, complete = self.run_turns(pairs=1000, limit=4, a=slow)
        self.assertFalse(complete)
        pairs = [reports[f"x/{name}"]["pairs"] for name in "abc"]
        self.assertTrue(all(0 < number < 1000 for number in pairs) and max(pairs) - min(pairs) <= 1, pairs)
        self.assert_gone()
        with self.assertRaises(OutOfTime):
            self.run_turns(limit=1)

    def test_a_process_that_goes_on_after_the_end_is_killed_and_left_out(self):
        begun = time.monotonic()
        with mock.patch.object(turns, "END_SECONDS", 0.5):
            reports, complete = self.run_turns(limit=2.5, b="import time; time.sleep(47)")
        self.assertEqual((set(reports), complete), ({"x/a", "x/c"}, False))
        self.assertLess(time.monotonic() - begun, 10)
        self.assert_gone()

    def test_a_failure_ends_all_and_is_named(self):
        with self.assertRaisesRegex(Failed, "(?s)x/b: 3: .*the card is gone"):
            self.run_turns(b="print('the card is gone', file=sys.stderr); sys.exit(3)")
        self.assert_gone()
        with self.assertRaisesRegex(Failed, "x/a: no JSON"):
            turns.run(self.visit(), {"x/a": (["true"], {})}, 60)
        with self.assertRaisesRegex(Failed, "x/a: cannot start"):
            turns.run(self.visit(), {"x/a": ([self.folder / "nothing"], {})}, 60)

    def test_a_process_that_does_not_answer_is_a_failure(self):
        with mock.patch.object(turns, "ANSWER_SECONDS", 1), self.assertRaisesRegex(Failed, "(?s)x/b: no answer .*hm"):
            self.run_turns(b="import time; print('hm', file=sys.stderr, flush=True); time.sleep(47)")
        self.assert_gone()

    def test_a_signal_leaves_no_process(self):
        asked, look = [], turns.Process.is_ready

        def interrupted(process, end):
            asked.append(process)
            if len(asked) == 5:
                raise Interrupted("SIGTERM")
            return look(process, end)

        with mock.patch.object(turns.Process, "is_ready", interrupted), self.assertRaises(Interrupted):
            self.run_turns()
        self.assert_gone()

    def test_what_they_say_is_logged(self):
        made = self.visit()
        turns.run(made, {"x/a": (["sh", "-c", "echo so it is >&2; echo $MORE"], {"MORE": "{}"})}, 60)
        self.assertRegex((made.logs / "x-a.log").read_text(), r"(?s)^\$ sh -c .*\nso it is\n$")


class Rounds(Folder):
    PARTS = ("8b-8-statistics/views/1", "8b-8-statistics/uncounted/1")

    def measure(self, reports, complete, number=1, minutes=5.0):
        """Measures a case whose processes report this in each round."""
        made, programs, models = self.visit(minutes, number=number), mock.Mock(gpu={}, axiscap=["axiscap"]), mock.Mock()
        found = mock.Mock(side_effect=lambda visit, commands, limit: (dict(zip(commands, reports)), complete))
        with mock.patch.object(turns, "run", found), mock.patch.object(speed.compare, "on_gpu", lambda *_: None):
            speed.measure(made, programs, models, "8b-8-statistics", 60)
        return made, found

    @staticmethod
    def report(ratios):
        return {"decode": {"ratios": ratios, "ratio_median": ratios[0], "uncapped_tps": 1.0, "capped_tps": 1.0,
                           "uncapped_tps_pairs": [1.0] * len(ratios), "capped_tps_pairs": ratios}}

    def test_the_processes_of_a_round_are_steps_of_their_own(self):
        made, found = self.measure([self.report([0.9] * 8), self.report([0.95] * 8)], complete=True)
        self.assertEqual([step["status"] for step in made.steps.values()], [PASSED] * 4)
        self.assertEqual(tuple(found.call_args_list[0].args[1]), self.PARTS)
        views, uncounted = ([*command, environment] for command, environment in found.call_args.args[1].values())
        self.assertTrue("--turns" in views and "--no-statistics" not in views and "--no-statistics" in uncounted)
        self.assertEqual([round(cost, 6) for cost in speed.statistics_cost(made.steps, "8b-8-statistics")], [0.05] * 16)

    def test_the_pairs_of_a_stopped_round_count_and_it_is_measured_again(self):
        # The second process was in its third pair.
        first, _ = self.measure([self.report([0.9] * 3), self.report([0.95] * 2)], complete=False)
        step = self.written()["steps"][self.PARTS[0]]
        self.assertEqual((step["status"], step["why"]), (STOPPED, "the time ended before all pairs were measured"))
        self.assertEqual(len(speed.statistics_cost(first.steps, "8b-8-statistics")), 2 + 2)
        # A visit without time for it does not outweigh it, and one with time does.
        late, found = self.measure([], complete=True, number=2, minutes=0.3)
        self.assertEqual((found.call_count, {step["status"] for step in late.steps.values()}), (0, {NOT_RUN}))
        files = [self.folder / f"out-{number}/gpu-check.json" for number in (1, 2)]
        for order in (files, files[::-1]):
            merged, = report.merged(order)
            self.assertEqual(len(speed.statistics_cost(merged["steps"], "8b-8-statistics")), 4)
        failed = self.visit(number=4)
        failed.together(list(self.PARTS), mock.Mock(side_effect=Failed("because")))
        merged, = report.merged([*files, self.folder / "out-4/gpu-check.json"])
        self.assertEqual({merged["steps"][part]["status"] for part in self.PARTS}, {FAILED})
        third = self.visit(number=3)
        third.learn(files)
        self.assertEqual(third.known, {})

    def test_a_process_without_a_pair_has_no_report(self):
        made, _ = self.measure([self.report([0.9]), {"interrupted": True, "pairs": 0}], complete=False)
        self.assertEqual([("report" in made.steps[part]) for part in self.PARTS], [True, False])
        self.assertEqual(speed.statistics_cost(made.steps, "8b-8-statistics"), [])
        self.assertTrue(targets.speeds(made.steps))

    def test_a_failure_is_that_of_the_whole_round(self):
        made = self.visit()
        self.assertEqual(made.together(["a/1", "b/1"], mock.Mock(side_effect=Failed("because"))), FAILED)
        self.assertEqual({step["why"] for step in self.written()["steps"].values()}, {"because"})
        with contextlib.suppress(Interrupted):
            made.together(["a/2", "b/2"], mock.Mock(side_effect=Interrupted("SIGTERM")))
        self.assertEqual(self.written()["steps"]["b/2"]["status"], RUNNING)
