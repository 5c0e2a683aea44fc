"""Tiny-ImageNet (200 classes, 64 pixels), a narrow ResNet-18: all methods on a CPU or any GPU.

Data:       DATA/train/CLASS/*.JPEG and DATA/val/CLASS/*.JPEG; then
            python launch/prepare_dataset.py folder DATA --out PREPARED
One run:    python -m mrl_jax.train --config configs/tiny_imagenet.py:mrl --workdir runs/tiny \
                --config.data.path=PREPARED/images/1.0.0
Full width: --config.model.width=64 --config.model.dtype=bfloat16, on a GPU
Arguments:  mrl | mrl_e | fixed=M | slim=M, M one of the dims below
Time:       512,000 images a run at 150 to 300 images/s on two CPU cores: about an hour
Expected:   not run to its end yet; the paper has no Tiny-ImageNet
"""

from mrl_jax.config import default_config, set_method

DIMS = (4, 8, 16, 32, 64, 128)


def get_config(arg="mrl"):
    c = default_config()
    c.name = f"tiny_imagenet:{arg}"
    c.data.source = "tfds"
    c.data.classes = 200
    c.data.image_size = 32
    c.data.mean = (122.5, 114.3, 101.4)
    c.data.std = (70.5, 68.5, 71.9)
    c.data.random_crop = 0.35
    c.data.flip = True

    c.model.name = "resnet18"
    c.model.embedding_dim = 0
    c.model.stem = "small"
    c.model.width = 16
    c.nesting.dims = DIMS

    c.batch_size = 256
    c.steps = 2000
    c.optimizer.name = "sgd"
    c.optimizer.nesterov = True
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 0.2
    c.optimizer.warmup_steps = 300
    c.optimizer.weight_decay = 5e-4
    c.checkpoint.every = 200
    c.eval.batch_size = 500
    set_method(c, arg)
    return c


def sweep():
    """MRL and MRL-E with two seeds, the fixed-feature baseline of each granularity with one."""
    for seed in (0, 1):
        for arg in ("mrl", "mrl_e"):
            yield arg, {"seed": seed}
    for m in DIMS:
        yield f"fixed={m}", {"seed": 0}
