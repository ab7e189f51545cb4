"""What capping is meant to cost, beside what was measured.

- held: the whole interval is on the right side of the aim;
- missed: it is not;
- no interval: too few values for one;
- faster than memory: the bytes cannot have moved in that time.

The interval of speeds, and of launches with an index of profiles over launches without, is the 95 % interval of the
median (sign test). Elsewhere the kernels' benchmark reports quartiles of 60 runs, which are wider and take its place.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from . import speed
from .compare import number
from .visit import Data

HELD, MISSED, NO_INTERVAL, BROKEN = "held", "missed", "no interval", "not a number"
# Bytes move at most this much faster than the copy moves them. What is faster did not move them.
FASTER_THAN_MEMORY = "faster than memory, so not what it says"
MEMORY = 0.8
Interval = tuple[float, float]
Sample = dict[str, Any]


@dataclass
class Row:
    """One line of the table. Without a median it was not measured."""

    what: str
    aim: str = ""
    median: float | None = None
    interval: Interval | None = None
    of: str = ""
    verdict: str = "not measured"


def interval(values: list[float]) -> Interval | None:
    """Returns the 95 % interval of the median by the sign test. Needs six values."""
    count, ordered = len(values), sorted(values)
    outside, rank = 0.0, 0
    while (outside := outside + math.comb(count, rank) / 2**count) <= 0.025 and rank < count // 2:
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def judged(what: str, values: list[float], aim: float | None, at_least: bool = True, of: str = "") -> Row:
    """Judges values against an aim. Without one it only reports them."""
    row = Row(what, "" if aim is None else f"{'>=' if at_least else '<='} {aim:g}")
    if not values:
        return row
    row.median, row.of = statistics.median(values), f"{len(values)} {of}"
    if not all(map(math.isfinite, values)):
        row.verdict = BROKEN
        return row
    row.interval = interval(values)
    return _verdict(row, aim, at_least)


def _verdict(row: Row, aim: float | None, at_least: bool) -> Row:
    if aim is None:
        row.verdict = ""
    elif row.interval is None:
        row.verdict = NO_INTERVAL
    else:
        row.verdict = HELD if (row.interval[0] >= aim if at_least else row.interval[1] <= aim) else MISSED
    return row


# What it is about, the case, its mode, which phase, the other measurement in the report, and the aim.
SPEEDS: list[tuple[str, str, str, str, str, float | None]] = [
    *((f"{what}, decode, {way}", case, mode, "decode", "", fused_aim if mode == speed.FUSED else aim)
      for what, case, aim, fused_aim in (("8B, 8 blocks", "8b-8", 0.995, 1.0), ("8B, all blocks", "8b-all", 0.99, 1.0),
                                         ("8B, 8 blocks, batch 16", "8b-8-batch16", 0.995, 0.995),
                                         ("1B, 8 blocks", "1b-8", 0.99, 1.0))
      for way, mode in (("one graph", speed.GRAPH), ("fused norm", speed.FUSED), ("views", speed.VIEWS))),
    ("8B, 8 blocks, prefill of 512", "8b-8-prefill", speed.GRAPH, "prefill", "", 0.995),
    ("8B, 8 blocks, hook with its caps off", "8b-8-cb-eval", speed.VIEWS, "decode", "idle", None),
    ("8B, 8 blocks, caps through cb_eval", "8b-8-cb-eval", speed.VIEWS, "decode", "cb_eval", None),
    ("8B, 8 blocks, caps by ggml's operations", "8b-8-ggml-ops", speed.VIEWS, "decode", "stock_chain", None),
]
STATISTICS_AIM = 0.002


def speeds(steps: dict[str, Data]) -> list[Row]:
    """Judges the measured speeds of capped over uncapped decoding."""
    rows = [judged(what, speed.ratios(steps, case, mode, phase, other), aim, of="pairs")
            for what, case, mode, phase, other, aim in SPEEDS]
    return [*rows, judged("8B, 8 blocks, cost of statistics", speed.statistics_cost(steps, "8b-8-statistics"),
                          STATISTICS_AIM, at_least=False, of="pairs")]


MANY, WIDTHS = ["8192 x 8192"], ["1 x 4096", "1 x 8192"]
# What it is about, samples of the kernels' benchmark, what they are divided by, shapes, and the most that is aimed at:
# of a ratio of times, of times per byte against the copy, or of microseconds. The worst sample counts.
KERNELS: list[tuple[str, list[str], str | None, list[str], float]] = [
    ("in place, none acts, time per byte / copy's", ["cap, none acts"], "copy", MANY, 1 / 0.9),
    ("in place, all act, time per byte / copy's", ["cap, all act"], "copy", MANY, 1 / 0.9),
    ("add + cap / add", ["add + cap"], "add alone", MANY, 1.03),
    ("add + cap + RMSNorm / add, then RMSNorm", ["add + cap + RMSNorm"], "add, then RMSNorm", MANY, 0.85),
    ("one row in a graph, us a node", ["node: cap, none acts", "node: cap, all act"], None, WIDTHS, 2.0),
    ("one row, cap + RMSNorm / RMSNorm", ["node: cap + RMSNorm"], "node: RMSNorm", WIDTHS, 1.15),
    ("5 caps / one, none acts", ["5 caps, none acts"], "cap, none acts", MANY, 1.25),
    ("5 caps / one, all act", ["5 caps, all act"], "cap, all act", MANY, 1.25),
    ("one row, 5 caps / one, none acts", ["node: 5 caps, none acts"], "node: cap, none acts", WIDTHS, 1.25),
    ("one row, 5 caps / one, all act", ["node: 5 caps, all act"], "node: cap, all act", WIDTHS, 1.25),
]
# What an index of profiles costs: what it is about, a sample, its shape, and the most that is aimed at. The sample has
# the ratios of launches with the index over the same launches without. Without it every row has profile 1.
INDEX: list[tuple[str, str, str, float | None]] = [
    *((f"index / none, {profiles}, {acts}", f"cap, {acts}, {profiles}", MANY[0], 1.01 if profiles == "profile 1" else None)
      for profiles in ("profile 1", "4 profiles") for acts in ("none acts", "all act")),
    # Nodes of a graph. A single row has one profile.
    *((f"index / none, {rows}, {profiles}, {acts}", f"node: cap, {acts}, {profiles}", shape, None)
      for rows, shape in (("1 row", "1 x 8192"), ("16 rows", "16 x 4096"), ("512 rows", "512 x 4096"))
      for profiles in ("profile 1", "4 profiles") for acts in ("none acts", "all act")
      if (rows, profiles) != ("1 row", "4 profiles")),
]


def kernels(bench: Data | None) -> list[Row]:
    """Judges the kernels' benchmark."""
    samples = {(sample["name"], sample["shape"]): sample for sample in (bench or {}).get("samples", [])}
    # The copy is measured twice. The faster one counts.
    copy = min((sample for (name, _), sample in samples.items() if name.split(",")[0] == "copy" and sample["bytes"] > 0),
               key=lambda sample: quartiles(sample)[1] / sample["bytes"], default=None)
    rows = []
    for what, names, over, shapes, aim in KERNELS:
        wanted = [(name, shape) for name in names for shape in shapes]
        found = [(shape, ratio) for name, shape in wanted if (ratio := _ratio(samples, copy, name, over, shape))]
        row = Row(what, f"<= {aim:.4g}")
        rows.append(row)
        if not found:
            continue
        broken = [one for one in found if not all(map(math.isfinite, one[1]))]
        shape, (low, row.median, high) = broken[0] if broken else max(found, key=lambda one: one[1][1])
        row.interval, row.of = (low, high), shape
        _verdict(row, aim, at_least=False)
        if broken:
            row.verdict = BROKEN
        elif over == "copy" and row.median < MEMORY:
            row.verdict = FASTER_THAN_MEMORY
        elif len(found) < len(wanted):
            row.of += f", {len(found)} of {len(wanted)} samples"
            row.verdict = MISSED if row.verdict == MISSED else NO_INTERVAL
    for what, name, shape, index_aim in INDEX:
        ratios = [number(ratio) for ratio in samples.get((name, shape), {}).get("ratios", [])]
        rows.append(judged(what, ratios, index_aim, at_least=False, of=f"pairs, {shape}"))
    return rows


