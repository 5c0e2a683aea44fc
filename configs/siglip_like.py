"""Image and text towers with the nested sigmoid loss: SigLIP's recipe for pairs that you have.

SigLIP (arXiv 2303.15343) asks of every pair in a batch by itself whether it belongs together; here
every prefix of both embeddings is asked (arXiv 2205.13147, equation 1).

One run:    python -m mrl_jax.train --config configs/siglip_like.py:mrl --workdir runs/siglip \
                --config.data.path=PAIRS
            PAIRS holds train.*, val.* and test.* as README says under "Search photos by words"
A published SigLIP made nested: configs/clip_nested.py
What it costs on a pod, without one:
            python -m mrl_jax.train --config configs/siglip_like.py:mrl --dry_run \
                --topology v5e:16x16
Arguments:  mrl | fixed=M, M one of the dims below
Recipe:     B/16 towers, 224 pixels, 64 tokens, temperature 1/10 and bias -10 at the start, both
            learned, a batch of 32,768, Adafactor with a peak of 1e-3, cosine (SigLIP); images are
            pooled by their mean and texts by their first token, where SigLIP has an attention head
            and the last token
Hardware:   a TPU pod
Time:       not known
Expected:   no source has a nested SigLIP
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import halvings


def get_config(arg="mrl"):
    c = default_config("image_text")
    c.name = f"siglip_like:{arg}"
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
    c.pairs.loss = "sigmoid"
    c.pairs.temperature = 0.1
    c.pairs.bias = -10.0
    c.nesting.dims = halvings(768, 7).dims
    c.sharding = (
        ("tokens/embedding", "first:tensor+largest:fsdp"),
        ("(query|key|value|fc1)/kernel", "last:tensor+largest:fsdp"),
        ("(attention/out|fc2)/kernel", "first:tensor+largest:fsdp"),
        ("kernel|embedding", "largest:fsdp"),
        (".*", "replicate"),
    )

    c.batch_size = 32_768
    c.steps = 100_000
    c.optimizer.name = "adafactor"
    c.optimizer.schedule = "cosine"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 5_000
    c.optimizer.weight_decay = 1e-4
    c.log_every = 100
    c.checkpoint.every = 5_000
    c.eval.every = 20_000
    c.eval.batch_size = 4096
    set_method(c, arg)
    return c


def sweep():
    """The nested towers beside plain ones of full width."""
    for arg in ("mrl", "fixed=768"):
        yield arg, {"seed": 0}
