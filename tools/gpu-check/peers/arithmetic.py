"""The cap as the paper writes it, for the arrays of numpy and of torch."""

from typing import Any

# A floor that lies above every projection, and one that lies below.
ACTS, IDLE = 1e6, -1e30
# With a far floor: rows stay finite over thousands of runs.
STRENGTH = 1e-9


def cap(rows: Any, axes: Any, floors: Any, strength: Any = 1.0) -> Any:
    """Caps `rows[n, d]` in place, axis after axis: p = h v, h += strength (max(p, floor) - p) v. Returns them."""
    for axis, floor in zip(axes, floors):
        _add_change(rows, rows @ axis, axis, floor, strength)
    return rows


def cap_by_sums(rows: Any, axes: Any, floors: Any, strength: Any = 1.0) -> Any:
    """Caps rows likewise. A compiler can fuse products and sums, but calls a library for a matrix product."""
    for axis, floor in zip(axes, floors):
        _add_change(rows, (rows * axis).sum(-1), axis, floor, strength)
    return rows


def _add_change(rows: Any, projection: Any, axis: Any, floor: Any, strength: Any) -> None:
    rows += ((projection.clip(min=floor) - projection) * strength)[:, None] * axis
