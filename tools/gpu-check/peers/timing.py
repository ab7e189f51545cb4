"""Times on a CUDA stream by events, as benches/gpu takes them. On the CPU by the clock, for a rehearsal."""

import time
from collections.abc import Callable
from typing import Any

import torch

RUNS, NODES = 60, 50
Work = Callable[[int], Any]


def launches(work: Work, cuda: bool) -> list[float]:
    """Returns first quartile, median and third quartile of one run in microseconds. `work` is told its turn."""
    runs = RUNS if cuda else 4
    for turn in range(-(-runs // 5)):
        work(turn)
    if not cuda:
        times = []
        for turn in range(runs):
            begun = time.perf_counter()
            work(turn)
            times.append((time.perf_counter() - begun) * 1e6)
        return quartiles(times)
    pairs = []
    torch.cuda.synchronize()
    for turn in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work(turn)
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return quartiles([start.elapsed_time(end) * 1e3 for start, end in pairs])


def node(work: Work, cuda: bool) -> list[float]:
    """Returns the same of one node: `NODES` of them are captured as one graph, which is replayed."""
    if not cuda:
        return launches(work, cuda)
    work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NODES):
            work(0)
    return [us / NODES for us in launches(lambda turn: graph.replay(), cuda)]


def quartiles(times: list[float]) -> list[float]:
    """Returns first quartile, median and third quartile."""
    ordered = sorted(times)
    return [ordered[len(ordered) // 4], ordered[len(ordered) // 2], ordered[len(ordered) * 3 // 4]]


def buffers(rows: torch.Tensor, cuda: bool) -> list[Any]:
    """Returns copies that take turns. Four times the L2 cache passes between two uses of one."""
    if not cuda:
        return [rows]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    size = rows.numel() * rows.element_size()
    return [rows, *(rows.clone() for _ in range(4 * cache // size + 1))]
