"""What a run came to, for people, and short: who reads it may see only the end of what was printed."""

from . import targets
from .check import NOT_ASKED_FOR, failed, no_result

MOST = 11000


def verdict(step):
    if failed(step):
        return "FAILED"
    if no_result(step):
        return "-"
    return "passed" if step.get("passed") else "noted"


def clipped(text, most):
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def tables(result):
    """The targets, as far as any was measured."""
    parts = []
    for key, interval in [("targets", "95 % interval"), ("kernel_targets", "quartiles")]:
        rows = result.get(key, [])
        measured = [row for row in rows if row["verdict"] != "not measured"]
        if measured:
            title = "REHEARSAL on the CPU, tiny models: these figures mean nothing\n" if result["rehearsal"] else ""
            others = f"\n{len(rows) - len(measured)} more were not measured" if len(rows) > len(measured) else ""
            parts.append(title + targets.table(measured, interval) + others)
    return parts


def failures(steps):
    lines = [f"FAILED {name}: {clipped(step.get('why'), 160)}" for name, step in steps.items() if failed(step)]
    for name, step in steps.items():
        if not failed(step) and any(one.get("passed") is False for one in step.get("earlier", [])):
            why = next(one.get("why") for one in step["earlier"] if one.get("passed") is False)
            lines.append(f"failed before, not now: {name}: {clipped(why, 120)}")
    return lines if len(lines) <= 20 else [*lines[:20], f"and {len(lines) - 20} more, see gpu-check.json"]


def not_run(missing):
    """The steps without a result, by reason."""
    reasons = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    unasked = reasons.pop(NOT_ASKED_FOR, [])
    lines = [f"{clipped(reason, 100)}: {clipped(', '.join(names), 700)}" for reason, names in list(reasons.items())[:6]]
    return [*lines, *([f"{len(unasked)} more were not asked for"] if unasked else [])]


def step_list(steps, visit):
    """One line per step of this visit, two in a row; of the others how many there are."""
    shown = [f"{clipped(name, 40)} {verdict(step)} {step.get('seconds', 0.0)}" for name, step in steps.items()
             if step.get("visit") == visit]
    kept = len(steps) - len(shown)
    rows = [f"{left:<58}{right}".rstrip() for left, right in zip(shown[::2], [*shown[1::2], ""])]
    return [*([f"{kept} steps of earlier visits"] if kept else []), *rows]


def text(result, visit):
    """All of it, never longer than MOST."""
    steps = result["steps"]
    head = [*tables(result), "\n".join(failures(steps)), "\n".join(not_run(result.get("not_run", {})))]
    tail = "\n".join(step_list(steps, visit))[: MOST // 2]
    counts = [sum(verdict(step) == of for step in steps.values()) for of in ("passed", "FAILED")]
    last = f"{counts[0]} passed, {counts[1]} failed, {len(result.get('not_run', {}))} not run"
    head_text = "\n\n".join(part for part in head if part)[: MOST - len(tail) - len(last) - 50]
    return f"{head_text}\n\nsteps (verdict, seconds):\n{tail}\n{last}"
