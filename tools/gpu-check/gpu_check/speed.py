"""What capping costs: `axiscap bench` in every mode.

A process measures pairs: a capped context and one that the hook never touched, in lock-step. The processes of a round,
one per mode, take turns pair by pair. With one graph per token ggml's own graphs are off, which its baseline suffers
from too. There the capped speed of a pair is compared with the stock baseline that the process in views measured in its
pair of the same turn.
"""

import math
import time
from dataclasses import dataclass, field

from . import compare, turns
from .models import Models
from .programs import GGML_GRAPHS_OFF, Programs
from .visit import PASSED, STOPPED, Data, Failed, OutOfTime, Visit


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
    """One measurement: a model, capped blocks (`None`: all), modes, rounds, their pairs, options of `axiscap bench`."""

    model: str
    blocks: int | None
    modes: tuple[str, ...]
    rounds: int
    pairs: int
    options: dict[str, str] = field(default_factory=dict)

    def parts(self, name: str, rehearsal: bool = False) -> list[list[str]]:
        """Returns the step names of every round, one per mode."""
        rounds = 1 if rehearsal else self.rounds
        return [[f"{name}/{mode}/{number}" for mode in self.modes] for number in range(1, rounds + 1)]


PREFILL = {"--generate-tokens": "1", "--prompts": "5"}
THREE = (VIEWS, GRAPH, FUSED)
CASES = {
    "8b-8": Case("8b", 8, THREE, 2, 12),
    "8b-all": Case("8b", None, THREE, 2, 12),
    "8b-8-prefill": Case("8b", 8, (VIEWS,), 1, 15, PREFILL),
    "8b-8-batch16": Case("8b", 8, THREE, 1, 12, {"--sequences": "16"}),
    "1b-8": Case("1b", 8, THREE, 2, 16),
    "8b-8-cb-eval": Case("8b", 8, (VIEWS,), 1, 6, {"--compare": "idle,cb-eval"}),
    "8b-8-ggml-ops": Case("8b", 8, (VIEWS,), 1, 6, {"--compare": "stock-chain"}),
    "8b-8-statistics": Case("8b", 8, (VIEWS, UNCOUNTED), 2, 8),
}


def arguments(case: Case, rehearsal: bool) -> list[str]:
    """Returns the options of `axiscap bench`, each once."""
    options = {"--pairs": str(case.pairs), "--prompt-tokens": "512", "--prompts": "1", "--generate-tokens": "64",
               **case.options}
    if rehearsal:
        options |= {"--pairs": "2", "--prompt-tokens": "16", "--generate-tokens": "2"}
    return [part for pair in options.items() for part in pair]


def measure(visit: Visit, programs: Programs, models: Models, name: str, seconds: float) -> None:
    """Runs the rounds of a case that are not known yet.

    `seconds` is what the whole case is expected to take. Past twice of that, what is left of it waits for a later visit.
    """
    case = CASES[name]
    rounds = case.parts(name, visit.rehearsal)
    end = math.inf if visit.rehearsal else time.monotonic() + 2 * seconds
    for parts in rounds:
        if time.monotonic() > end:
            return

        def work(steps: list[Data], parts: list[str] = parts) -> None:
            _measure_round(visit, programs, models, case, dict(zip(parts, steps, strict=True)), end)

        visit.together(parts, work, 0 if visit.rehearsal else seconds / len(rounds))


def _measure_round(visit: Visit, programs: Programs, models: Models, case: Case, steps: dict[str, Data],
                   end: float) -> None:
    """Fills in the reports. If the time ends before the last pair, they are on the pairs that are complete."""
    modes = dict(zip(steps, (MODES[mode] for mode in case.modes), strict=True))
    command = [*programs.axiscap, "bench", "--turns", "--json", "--model", models.wait(case.model), "--caps",
               models.caps(case.model, case.blocks), *arguments(case, visit.rehearsal)]
    commands = {part: ([*command, *mode.options], programs.gpu | (GGML_GRAPHS_OFF if mode.graph else {}))
                for part, mode in modes.items()}
    reports, complete = turns.run(visit, commands, end - time.monotonic())
    for part, report in reports.items():
        # Without a complete pair there is nothing to report.
        if "decode" not in report:
            continue
        steps[part]["report"] = report
        if not visit.rehearsal and (elsewhere := compare.on_gpu(report, modes[part].graph, modes[part].fused)):
            raise Failed(f"{part}: {elsewhere}")
    if not complete:
        raise OutOfTime("the time ended before all pairs were measured")


def ratios(steps: dict[str, Data], name: str, mode: str, phase: str = "decode", against: str = "") -> list[float]:
    """Returns capped over uncapped speeds: of pairs, and with one graph per token of what `unit` names.

    `against` names another measurement of the same report, e.g. `cb_eval`.
    """
    found = []
    for number, step in _measured(steps, name, mode).items():
        measured = step["report"].get(against) if against else step["report"]
        if measured is None:
            continue
        if not MODES[mode].graph:
            found += [compare.number(ratio) for ratio in measured[phase]["ratios"]]
            continue
        stock = _measured(steps, name, VIEWS).get(number)
        if stock and _beside(stock, step):
            pairs = zip(_speeds(measured[phase], "capped_tps"), _speeds(stock["report"][phase], "uncapped_tps"))
            found += [capped / uncapped if uncapped > 0 else math.nan for capped, uncapped in pairs]
    return found


def statistics_cost(steps: dict[str, Data], name: str) -> list[float]:
    """Returns what statistics cost, for each of what `unit` names: the ratio without them minus the ratio with them."""
    costs = []
    counted = _measured(steps, name, VIEWS)
    for number, step in _measured(steps, name, UNCOUNTED).items():
        if number in counted and _beside(counted[number], step):
            pairs = zip(*(_ratios(one["report"]["decode"]) for one in (step, counted[number])))
            costs += [without - with_them for without, with_them in pairs]
    return costs


def unit(steps: dict[str, Data], name: str) -> str:
    """Returns what values of two processes are of: pairs, or in older results, without speeds of pairs, rounds."""
    older = any("capped_tps_pairs" not in step["report"]["decode"] for step in _measured(steps, name, VIEWS).values())
    return "rounds" if older else "pairs"


def _measured(steps: dict[str, Data], name: str, mode: str) -> dict[str, Data]:
    """Returns the steps of a case and mode that have a report, by the number of their round."""
    prefix = f"{name}/{mode}/"
    return {key.removeprefix(prefix): step for key, step in steps.items()
            if key.startswith(prefix) and step["status"] in (PASSED, STOPPED) and "report" in step}


def _beside(one: Data, other: Data) -> bool:
    """Returns whether two steps were measured in the same visit, on the same card."""
    return (one["visit"], one["card"]) == (other["visit"], other["card"])


def _speeds(part: Data, what: str) -> list[float]:
    return [compare.number(speed) for speed in part.get(f"{what}_pairs", [part[what]])]


def _ratios(part: Data) -> list[float]:
    return [compare.number(ratio) for ratio in (part["ratios"] if "capped_tps_pairs" in part else [part["ratio_median"]])]
