"""CIFAR-10, a narrow ResNet-18 for small images: all methods on a CPU or any GPU.

Data:       python launch/prepare_dataset.py tfds cifar10 --out DATA
            or your own copy as DATA/train/CLASS/*.png: launch/prepare_dataset.py folder
One run:    python -m mrl_jax.train --config configs/cifar10.py:mrl --workdir runs/cifar10 \
                --config.data.path=DATA
Full width: --config.model.width=64 --config.model.dtype=bfloat16, on a GPU
Arguments:  mrl | mrl_e | fixed=M with M one of the dims below
"""

from mrl_jax.config import default_config, set_method

DIMS = (2, 4, 8, 16, 32, 64, 128)
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
    set_method(c, arg)
    return c


def sweep():
    """MRL and MRL-E with two seeds, the fixed-feature baseline of each granularity with one."""
    for seed in (0, 1):
        for arg in ("mrl", "mrl_e"):
            yield arg, {"seed": seed}
    for m in reversed(DIMS):
        yield f"fixed={m}", {"seed": 0}
