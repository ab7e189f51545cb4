"""What capping costs on the GPU: `axiscap bench` in every mode, the most telling first.

Every figure is a ratio of speeds measured side by side in one process. Where caps and llama.cpp are captured as one
graph, ggml's own graphs have to be off, for the baseline too; so there targets.py sets the capped speed against the
baselines of the runs with ggml's graphs, which are of other processes.
"""

from . import compare
from .check import NO_TIME
from .generation import GRAPHS_OFF

VIEWS, GRAPH, FUSED, FUSED_GRAPH = "views", "graph", "fused-norm", "fused-norm-graph"
MODES = {
    VIEWS: (["--engine", "views"], {}),
    GRAPH: (["--engine", "device-graph"], GRAPHS_OFF),
    FUSED: (["--engine", "views", "--fused-norm"], {}),
    FUSED_GRAPH: (["--engine", "device-graph", "--fused-norm"], GRAPHS_OFF),
}
PREFILL = {"--generate-tokens": "1", "--pairs": "30"}
BATCH = {"--sequences": "16"}
UNCOUNTED = {"--no-statistics": None}
# Timed after a short measurement that nobody reads.
TIMELINE = {"--timeline": None, "--pairs": "1", "--prompts": "1", "--generate-tokens": "8"}

# In order of value: name, model, capped blocks, mode, options of `axiscap bench` (None: it takes no value).
PLAN = [
    ("8b-8-views", "8b", 8, VIEWS, {}),
    ("8b-8-graph", "8b", 8, GRAPH, {}),
    ("8b-all-graph", "8b", "all", GRAPH, {}),
    ("8b-all-views", "8b", "all", VIEWS, {}),
    ("1b-8-views", "1b", 8, VIEWS, {}),
    ("1b-8-graph", "1b", 8, GRAPH, {}),
    ("8b-8-fused-norm", "8b", 8, FUSED, {}),
    ("8b-8-fused-norm-graph", "8b", 8, FUSED_GRAPH, {}),
    ("8b-all-fused-norm-graph", "8b", "all", FUSED_GRAPH, {}),
    ("8b-8-views-prefill", "8b", 8, VIEWS, PREFILL),
    ("8b-8-views-batch16", "8b", 8, VIEWS, BATCH),
    ("8b-8-graph-batch16", "8b", 8, GRAPH, BATCH),
    ("8b-8-graph-no-statistics", "8b", 8, GRAPH, UNCOUNTED),
    ("8b-8-views-no-statistics", "8b", 8, VIEWS, UNCOUNTED),
    ("8b-8-cb-eval", "8b", 8, VIEWS, {"--compare": "idle,cb-eval", "--pairs": "8"}),
    ("8b-8-stock-chain", "8b", 8, VIEWS, {"--compare": "stock-chain", "--pairs": "8"}),
    ("8b-8-views-timeline", "8b", 8, VIEWS, TIMELINE),
    ("8b-8-graph-timeline", "8b", 8, GRAPH, TIMELINE),
    ("8b-all-cb-eval", "8b", "all", VIEWS, {"--compare": "cb-eval", "--pairs": "8"}),
    ("8b-all-fused-norm", "8b", "all", FUSED, {}),
    ("1b-all-views", "1b", "all", VIEWS, {}),
    ("1b-all-graph", "1b", "all", GRAPH, {}),
    ("8b-all-views-batch16", "8b", "all", VIEWS, BATCH),
    ("real-8-views", "real", 8, VIEWS, {}),
    ("real-8-graph", "real", 8, GRAPH, {}),
]


def blocks(capped, shape):
    """The first and last block: all of them, or 8 from two thirds of the way on."""
    if capped == "all":
        return 0, shape["blocks"] - 1
    count = min(capped, shape["blocks"])
    first = min(shape["blocks"] * 5 // 8, shape["blocks"] - count)
    return first, first + count - 1


def arguments(rehearse, further):
    """The options of `axiscap bench`, each once: the usual ones, those of the step, and in a rehearsal short ones."""
    options = {"--pairs": "15", "--prompt-tokens": "512", "--generate-tokens": "64", **further}
    if rehearse:
        options |= {"--pairs": "2", "--prompt-tokens": "32", "--generate-tokens": "4"}
    return [part for pair in options.items() for part in pair if part is not None]


def plan():
    """The names of this part's steps."""
    return [name for name, *_ in PLAN]


def baselines(step):
    """The steps whose uncapped context is what a step with one graph per token is to be compared with: the same model
    and batch, with ggml's own graphs. How many blocks are capped beside it makes no difference to it."""
    _, model, _, _, further = next(entry for entry in PLAN if entry[0] == step)
    return [name for name, of, _, mode, options in PLAN if of == model and mode in (VIEWS, FUSED)
            and options.get("--sequences") == further.get("--sequences") and "--generate-tokens" not in options]


def bench(check, pieces, known, has_fused_norm):
    """Runs the plan as far as there is time. `known` gives a model's file and shape."""
    for name, model, capped, mode, further in PLAN:
        if not check.wanted(name) or check.kept(name):
            continue
        if mode in (FUSED, FUSED_GRAPH) and not has_fused_norm:
            check.note(name, "not run: this axiscap has no --fused-norm")
            continue
        if check.left() < 15:
            check.note(name, NO_TIME)
            continue
        with check.guarded(name):
            measure(check, pieces, name, model, known, capped, mode, further)


def measure(check, pieces, name, model, known, capped, mode, further):
    """One step of the plan."""
    file, shape = known(model)
    caps = pieces.bench_caps(shape["blocks"], shape["width"], *blocks(capped, shape))
    extra, environment = MODES[mode]
    command = [pieces.axiscap, "bench", "--model", file, "--caps", caps, "--json", *extra,
               *arguments(check.options.rehearse, further)]
    step, report = check.json(name, command, {**pieces.gpu, **environment}, most=90)
    if report is None:
        check.judge(name, False, f"axiscap bench: {step['status']}")
        return
    step["report"] = report
    elsewhere = None
    if not check.options.rehearse:
        elsewhere = compare.on_gpu(report, mode in (GRAPH, FUSED_GRAPH), mode in (FUSED, FUSED_GRAPH))
        if further is TIMELINE:
            elsewhere = elsewhere or compare.timed(report, mode == GRAPH)
    check.judge(name, elsewhere is None, elsewhere)
