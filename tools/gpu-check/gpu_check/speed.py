"""What capping costs: `axiscap bench` in every mode.

A process measures pairs: a capped context and one that the hook never touched, in lock-step.
"""

from dataclasses import dataclass, field

from . import compare
from .models import Models
from .programs import Programs
from .visit import PASSED, Data, Failed, Visit


@dataclass(frozen=True)
class Mode:
    """A way to cap: its options, and what its report must show."""

    options: tuple[str, ...] = ()
    graph: bool = True
    fused: bool = False


VIEWS, GRAPH, FUSED, UNCOUNTED = "views", "graph", "fused-norm", "uncounted"
MODES = {
    # What a user gets who asks for nothing.
    GRAPH: Mode(),
    FUSED: Mode(("--fused-norm",), fused=True),
    VIEWS: Mode(("--route", "views"), graph=False),
    UNCOUNTED: Mode(("--no-statistics",)),
}


@dataclass(frozen=True)
class Case:
    """One measurement: a model, capped blocks (`None`: all), modes, pairs, options of `axiscap bench`."""

    model: str
    blocks: int | None
    modes: tuple[str, ...]
    pairs: int
    options: dict[str, str] = field(default_factory=dict)

    def parts(self, name: str) -> dict[str, str]:
        """Returns the modes by the names of their steps."""
        return {f"{name}/{mode}": mode for mode in self.modes}


PREFILL = {"--generate-tokens": "1", "--prompts": "5"}
THREE = (GRAPH, FUSED, VIEWS)
CASES = {
    "8b-8": Case("8b", 8, THREE, 20),
    "8b-all": Case("8b", None, THREE, 12),
    "8b-8-prefill": Case("8b", 8, (GRAPH,), 15, PREFILL),
    "8b-8-batch16": Case("8b", 8, THREE, 8, {"--sequences": "16"}),
    "1b-8": Case("1b", 8, THREE, 16),
    "8b-8-cb-eval": Case("8b", 8, (VIEWS,), 6, {"--compare": "idle,cb-eval"}),
    "8b-8-ggml-ops": Case("8b", 8, (VIEWS,), 6, {"--compare": "stock-chain"}),
    "8b-8-statistics": Case("8b", 8, (GRAPH, UNCOUNTED), 12),
}


def arguments(case: Case, rehearsal: bool) -> list[str]:
    """Returns the options of `axiscap bench`, each once."""
    options = {"--pairs": str(case.pairs), "--prompt-tokens": "512", "--prompts": "1", "--generate-tokens": "64",
               **case.options}
    if rehearsal:
        options |= {"--pairs": "2", "--prompt-tokens": "16", "--generate-tokens": "2"}
    return [part for pair in options.items() for part in pair]


def measure(visit: Visit, programs: Programs, models: Models, name: str, seconds: float) -> None:
    """Measures a case in its modes. `seconds` is what all of them are expected to take."""
    case = CASES[name]
    for part, mode in case.parts(name).items():

        def work(step: Data, part: str = part, mode: Mode = MODES[mode]) -> None:
            command = [*programs.axiscap, "bench", "--json", "--model", models.wait(case.model), "--caps",
                       models.caps(case.model, case.blocks), *arguments(case, visit.rehearsal), *mode.options]
            step["report"] = visit.run_json(part.replace("/", "-"), command, 2 * seconds, programs.gpu)
            # Prompts are too long to be captured.
            graph = mode.graph and "--prompts" not in case.options
            if not visit.rehearsal and (elsewhere := compare.on_gpu(step["report"], graph, mode.fused)):
                raise Failed(elsewhere)

        visit.step(part, work, 0 if visit.rehearsal else seconds / len(case.modes))


def ratios(steps: dict[str, Data], name: str, mode: str, phase: str = "decode", against: str = "") -> list[float]:
    """Returns capped over uncapped speeds of pairs.

    `against` names another measurement of the same report, e.g. `cb_eval`.
    """
    step = steps.get(f"{name}/{mode}", {})
    if step.get("status") != PASSED:
        return []
    measured = step["report"].get(against) if against else step["report"]
    return [compare.number(ratio) for ratio in measured[phase]["ratios"]] if measured else []


def statistics_cost(steps: dict[str, Data], name: str) -> list[float]:
    """Returns what statistics cost: the ratio without them minus the ratio with them, pair by pair."""
    return [without - counted for without, counted in zip(*(ratios(steps, name, mode) for mode in (UNCOUNTED, GRAPH)))]
