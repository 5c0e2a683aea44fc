"""Hidden states against numbers that transformers 5.23 gave (torch 2.13) for the same weights.

The weights are random numbers from numpy that `text_models.bert_folder` wrote and AutoModel read;
test_text_transformers.py compares more where transformers is installed.
"""

import jax
import numpy as np
import pytest
import text_models

FAMILIES = {
    "bert": {"activation": "gelu_tanh", "epsilon": 1e-5},
    "roberta": {"types": 1, "position_offset": 2},
    "mpnet": {"types": 0, "position_offset": 2, "relative": True},
    "distilbert": {"types": 0},
}
TOKENS = np.random.default_rng(2).integers(5, 90, (2, 24)).astype(np.int32)
LENGTHS = np.array([24, 9], np.int32)
PLACES = ((0, 0, 0), (0, 23, 31), (1, 0, 7), (1, 8, 15))  # row, token, dim

EXPECTED = {
    "bert": (
        (0.40455, -1.97673, -0.69082, -0.48287),
        (1.25705, -1.04891, 0.32855, 0.27999),
        (0.90849, -0.64334, 2.62812, -0.9557),
        (1.23649, -1.79081, 0.37307, -0.7791),
    ),
    "roberta": (
        (0.2189, -1.75479, -0.01675, -0.0916),
        (0.64454, -1.20279, 0.56221, -0.30719),
        (0.45834, -0.90525, 2.57716, -1.04667),
        (1.03071, -2.04174, -0.07912, -0.88629),
    ),
    "mpnet": (
        (-0.82837, 0.27021, 0.26329, -0.49543),
        (-1.59478, -0.7402, -0.82905, 0.03724),
        (-0.19121, -0.68977, 1.40524, -2.60312),
        (0.5534, -1.48745, -0.5822, -1.69958),
    ),
    "distilbert": (
        (-0.1903, -1.14616, -0.01713, -0.91233),
        (-0.37121, 0.0249, 1.38509, 0.56185),
        (0.5195, 0.13698, 2.85957, -1.33452),
        (0.92362, -1.45572, -0.40523, -1.44485),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_are_the_measured_ones(name):
    folder = text_models.bert(seed=3, **FAMILIES[name])
    params = {"params": folder.params["backbone"]}
    states = jax.jit(folder.encoder.backbone.apply)(params, TOKENS, LENGTHS)
    found = [[np.asarray(x_btd)[place] for place in PLACES] for x_btd in states]
    np.testing.assert_allclose(found, EXPECTED[name], atol=2e-5)
