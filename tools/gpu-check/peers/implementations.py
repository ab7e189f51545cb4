"""The peers. Each makes a function that caps rows and returns them."""

from collections.abc import Callable
from typing import Any

import torch

from .arithmetic import ACTS, IDLE, STRENGTH, cap, capped
from .cases import Case

Cap = Callable[[torch.Tensor], torch.Tensor]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def directions(case: Case) -> torch.Tensor:
    """Returns the unit axes of a case, in f32 on the CPU."""
    values = torch.randn(case.caps, case.width, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.normalize(values, dim=1)


def _arguments(case: Case, device: str) -> list[torch.Tensor]:
    """Returns axes, floors and strength. Tensors, since torch.compile compiles again for other numbers."""
    floors = [ACTS if case.engaged else IDLE] * case.caps
    strength = STRENGTH if case.engaged else 1.0
    values = (directions(case), torch.tensor(floors), torch.tensor(strength))
    return [value.to(device, DTYPES[case.dtype]) for value in values]


def eager(case: Case, device: str) -> Cap:
    """PyTorch's operations, one kernel each."""
    arguments = _arguments(case, device)
    return lambda rows: cap(rows, *arguments)


_compiled: dict[tuple[Any, ...], Any] = {}


def compiled(case: Case, device: str) -> Cap:
    """The same through torch.compile, with static shapes, out of place."""
    key = (case.rows, case.width, case.caps, case.dtype)
    if key not in _compiled:
        _compiled.clear()
        torch._dynamo.reset()
        _compiled[key] = torch.compile(capped, dynamic=False, fullgraph=True)
    arguments, function = _arguments(case, device), _compiled[key]
    return lambda rows: function(rows, *arguments)


class Site:
    """A place of a write, as interp-engine describes it."""

    def __init__(self, width: int) -> None:
        self.shape, self.address = (0, width), "resid_post.0"


def interp_engine(case: Case, device: str) -> Cap:
    """interp-engine's fused Triton kernel (its static write program), one launch for all caps."""
    from interp_engine.vllm_capture.static_program import StaticWriteProgram

    site = Site(case.width)
    program = StaticWriteProgram([site], torch.device(device), case.rows, slots=1, max_ops=case.caps)
    # It has no strength. Its kernel writes every row in any case, so its time does not depend on the floor.
    floor = 1.0 if case.engaged else IDLE
    specs = [{"op": "projection_cap", "vector": axis.tolist(), "min": floor, "max": None} for axis in directions(case)]
    program.set_global({site: specs}, None)
    program.fill_rows(["all"], [case.rows], None, lambda name: name)

    def launch(rows: torch.Tensor) -> torch.Tensor:
        program.launch(site, rows, None, case.rows)
        return rows

    return launch


PEERS: dict[str, Callable[[Case, str], Cap]] = {
    "eager PyTorch": eager, "torch.compile": compiled, "interp-engine": interp_engine}


def unavailable(device: str) -> dict[str, str]:
    """Returns the peers that cannot run here, with the reason."""
    try:
        import interp_engine.vllm_capture.static_program  # noqa: F401
    except ImportError as error:
        return {"interp-engine": f"not carried along as a wheel, or not importable: {error}"}
    return {"interp-engine": "its kernel needs a GPU"} if device == "cpu" else {}


def deviation(case: Case, peer: str, made: Cap, rows: torch.Tensor) -> float:
    """Returns how far one run of a peer is from the arithmetic in f64, relative to the size of the rows."""
    expected = rows.double().cpu()
    floor, strength = (ACTS, STRENGTH) if case.engaged else (IDLE, 1.0)
    if peer == "interp-engine" and case.engaged:
        floor, strength = 1.0, 1.0
    cap(expected, directions(case).double(), [floor] * case.caps, strength)
    return float((made(rows).double().cpu() - expected).norm() / expected.norm())
