"""Capped text on the GPU against capped text on the CPU."""

from . import compare
from .pieces import Missing

PROMPT = ("I have been thinking about the sea again. When I was small we lived near the harbour, and every evening my "
          "father came home smelling of salt and diesel. He did not say much. Last week I went back for the first "
          "time in twenty years, and I stood on the quay and could not decide whether I was sad. Then")
GRAPHS_OFF = {"GGML_CUDA_DISABLE_GRAPHS": "1"}


class Generation:
    """Runs one model with one set of caps in several ways."""

    def __init__(self, check, pieces, name, model, caps, tokens):
        self.check, self.pieces, self.name, self.model, self.caps, self.tokens = check, pieces, name, model, caps, tokens
        self.rehearse = check.options.rehearse
        self.runs = {}
        # A synthetic model's tokens are bytes, and the CPU has to read the prompt, too.
        self.prompt = check.options.work / f"prompt-{name}.txt"
        self.prompt.write_text(PROMPT if name == "real" else PROMPT[:120])

    def run(self, way, gpu, arguments=(), environment=None, most=120):
        """One way of running it. In a rehearsal a CPU run with other arithmetic stands in for the GPU."""
        name = f"text-{self.name}-{way}"
        command = [self.pieces.axiscap, "run", "--model", self.model, "--raw", "--temp", "0", "--max-tokens", self.tokens,
                   "--prompt-file", self.prompt, "--ctx", "1024", "--json", "--margins", *arguments]
        if gpu and self.rehearse:
            command += ["--flash-attn", "off"]
        step, report = self.check.json(name, command, {**(self.pieces.gpu if gpu else {}), **(environment or {})}, most)
        if report is None:
            self.check.judge(name, False, f"axiscap run: {step['status']}")
            return None
        step |= {"decode_tokens_per_second": report["decode_tokens_per_second"], "backend": report["backend"],
                 "engines": report["engines"], "tokens": report["tokens"]}
        self.runs[way] = report
        return report

    def capped(self, way, gpu, arguments=(), environment=None, one_graph=False, fused=False):
        """A capped run: its caps ran on the GPU, and every row's `after` follows from its `before`."""
        trace = self.check.options.out / f"text-{self.name}-{way}.trace.jsonl"
        report = self.run(way, gpu, ["--caps", self.caps, "--trace", trace, *arguments], environment)
        if report is None:
            return
        rows = compare.read_trace(trace)
        report["trace"] = rows
        name = f"text-{self.name}-{way}"
        verdict = compare.self_consistent(rows, report["caps"])
        self.check.result["steps"][name]["rows"] = verdict
        elsewhere = compare.on_gpu(report, one_graph, fused) if gpu and not self.rehearse else None
        why = elsewhere or (f"{verdict['wrong']} rows contradict themselves" if verdict["wrong"] else
                            "no cap engaged" if not verdict["engaged"] else None)
        self.check.judge(name, why is None, why)

    def against(self, way, reference, exact=False):
        """Compares two runs: their tokens, and where both have traces the projections of what they share."""
        mine, theirs = self.runs.get(reference), self.runs.get(way)
        if not mine or not theirs:
            return
        name = f"text-{self.name}-{way}-against-{reference}"
        found = {"tokens": compare.tokens(mine, theirs)}
        verdict = found["tokens"]["verdict"]
        why = f"tokens: {verdict}" if verdict not in ("equal", *([] if exact else ["near tie"])) else None
        if "trace" in mine and "trace" in theirs:
            shared = mine["prompt_tokens"] + found["tokens"]["equal"]
            found["projections"] = compare.projections(mine["trace"], theirs["trace"], shared)
            if found["projections"]["verdict"] != "close":
                why = why or f"projections: {found['projections']['verdict']}"
        self.check.result["steps"][name] = found
        self.check.judge(name, why is None, why)


def verify(check, pieces, name, model, caps, tokens, fused):
    """All ways of one model. Tokens of two ways on the same GPU differ at near ties only: a cut graph is fused
    otherwise. Replaying a graph changes nothing at all."""
    if not check.wanted(f"text-{name}"):
        return
    runs = Generation(check, pieces, name, model, caps, tokens)
    runs.capped("cpu", gpu=False)
    runs.capped("gpu-views", gpu=True, arguments=["--engine", "views"])
    runs.against("gpu-views", "cpu")
    shape = next((report["model"] for report in runs.runs.values()), None)
    if shape is None:
        return
    runs.capped("gpu-graph", gpu=True, arguments=["--engine", "device-graph"], environment=GRAPHS_OFF, one_graph=True)
    runs.against("gpu-graph", "gpu-views")
    runs.run("gpu-uncapped", gpu=True)
    try:
        free = pieces.bench_caps(shape["blocks"], shape["width"], 0, shape["blocks"] - 1, "-inf")
        runs.run("gpu-unbounded", gpu=True, arguments=["--caps", free])
        runs.against("gpu-unbounded", "gpu-uncapped")
    except Missing as missing:
        check.judge(f"text-{name}-gpu-unbounded", False, str(missing))
    if fused:
        runs.capped("gpu-fused-norm", gpu=True, arguments=["--fused-norm"], fused=True)
        runs.against("gpu-fused-norm", "cpu")
