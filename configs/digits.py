"""Handwritten digits (scikit-learn, 1,797 real 8x8 images): MRL, MRL-E and FF-m on a CPU.

One run:    python -m mrl_jax.train --config configs/digits.py:mrl --workdir runs/digits_mrl
All runs:   python -m mrl_jax.sweep --config configs/digits.py --root runs/quickstart
Arguments:  mrl | mrl_e | fixed=M | slim=M, M one of the dims below
Hardware:   2 CPU cores, about ten seconds a run
"""

from mrl_jax.config import default_config, set_method

DIMS = (2, 4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)


def get_config(arg="mrl"):
    config = default_config()
    config.name = f"digits:{arg}"
    config.data.source = "digits"
    config.data.random_shift = 1
    # A network this small compiles in seconds; most of a run's time here is compiling.
    config.model.name = "mlp"
    config.model.width = 128
    config.model.depth = 2
    config.model.embedding_dim = DIMS[-1]
    config.nesting.dims = DIMS
    set_method(config, arg)
    config.steps = 600
    config.batch_size = 128
    config.checkpoint.every = 300
    config.optimizer.learning_rate = 1e-2
    # Every run is measured at the same prefixes, as far as it is trained.
    config.eval.dims = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    return config


def sweep():
    """Every method of the paper's Table 1 that can be trained here, three seeds each."""
    for seed in SEEDS:
        for arg in ("mrl", "mrl_e", *(f"fixed={m}" for m in DIMS)):
            yield arg, {"seed": seed}
