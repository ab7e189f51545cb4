"""The cases that every peer is timed in, named like the samples of the kernels' benchmark (benches/gpu)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Rows of one width and type, capped in place by some caps that act on all rows or on none."""

    rows: int
    width: int
    caps: int
    engaged: bool
    dtype: str
    # One node of a captured graph in place of one launch.
    node: bool = False

    @property
    def name(self) -> str:
        """Returns the name of our sample, e.g. `node: 5 caps bf16, none acts`."""
        caps = "cap" if self.caps == 1 else f"{self.caps} caps"
        dtype = "" if self.dtype == "f32" else f" {self.dtype}"
        acts = ("all act" if self.engaged else "none acts")
        return f"{'node: ' if self.node else ''}{caps}{dtype}, {acts}"

    @property
    def shape(self) -> str:
        """Returns the shape of our sample."""
        return f"{self.rows} x {self.width}"


def cases(tiny: bool) -> Iterator[Case]:
    """Yields the cases, the most telling first."""
    rows, widths = ((1, 3), (8,)) if tiny else ((8192, 1, 512, 16), (4096, 8192))
    for dtype in ("f32", "bf16"):
        for caps in (1, 5):
            for count in rows:
                for width in widths:
                    for engaged in (False, True):
                        yield from [Case(count, width, caps, engaged, dtype, node=True)] if count == 1 else []
                        yield Case(count, width, caps, engaged, dtype)
