"""What passes and what does not, on made-up runs."""

import json
import math
import tempfile
import unittest
from pathlib import Path

from gpu_check import compare

NAN = float("nan")
CAPS = [{"floor": 1.0, "ceiling": None}, {"floor": None, "ceiling": 4.0}]


def run(tokens, margins, stop_token=None):
    return {"tokens": tokens, "margins": margins, "stop_token": stop_token}


def row(position, before, after, block=3, cap=0, engaged=None):
    return {"position": position, "block": block, "cap": cap, "before": before, "after": after,
            "engaged": before != after if engaged is None else engaged}


class Tokens(unittest.TestCase):
    def test_verdicts(self):
        cases = [
            ("equal", run([1, 2], [1, 1]), run([1, 2], [1.2, 1])),
            ("near tie", run([1, 2, 3], [2, 2, 0.1]), run([1, 2, 4], [2, 2, 3.0])),
            ("different", run([1, 2], [2, 1.0]), run([1, 3], [2, 0.9])),
            # Leads that differed before widen the tie.
            ("near tie", run([1, 2], [2, 1.0]), run([1, 3], [2.6, 1.1])),
            ("different", run([1], [0.8]), run([2], [0.7])),
            ("near tie", run([1], [0.1]), run([2], [9])),
            # The end is a choice.
            ("different", run([1], [1, 1], 9), run([1, 5], [1, 1])),
            ("different lengths", run([1, 5], [1, 1]), run([1, 5], [1, 1, 1], 9)),
            ("leads are not numbers", run([1, 2], [1, None]), run([1, 2], [1, 1])),
            ("leads are not numbers", run([1, 2], [1, 1]), run([1, 3], [float("inf"), 0.1])),
        ]
        for verdict, mine, theirs in cases:
            with self.subTest(verdict, mine=mine, theirs=theirs):
                self.assertEqual(compare.tokens(mine, theirs)["verdict"], verdict)


class Rows(unittest.TestCase):
    def test_after_follows_from_before(self):
        right = [row(0, 0.5, 1.0), row(1, 2.0, 2.0), row(1, 5.0, 4.0, cap=1)]
        self.assertEqual(compare.wrong_rows(right, CAPS), [])
        for wrong in [row(0, 0.5, 0.5), row(0, 2.0, 1.0), row(0, 5.0, 5.0, cap=1), row(0, 0.5, 1.0, engaged=False),
                      row(0, NAN, NAN, engaged=False), row(0, NAN, 1.0), row(0, 0.5, NAN), row(0, NAN, NAN, cap=1)]:
            self.assertEqual(compare.wrong_rows([*right, wrong], CAPS), [wrong])

    def test_a_null_of_a_trace_is_no_number(self):
        line = {"position": 0, "block": 1, "cap": 0, "before": None, "after": None, "engaged": False, "non_finite": True}
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            read = compare.read_trace(Path(file.name))
        self.assertTrue(math.isnan(read[0]["before"]))
        self.assertEqual(compare.wrong_rows(read, CAPS), read)

    def test_statistics_are_the_sums_of_the_rows(self):
        trace = [row(0, 0.5, 1.0), row(1, 2.0, 2.0)]
        right = {"rows": 2, "engaged": 1, "min_after": 1.0, "max_after": 2.0}
        self.assertEqual(compare.wrong_statistics(trace, [right]), [])
        for key in right:
            self.assertEqual(len(compare.wrong_statistics(trace, [right | {key: 7}])), 1)

    def test_projections_of_the_first_block(self):
        mine = [row(p, 10.0 + p, 0) for p in range(50)] + [row(p, 0, 0, block=5) for p in range(50)]
        near = [row(p, (10.0 + p) * 1.01, 0) for p in range(50)] + [row(p, 99, 0, block=5) for p in range(50)]
        far = [row(p, 10.0 + (p + 7) % 50, 0) for p in range(50)]
        for verdict, other in [("close", near), ("too far", far), ("not the same rows", near[1:]), ("not the same rows", []),
                               ("not numbers", [row(0, NAN, 0), *near[1:]]), ("not numbers", [row(0, None, 0), *near[1:]]),
                               # Of several caps on one block the first one's.
                               ("close", [*near, *(row(p, 0.0, 0, cap=1) for p in range(50))])]:
            self.assertEqual(compare.projections(mine, other, 50)["verdict"], verdict)
        # What comes after the texts part is no longer comparable.
        self.assertEqual(compare.projections(mine, near[:20] + far[20:], 20)["rows"], 20)


class Routes(unittest.TestCase):
    VIEWS = ("CUDA0", "the graph is cut at capped blocks, caps run on the GPU in stream order")
    HOST = ("CUDA0", "the graph is cut at capped blocks, caps run on the host")
    GRAPH = ("CUDA0", "the graph and its caps are captured as one and replayed on the GPU")
    CPU = ("CPU", "caps are nodes in the backend's own graph")

    def report(self, *engines, **more):
        return {"engines": [{"device": device, "how": how} for device, how in engines], "backend": "cpu", **more}

    def test_a_reference_is_of_the_cpu(self):
        self.assertIsNone(compare.on_cpu(self.report(self.CPU)))
        for found in [self.report(self.CPU, backend="cuda"), self.report(self.CPU, self.VIEWS), self.report()]:
            self.assertIsNotNone(compare.on_cpu(found))

    def test_caps_that_did_not_run_on_the_gpu_are_found_out(self):
        self.assertIsNone(compare.on_gpu(self.report(self.VIEWS), False, False))
        self.assertIsNone(compare.on_gpu(self.report(self.VIEWS, self.GRAPH), True, False))
        for found in [self.report(self.HOST), self.report(self.VIEWS, self.HOST), self.report(self.CPU), self.report()]:
            self.assertIsNotNone(compare.on_gpu(found, False, False))
        self.assertIsNotNone(compare.on_gpu(self.report(self.VIEWS), True, False))
        for fused, passes in [([20], True), ([], False)]:
            report = self.report(self.VIEWS, fused_norm={"fused": fused, "refused": []})
            self.assertEqual(compare.on_gpu(report, False, True) is None, passes)


if __name__ == "__main__":
    unittest.main()
