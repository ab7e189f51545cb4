"""Capped text on the GPU by every route, held to the CPU's and to itself. On the 1B-shaped model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import compare
from .models import Models
from .programs import GGML_GRAPHS_OFF, Programs
from .visit import Data, Failed, Visit

MODEL, CAPPED, TOKENS = "1b", 8, 32
# The tokens of a synthetic model are bytes.
PROMPT = "I have been thinking about the sea again. When I was small we lived near the harbour, and every evening my"


@dataclass(frozen=True)
class Way:
    """One way to run the text: its options, and the ways whose tokens it is compared with."""

    options: tuple[str, ...] = ()
    capped: bool = True
    gpu: bool = True
    graph: bool = False
    fused: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    against: str | None = None


# Tokens of two ways on one GPU differ at near ties only: ggml fuses the operations of a cut graph differently.
WAYS = {
    "cpu": Way(gpu=False),
    "uncapped": Way(capped=False),
    "infinite-bounds": Way(capped=False, against="uncapped"),
    "views": Way(("--route", "views"), against="cpu"),
    "graph": Way(graph=True, against="views"),
    "graphs-off": Way(graph=True, environment=GGML_GRAPHS_OFF, against="graph"),
    "fused-norm": Way(("--fused-norm",), graph=True, fused=True, against="cpu"),
}


class Texts:
    """Runs the ways and keeps their reports and traces for later comparisons."""

    def __init__(self, visit: Visit, programs: Programs, models: Models) -> None:
        self.visit, self.programs, self.models = visit, programs, models
        self.reports: dict[str, Data] = {}
        self.traces: dict[str, compare.Trace] = {}

    def run(self, name: str, step: Data) -> None:
        """Runs one way and checks it. In a rehearsal the CPU with other arithmetic stands in for the GPU."""
        way, log = WAYS[name], f"text-{name}"
        command: list[Any] = [*self.programs.axiscap, "run", "--model", self.models.wait(MODEL), "--raw", "--temp", "0",
                              "--max-tokens", TOKENS, "--prompt", PROMPT, "--ctx", "512", "--json", "--margins",
                              *way.options]
        trace = self.visit.logs / f"{log}.trace.jsonl"
        if way.capped:
            command += ["--caps", self.models.caps(MODEL, CAPPED), "--trace", trace]
        elif way.against:
            command += ["--caps", self.models.caps(MODEL, None, float("-inf"))]
        if way.gpu and self.visit.rehearsal:
            command += ["--flash-attn", "off"]
        environment = (self.programs.gpu if way.gpu else {}) | way.environment
        report = self.visit.run_json(log, command, 60, environment)
        self.reports[name] = report
        step |= {key: report[key] for key in ("text", "tokens", "backend", "engines", "decode_tokens_per_second")}
        if way.capped:
            self._check_rows(name, trace, step)
        if way.against:
            self._compare(name, way.against, step)

    def _check_rows(self, name: str, trace: Path, step: Data) -> None:
        way, report = WAYS[name], self.reports[name]
        rows = self.traces[name] = compare.read_trace(trace)
        wrong, engaged = compare.wrong_rows(rows, report["caps"]), sum(row["engaged"] for row in rows)
        step |= {"rows": len(rows), "engaged": engaged, "wrong": wrong[:3]}
        elsewhere = None
        if not way.gpu:
            elsewhere = compare.on_cpu(report)
        elif not self.visit.rehearsal:
            elsewhere = compare.on_gpu(report, way.graph, way.fused)
        if elsewhere:
            raise Failed(elsewhere)
        if wrong:
            raise Failed(f"{len(wrong)} of {len(rows)} rows contradict themselves or are no numbers: {wrong[0]}")
        if not engaged:
            raise Failed("no cap engaged")
        if statistics := compare.wrong_statistics(rows, report["caps"]):
            raise Failed(f"statistics differ from the trace: {statistics[0]}")

    def _compare(self, name: str, other: str, step: Data) -> None:
        if other not in self.reports:
            raise Failed(f"there is no text {other} to compare with")
        found = step["tokens_against"] = {other: compare.tokens(self.reports[other], self.reports[name])}
        if found[other]["verdict"] not in ("equal", "near tie"):
            raise Failed(f"tokens against {other}: {found[other]}")
        if other in self.traces:
            shared = self.reports[other]["prompt_tokens"] + found[other]["equal"]
            step["projections"] = compare.projections(self.traces[other], self.traces[name], shared)
            if step["projections"]["verdict"] != "close":
                raise Failed(f"projections against {other}: {step['projections']}")
