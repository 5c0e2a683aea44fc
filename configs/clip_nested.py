"""A published CLIP or SigLIP made nested: its prefixes become good embeddings of images and texts.

Both towers, their projections, temperature and bias start from a folder of Hugging Face or OpenCLIP
with safetensors. The pairs should be like what is searched later; a few tens of thousands do.

One run:    python -m mrl_jax.train --config configs/clip_nested.py:adaptor --workdir runs/nested \
                --config.towers.weights=CLIP --config.data.path=PAIRS
            PAIRS holds train.*, val.* and test.* as README says under "Search photos by words"; of
            a SigLIP add --config.pairs.loss=sigmoid, of a space of other than 512 dims
            --config.nesting.dims=12,24,48,96,192,384,768
Arguments:  adaptor: the towers stay as they are, what they make of the pairs is computed once, and
            only their projections are trained | finetune: all of both towers is trained. With
            ",fixed=M" behind it one dim alone, such as adaptor,fixed=512: the plain rival
Time:       adaptor: one pass over the pairs, then seconds; finetune: a GPU
Expected:   not run on published weights
"""

from mrl_jax.config import default_config, set_method
from mrl_jax.nesting import halvings


def get_config(arg="adaptor"):
    kind, _, method = arg.partition(",")
    if kind not in ("adaptor", "finetune"):
        raise ValueError(f"the argument must be adaptor or finetune, got {kind!r}")
    c = default_config("image_text")
    c.name = f"clip_nested:{arg}"
    c.towers.locked = "both" if kind == "adaptor" else "none"
    c.pairs.loss = "info_nce"
    c.nesting.dims = halvings(512, 7).dims
    c.sharding = (("kernel|embedding", "largest:fsdp"), (".*", "replicate"))

    c.batch_size = 1024
    c.steps = 1000
    c.optimizer.learning_rate = 1e-3 if kind == "adaptor" else 1e-5
    c.optimizer.warmup_steps = 100
    # Towards the published projections, not towards zero, would be right; so not at all.
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 500
    c.eval.batch_size = 256
    set_method(c, method or "mrl")
    return c


def sweep():
    """The nested projections beside plain ones."""
    for arg in ("adaptor", "adaptor,fixed=512"):
        yield arg, {"seed": 0}
