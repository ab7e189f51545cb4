"""What is called held, and what is not."""

import unittest

from gpu_check import targets


def step(median, low, high=1.1, uncapped=200.0, **more):
    ratio = {"ratio_median": median, "ratio_ci95": [low, high], "uncapped_tps": uncapped,
             "capped_tps": None if None in (median, uncapped) else uncapped * median}
    return {"report": {"decode": ratio, "prefill": ratio}, "passed": True, "card": "one", **more}


def verdicts(steps, **options):
    return {row.get("step", row["what"]): row["verdict"] for row in targets.compare(steps, **options)}


class Speed(unittest.TestCase):
    def test_the_whole_interval_holds(self):
        steps = {"8b-8-views": step(0.999, 0.997), "8b-all-views": step(0.991, 0.98), "1b-8-views": step(0.97, 0.9),
                 "8b-8-views-batch16": step(0.9, 0.8, passed=False)}
        found = verdicts(steps)
        self.assertEqual([found[name] for name in [*steps, "8b-8-views-prefill"]],
                         ["held", "median only", "missed", "the step failed", "not measured"])

    def test_no_number_holds_nothing(self):
        nan = float("nan")
        for broken in [step(None, None, None), step(nan, nan, nan), step(nan, 1.0)]:
            self.assertEqual(verdicts({"8b-8-views": broken})["8b-8-views"], "not a number")
        for broken in [step(0.999, None), step(0.999, nan)]:
            self.assertEqual(verdicts({"8b-8-views": broken})["8b-8-views"], "median only")

    def test_without_ggmls_graphs_nothing_is_stock(self):
        found = verdicts({"8b-8-views": step(0.999, 0.997), "8b-8-graph": step(1.0, 0.999)}, stock=False)
        self.assertEqual((found["8b-8-views"], found["8b-8-graph"]), ("no stock baseline",) * 2)

    def test_a_rehearsal_holds_nothing(self):
        self.assertEqual(verdicts({"8b-8-views": step(0.999, 0.997)}, rehearsal=True)["8b-8-views"], "rehearsed")

    def test_one_graph_is_held_to_stock(self):
        # Its own baseline has no graphs and is slow; that says nothing.
        graph = {"8b-8-graph": step(1.05, 1.049, 1.051, 190.0)}
        self.assertEqual(verdicts(graph)["8b-8-graph"], "no stock baseline")
        # 190 * 1.05 = 199.5 against 200: from one process, there is no interval.
        self.assertEqual(verdicts(graph | {"8b-8-views": step(0.99, 0.98)})["8b-8-graph"], "median only")
        self.assertEqual(verdicts(graph | {"8b-8-views": step(0.99, 0.98, uncapped=202.0)})["8b-8-graph"], "missed")

    def test_enough_stock_runs_make_an_interval(self):
        def found(speeds, **more):
            names = ["8b-8-views", "8b-all-views", "8b-8-fused-norm", "8b-8-cb-eval", "8b-8-stock-chain", "8b-all-cb-eval"]
            steps = {name: step(0.9, 0.9, uncapped=speed, **more) for name, speed in zip(names, speeds)}
            rows = targets.compare(steps | {"8b-8-graph": step(1.05, 1.049, 1.051, 190.0)})
            return next(row for row in rows if row.get("step") == "8b-8-graph")

        held = found([200.0, 199.0, 199.5, 199.8, 199.7, 200.1])
        self.assertEqual(held["verdict"], "held")
        self.assertAlmostEqual(held["ci95"][0], 1.049 * 190 / 200.1)
        self.assertAlmostEqual(held["ci95"][1], 1.051 * 190 / 199.0)
        self.assertIn("6 stock runs", held["of"])
        # One slow, one fast: the interval grows by both.
        self.assertEqual(found([200.0, 199.0, 199.5, 199.8, 199.7, 201.0])["verdict"], "median only")
        self.assertEqual(found([200.0, 199.0, 199.5, 199.8, 199.7])["verdict"], "median only")
        self.assertEqual(found([200.0] * 6, card="another")["verdict"], "no stock baseline")
        self.assertEqual(found([200.0] * 6, passed=False)["verdict"], "no stock baseline")
        self.assertEqual(found([None] * 6)["verdict"], "no stock baseline")

    def test_what_is_no_baseline(self):
        self.assertEqual(targets.speed.baselines("8b-8-graph-batch16"), ["8b-8-views-batch16", "8b-all-views-batch16"])
        self.assertGreaterEqual(len(targets.speed.baselines("8b-8-graph")), targets.ENOUGH)
        for name in ("8b-8-views-prefill", "8b-8-views-timeline", "8b-8-graph", "8b-8-views-batch16", "1b-8-views"):
            self.assertNotIn(name, targets.speed.baselines("8b-8-graph"))

    def test_statistics_need_both_intervals(self):
        def found(counted, free):
            return verdicts({"8b-8-views": counted, "8b-8-views-no-statistics": free})["statistics, 8b-8-views: cost"]

        self.assertEqual(found(step(0.998, 0.9978, 0.9982), step(0.999, 0.9988, 0.9992)), "held")
        self.assertEqual(found(step(0.998, 0.9950, 0.9985), step(0.999, 0.9988, 0.9992)), "median only")
        self.assertEqual(found(step(0.990, 0.9895, 0.9905), step(0.999, 0.9988, 0.9992)), "missed")
        self.assertEqual(found(step(0.998, None, None), step(0.999, 0.9988, 0.9992)), "median only")
        self.assertEqual(found(step(None, None, None), step(0.999, 0.9988, 0.9992)), "not a number")

    def test_tables_have_a_line_per_row(self):
        rows = targets.compare({"8b-8-views": step(0.999, 0.997), "8b-8-views-batch16": step(None, None, None)})
        self.assertEqual(len(targets.table(rows).splitlines()), len(rows) + 1)


