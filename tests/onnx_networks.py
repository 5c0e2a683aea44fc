"""ONNX of small image networks, checked by the onnx package and by ONNX Runtime.

python -m tests.onnx_networks FOLDER
"""

import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import NestedHead, Nesting, models
from mrl_jax.config import default_config
from mrl_jax.errors import UsageError
from mrl_jax.export import as_onnx, check_numbers, graph_of
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT
from mrl_jax.tasks.classification.task import Classification

NETWORKS = {
    "cnn": (models.build("cnn", embedding_dim=6, width=4), 16),
    "resnet": (ResNet((1, 1, 1, 1), False, width=4, blurpool=True, embedding_dim=6), 32),
    "bottleneck": (ResNet((1, 1), True, width=4, stem="small", dtype=jnp.bfloat16), 16),
    "vit": (ViT(8, 24, 2, 3, dtype=jnp.bfloat16), 16),
    "vit with a class token": (ViT(8, 24, 2, 3, "cls"), 16),
}


def check(path, name, head):
    """Writes one network and compares all that ONNX Runtime makes of other images."""
    import onnx
    import onnxruntime

    backbone, size = NETWORKS[name]
    task = Classification(backbone, head, (size, size, 3))
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    # Biases and means that are not zero, as after training.
    params, model_state = jax.tree.map(lambda x: x + 0.02, (params, model_state))
    config = default_config()
    setup = types.SimpleNamespace(
        program=types.SimpleNamespace(task=task),
        facts={"classes": ["ä", "b"]},
        config=config,
    )
    state = {"params": params, "model_state": model_state}
    about = {"run": name, "file": path.name, "classes": ["ä", "b"]}
    about["inputs"] = {"image": {"shape": ["b", *task.image_shape], "dtype": "uint8"}}
    path.write_bytes(as_onnx(setup, state, about))
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["ä", "b"]
    graph = graph_of(setup, state, exact=True)
    image = np.random.default_rng(1).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    ours = jax.jit(graph.compute)(image)
    assert list(ours) == ["embedding", "logits_2", "logits_6"]
    for output, found in zip(ours, session.run(None, {"image": image}), strict=True):
        np.testing.assert_allclose(found, ours[output], atol=1e-4 * abs(ours[output]).max())
    other = graph._replace(compute=lambda x: {k: v + 1 for k, v in graph.compute(x).items()})
    with pytest.raises(UsageError, match="as ONNX, embedding of this network is off by"):
        check_numbers(path.read_bytes(), other)


if __name__ == "__main__":
    for index, name in enumerate(NETWORKS):
        kind, normalize = (("separate", "none"), ("shared", "prefix"))[index % 2]
        head = NestedHead(Nesting((2, 6)), 5, kind, normalize)
        check(pathlib.Path(sys.argv[1], f"{index}.onnx"), name, head)
