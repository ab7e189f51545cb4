"""What passes and what does not, on made-up runs."""

import json
import math
import tempfile
import unittest

from gpu_check import compare, speed, targets


def run(tokens, margins, stop_token=None):
    return {"tokens": tokens, "margins": margins, "stop_token": stop_token}


def row(position, before, after, block=3, cap=0, engaged=None):
    return {"position": position, "block": block, "cap": cap, "before": before, "after": after,
            "engaged": before != after if engaged is None else engaged}


CAPS = [{"floor": 1.0, "ceiling": None}, {"floor": None, "ceiling": 4.0}]


class Tokens(unittest.TestCase):
    def verdict(self, *runs):
        return compare.tokens(*runs)["verdict"]

    def test_equal(self):
        self.assertEqual(self.verdict(run([1, 2], [1, 1]), run([1, 2], [1.2, 1])), "equal")

    def test_a_small_lead_is_a_near_tie(self):
        found = compare.tokens(run([1, 2, 3], [2, 2, 0.1]), run([1, 2, 4], [2, 2, 3.0]))
        self.assertEqual((found["verdict"], found["first_difference"], found["equal"]), ("near tie", 2, 2))

    def test_clear_winners_that_differ_are_different(self):
        self.assertEqual(self.verdict(run([1, 2], [2, 1.0]), run([1, 3], [2, 0.9])), "different")

    def test_what_leads_differ_by_before_widens_the_tie(self):
        self.assertEqual(self.verdict(run([1, 2], [2, 1.0]), run([1, 3], [2.6, 1.1])), "near tie")

    def test_the_first_token_has_the_fixed_tie(self):
        self.assertEqual(self.verdict(run([1], [0.8]), run([2], [0.7])), "different")
        self.assertEqual(self.verdict(run([1], [0.1]), run([2], [9])), "near tie")

    def test_the_end_is_a_choice(self):
        self.assertEqual(self.verdict(run([1], [1, 1], 9), run([1, 5], [1, 1])), "different")
        self.assertEqual(self.verdict(run([1, 5], [1, 1]), run([1, 5], [1, 1, 1], 9)), "different lengths")


    def test_leads_that_are_no_numbers_pass_nowhere(self):
        for broken in [None, float("nan"), float("inf")]:
            self.assertEqual(self.verdict(run([1, 2], [1, broken]), run([1, 2], [1, 1])), "leads are not numbers")
            self.assertEqual(self.verdict(run([1, 2], [1, 1]), run([1, 3], [broken, 0.1])), "leads are not numbers")


class Rows(unittest.TestCase):
    def test_after_follows_from_before(self):
        right = [row(0, 0.5, 1.0), row(1, 2.0, 2.0), row(1, 5.0, 4.0, cap=1)]
        self.assertEqual(compare.self_consistent(right, CAPS)["wrong"], 0)
        for wrong in [row(0, 0.5, 0.5), row(0, 2.0, 1.0), row(0, 5.0, 5.0, cap=1), row(0, 0.5, 1.0, engaged=False)]:
            self.assertEqual(compare.self_consistent([wrong], CAPS)["wrong"], 1)

    def test_a_row_that_is_no_number_is_wrong(self):
        line = {"position": 0, "token": 1, "phase": "prompt", "block": 1, "cap": 0, "before": None, "after": None,
                "engaged": False, "non_finite": True}
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            read = compare.read_trace(file.name)
        self.assertTrue(math.isnan(read[0]["before"]))
        nan = float("nan")
        for wrong in [line, *read, row(0, nan, nan, engaged=False), row(0, nan, 1.0), row(0, 0.5, nan), row(0, nan, nan, cap=1)]:
            self.assertEqual(compare.self_consistent([row(0, 0.5, 1.0), wrong], CAPS)["wrong"], 1)

    def test_projections_of_the_first_block(self):
        mine = [row(p, 10.0 + p, 0) for p in range(50)] + [row(p, 0, 0, block=5) for p in range(50)]
        near = [row(p, (10.0 + p) * 1.01, 0) for p in range(50)] + [row(p, 99, 0, block=5) for p in range(50)]
        def verdict(other, positions=50):
            return compare.projections(compare.first_block(mine), compare.first_block(other), positions)

        self.assertEqual(verdict(near)["verdict"], "close")
        other = [row(p, 10.0 + (p + 7) % 50, 0) for p in range(50)]
        self.assertEqual(verdict(other)["verdict"], "too far")
        self.assertEqual(verdict(near[1:])["verdict"], "not the same rows")
        self.assertEqual(verdict([])["verdict"], "not the same rows")
        self.assertEqual(verdict([row(p, 10.0 + p, 0, block=4) for p in range(50)])["verdict"], "not the same rows")
        for broken in [float("nan"), None, float("inf")]:
            self.assertEqual(verdict([row(0, broken, 0), *near[1:]])["verdict"], "not numbers")
        # What comes after the texts part is no longer comparable.
        self.assertEqual(verdict(near[:20] + other[20:], 20)["rows"], 20)
        # Of several caps on one block the first one's.
        self.assertEqual(verdict([*near, *(row(p, 0.0, 0, cap=1) for p in range(50))])["verdict"], "close")


