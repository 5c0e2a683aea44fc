"""Config keys of the task classification."""

from mrl_jax.config.keys import Key
from mrl_jax.tasks import image_keys

KEYS = {
    "weights": Key(
        "",
        ".safetensors file of a PyTorch network (torchvision, the reference, timm, transformers) "
        'that the backbone starts from; heads start fresh; "" = all starts fresh',
        path=True,
    ),
    "data.source": Key("digits", "digits | image_folder | tfds"),
    "data.path": Key(
        "",
        'image_folder: folder with train/CLASS/*; tfds: folder of data sets, or ""',
        resume=True,
        path=True,
    ),
    "data.dataset": Key("", 'tfds: name of a data set prepared as ArrayRecord, such as "mnist"'),
    "data.splits": Key(
        (),
        'tfds: the examples of each split in the notation of TFDS, "train=train[:90%]", '
        '"val=train[90%:]"; () = by name: train; validation, val, valid or dev; test or eval',
        items="words",
        resume=True,
    ),
    "data.classes": Key(0, "how many classes the data must have; 0 = as many as they have", 0),
    **image_keys.PIXELS,
    "data.resolutions": Key(
        (),
        "stream only: sizes in training as (step, pixels) points, linear between them, in "
        "multiples of 32; () = image_size",
        items="pairs of numbers",
    ),
    "data.mixup": Key(
        0.0, "training: images are mixed in pairs, shares from Beta(mixup, mixup); 0 = off"
    ),
    **image_keys.MODEL,
    "head.normalize": Key("none", "none | prefix: scale every prefix to unit length first"),
    "head.label_smoothing": Key(0.0, "on the loss of every granularity", 0, 1),
    "head.loss": Key(
        "auto",
        "auto | plain | blockwise | streamed. Plain computes all logits, then the loss; blockwise "
        "and streamed do both in one, without [G, B, C] logits; streamed is slower and needs least "
        "memory. auto: blockwise from 2**21 logits (granularities x batch x classes) per device, "
        "else plain",
        resume=True,
    ),
    "eval.measures": Key(
        ("accuracy", "neighbours"),
        'what is measured: names in evaluators.MEASURES, "MODULE:FUNCTION" of your own, or all. '
        "Most embed the train split as well",
        items="words",
        resume=True,
    ),
    "eval.hierarchy": Key(
        "",
        'file that says which superclass a class belongs to; "" = none',
        resume=True,
        path=True,
    ),
    "eval.shifts": Key(
        (),
        'other test sets of these classes, each "NAME=FOLDER"',
        items="words",
        resume=True,
        path=True,
    ),
}
