"""Image and text towers with nested InfoNCE: the paper's ALIGN recipe for pairs that you have.

ALIGN's 1.8 billion pairs are not public; the recipe (arXiv 2205.13147, section 4 and appendix C)
fits any pairs of images and texts.

One run:    python -m mrl_jax.train --config configs/align_like.py:mrl --workdir runs/align \
                --config.data.path=PAIRS
            PAIRS holds train.*, val.* and test.* as README says under "Search photos by words"
What it costs on a pod, without one:
            python -m mrl_jax.train --config configs/align_like.py:mrl --dry_run \
                --topology v5e:16x16
Arguments:  mrl | fixed=M, M one of the dims below
Recipe:     ViT-B/16 and BERT-Base from scratch, Adafactor, linear from 1e-3 to 0, 64 pairs per
            chip, 1,000,000 steps (paper); the warm-up, the length of texts and the temperature at
            the start are ours, it prints none
Hardware:   a TPU pod; the paper does not say its size
Time:       not known; the paper does not say
Expected:   1-NN top-1 on ImageNet-1K at 12 dims 43.57 against 11.90 of the first 12 dims of a plain
            ALIGN, at 768 dims 67.85 against 68.00 (paper, with ALIGN's data)
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import halvings

CHIPS = 256


def get_config(arg="mrl"):
    c = default_config("image_text")
    c.name = f"align_like:{arg}"
    c.data.stream = True
    c.data.image_size = 224
    c.data.eval_crop = 224 / 256
    c.data.random_crop = 0.5
    c.model.name = "vit_b16"
    c.model.embedding_dim = 0
    c.model.dtype = "bfloat16"
    c.text.encoder = "bert_base"
    c.text.dtype = "bfloat16"
    c.text.max_length = 64
    c.text.pooling = "cls"
    c.pairs.loss = "info_nce"
    c.nesting.dims = halvings(768, 7).dims
    c.sharding = (
        ("tokens/embedding", "first:tensor+largest:fsdp"),
        ("(query|key|value|fc1)/kernel", "last:tensor+largest:fsdp"),
        ("(attention/out|fc2)/kernel", "first:tensor+largest:fsdp"),
        ("kernel|embedding", "largest:fsdp"),
        (".*", "replicate"),
    )

    c.batch_size = 64 * CHIPS
    c.steps = 1_000_000
    c.optimizer.name = "adafactor"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 0.0
    c.log_every = 100
    c.checkpoint.every = 5_000
    c.eval.every = 50_000
    c.eval.batch_size = 4096
    set_method(c, arg)
    return c


def sweep():
    """The nested towers beside plain ones of full width."""
    for arg in ("mrl", "fixed=768"):
        yield arg, {"seed": 0}
