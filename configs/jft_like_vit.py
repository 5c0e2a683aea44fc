"""A very large labelled image set, ViT-B/16: the paper's JFT-300M recipe for a set you have.

JFT-300M is not public; the recipe (arXiv 2205.13147, appendix C) fits any set with thousands of
classes, e.g. ImageNet-21K, in ArrayRecord.

One run:    python -m mrl_jax.train --config configs/jft_like_vit.py:mrl --workdir runs/jft \
                --config.data.path=DATA/images/1.0.0
What it costs on a pod, without one:
            python -m mrl_jax.train --config configs/jft_like_vit.py:mrl --dry_run \
                --topology v5e:16x16 --config.data.classes=21504 --config.mesh.tensor=4
Arguments:  mrl | mrl_e | fixed=M
Recipe:     the paper's Adafactor, linear from 1e-3 to 0; the warm-up is ours, it prints none
Hardware:   the paper's 8x8 TPU pod, batch 128 per chip (the paper prints 128), 300,000 steps
Time:       not known; the paper does not say
Expected:   1-NN top-1 on ImageNet-1K at 12 dims 53.61 against 27.07 of the first 12 dims of a plain
            ViT, at 768 dims 72.10 against 71.85 (paper, with JFT-300M)
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import halvings


def get_config(arg="mrl"):
    c = default_config()
    c.name = f"jft_like_vit:{arg}"
    c.data.source = "tfds"
    c.data.stream = True
    c.data.image_size = 224
    c.data.eval_crop = 224 / 256
    c.data.random_crop = 0.05
    c.data.flip = True

    c.model.name = "vit_b16"
    c.model.embedding_dim = 0
    c.model.dtype = "bfloat16"
    c.nesting.dims = halvings(768, 7).dims
    c.sharding = (
        # The classifiers are as large as the network: their classes are split.
        ("head/(kernel|bias)", "last:tensor+largest:fsdp"),
        ("(query|key|value|fc1)/kernel", "last:tensor+largest:fsdp"),
        ("(attention/out|fc2)/kernel", "first:tensor+largest:fsdp"),
        ("kernel", "largest:fsdp"),
        (".*", "replicate"),
    )

    c.batch_size = 64 * 128
    c.steps = 300_000
    c.optimizer.name = "adafactor"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 5_000
    c.eval.every = 20_000
    c.eval.batch_size = 4096
    c.eval.measures = ("accuracy",)
    set_method(c, arg)
    return c
