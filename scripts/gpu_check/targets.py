"""What capping is meant to cost, beside what was measured.

Of a speed that is to be *at least* its aim, as of a time that is to be *at most* its aim:

- held: the whole interval is on the right side of the aim;
- median only: the median is, the whole interval is not, or there is no interval that says so;
- missed: the median is on the wrong side;
- no stock baseline: what it was to be compared with was not measured, or is not stock llama.cpp.
"""

import math
import statistics

from . import compare as numbers
from . import speed

# What it is about, the step, which of its figures, and the ratio of speeds aimed at.
AIMED = [
    ("8B, 8 blocks, decode, views", "8b-8-views", "decode", 0.995),
    ("8B, 8 blocks, decode, one graph", "8b-8-graph", "decode", 0.995),
    ("8B, all blocks, decode, views", "8b-all-views", "decode", 0.99),
    ("8B, all blocks, decode, one graph", "8b-all-graph", "decode", 0.99),
    ("8B, 8 blocks, decode, fused norm", "8b-8-fused-norm", "decode", 1.0),
    ("8B, 8 blocks, decode, fused norm, one graph", "8b-8-fused-norm-graph", "decode", 1.0),
    ("8B, all blocks, decode, fused norm", "8b-all-fused-norm", "decode", 1.0),
    ("8B, all blocks, decode, fused norm, one graph", "8b-all-fused-norm-graph", "decode", 1.0),
    ("1B, 8 blocks, decode, views", "1b-8-views", "decode", 0.99),
    ("1B, 8 blocks, decode, one graph", "1b-8-graph", "decode", 0.99),
    ("8B, 8 blocks, prefill of 512", "8b-8-views-prefill", "prefill", 0.995),
    ("8B, 8 blocks, batch 16, views", "8b-8-views-batch16", "decode", 0.995),
    ("8B, 8 blocks, batch 16, one graph", "8b-8-graph-batch16", "decode", 0.995),
]
# What statistics may cost more.
STATISTICS = [("8b-8-views", "8b-8-views-no-statistics"), ("8b-8-graph", "8b-8-graph-no-statistics")]
STATISTICS_AIMED = 0.002
# So many runs of other processes have a range that holds the median of all such runs with 95 % (2 / 2^6 outside).
ENOUGH = 6

MANY, WIDTHS = ["8192 x 8192"], ["1 x 4096", "1 x 5120", "1 x 8192"]
# What it is about, which samples of the kernels' benchmark, over which, shapes, and the most that is aimed at: a ratio
# of times, of time per byte (against the copy), or microseconds (over nothing). The worst of them counts.
KERNELS = [
    ("in place, none acts: copy's rate / its", ["cap, none acts"], "copy", MANY, 1 / 0.9),
    ("in place, all act: copy's rate / its", ["cap, all act"], "copy", MANY, 1 / 0.9),
    ("add + cap / add", ["add + cap"], "add alone", MANY, 1.03),
    ("add + cap + RMSNorm / add, then RMSNorm", ["add + cap + RMSNorm"], "add, then RMSNorm", MANY, 0.85),
    ("5 caps / one cap, none acts", ["5 caps, none acts"], "cap, none acts", MANY, 1.25),
    ("5 caps / one cap, all act", ["5 caps, all act"], "cap, all act", MANY, 1.25),
    ("one row in a graph, us", ["node: cap, none acts", "node: cap, all act"], None, WIDTHS, 2.0),
    ("the same, overlapping", ["node: cap, none acts, overlapping", "node: cap, all act, overlapping"], None, WIDTHS, 2.0),
    ("one row, cap + RMSNorm / RMSNorm", ["node: cap + RMSNorm"], "node: RMSNorm", WIDTHS, 1.15),
    ("one row, 5 caps / one cap, none acts", ["node: 5 caps, none acts"], "node: cap, none acts", WIDTHS, 1.25),
    ("one row, 5 caps / one cap, all act", ["node: 5 caps, all act"], "node: cap, all act", WIDTHS, 1.25),
]


def verdict(median, worst, aimed, at_least):
    """`worst` is the interval's end that is nearer to the wrong side; None where there is no interval."""
    if not math.isfinite(median):
        return "not a number"

    def right(value):
        return value >= aimed if at_least else value <= aimed

    if not right(median):
        return "missed"
    return "held" if worst is not None and right(worst) else "median only"


def ratio(report, phase):
    """Median and interval of capped over uncapped speed."""
    # A single pair has no interval.
    low, high = report[phase]["ratio_ci95"] or [None, None]
    return numbers.number(report[phase]["ratio_median"]), [numbers.number(low), numbers.number(high)]


def against_stock(steps, name, phase="decode"):
    """The capped speed of a step with one graph per token over stock llama.cpp's: its own ratio, times how fast its
    baseline was beside the stock baselines, which are of other processes on the same card. The interval spans the
    pairs' interval and all of those baselines. None without any."""
    step = steps[name]
    stock = [numbers.number(steps[of]["report"][phase]["uncapped_tps"]) for of in speed.baselines(name)
             if steps.get(of, {}).get("report") and steps[of].get("passed") and steps[of].get("card") == step.get("card")]
    if not stock or not all(speed > 0 for speed in stock):
        return None
    median, (low, high) = ratio(step["report"], phase)
    own = numbers.number(step["report"][phase]["uncapped_tps"])
    # Whole steps are compared, by their median speeds; so the median is the capped speed's own.
    capped = numbers.number(step["report"][phase]["capped_tps"])
    return {"median": capped / statistics.median(stock), "ci95": [low * own / max(stock), high * own / min(stock)],
            "of": f"pairs and {len(stock)} stock runs", "stock_runs": len(stock)}


