"""The fused kernels are compiled for a real TPU, which needs libtpu but no TPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# In a process of its own: libtpu would stay loaded, and what it prints is noise.
PROGRAM = """
import json, sys, time
import jax
from jax.experimental import topologies
from mrl_jax.kernels.pallas.logsumexp import nested_logsumexp_pallas
from mrl_jax.nesting import Nesting

dims, rows, columns, dtype = json.loads(sys.argv[1])
nesting = Nesting(dims)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
device = jax.sharding.SingleDeviceSharding(topology.devices[0])


def forward(a, w, row, col, bias):
    return nested_logsumexp_pallas(a, w, nesting, row_gb=row, col_gn=col, bias_gn=bias)


def total(*arrays):
    return forward(*arrays).sum()


count = len(dims)
arrays = [
    jax.ShapeDtypeStruct(shape, kind, sharding=device)
    for shape, kind in (
        ((rows, dims[-1]), dtype),
        ((columns, dims[-1]), dtype),
        ((count, rows), "float32"),
        ((count, columns), "float32"),
        ((count, columns), "float32"),
    )
]
for name, function in (
    ("forward", forward),
    ("value_and_grad", jax.value_and_grad(total, range(5))),
):
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arrays).compile()
    report = {
        "seconds": time.perf_counter() - start,
        "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }
    print(name, json.dumps(report))
"""

HALVINGS = tuple(2**k for k in range(3, 12))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install libtpu",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("dims", "rows", "columns"),
    [
        pytest.param(HALVINGS, 1024, 1000, id="classes"),
        pytest.param(HALVINGS, 1024, 21841, id="many classes"),
        pytest.param((64, 128, 256, 512, 768), 1024, 1024, id="contrastive"),
        pytest.param(tuple(range(16, 769, 16)), 1024, 1024, id="48 granularities"),
    ],
)
def test_compiles_for_a_tpu_and_keeps_no_logits(dims, rows, columns, dtype):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Not on a TPU machine: do not ask the cloud's metadata server which one.
        "TPU_SKIP_MDS_QUERY": "1",
        # Tests run side by side, and no TPU is there that only one process may hold.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([dims, rows, columns, dtype])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    print(run.stdout)
    # Operands that are not whole tiles are padded, and gradients cut: copies of operands' size. XLA
    # keeps small arrays in VMEM, which this figure does not count: many classes are what tells.
    copies = 4 * dims[-1] * (rows + columns)
    logits = 4 * len(dims) * rows * columns
    for name, kernels in (("forward", 1), ("value_and_grad", 2)):
        report = json.loads(found[name])
        assert report["kernels"] == kernels
        assert report["temp_bytes"] < min(2 * copies, logits / 2)