class Kernels(unittest.TestCase):
    def sample(self, name, shape, median, spread=0.01, size=0):
        return {"name": name, "shape": shape, "us_q1": median * (1 - spread), "us_median": median,
                "us_q3": median * (1 + spread), "bytes": size, "runs": 60}

    def row(self, what, *samples):
        rows = targets.kernels({"samples": list(samples)})
        return next(row for row in rows if row["what"] == what)

    def test_share_of_the_copy(self):
        what = "in place, none acts: copy's rate / its"
        copy = self.sample("copy", "8192 x 8192", 120.0, size=2)
        for us, spread, expected in [(62.0, 0.01, "held"), (66.0, 0.02, "median only"), (70.0, 0.01, "missed")]:
            row = self.row(what, copy, self.sample("cap, none acts", "8192 x 8192", us, spread, size=1))
            self.assertEqual(row["verdict"], expected)
        self.assertEqual(self.row(what, self.sample("cap, none acts", "8192 x 8192", 62.0, size=1))["verdict"], "not measured")
        # Of two copies the faster one counts, whatever its shape.
        cap = self.sample("cap, none acts", "8192 x 8192", 62.0, size=1)
        again = self.sample("copy, at the end", "4096 x 8192", 50.0, size=1)
        self.assertEqual(self.row(what, copy, again, cap)["verdict"], "missed")

    def test_the_worst_of_the_widths_counts(self):
        what = "one row in a graph, us"
        samples = [self.sample(f"node: cap, {acts}", f"1 x {width}", 1.5) for acts in ("none acts", "all act") for width in (4096, 5120, 8192)]
        self.assertEqual(self.row(what, *samples)["verdict"], "held")
        slow = self.row(what, *samples[:-1], self.sample("node: cap, all act", "1 x 8192", 2.1))
        self.assertEqual((slow["verdict"], slow["of"]), ("missed", "1 x 8192"))
        some = self.row(what, *samples[:-1])
        self.assertIn("5 of 6 samples", some["of"])
        self.assertEqual(some["verdict"], "not all measured")

    def test_no_number_holds_nothing(self):
        broken = self.sample("node: cap, all act", "1 x 8192", float("nan"))
        good = [self.sample("node: cap, all act", "1 x 4096", 1.5)]
        self.assertEqual(self.row("one row in a graph, us", broken, *good)["verdict"], "not all measured")
        nan = self.sample("cap, all act", "8192 x 8192", float("nan"))
        self.assertEqual(self.row("5 caps / one cap, all act", nan, self.sample("5 caps, all act", "8192 x 8192", 1.5))["verdict"], "not a number")
        self.assertEqual({row["verdict"] for row in targets.kernels({})}, {"not measured"})
        self.assertEqual({row["verdict"] for row in targets.kernels(None)}, {"not measured"})

    def test_the_names_are_the_benchmarks(self):
        source = targets.__file__.replace("scripts/gpu_check/targets.py", "benches/gpu/main.rs")
        with open(source) as file:
            text = file.read()
        for _, names, over, _, _ in targets.KERNELS:
            for name in filter(None, [*names, over]):
                self.assertIn(f'"{name.removesuffix(", overlapping")}"', text)


if __name__ == "__main__":
    unittest.main()
