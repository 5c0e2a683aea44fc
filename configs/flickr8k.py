"""Flickr8k, 8,000 photos with five captions each: photos and words in one space of 384 dims.

Data:       DATA/train.jsonl, val.jsonl and test.jsonl of {"image": NAME, "captions": [...]}, the
            official 6,000, 1,000 and 1,000 photos, which lie in PHOTOS
Towers:     from scratch, a small ResNet of 64 pixels and a table of word pieces. With ",locked" or
            ",unlocked" trained ones: of images a ResNet-50 of torchvision or, as in
            docs/results/flickr8k, a network of one's own, which stays as it is; of texts
            all-MiniLM-L6-v2, which stays as it is, too, or is trained
One run:    python -m mrl_jax.train --config configs/flickr8k.py:mrl,locked \
                --workdir runs/flickr8k --config.data.path=DATA --config.data.images=PHOTOS \
                --config.weights=resnet50.safetensors --config.text.encoder=MINILM
All runs:   python -m mrl_jax.sweep --config configs/flickr8k.py --root runs/flickr8k with the same
            flags and --config.data.cache=CACHE, so that locked towers pass over the data once
Arguments:  mrl | fixed=M, M one of the dims below; then nothing, ",locked" or ",unlocked"
Time:       two CPU cores, once the cache is filled: locked three minutes, unlocked six
Expected:   a caption finds its photo among 1,000: with EfficientNet-Lite0 and both locked, nested
            5.3 % at 12 dims and 15.9 % at 384, plain 1.4 and 15.1 % (docs/results/flickr8k); from
            scratch not measured
"""

from mrl_jax.config import default_config, set_method

DIMS = (12, 24, 48, 96, 192, 384)
SEEDS = (0, 1, 2)
PAIRS = 30_000


def get_config(arg="mrl"):
    method, _, text = arg.partition(",")
    if text not in ("", "locked", "unlocked"):
        raise ValueError(f"behind the method may be locked or unlocked, got {text!r}")
    c = default_config("image_text")
    c.name = f"flickr8k:{arg}"
    c.model.embedding_dim = 0
    if text:
        c.model.name = "resnet50"
        c.data.image_size = 224
        c.text.max_length = 20
        c.towers.locked = "both" if text == "locked" else "image"
    else:
        c.model.name = "resnet18"
        c.model.width = 48
        c.data.image_size = 64
        c.data.random_crop = 0.5
        c.data.flip = True
        c.text.encoder = "static"
        c.text.width = 384
        c.text.vocab_size = 6000
        c.text.max_length = 32
    c.nesting.dims = DIMS
    c.sharding = ((".*", "replicate"),)

    # Two projections of vectors in the cache cost seconds, but know the pairs by heart soon; MiniLM
    # reads some 50 captions a second on two cores.
    epochs, c.batch_size, c.optimizer.learning_rate = {
        "": (10, 256, 1e-3),
        "locked": (5, 256, 1e-3),
        "unlocked": (0.5, 128, 5e-4),
    }[text]
    c.steps = int(epochs * PAIRS) // c.batch_size
    c.optimizer.warmup_steps = c.steps // 10
    c.optimizer.weight_decay = 0.05
    c.checkpoint.every = 200
    c.eval.batch_size = 250
    c.eval.dims = DIMS
    set_method(c, method)
    return c


def sweep():
    """Nested towers beside plain ones of three widths, with the text tower locked and unlocked."""
    for method in ("mrl", *(f"fixed={m}" for m in (DIMS[0], DIMS[2], DIMS[-1]))):
        for seed in SEEDS:
            yield f"{method},locked", {"seed": seed}
    for method in ("mrl", f"fixed={DIMS[-1]}"):
        for seed in SEEDS:
            yield f"{method},unlocked", {"seed": seed}
