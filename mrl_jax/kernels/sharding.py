"""What a mesh must have before work is split over it."""

import math
from collections.abc import Sequence

from jax.sharding import Mesh


def check_mesh(
    mesh: Mesh,
    batch_axes: Sequence[str],
    rows: int,
    class_axis: str | None = None,
    classes: int = 0,
) -> None:
    """Refuses axes that the mesh does not have, and rows or classes that do not divide over them.

    Raises:
      ValueError: names the axis or the sizes.
    """
    for axis in (*batch_axes, *([class_axis] if class_axis else [])):
        if axis not in mesh.shape:
            raise ValueError(f"mesh axis must be one of {', '.join(mesh.shape)}; got {axis!r}")
    devices = math.prod(mesh.shape[axis] for axis in batch_axes)
    if rows % devices:
        raise ValueError(f"a batch of {rows} does not divide over {devices} devices of the mesh")
    if class_axis and classes % mesh.shape[class_axis]:
        raise ValueError(
            f"{classes} classes do not divide over mesh {class_axis}={mesh.shape[class_axis]}"
        )
