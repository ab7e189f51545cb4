"""What the results of one or several visits come to, as text."""

import json
from pathlib import Path

from . import measure, smoke, targets
from .visit import FAILED, NOT_RUN, PASSED, RUNNING, STOPPED, Data

# The tool that runs a visit shows the last 12,000 characters.
MAX = 11000


def merged(files: list[Path]) -> list[Data]:
    """Reads results, and merges those of the same programs and kind of GPU.

    A passed step outweighs any other, and one that failed or measured something outweighs one that did not.
    """
    groups: list[Data] = []
    for file in files:
        result = json.loads(file.read_text())
        group = next((one for one in groups if one["identity"] == result["identity"]), None)
        if group is None:
            groups.append(result)
            continue
        for name, step in result["steps"].items():
            if _weight(step) >= _weight(group["steps"].get(name, {})):
                group["steps"][name] = step
        group["visit"] += f", {result['visit']}"
    return groups


def _weight(step: Data) -> int:
    status = step.get("status")
    return 2 if status == PASSED else int(status == FAILED or status == STOPPED and "report" in step)


def text(result: Data, steps: dict[str, Data]) -> str:
    """Returns the tables, what failed, what is open, and the verdict in the last line."""
    bench = steps.get(measure.BENCH, {}).get("bench")
    tables = [targets.speeds(steps), targets.kernels(bench)]
    peers = steps.get(measure.PEERS, {})
    tables.append(targets.peers(peers.get("bench"), peers.get("samples", []), peers.get("model", [])))
    if result["rehearsal"]:
        for row in (row for rows in tables for row in rows if row.median is not None):
            row.verdict = "rehearsed"
    parts = ["REHEARSAL: tiny models on the CPU, the numbers mean nothing"] if result["rehearsal"] else []
    parts += [targets.table(rows) for rows in tables if any(row.median is not None for row in rows)]
    parts += [f"note of the peers: {note[:200]}" for note in peers.get("notes", [])]
    wanted = [*smoke.SECONDS, smoke.NAME, *measure.steps()]
    failed = [name for name, step in steps.items() if step["status"] == FAILED]
    # A step that was killed is still marked as running.
    remaining = [name for name in wanted if steps.get(name, {}).get("status") in (None, STOPPED, NOT_RUN, RUNNING)]
    lines = [f"FAILED {name}: {' '.join(steps[name]['why'].split())[:600]}" for name in failed]
    reasons: dict[str, list[str]] = {}
    for name in remaining:
        reasons.setdefault(steps.get(name, {}).get("why", "not reached"), []).append(name)
    lines += [f"open, {' '.join(why.split())[:200]}: {', '.join(names)}" for why, names in reasons.items()]
    passed = sum(step["status"] == PASSED for step in steps.values())
    verdict = "passed" if steps.get(smoke.NAME, {}).get("status") == PASSED else "NOT PASSED"
    seconds = " ".join(f"{name} {step['seconds']:g}" for name, step in steps.items() if name in smoke.SECONDS)
    parts.append("\n".join([*lines, f"smoke, seconds: {seconds}"]))
    last = f"smoke {verdict}; {passed} steps passed, {len(failed)} failed, {len(remaining)} open"
    return "\n\n".join(parts)[: MAX - len(last)] + f"\n{last}"

