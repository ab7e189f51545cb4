"""Capped text on the GPU against capped text on the CPU."""

from . import compare
from .check import not_run

PROMPT = ("I have been thinking about the sea again. When I was small we lived near the harbour, and every evening my "
          "father came home smelling of salt and diesel. He did not say much. Last week I went back for the first "
          "time in twenty years, and I stood on the quay and could not decide whether I was sad. Then")
GRAPHS_OFF = {"GGML_CUDA_DISABLE_GRAPHS": "1"}


# Ways to run a text: whether on the GPU, whether capped, options, environment, and the way it is compared with. Tokens
# of two ways on the same GPU differ at near ties only: a cut graph is fused otherwise. Replaying changes nothing at all.
WAYS = {
    "cpu": (False, True, [], {}, None),
    "gpu-views": (True, True, ["--engine", "views"], {}, "cpu"),
    "gpu-graph": (True, True, ["--engine", "device-graph"], GRAPHS_OFF, "gpu-views"),
    "gpu-uncapped": (True, False, [], {}, None),
    "gpu-unbounded": (True, False, [], {}, "gpu-uncapped"),
    "gpu-fused-norm": (True, True, ["--fused-norm"], {}, "cpu"),
}


def plan(model):
    """The names of a model's runs."""
    return [f"text-{model}-{way}" for way in WAYS]


class Generation:
    """Runs one model with one set of caps in several ways."""

    def __init__(self, check, pieces, name, model, caps, tokens):
        self.check, self.pieces, self.name, self.model, self.caps, self.tokens = check, pieces, name, model, caps, tokens
        self.rehearse = check.options.rehearse
        # A synthetic model's tokens are bytes, and the CPU has to read the prompt, too.
        self.prompt = check.options.work / f"prompt-{name}.txt"
        self.prompt.write_text(PROMPT if name == "real" else PROMPT[:120])

    def run(self, way, arguments=()):
        """One way of running it. In a rehearsal a CPU run with other arithmetic stands in for the GPU. Its report."""
        name = f"text-{self.name}-{way}"
        gpu, _, options, environment, _ = WAYS[way]
        command = [self.pieces.axiscap, "run", "--model", self.model, "--raw", "--temp", "0", "--max-tokens", self.tokens,
                   "--prompt-file", self.prompt, "--ctx", "1024", "--json", "--margins", *options, *arguments]
        if gpu and self.rehearse:
            command += ["--flash-attn", "off"]
        step, report = self.check.json(name, command, {**(self.pieces.gpu if gpu else {}), **environment})
        if report is None:
            self.check.judge(name, False, f"axiscap run: {step['status']}")
            return None
        step["report"] = report
        return report

    def uncapped(self, way, arguments=()):
        """A run of which only the text counts."""
        if self.run(way, arguments) is not None:
            self.check.judge(f"text-{self.name}-{way}", True)

    def capped(self, way):
        """A capped run: its caps ran where they should, and every row's `after` follows from its `before`."""
        name = f"text-{self.name}-{way}"
        trace = self.check.options.out / f"{name}.trace.jsonl"
        report = self.run(way, ["--caps", self.caps, "--trace", trace])
        if report is None:
            return
        rows = compare.read_trace(trace)
        step = self.check.result["steps"][name]
        step["rows"] = verdict = compare.self_consistent(rows, report["caps"])
        # What later comparisons need is kept with the step: they may be made in another visit.
        step["first_block"] = compare.first_block(rows)
        why = None
        if not WAYS[way][0]:
            why = compare.on_cpu(report)
        elif not self.rehearse:
            why = compare.on_gpu(report, way == "gpu-graph", way == "gpu-fused-norm")
        why = why or (f"{verdict['wrong']} rows contradict themselves or are no numbers" if verdict["wrong"] else
                      "no cap engaged" if not verdict["engaged"] else None)
        self.check.judge(name, why is None, why)

    def against(self, way, reference):
        """Compares two runs: their tokens, and where both have traces the projections of what they share."""
        steps = self.check.result["steps"]
        mine, theirs = (steps.get(f"text-{self.name}-{of}", {}) for of in (reference, way))
        if not mine.get("report") or not theirs.get("report"):
            return
        name = f"text-{self.name}-{way}-against-{reference}"
        found = {"tokens": compare.tokens(mine["report"], theirs["report"])}
        verdict = found["tokens"]["verdict"]
        why = f"tokens: {verdict}" if verdict not in ("equal", "near tie") else None
        if "first_block" in mine and "first_block" in theirs:
            shared = mine["report"]["prompt_tokens"] + found["tokens"]["equal"]
            found["projections"] = compare.projections(mine["first_block"], theirs["first_block"], shared)
            if found["projections"]["verdict"] != "close":
                why = why or f"projections: {found['projections']['verdict']}"
        self.check.step(name).update(found)
        self.check.judge(name, why is None, why)


def verify(check, pieces, model, known, caps, tokens, fused):
    """All ways of one model that have no result yet."""
    names = {way: f"text-{model}-{way}" for way in WAYS}
    open_ways = [way for way, name in names.items() if check.wanted(name) and not check.kept(name)]
    if not fused and "gpu-fused-norm" in open_ways:
        open_ways.remove("gpu-fused-norm")
        check.note(f"text-{model}-gpu-fused-norm", "not run: this axiscap has no --fused-norm")
    if not open_ways:
        return
    file, shape = known()
    runs = Generation(check, pieces, model, file, caps(shape), tokens)
    for way in WAYS:
        name = f"text-{model}-{way}"
        _, capped, _, _, reference = WAYS[way]
        if way in open_ways:
            with check.guarded(name):
                if capped:
                    runs.capped(way)
                elif way == "gpu-unbounded":
                    free = pieces.bench_caps(shape["blocks"], shape["width"], 0, shape["blocks"] - 1, "-inf")
                    runs.uncapped(way, ["--caps", free])
                else:
                    runs.uncapped(way)
                if not_run(check.result["steps"][name]["status"]):
                    return
        if reference and {way, reference} & set(open_ways):
            with check.guarded(f"{name}-against-{reference}"):
                runs.against(way, reference)
