"""Two runs of the same text on different hardware, compared. Nothing here runs anything.

llama.cpp does not give the same logits on a GPU as on a CPU: it multiplies in another order and rounds activations
elsewhere. So a GPU run is held to this:

- **Rows**: what a cap says of a row follows from itself, exactly: `after` is the bound where `before` lies outside,
  else `before`.
- **Projections** at the first capped block, which no cap has touched yet, agree with the CPU's: deviations are taken
  relative to the larger of the CPU's value and the median size of all of them; their median is at most MEDIAN and their
  99th percentile at most TAIL. Two ways to compute attention on one CPU give medians of 0.006 (a real model, block 21)
  and 0.024 (random weights, block 8, which amplify more); a wrong axis, row or block gives about 1.
- **Tokens** are equal up to where two tokens were near tied: where the texts part, the lead of the winner over the
  next token is, on at least one side, at most TIE logits or twice the largest difference of leads seen before that.

axiscap writes what is no finite number as null. Here it is a NaN again, and a NaN passes nowhere.
"""

import json
import math
import statistics

MEDIAN, TAIL, TIE = 0.15, 0.75, 0.5


def number(value):
    """A number of axiscap's JSON; null is a NaN."""
    return math.nan if value is None else value


def finite(values):
    return all(math.isfinite(number(value)) for value in values)


def tokens(reference, other):
    """Compares two results of `axiscap run --json --margins`."""
    # The token that ended a text is one more choice.
    mine, theirs = ([*run["tokens"], *filter(lambda t: t is not None, [run["stop_token"]])] for run in (reference, other))
    shared = min(len(mine), len(theirs))
    first = next((i for i in range(shared) if mine[i] != theirs[i]), None)
    equal = shared if first is None else first
    result = {"tokens": shared, "equal": equal}
    if not finite([*reference["margins"], *other["margins"]]):
        return result | {"verdict": "leads are not numbers"}
    noise = max((abs(a - b) for a, b in zip(reference["margins"][:equal], other["margins"][:equal])), default=0.0)
    result["largest_difference_of_leads"] = noise
    if first is None:
        result["verdict"] = "equal" if len(mine) == len(theirs) else "different lengths"
        return result
    leads = [reference["margins"][first], other["margins"][first]]
    allowed = max(TIE, 2 * noise)
    result |= {"first_difference": first, "leads_there": leads, "lead_allowed": allowed}
    result["verdict"] = "near tie" if min(leads) <= allowed else "different"
    return result


def read_trace(file):
    """The lines of `axiscap run --trace`."""
    with open(file) as lines:
        return [row | {"before": number(row["before"]), "after": number(row["after"])} for row in map(json.loads, lines)]


def self_consistent(trace, caps):
    """Rows whose `after` does not follow from `before` and the bounds that the run's JSON names; and all rows. A row
    that is no number is wrong."""
    wrong = []
    for row in trace:
        cap = caps[row["cap"]]
        low = float("-inf") if cap["floor"] is None else cap["floor"]
        high = float("inf") if cap["ceiling"] is None else cap["ceiling"]
        before, after = number(row["before"]), number(row["after"])
        expected = low if before < low else high if before > high else before
        # A NaN equals nothing, not even itself.
        right = math.isfinite(before) and after == expected and row["engaged"] == (expected != before)
        if not right or row.get("non_finite"):
            wrong.append(row)
    return {"rows": len(trace), "engaged": sum(row["engaged"] for row in trace), "wrong": len(wrong),
            "first_wrong": wrong[:1]}


def first_block(trace):
    """The first capped block, and `before` at each position there: the part of a trace that is comparable."""
    block = min((row["block"] for row in trace), default=None)
    before = {}
    for row in trace:
        if row["block"] == block:
            # Of several caps the first: the others see what it left.
            before.setdefault(row["position"], row["before"])
    return {"block": block, "before": [[position, value] for position, value in before.items()]}


def projections(reference, other, positions):
    """How far `before` at the first capped block differs over the first `positions`, the part both runs share."""
    block = reference["block"]
    values = [{at: number(before) for at, before in run["before"] if at < positions} for run in (reference, other)]
    if block != other["block"] or values[0].keys() != values[1].keys() or not values[0]:
        return {"block": block, "verdict": "not the same rows", "rows": [len(v) for v in values]}
    broken = [sum(not math.isfinite(value) for value in run.values()) for run in values]
    if any(broken):
        return {"block": block, "verdict": "not numbers", "rows": len(values[0]), "no_numbers": broken}
    scale = statistics.median(abs(value) for value in values[0].values()) or 1.0
    apart = sorted(abs(values[1][at] - value) / max(abs(value), scale) for at, value in values[0].items())
    median, tail = statistics.median(apart), apart[min(len(apart) - 1, int(0.99 * len(apart)))]
    # Written so that a NaN does not pass.
    close = median <= MEDIAN and tail <= TAIL
    return {"block": block, "rows": len(apart), "median": median, "percentile_99": tail, "largest": apart[-1],
            "identical_rows": sum(value == 0 for value in apart), "verdict": "close" if close else "too far"}


def on_cpu(report):
    """Why a report's run was not one on the CPU alone, or None."""
    elsewhere = [engine["device"] for engine in report["engines"] if engine["device"] != "CPU"]
    if report["backend"] != "cpu" or elsewhere:
        return f"the reference ran on {', '.join(elsewhere) or report['backend']}, not on the CPU"
    return None if report["engines"] else "nothing was capped"


def on_gpu(report, one_graph=False, fused=False):
    """Why a report's caps did not run on a GPU in the way asked for, or None."""
    engines = report["engines"]
    if not engines:
        return "nothing was capped"
    for engine in engines:
        if not engine["device"].startswith("CUDA"):
            return f"blocks were computed on {engine['device']}, not on the GPU"
        if "on the GPU" not in engine["how"]:
            return f"caps of {engine['device']} did not run there: {engine['how']}"
    if one_graph and not any("captured as one" in engine["how"] for engine in engines):
        return "no graph was captured as one and replayed"
    if fused and not report["fused_norm"]["fused"]:
        return f"no norm was fused: {report['fused_norm']['refused'][:1]}"
    return None


def timed(report, one_graph=False):
    """Why a report has no timeline of a GPU, or None: of whole graphs, and in views of every capped block."""
    timeline = report["timeline"]
    if "note" in timeline:
        return timeline["note"]
    times = [number(graph["us"]) for graph in timeline["graphs"] if graph["replayed"] == one_graph]
    if not times:
        return f"no graph was timed as it was asked for: {timeline['graphs']}"
    if not one_graph:
        if len(timeline["blocks"]) != report["blocks_capped"]:
            return f"{len(timeline['blocks'])} of {report['blocks_capped']} capped blocks were timed"
        times += [number(block["launch_us"]) for block in timeline["blocks"]]
    return None if all(time > 0 for time in times) else "some times are not positive"
