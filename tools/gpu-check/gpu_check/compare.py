"""Comparisons of two runs of the same text on different hardware. Runs nothing.

llama.cpp gives other logits on a GPU than on a CPU: it multiplies in another order and rounds activations elsewhere.
A GPU run is therefore held to this:

- **Rows**: `after` of a cap is the bound where `before` lies outside, else `before`, exactly.
- **Statistics**: the sums over the traced rows, exactly.
- **Projections** at the first capped block agree with the CPU's. A deviation is relative to the larger of the CPU's
  value and the median size of all of them. The median deviation is at most `MEDIAN`, the 99th percentile at most
  `TAIL`. Two ways to compute attention on one CPU give medians of 0.006 (a real model, block 21) and 0.024 (random
  weights, block 8). A wrong axis, row or block gives about 1.
- **Tokens** are equal up to a near tie: where the texts part, the winner leads the next token, on at least one side, by
  at most `TIE` logits or twice the largest difference of leads before.

axiscap writes a number that is not finite as null. Here it is a NaN, which passes nowhere.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

MEDIAN, TAIL, TIE = 0.15, 0.75, 0.5
Report = dict[str, Any]
Trace = list[dict[str, Any]]


def number(value: float | None) -> float:
    """Returns a number of axiscap's JSON. null is a NaN."""
    return math.nan if value is None else value


def tokens(reference: Report, other: Report) -> Report:
    """Compares two reports of `axiscap run --json --margins`."""
    # The token that ended a text is one more choice.
    mine, theirs = ([*run["tokens"], *([] if run["stop_token"] is None else [run["stop_token"]])]
                    for run in (reference, other))
    shared = min(len(mine), len(theirs))
    first = next((i for i in range(shared) if mine[i] != theirs[i]), None)
    equal = shared if first is None else first
    result: Report = {"tokens": shared, "equal": equal}
    leads = [[number(lead) for lead in run["margins"]] for run in (reference, other)]
    if not all(map(math.isfinite, leads[0] + leads[1])):
        return result | {"verdict": "leads are not numbers"}
    noise = max((abs(a - b) for a, b in zip(leads[0][:equal], leads[1][:equal])), default=0.0)
    result["largest_difference_of_leads"] = noise
    if first is None:
        return result | {"verdict": "equal" if len(mine) == len(theirs) else "different lengths"}
    there, allowed = [run[first] for run in leads], max(TIE, 2 * noise)
    result |= {"first_difference": first, "leads_there": there, "lead_allowed": allowed}
    return result | {"verdict": "near tie" if min(there) <= allowed else "different"}


def read_trace(file: Path) -> Trace:
    """Reads the lines of `axiscap run --trace`."""
    with file.open() as lines:
        return [row | {"before": number(row["before"]), "after": number(row["after"])} for row in map(json.loads, lines)]


def wrong_rows(trace: Trace, caps: list[Report]) -> Trace:
    """Returns the rows whose `after` does not follow from `before` and the bounds, or that are no numbers."""
    wrong = []
    for row in trace:
        cap = caps[row["cap"]]
        low = -math.inf if cap["floor"] is None else cap["floor"]
        high = math.inf if cap["ceiling"] is None else cap["ceiling"]
        before, after = number(row["before"]), number(row["after"])
        expected = low if before < low else high if before > high else before
        # A NaN equals nothing, itself included.
        right = math.isfinite(before) and after == expected and row["engaged"] == (expected != before)
        if not right or row.get("non_finite"):
            wrong.append(row)
    return wrong


def wrong_statistics(trace: Trace, caps: list[Report]) -> list[str]:
    """Returns the caps whose statistics are not the sums over the trace."""
    wrong = []
    for index, cap in enumerate(caps):
        rows = [row for row in trace if row["cap"] == index]
        after = [row["after"] for row in rows]
        counted = {"rows": len(rows), "engaged": sum(row["engaged"] for row in rows),
                   "min_after": min(after, default=None), "max_after": max(after, default=None)}
        if any(cap[key] != value for key, value in counted.items()):
            wrong.append(f"cap {index}: {({key: cap[key] for key in counted})} instead of {counted}")
    return wrong


def first_block(trace: Trace) -> dict[int, float]:
    """Returns `before` by position at the first capped block, which no cap has touched before."""
    block = min((row["block"] for row in trace), default=None)
    before: dict[int, float] = {}
    for row in trace:
        if row["block"] == block:
            # Of several caps the first one sees the untouched row.
            before.setdefault(row["position"], number(row["before"]))
    return before


def projections(reference: Trace, other: Trace, positions: int) -> Report:
    """Compares the projections at the first capped block over the first `positions`, which both runs share."""
    values = [{at: value for at, value in first_block(run).items() if at < positions} for run in (reference, other)]
    if values[0].keys() != values[1].keys() or not values[0]:
        return {"verdict": "not the same rows", "rows": [len(run) for run in values]}
    if not all(math.isfinite(value) for run in values for value in run.values()):
        return {"verdict": "not numbers", "rows": len(values[0])}
    scale = statistics.median(abs(value) for value in values[0].values()) or 1.0
    apart = sorted(abs(values[1][at] - value) / max(abs(value), scale) for at, value in values[0].items())
    median, tail = statistics.median(apart), apart[min(len(apart) - 1, int(0.99 * len(apart)))]
    return {"rows": len(apart), "median": median, "percentile_99": tail, "largest": apart[-1],
            "verdict": "close" if median <= MEDIAN and tail <= TAIL else "too far"}


def on_cpu(report: Report) -> str | None:
    """Returns why a report's run was not one on the CPU alone, or `None`."""
    elsewhere = [engine["device"] for engine in report["engines"] if engine["device"] != "CPU"]
    if report["backend"] != "cpu" or elsewhere:
        return f"the reference ran on {', '.join(elsewhere) or report['backend']}, not on the CPU"
    return None if report["engines"] else "nothing was capped"


def on_gpu(report: Report, one_graph: bool, fused: bool) -> str | None:
    """Returns why a report's caps did not run on a GPU by the route asked for, or `None`."""
    engines = report["engines"]
    if not engines:
        return "nothing was capped"
    for engine in engines:
        if not engine["device"].startswith("CUDA") or "on the GPU" not in engine["how"]:
            return f"caps of {engine['device']} did not run on the GPU: {engine['how']}"
    if one_graph and not any("captured as one" in engine["how"] for engine in engines):
        return "no graph was captured as one and replayed"
    if fused and not report["fused_norm"]["fused"]:
        return f"no norm was fused: {report['fused_norm']['refused'][:1]}"
    return None
