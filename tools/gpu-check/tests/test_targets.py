"""What is called held, and what is not."""

import re
import unittest
from pathlib import Path

from gpu_check import measure, models, smoke, speed, targets

HELD, MISSED, NO_INTERVAL = targets.HELD, targets.MISSED, targets.NO_INTERVAL
NAN = float("nan")


def step(ratios, **more):
    """Makes a step with the ratios of pairs."""
    part = {"ratios": ratios}
    return {"status": "passed", "visit": "1", "card": "a", "report": {"decode": part, "prefill": part}, **more}


class Interval(unittest.TestCase):
    def test_six_values_span_it_and_five_have_none(self):
        self.assertIsNone(targets.interval([1, 2, 3, 4, 5]))
        self.assertEqual(targets.interval([6, 1, 2, 3, 4, 5]), (1, 6))
        # Of 15 values the fourth and the twelfth: 3.5 % lie outside.
        self.assertEqual(targets.interval(list(range(1, 16))), (4, 12))
        self.assertIsNone(targets.interval([]))

    def test_the_whole_interval_holds(self):
        for values, verdict in [([0.996] * 6, HELD), ([0.999] * 5 + [0.99], MISSED), ([0.999] * 5, NO_INTERVAL),
                                ([0.999] * 5 + [NAN], targets.BROKEN), ([], "not measured")]:
            self.assertEqual(targets.judged("", values, 0.995).verdict, verdict)
        self.assertEqual(targets.judged("", [0.001] * 6, 0.002, at_least=False).verdict, HELD)


class Speed(unittest.TestCase):
    def row(self, steps, what):
        return next(row for row in targets.speeds(steps) if row.what == what)

    def test_pairs_count_if_the_step_passed(self):
        what = "8B, 8 blocks, decode, one graph"
        row = self.row({"8b-8/graph": step([0.996, 0.997, 0.998] * 2)}, what)
        self.assertEqual((row.verdict, row.of), (HELD, "6 pairs"))
        self.assertEqual(self.row({"8b-8/graph": step([0.996] * 5)}, what).verdict, NO_INTERVAL)
        for steps in ({}, {"8b-8/graph": step([0.996] * 6, status="failed")}, {"8b-8/views": step([0.996] * 6)},
                      {"8b-8/graph": {"status": "running"}}):
            self.assertEqual(self.row(steps, what).verdict, "not measured")

    def test_statistics_cost_the_difference_of_a_pair(self):
        what = "8B, 8 blocks, cost of statistics"
        steps = {f"8b-8-statistics/{mode}": step(ratios * 4)
                 for mode, ratios in (("graph", [0.998, 0.898]), ("uncounted", [0.999, 0.899]))}
        row = self.row(steps, what)
        self.assertEqual((row.verdict, round(row.median, 4), row.of), (HELD, 0.001, "8 pairs"))
        del steps["8b-8-statistics/graph"]
        self.assertEqual(self.row(steps, what).verdict, "not measured")

    def test_another_measurement_of_the_same_report(self):
        report = step([1.0])
        report["report"]["cb_eval"] = step([0.7])["report"]
        row = self.row({"8b-8-cb-eval/views": report}, "8B, 8 blocks, caps through cb_eval")
        self.assertEqual((row.median, row.verdict), (0.7, ""))

    def test_every_target_has_its_case_and_every_case_its_seconds(self):
        self.assertTrue({case for _, case, *_ in targets.SPEEDS} <= set(speed.CASES) <= set(measure.PLAN))
        for _, case, mode, *_ in targets.SPEEDS:
            self.assertIn(mode, speed.CASES[case].modes)
        names = measure.steps()
        self.assertEqual(len(names), len(set(names)))

    def test_the_documented_seconds_are_the_planned_ones(self):
        text = (Path(__file__).resolve().parents[3] / "docs/gpu-check.md").read_text()
        rows = {name: int(seconds) for name, seconds in re.findall(r"^\| `([^`]+)` \|.*\| (\d+) \|$", text, re.MULTILINE)}
        self.assertEqual(rows, smoke.SECONDS | measure.PLAN)
        self.assertLessEqual(sum(smoke.SECONDS.values()), 100)

    def test_capped_blocks_are_there(self):
        self.assertEqual([models.blocks(8, of) for of in (32, 4, 16)], [(20, 27), (0, 3), (8, 15)])
        self.assertEqual(models.blocks(None, 30), (0, 29))