def compare(steps, rehearsal=False, stock=True):
    """One entry per target. `stock`: whether the uncapped contexts are stock llama.cpp, with CUDA graphs. A rehearsal
    says nothing about speed."""
    one_graph = {name for name, _, _, mode, _ in speed.PLAN if mode in (speed.GRAPH, speed.FUSED_GRAPH)}
    rows = []
    for what, name, phase, aimed in AIMED:
        row = {"what": what, "step": name, "aimed": aimed, "verdict": "not measured"}
        rows.append(row)
        if not (report := steps.get(name, {}).get("report")):
            continue
        if not steps[name].get("passed"):
            row["verdict"] = "the step failed"
            continue
        median, interval = ratio(report, phase)
        row |= {"in_process": {"median": median, "ci95": interval}}
        if name not in one_graph:
            row |= {"median": median, "ci95": interval, "of": "pairs"}
            row["verdict"] = verdict(median, interval[0], aimed, True)
        elif found := against_stock(steps, name):
            row |= found
            enough = found["stock_runs"] >= ENOUGH
            row["verdict"] = verdict(found["median"], found["ci95"][0] if enough else None, aimed, True)
        else:
            row["verdict"] = "no stock baseline"
        if not stock:
            row["verdict"] = "no stock baseline"
    for pair in STATISTICS:
        row = {"what": f"statistics, {pair[0]}: cost", "aimed": STATISTICS_AIMED, "verdict": "not measured"}
        rows.append(row)
        found = [steps.get(name, {}) for name in pair]
        if not all(step.get("report") and step.get("passed") for step in found):
            continue
        (counted, [counted_low, counted_high]), (free, [free_low, free_high]) = (ratio(s["report"], "decode") for s in found)
        # Of two processes: the widest that both intervals allow.
        row |= {"median": free - counted, "ci95": [free_low - counted_high, free_high - counted_low], "of": "both intervals"}
        row["verdict"] = verdict(row["median"], row["ci95"][1], STATISTICS_AIMED, False)
    for row in rows:
        if rehearsal and "median" in row:
            row["verdict"] = "rehearsed"
    return rows


def kernels(bench):
    """The same for the kernels' benchmark. Instead of an interval the quartiles: half of the runs lie within; of a
    ratio, what the quartiles of both allow."""
    samples = {(sample["name"], sample["shape"]): sample for sample in (bench or {}).get("samples", [])}
    rows = []
    for what, names, over, shapes, aimed in KERNELS:
        found = []
        for name in names:
            for shape in shapes:
                sample, base = samples.get((name, shape)), samples.get((over, shape)) if over else None
                if over == "copy":
                    base = fastest_copy(samples.values())
                if sample is None or over and base is None:
                    continue
                low, median, high = quartiles(sample)
                if over:
                    base_low, base_median, base_high = quartiles(base)
                    weight = base["bytes"] / sample["bytes"] if over == "copy" else 1
                    low, median, high = weight * low / base_high, weight * median / base_median, weight * high / base_low
                found.append((median, low, high, shape))
        row = {"what": what, "aimed": round(aimed, 4), "verdict": "not measured"}
        rows.append(row)
        if found:
            broken = [one for one in found if not all(map(math.isfinite, one[:3]))]
            median, low, high, shape = broken[0] if broken else max(found)
            part = "" if len(found) == len(names) * len(shapes) else f", {len(found)} of {len(names) * len(shapes)} samples"
            row |= {"median": median, "quartiles": [low, high], "of": shape + part}
            row["verdict"] = verdict(median, high, aimed, False)
            if part and row["verdict"] != "missed":
                row["verdict"] = "not all measured"
    return rows


def fastest_copy(samples):
    """The copy is measured once or more often, and moves what bytes it likes: a bandwidth is the best that was seen."""
    copies = [sample for sample in samples if sample["name"].split(",")[0] == "copy" and sample["bytes"] > 0]
    return min(copies, key=lambda sample: quartiles(sample)[1] / sample["bytes"], default=None)


def quartiles(sample):
    values = [numbers.number(sample[key]) for key in ("us_q1", "us_median", "us_q3")]
    return values if all(value > 0 for value in values) else [math.nan] * 3


def table(rows, interval="95 % interval"):
    """The same for people."""
    lines = [f"{'':<46}{'aimed':>7}{'median':>9}  {interval:<19}{'of':<27}verdict"]
    for row in rows:
        median = f"{numbers.number(row['median']):.4f}" if "median" in row else "-"
        ends = row.get("ci95") or row.get("quartiles")
        ends = "[{:.4f}, {:.4f}]".format(*map(numbers.number, ends)) if ends else ""
        lines.append(f"{row['what']:<46}{row['aimed']:>7}{median:>9}  {ends:<19}{row.get('of', ''):<27}{row['verdict']}")
    return "\n".join(lines)
