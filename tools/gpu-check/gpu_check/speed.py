"""What capping costs: `axiscap bench` in every mode, in rounds.

A process measures pairs: a capped context and one that the hook never touched, in lock-step. With one graph per token
ggml's own graphs are off, which its baseline suffers from too. There the capped speed of a round is compared with the
stock baseline of the same round, which the process in views beside it measures.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from . import compare
from .models import Models
from .programs import GGML_GRAPHS_OFF, Programs
from .visit import PASSED, Data, Failed, Visit


@dataclass(frozen=True)
class Mode:
    """A way to cap: its options, and whether its own baseline is stock llama.cpp."""

    options: tuple[str, ...]
    graph: bool = False
    fused: bool = False


VIEWS, GRAPH, FUSED, UNCOUNTED = "views", "graph", "fused-norm", "uncounted"
MODES = {
    VIEWS: Mode(("--route", "views")),
    GRAPH: Mode(("--route", "one-graph"), graph=True),
    FUSED: Mode(("--route", "one-graph", "--fused-norm"), graph=True, fused=True),
    UNCOUNTED: Mode(("--route", "views", "--no-statistics")),
}


@dataclass(frozen=True)
class Case:
    """One measurement: a model, capped blocks (`None`: all), modes that take turns, and options of `axiscap bench`."""

    model: str
    blocks: int | None
    modes: tuple[str, ...]
    rounds: int
    pairs: int
    options: dict[str, str] = field(default_factory=dict)

    def parts(self, name: str, rehearsal: bool = False) -> list[tuple[str, str]]:
        """Returns the step names and modes in the order in which they run."""
        rounds = 1 if rehearsal else self.rounds
        return [(f"{name}/{mode}/{turn}", mode) for turn in range(1, rounds + 1) for mode in self.modes]


PREFILL = {"--generate-tokens": "1", "--prompts": "5"}
THREE = (VIEWS, GRAPH, FUSED)
CASES = {
    "8b-8": Case("8b", 8, THREE, 6, 3),
    "8b-all": Case("8b", None, THREE, 6, 3),
    "8b-8-prefill": Case("8b", 8, (VIEWS,), 1, 15, PREFILL),
    "8b-8-batch16": Case("8b", 8, (VIEWS,), 1, 10, {"--sequences": "16"}),
    "1b-8": Case("1b", 8, THREE, 6, 3),
    "8b-8-cb-eval": Case("8b", 8, (VIEWS,), 1, 6, {"--compare": "idle,cb-eval"}),
    "8b-8-ggml-ops": Case("8b", 8, (VIEWS,), 1, 6, {"--compare": "stock-chain"}),
    "8b-8-statistics": Case("8b", 8, (VIEWS, UNCOUNTED), 6, 2),
}


def arguments(case: Case, rehearsal: bool) -> list[str]:
    """Returns the options of `axiscap bench`, each once."""
    options = {"--pairs": str(case.pairs), "--prompt-tokens": "512", "--prompts": "1", "--generate-tokens": "64",
               **case.options}
    if rehearsal:
        options |= {"--pairs": "1", "--prompt-tokens": "16", "--generate-tokens": "2"}
    return [part for pair in options.items() for part in pair]


def measure(visit: Visit, programs: Programs, models: Models, name: str, seconds: float) -> None:
    """Runs the parts of a case that are not known yet.

    `seconds` is what the whole case is expected to take. Past twice of that, its further rounds wait for a later visit.
    """
    case = CASES[name]
    parts = case.parts(name, visit.rehearsal)
    begun = time.monotonic()
    for part, mode in parts:
        if time.monotonic() - begun > 2 * seconds:
            return

        def work(step: Data, part: str = part, mode: str = mode) -> None:
            _measure_part(visit, programs, models, case, part, mode, step)

        visit.step(part, work, 0 if visit.rehearsal else seconds / len(parts))


def _measure_part(visit: Visit, programs: Programs, models: Models, case: Case, part: str, mode: str,
                  step: Data) -> None:
    how = MODES[mode]
    command: list[Any] = [*programs.axiscap, "bench", "--json", "--model", models.wait(case.model), "--caps",
                          models.caps(case.model, case.blocks), *how.options, *arguments(case, visit.rehearsal)]
    environment = programs.gpu | (GGML_GRAPHS_OFF if how.graph else {})
    report = step["report"] = visit.run_json(part.replace("/", "-"), command, 120, environment)
    if not visit.rehearsal and (elsewhere := compare.on_gpu(report, how.graph, how.fused)):
        raise Failed(elsewhere)


def ratios(steps: dict[str, Data], name: str, mode: str, phase: str = "decode", against: str = "") -> list[float]:
    """Returns capped over uncapped speeds: of pairs, and with one graph per token of rounds.

    `against` names another measurement of the same report, e.g. `cb_eval`.
    """
    found = []
    for turn in range(1, CASES[name].rounds + 1):
        step = steps.get(f"{name}/{mode}/{turn}")
        if not step or step["status"] != PASSED:
            continue
        measured = step["report"].get(against) if against else step["report"]
        if measured is None:
            continue
        part = measured[phase]
        if not MODES[mode].graph:
            found += [compare.number(ratio) for ratio in part["ratios"]]
            continue
        stock = steps.get(f"{name}/{VIEWS}/{turn}")
        if stock and stock["status"] == PASSED and (stock["visit"], stock["card"]) == (step["visit"], step["card"]):
            uncapped = compare.number(stock["report"][phase]["uncapped_tps"])
            found.append(compare.number(part["capped_tps"]) / uncapped if uncapped > 0 else float("nan"))
    return found


def statistics_cost(steps: dict[str, Data], name: str) -> list[float]:
    """Returns per round what statistics cost: the ratio without them minus the ratio with them."""
    costs = []
    for turn in range(1, CASES[name].rounds + 1):
        pair = [steps.get(f"{name}/{mode}/{turn}", {}) for mode in (UNCOUNTED, VIEWS)]
        if all(step.get("status") == PASSED for step in pair) and pair[0]["visit"] == pair[1]["visit"]:
            without, counted = (compare.number(step["report"]["decode"]["ratio_median"]) for step in pair)
            costs.append(without - counted)
    return costs
