"""The parts of scripts/gpu-check. Python 3 alone, no packages: they run on a machine that has little else."""
