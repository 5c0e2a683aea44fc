"""CIFAR-10 at 24 pixels, a narrow ResNet-18, three epochs: all methods on two CPU cores.

Data:       python launch/prepare_dataset.py tfds cifar10 --out DATA
            or your own copy, DATA/train/CLASS/*.png and DATA/val/CLASS/*.png (the test images):
            launch/prepare_dataset.py folder, and add --config.data.dataset=images below
One run:    python -m mrl_jax.train --config configs/cifar10.py:mrl --workdir runs/cifar10 \
                --config.data.path=DATA
All runs:   python -m mrl_jax.sweep --config configs/cifar10.py --root runs/cifar10 \
                --config.data.path=DATA
Larger:     --config.model.width=64 --config.model.dtype=bfloat16 --config.data.image_size=32
                --config.steps=11730, on a GPU
Arguments:  mrl | mrl_e | fixed=M | slim=M, M one of the dims below
Time:       10 to 15 minutes a run on one free core; the sweep keeps two runs going on two cores
Expected:   top-1 at 2, 4, 8, 16, 32, 64, 128 dims, n = 10,000, standard error 0.5:
            mrl      59.1 71.9 73.4 74.0 74.0 73.9 74.1   seed 0
                     57.0 70.2 71.9 72.6 72.7 72.8 72.9   seed 1
            mrl_e    55.3 66.8 69.5 72.0 72.5 72.5 72.7   seed 0
                     57.0 69.3 71.0 72.2 72.3 72.4 72.5   seed 1
            fixed=M  52.4 66.9 71.3 72.9 71.5  --  72.7   seed 0
            slim=M    --   --   --   --  60.7 66.7  --    seed 0
            (JPEG copies of CIFAR-10's images; the paper has no CIFAR-10; -- not run)
"""

from mrl_jax.config import default_config, set_method

DIMS = (2, 4, 8, 16, 32, 64, 128)
SLIM_DIMS = (8, 16, 32, 64)  # of the networks with 1, 2, 4 and 8 channels in the first stage
STEPS_PER_EPOCH = 391


def get_config(arg="mrl"):
    c = default_config()
    c.name = f"cifar10:{arg}"
    c.data.source = "tfds"
    c.data.dataset = "cifar10"
    c.data.classes = 10
    c.data.image_size = 24
    c.data.mean = (125.3, 123.0, 113.9)
    c.data.std = (63.0, 62.1, 66.7)
    c.data.flip = True
    c.data.random_shift = 3

    c.model.name = "resnet18"
    c.model.embedding_dim = 0
    c.model.stem = "small"
    c.model.width = 16
    c.nesting.dims = DIMS

    c.batch_size = 128
    c.steps = 3 * STEPS_PER_EPOCH
    c.optimizer.name = "sgd"
    c.optimizer.nesterov = True
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 0.1
    c.optimizer.warmup_steps = STEPS_PER_EPOCH // 2
    c.optimizer.weight_decay = 5e-4
    c.checkpoint.every = STEPS_PER_EPOCH
    c.eval.batch_size = 500
    # Every run is measured at the same prefixes, as far as it is trained.
    c.eval.dims = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    set_method(c, arg)
    return c


def sweep():
    """MRL and MRL-E with two seeds, FF-m and narrower networks of each granularity with one.

    Neighbours are searched in the first run of each method and for the widest baseline, of which
    other tables are made (truncation, PCA): that takes as long as a third of the training.
    """
    for arg in ("mrl", "mrl_e", f"fixed={DIMS[-1]}"):
        yield arg, {"seed": 0}
    for arg in ("mrl", "mrl_e"):
        yield arg, {"seed": 1, "eval.measures": ("accuracy",)}
    for m in DIMS[:-1]:
        yield f"fixed={m}", {"seed": 0, "eval.measures": ("accuracy",)}
    for m in SLIM_DIMS:
        yield f"slim={m}", {"seed": 0, "eval.measures": ("accuracy",)}