def _ratio(samples: dict[tuple[str, str], Sample], copy: Sample | None, name: str, over: str | None,
           shape: str) -> tuple[float, float, float] | None:
    """Returns quartiles and median of a sample, over another one if named: what the quartiles of both allow."""
    sample = samples.get((name, shape))
    base = copy if over == "copy" else samples.get((over or "", shape))
    if sample is None or over and base is None:
        return None
    low, median, high = quartiles(sample)
    if base is None:
        return low, median, high
    base_low, base_median, base_high = quartiles(base)
    weight = base["bytes"] / sample["bytes"] if over == "copy" else 1.0
    return weight * low / base_high, weight * median / base_median, weight * high / base_low


def quartiles(sample: Sample) -> tuple[float, float, float]:
    """Returns the first quartile, the median and the third quartile in microseconds."""
    low, median, high = (number(sample[key]) for key in ("us_q1", "us_median", "us_q3"))
    return (low, median, high) if min(low, median, high) > 0 else (math.nan, math.nan, math.nan)


def peers(bench: Data | None, measured: list[Sample], model: list[dict[str, float]]) -> list[Row]:
    """Compares every peer with our kernel of the same name and shape, and reports hooks in a transformers model."""
    ours = {(sample["name"], sample["shape"]): sample for sample in (bench or {}).get("samples", [])}
    by_peer: dict[str, list[tuple[float, float, Sample]]] = {}
    for sample in measured:
        if base := ours.get((sample["name"], sample["shape"])):
            low, median, _ = quartiles(sample)
            by_peer.setdefault(sample["peer"], []).append((median / quartiles(base)[1], low / quartiles(base)[2], sample))
    rows = []
    for peer, found in by_peer.items():
        slowest, fastest = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[1])
        row = Row(f"{peer} / ours, the closest of {len(found)}", "> 1", fastest[0], (fastest[1], slowest[0]),
                  f"{fastest[2]['name']} {fastest[2]['shape']}")
        row.verdict = HELD if fastest[1] > 1 else MISSED
        rows.append(row)
    hooks = [one["ratio"] for one in model]
    return [*rows, judged("8B, 8 layers, hooks in transformers", hooks, None, of="rounds")] if hooks else rows


def table(rows: list[Row]) -> str:
    """Returns the rows as text."""
    lines = [f"{'':<47}{'aim':>9}{'median':>9}  {'interval':<18}{'of':<27}verdict"]
    for row in rows:
        median = "-" if row.median is None else f"{row.median:.4f}"
        ends = "" if row.interval is None else f"[{row.interval[0]:.4f}, {row.interval[1]:.4f}]"
        lines.append(f"{row.what:<47}{row.aim:>9}{median:>9}  {ends:<18}{row.of[:26]:<27}{row.verdict}".rstrip())
    return "\n".join(lines)
