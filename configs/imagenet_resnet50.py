"""ImageNet-1K, ResNet-50: the rows of the paper's Table 1 (arXiv 2205.13147).

Data:       python launch/prepare_dataset.py folder IMAGENET --out DATA --short_side 384
            with IMAGENET/train/CLASS/*.JPEG and IMAGENET/val/CLASS/*.JPEG
One run:    python -m mrl_jax.train --config configs/imagenet_resnet50.py:mrl --workdir runs/rn50 \
                --config.data.path=DATA/images/1.0.0
What it costs on a pod, without one:
            python -m mrl_jax.train --config configs/imagenet_resnet50.py:mrl --dry_run \
                --topology v5e:4x4
All rows:   python -m mrl_jax.sweep --config configs/imagenet_resnet50.py --root runs/imagenet \
                --config.data.path=DATA/images/1.0.0
Arguments:  mrl | mrl_e | fixed=M | slim=M (a narrower network), then any after commas:
            start=M   dims M, 2M, ..., 2048 (paper: 8; its MRL-4 starts at 4)
            uniform   evenly spaced dims (paper, appendix K.1)
            8boost    the smallest granularity counts twice (paper, section 5)
            clean     decay kernels only; else as the reference, which also decays the
                      batch-norm of downsampling and all biases
            Any other list: --config.nesting.dims=8,32,2048 --config.nesting.weights=2,1,1
Hardware:   the paper's two A100 (batch 1,024 in all); fits one GPU of 40 GB with bfloat16, or 16
            TPU v5e. The recipe is the reference's: 40 epochs, images of 160 to 192 pixels.
Time:       12 GFLOP per example at 160 pixels, 17 at 192: 7e17 FLOP in all, some 8 to 12 hours on
            one A100 at 20 to 30 TFLOP/s (estimated, not measured)
Expected:   top-1 at 8, 16, 32, 64, 128, 256, 512, 1024, 2048 dims (paper, Table 1)
            mrl      66.63 73.53 75.03 75.82 76.30 76.47 76.65 76.76 76.80
            mrl_e    56.66 71.94 74.48 75.35 75.80 76.22 76.36 76.48 76.51
            fixed=M  65.29 72.85  --    --   75.29  --    --    --   76.87
            (-- stands for numbers of the table that were not at hand when this was written)
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import powers_of_two, uniform

WIDTH = 2048
DIMS = powers_of_two(8, WIDTH).dims
STEPS_PER_EPOCH = 1251  # 1,281,167 images in batches of 1,024


def get_config(arg="mrl"):
    method, *changes = arg.split(",")
    c = default_config()
    c.name = f"imagenet_resnet50:{arg}"
    c.data.source = "tfds"
    c.data.classes = 1000
    c.data.stream = True
    c.data.mean = (123.675, 116.28, 103.53)
    c.data.std = (58.395, 57.12, 57.375)
    c.data.random_crop = 0.08
    c.data.flip = True
    # The reference's ramp from epoch 29 to 34, in multiples of 32 and whole epochs, is one step up.
    c.data.resolutions = ((32 * STEPS_PER_EPOCH - 1, 160), (32 * STEPS_PER_EPOCH, 192))
    c.data.image_size = 256
    c.data.eval_crop = 224 / 256

    c.model.name = "resnet50"
    c.model.embedding_dim = 0
    c.model.blurpool = True
    c.model.batch_norm_groups = 2  # the reference normalises over 512 images on each of two GPUs
    c.model.dtype = "bfloat16"
    c.nesting.dims = DIMS
    c.head.label_smoothing = 0.1

    c.batch_size = 1024
    c.steps = 40 * STEPS_PER_EPOCH
    c.optimizer.name = "sgd"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 0.425
    c.optimizer.warmup_steps = 2 * STEPS_PER_EPOCH
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_mask = r"^(?!.*/bn\d)"
    c.checkpoint.every = STEPS_PER_EPOCH
    c.eval.every = 5 * STEPS_PER_EPOCH
    c.eval.batch_size = 1024
    c.eval.measures = ("accuracy",)

    for change in changes:
        key, _, value = change.partition("=")
        if key == "start" and value.isdecimal():
            c.nesting.dims = powers_of_two(int(value), WIDTH).dims
        elif change == "uniform":
            c.nesting.dims = uniform(8, WIDTH, 11).dims
        elif change == "8boost":
            c.nesting.weights = (2.0,) + (1.0,) * (len(c.nesting.dims) - 1)
        elif change == "clean":
            c.optimizer.decay_mask = "kernel"
        else:
            raise ValueError(f"unknown change {change!r}; start=M, uniform, 8boost or clean")
    set_method(c, method)
    return c


def sweep():
    """Table 1, and the ablations of nesting and weights."""
    for arg in ("mrl", "mrl_e", *(f"fixed={m}" for m in DIMS), "slim=512", "slim=1024"):
        yield arg, {}
    for arg in ("mrl,8boost", "mrl,uniform", "mrl,start=4", "mrl,start=16"):
        yield arg, {}
