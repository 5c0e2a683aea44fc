"""Flickr8k, 8,000 photos of 64 pixels with five captions each: photos and words in one space.

Data:       DATA/train.jsonl, val.jsonl and test.jsonl of {"image": NAME, "captions": [...]}, the
            official 6,000, 1,000 and 1,000 photos, which lie in PHOTOS
Image tower: a ResNet-18 of 48 channels, trained to tell the classes of Tiny-ImageNet apart and
            exported as safetensors; without --config.weights it starts fresh
Text tower: a table of word pieces from scratch; with ",locked" or ",unlocked" that of
            all-MiniLM-L6-v2, whose folder is given
One run:    python -m mrl_jax.train --config configs/flickr8k.py:mrl,locked \
                --workdir runs/flickr8k --config.data.path=DATA --config.data.images=PHOTOS \
                --config.weights=TINY/model.safetensors --config.text.encoder=MINILM
All runs:   python -m mrl_jax.sweep --config configs/flickr8k.py --root runs/flickr8k with the same
            flags
Arguments:  mrl | fixed=M, M one of the dims below; then ",locked" or ",unlocked"
Hardware:   two CPU cores
Expected:   not run to its end yet; the paper has no Flickr8k
"""

from mrl_jax.config import default_config, set_method

DIMS = (12, 24, 48, 96, 192, 384)
SEEDS = (0, 1, 2)
PAIRS = 30_000


def get_config(arg="mrl"):
    method, *changes = arg.split(",")
    c = default_config("image_text")
    c.name = f"flickr8k:{arg}"
    c.data.image_size = 64
    c.data.mean = (122.5, 114.3, 101.4)
    c.data.std = (70.5, 68.5, 71.9)
    c.data.random_crop = 0.5
    c.data.flip = True
    c.model.name = "resnet18"
    c.model.embedding_dim = 0
    c.model.width = 48
    c.text.encoder = "static"
    c.text.width = 384
    c.text.vocab_size = 6000
    c.text.max_length = 32
    c.nesting.dims = DIMS
    c.sharding = ((".*", "replicate"),)

    c.batch_size = 256
    c.steps = 10 * PAIRS // c.batch_size
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.weight_decay = 0.05
    c.checkpoint.every = 200
    c.eval.batch_size = 250
    c.eval.dims = DIMS
    for change in changes:
        if change not in ("locked", "unlocked"):
            raise ValueError(f"unknown change {change!r}; legal are locked and unlocked")
        c.text.encoder, c.text.width = "", 0
        c.towers.locked = "text" if change == "locked" else "none"
        if change == "unlocked":
            # MiniLM is far more work than the table, and forgets at a larger rate.
            c.steps = 4 * PAIRS // c.batch_size
            c.optimizer.learning_rate = 2e-4
    set_method(c, method)
    return c


def sweep():
    """Nested towers beside plain ones, with the text tower locked and unlocked."""
    for change in ("locked", "unlocked"):
        for arg in ("mrl", f"fixed={DIMS[-1]}"):
            for seed in SEEDS:
                yield f"{arg},{change}", {"seed": seed}
