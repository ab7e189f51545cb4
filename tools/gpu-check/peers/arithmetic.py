"""The cap as the paper writes it, for the arrays of numpy and of torch."""

from typing import Any

# A floor that lies above every projection, and one that lies below.
ACTS, IDLE = 1e6, -1e30
# With a far floor: rows stay finite over thousands of runs.
STRENGTH = 1e-9


def cap(rows: Any, axes: Any, floors: Any, strength: Any = 1.0) -> Any:
    """Caps `rows[n, d]` in place, axis after axis: p = h v, h += strength (max(p, floor) - p) v. Returns them."""
    for axis, floor in zip(axes, floors):
        projection = rows @ axis
        rows += ((projection.clip(min=floor) - projection) * strength)[:, None] * axis
    return rows


def capped(rows: Any, axes: Any, floors: Any, strength: Any = 1.0) -> Any:
    """Returns capped rows. For torch.compile 2.11, which fails on several caps in place.

    Sums of products take the place of the matrix product: a compiler can fuse them.
    """
    for axis, floor in zip(axes, floors):
        projection = (rows * axis).sum(-1)
        rows = rows + ((projection.clip(min=floor) - projection) * strength)[:, None] * axis
    return rows
