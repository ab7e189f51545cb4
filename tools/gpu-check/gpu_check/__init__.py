"""Tests and measures axiscap on a machine with a GPU (docs/gpu-check.md)."""
