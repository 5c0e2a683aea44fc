"""Program of `test_losses_of_two_processes`: losses and gradients of a batch that two hold in part.

Run by itself, in one process, it computes the same from the whole batch on one device.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mrl_jax import Nesting
from mrl_jax.kernels import (
    nested_info_nce,
    nested_linear_cross_entropy,
    nested_sigmoid_loss,
)
from mrl_jax.runtime import distributed
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

NESTING = Nesting((2, 5, 12), (1.0, 0.5, 2.0))
BATCH, CLASSES = 16, 6


def losses(arrays, labels_b, mask_b, mesh):
    """All three losses of one batch, each with its own gradients."""
    a_bd, b_bd = arrays["a"], arrays["b"]
    common = {"mask": mask_b, "mesh": mesh, "temperature": arrays["temperature"]}
    kernel, bias = arrays["kernel"], arrays["bias"]
    return [
        nested_info_nce(
            a_bd, b_bd, NESTING, symmetric=True, extra_negatives=arrays["extra"], **common
        )[0],
        nested_sigmoid_loss(a_bd, b_bd, NESTING, bias=-2.0, **common)[0],
        nested_linear_cross_entropy(
            a_bd, kernel, bias, labels_b, NESTING, mask_b=mask_b, mesh=mesh
        )[0],
    ]


def check_listens_here_only() -> None:
    """No socket of this process can be reached from another machine."""
    descriptors = [path.resolve().name for path in pathlib.Path("/proc/self/fd").iterdir()]
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            listens = words[3] == "0A" and f"socket:[{words[9]}]" in descriptors
            assert not (listens and set(words[1].partition(":")[0]) == {"0"}), line


def main(path: str) -> None:
    distributed.initialize()
    if jax.process_count() > 1 and sys.platform == "linux":
        check_listens_here_only()
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(BATCH, 12)),
        "b": rng.normal(size=(BATCH, 12)),
        "extra": rng.normal(size=(3, 12)),
        "kernel": rng.normal(size=(12, CLASSES)),
        "bias": rng.normal(size=CLASSES),
        "temperature": np.array([0.1, 0.2, 0.3]),
    }
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    labels_b = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    mask_b = np.arange(BATCH) % 5 != 2
    mesh = None
    if jax.process_count() > 1:
        mesh = make_mesh(data=2, fsdp=2)
        rows = slice(*(BATCH // 2 * (jax.process_index() + end) for end in (0, 1)))

        def own(x):
            return jax.make_array_from_process_local_data(batch_sharding(mesh), x[rows])

        arrays = arrays | {name: own(arrays[name]) for name in ("a", "b")}
        labels_b, mask_b = own(labels_b), own(mask_b)

    @jax.jit
    def run(arrays, labels_b, mask_b):
        return [
            jax.value_and_grad(lambda x, i=i: losses(x, labels_b, mask_b, mesh)[i])(arrays)
            for i in range(3)
        ]

    found = run(arrays, labels_b, mask_b)
    if mesh is not None:
        found = multihost_utils.process_allgather(found, tiled=True)
    leaves = jax.tree.leaves(jax.tree.map(np.asarray, found))
    assert all(jnp.isfinite(x).all() for x in leaves)
    if jax.process_index() == 0:
        np.savez(path, *leaves)


if __name__ == "__main__":
    main(sys.argv[1])
