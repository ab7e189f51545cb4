"""What capping is meant to cost, beside what was measured."""

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


def compare(steps, rehearsal=False):
    """One entry per target. A median above the aim whose interval reaches below it is not established. A rehearsal says
    nothing about speed."""
    rows = []
    for what, name, phase, aimed in AIMED:
        step = steps.get(name, {})
        row = {"what": what, "step": name, "aimed": aimed, "verdict": "not measured"}
        if report := step.get("report"):
            median, interval = report[phase]["ratio_median"], report[phase]["ratio_ci95"]
            held = "held" if interval[0] >= aimed else "median only" if median >= aimed else "missed"
            row |= {"median": median, "ci95": interval, "verdict": held}
            if stock := step.get("against_stock"):
                row["against_stock"] = stock
                if stock < aimed:
                    row["verdict"] = "missed against stock" if held != "missed" else held
        rows.append(row)
    for with_name, without_name in STATISTICS:
        pair = [steps.get(name, {}).get("report", {}).get("decode", {}).get("ratio_median")
                for name in (with_name, without_name)]
        row = {"what": f"statistics, {with_name}: cost", "aimed": STATISTICS_AIMED, "verdict": "not measured"}
        if None not in pair:
            row |= {"median": pair[1] - pair[0], "verdict": "held" if pair[1] - pair[0] <= STATISTICS_AIMED else "missed"}
        rows.append(row)
    for row in rows:
        if rehearsal and "median" in row:
            row["verdict"] = "rehearsed"
    return rows


def table(rows):
    """The same for people."""
    lines = [f"{'':<48}{'aimed':>8}{'median':>9}   95 % interval     {'vs stock':>8}  verdict"]
    for row in rows:
        median = f"{row['median']:.4f}" if "median" in row else "-"
        interval = "[{:.4f}, {:.4f}]".format(*row["ci95"]) if "ci95" in row else ""
        stock = f"{row['against_stock']:.4f}" if "against_stock" in row else ""
        lines.append(f"{row['what']:<48}{row['aimed']:>8}{median:>9}   {interval:<18}{stock:>8}  {row['verdict']}")
    return "\n".join(lines)
