"""The peers: their cases, their arithmetic, and a run on tiny shapes where PyTorch is installed."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from peers.arithmetic import cap, capped
from peers.cases import Case, cases

TORCH, NUMPY = (importlib.util.find_spec(name) for name in ("torch", "numpy"))


class Peers(unittest.TestCase):
    def test_cases_are_named_like_the_samples_of_the_benchmark(self):
        self.assertEqual(Case(1, 4096, 5, False, "f32", node=True).name, "node: 5 caps, none acts")
        self.assertEqual(Case(8192, 8192, 1, True, "bf16").name, "cap bf16, all act")
        self.assertEqual(Case(16, 4096, 1, True, "f32").shape, "16 x 4096")
        found = list(cases(tiny=False))
        self.assertEqual((len(found), len(set(found))), (80, 80))

    @unittest.skipUnless(NUMPY, "numpy is not installed")
    def test_the_arithmetic_puts_projections_on_the_floor(self):
        import numpy

        rows = numpy.random.default_rng(1).normal(size=(5, 64))
        axes = numpy.eye(64)[:2]
        expected = numpy.maximum(rows[:, :2], 0.5)
        other = capped(rows, axes, [0.5, 0.5])
        for found in (other, cap(rows, axes, [0.5, 0.5])):
            numpy.testing.assert_allclose(found[:, :2], expected)

    def run_tiny(self):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "peers.jsonl"
            subprocess.run([sys.executable, "-B", "-m", "peers", "--out", out, "--tiny"], check=True, timeout=300,
                           cwd=Path(__file__).resolve().parent.parent, capture_output=True)
            return [json.loads(line) for line in out.read_text().splitlines()]

    @unittest.skipUnless(TORCH, "PyTorch is not installed")
    def test_a_tiny_run(self):
        samples = [line for line in self.run_tiny() if "peer" in line]
        self.assertTrue({"eager PyTorch", "torch.compile"} <= {sample["peer"] for sample in samples})
        self.assertTrue(all(sample["us_median"] > 0 for sample in samples))

    @unittest.skipIf(TORCH, "PyTorch is installed")
    def test_without_pytorch_it_says_so(self):
        self.assertIn("PyTorch is not installed", self.run_tiny()[0]["note"])


if __name__ == "__main__":
    unittest.main()
