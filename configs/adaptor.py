"""An adaptor for embeddings whose network nobody can train, so that prefixes serve as the whole.

Bring your own vectors, from an API for example. What an adaptor gives at every dim stands in the
results beside the vectors cut as they are, PCA and a random rotation, which need no training.

One run:    python -m mrl_jax.train --config configs/adaptor.py --workdir runs/adaptor \
                --config.data.files=train=X.npy,val=Y.npy --config.nesting.dims=16,64,256,1024
            FOLDER with train.npy, val.npy, train_positives.npy, ... : --config.data.path=FOLDER
Arguments:  linear | residual | rotation
Hardware:   2 CPU cores; 15,000 vectors of 384 dims took 1.5 minutes while other work went on,
            evaluation included; a rotation, which factorises at every step, four times as long
"""

from mrl_jax.config import default_config

DIMS = (16, 32, 64, 128, 256, 384)
KINDS = ("linear", "residual", "rotation")
SEEDS = (0, 1, 2)


def get_config(arg="linear"):
    if arg not in KINDS:
        raise ValueError(f"the argument must be one of {', '.join(KINDS)}; got {arg!r}")
    config = default_config("adaptor")
    config.name = f"adaptor:{arg}"
    config.adaptor.kind = arg
    config.adaptor.start = "pca"
    # At 1 a linear or residual adaptor hardly left its start (docs/results/adaptor).
    config.adaptor.reconstruction = 0.0
    config.nesting.dims = DIMS
    config.batch_size = 256
    config.steps = 1000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every = 500
    config.sharding = ((".*", "replicate"),)
    config.eval.batch_size = 1024
    return config


def sweep():
    """All kinds, three seeds each."""
    for seed in SEEDS:
        for kind in KINDS:
            yield kind, {"seed": seed}