class Kernels(unittest.TestCase):
    def sample(self, name, shape, median, spread=0.01, size=0, **more):
        return {"name": name, "shape": shape, "us_q1": median * (1 - spread), "us_median": median,
                "us_q3": median * (1 + spread), "bytes": size, "runs": 60, **more}

    def row(self, what, *samples):
        return next(row for row in targets.kernels({"samples": list(samples)}) if row.what == what)

    def test_share_of_the_faster_copy(self):
        what = "in place, none acts, time per byte / copy's"
        copy = self.sample("copy", "8192 x 8192", 120.0, size=2)
        for us, verdict in [(62.0, HELD), (66.6, MISSED), (70.0, MISSED)]:
            cap = self.sample("cap, none acts", "8192 x 8192", us, size=1)
            self.assertEqual(self.row(what, copy, cap).verdict, verdict)
        cap = self.sample("cap, none acts", "8192 x 8192", 62.0, size=1)
        self.assertEqual(self.row(what, cap).verdict, "not measured")
        again = self.sample("copy, at the end", "8192 x 8192", 100.0, size=2)
        self.assertEqual(self.row(what, copy, again, cap).verdict, MISSED)

    def test_more_bytes_than_memory_moves_are_not_held(self):
        copy = self.sample("copy", "8192 x 8192", 120.0, size=2)
        cap = self.sample("cap, all act", "8192 x 8192", 62.0, size=2)
        row = self.row("in place, all act, time per byte / copy's", copy, cap)
        self.assertEqual(row.verdict, targets.FASTER_THAN_MEMORY)

    def test_the_worst_sample_counts(self):
        what = "one row in a graph, us a node"
        samples = [self.sample(f"node: cap, {acts}", shape, 1.5) for acts in ("none acts", "all act") for shape in targets.WIDTHS]
        self.assertEqual(self.row(what, *samples).verdict, HELD)
        slow = self.row(what, *samples[:-1], self.sample("node: cap, all act", "1 x 8192", 2.1))
        self.assertEqual((slow.verdict, slow.of), (MISSED, "1 x 8192"))
        self.assertEqual(self.row(what, *samples[:-1]).verdict, NO_INTERVAL)
        self.assertEqual(self.row(what, *samples[:-1], self.sample("node: cap, all act", "1 x 8192", NAN)).verdict, targets.BROKEN)
        self.assertEqual({row.verdict for row in targets.kernels(None)}, {"not measured"})

    def test_a_peer_is_compared_with_our_sample_of_the_same_name(self):
        ours = {"samples": [self.sample("cap, all act", "16 x 4096", 10.0), self.sample("cap, all act", "1 x 4096", 5.0)]}
        peers = [self.sample("cap, all act", shape, us, peer="eager") for shape, us in
                 [("16 x 4096", 30.0), ("1 x 4096", 6.0), ("512 x 4096", 1.0)]]
        row, = targets.peers(ours, peers, [])
        self.assertEqual((row.verdict, row.median, row.of), (HELD, 1.2, "cap, all act 1 x 4096"))
        peers[1] = self.sample("cap, all act", "1 x 4096", 4.0, peer="eager")
        self.assertEqual(targets.peers(ours, peers, [{"ratio": 0.5}])[0].verdict, MISSED)

    def test_an_index_of_profiles_costs_at_most_a_hundredth(self):
        what, shape = "index / none, profile 1, none acts", "8192 x 8192"
        for ratios, verdict in [([1.002, 1.008] * 30, HELD), ([1.002, 1.012] * 30, MISSED), ([1.02] * 60, MISSED),
                                ([1.002] * 5, NO_INTERVAL), ([1.002] * 59 + [NAN], targets.BROKEN), ([], "not measured")]:
            row = self.row(what, self.sample("cap, none acts, profile 1", shape, 66.0, ratios=ratios))
            self.assertEqual((row.verdict, row.aim), (verdict, "<= 1.01"))
        self.assertEqual(row.what, what)
        # Its quartiles are far apart. Only the ratios count, and not the samples of another shape.
        apart = self.sample("cap, none acts, profile 1", shape, 66.0, spread=0.5, ratios=[1.0] * 60)
        row = self.row(what, apart, self.sample("cap, none acts, profile 1", "16 x 4096", 4.0, ratios=[2.0] * 60))
        self.assertEqual((row.verdict, row.median, row.of), (HELD, 1.0, "60 pairs, 8192 x 8192"))

    def test_an_index_on_few_rows_or_of_several_profiles_has_no_aim(self):
        aims = {(name, shape): aim for _, name, shape, aim in targets.INDEX}
        self.assertEqual({one for one, aim in aims.items() if aim},
                         {("cap, none acts, profile 1", "8192 x 8192"), ("cap, all act, profile 1", "8192 x 8192")})
        row = self.row("index / none, 16 rows, 4 profiles, all act",
                       self.sample("node: cap, all act, 4 profiles", "16 x 4096", 4.0, ratios=[1.5] * 60))
        self.assertEqual((row.verdict, row.aim, row.median, row.interval), ("", "", 1.5, (1.5, 1.5)))

    def test_the_table_holds_every_line_of_the_index(self):
        whats = [what for what, *_ in targets.INDEX]
        self.assertEqual(len(whats), len(set(whats)))
        # The columns of the table.
        self.assertLess(max(map(len, whats)), 47)
        self.assertLessEqual(max(len(f"60 pairs, {shape}") for _, _, shape, _ in targets.INDEX), 26)

    def test_the_names_are_the_benchmarks(self):
        text = (Path(__file__).resolve().parents[3] / "benches/gpu/main.rs").read_text()
        for _, name, shape, _ in targets.INDEX:
            self.assertIn(f'"{name}"', text)
            self.assertIn("({}, {})".format(*shape.split(" x ")), text)
        for _, names, over, _, _ in targets.KERNELS:
            for name in filter(None, [*names, over]):
                self.assertIn(f'"{name}"', text)


if __name__ == "__main__":
    unittest.main()