class Gpu(unittest.TestCase):
    def report(self, *engines):
        return {"engines": [{"device": device, "how": how} for device, how in engines]}

    def test_a_reference_is_of_the_cpu(self):
        cpu = ("CPU", "caps are nodes in the backend's own graph")
        self.assertIsNone(compare.on_cpu(self.report(cpu) | {"backend": "cpu"}))
        for found in [self.report(cpu) | {"backend": "cuda"}, self.report(cpu, ("CUDA0", "")) | {"backend": "cpu"},
                      self.report() | {"backend": "cpu"}]:
            self.assertIsNotNone(compare.on_cpu(found))

    def test_the_host_is_found_out(self):
        on_gpu = ("CUDA0", "the graph is cut at capped blocks, caps run on the GPU in stream order")
        host = ("CUDA0", "the graph is cut at capped blocks, caps run on the host")
        graph = ("CUDA0", "the graph and its caps are captured as one and replayed on the GPU")
        self.assertIsNone(compare.on_gpu(self.report(on_gpu)))
        self.assertIsNone(compare.on_gpu(self.report(on_gpu, graph), one_graph=True))
        for found in [self.report(host), self.report(on_gpu, host), self.report(("CPU", on_gpu[1])), self.report()]:
            self.assertIsNotNone(compare.on_gpu(found))
        self.assertIsNotNone(compare.on_gpu(self.report(on_gpu), one_graph=True))
        for fused, passes in [([20], True), ([], False)]:
            report = self.report(on_gpu) | {"fused_norm": {"fused": fused, "refused": []}}
            self.assertEqual(compare.on_gpu(report, fused=True) is None, passes)

    def test_a_timeline_has_every_block_or_whole_graphs(self):
        def report(replayed, launches, us=6000.0):
            blocks = [{"block": 20 + i, "handover_us": 2.0, "launch_us": launch, "handback_us": 0.0} for i, launch in enumerate(launches)]
            graph = {"device": "CUDA0", "replayed": replayed, "capped_blocks": len(blocks), "graphs": 16, "us": us}
            return {"blocks_capped": 2, "timeline": {"decodes": 16, "graphs": [graph], "blocks": blocks}}

        self.assertIsNone(compare.timed(report(False, [4.0, 5.0])))
        self.assertIsNone(compare.timed(report(True, []), one_graph=True))
        for found, one_graph in [(report(False, [4.0]), False), (report(False, [4.0, 0.0]), False), (report(True, []), False),
                                 (report(False, [4.0, 5.0]), True), (report(True, [], 0.0), True),
                                 (report(False, [4.0, None]), False),
                                 ({"blocks_capped": 2, "timeline": {"note": "there is no GPU timeline"}}, False)]:
            self.assertIsNotNone(compare.timed(found, one_graph))


class Plan(unittest.TestCase):
    def test_every_target_has_its_step(self):
        names = [name for name, *_ in speed.PLAN]
        self.assertEqual(len(names), len(set(names)))
        for _, name, _, _ in targets.AIMED:
            self.assertIn(name, names)
        for pair in targets.STATISTICS:
            self.assertTrue(set(pair) <= set(names))

    def test_options_are_given_once(self):
        for _, _, _, _, further in speed.PLAN:
            given = [part for part in speed.arguments(False, further) if part.startswith("--")]
            self.assertEqual(len(given), len(set(given)))
            self.assertTrue(set(further) <= set(given))
            self.assertNotIn(None, speed.arguments(False, further))

    def test_blocks_are_there(self):
        self.assertEqual(speed.blocks(8, {"blocks": 32}), (20, 27))
        self.assertEqual(speed.blocks(8, {"blocks": 4}), (0, 3))
        self.assertEqual(speed.blocks(8, {"blocks": 16}), (8, 15))
        self.assertEqual(speed.blocks("all", {"blocks": 30}), (0, 29))


if __name__ == "__main__":
    unittest.main()
