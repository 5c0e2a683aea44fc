"""Config keys of the task adaptor: a small network on frozen vectors, and its losses."""

from mrl_jax.config.keys import Key

KEEPS_INPUTS = True
KEYS = {
    "data.path": Key(
        "",
        "folder with train.npy, val.npy, ..., train_positives.npy, ..., or other files or folders "
        "that mrl_jax.search reads",
        resume=True,
        path=True,
    ),
    "data.files": Key(
        (),
        'the files one by one instead, each "SPLIT=FILE"',
        items="words",
        resume=True,
        path=True,
    ),
    "adaptor.kind": Key(
        "linear",
        "rotation keeps all cosines, residual has one hidden layer",
        legal=("linear", "residual", "rotation"),
    ),
    "adaptor.hidden": Key(0, "residual: hidden units; 0 = as many as vectors have dims"),
    "adaptor.start": Key(
        "identity",
        "what it begins as. pca: vectors are turned so that their first dims say most; their "
        "cosines stay as they are, and the adaptor begins as the identity after that",
        legal=("identity", "pca"),
    ),
    "adaptor.pairs": Key(
        1.0, "weight of what changes in the cosines of all pairs of a batch, on every prefix"
    ),
    "adaptor.neighbours": Key(
        1.0,
        "weight of what changes in the cosines of every vector and its nearest, on every prefix",
    ),
    "adaptor.nearest": Key(10, "how many of a batch are a vector's nearest"),
    "adaptor.reconstruction": Key(1.0, "weight of what changes in whole vectors"),
    "adaptor.ranking": Key(
        1.0, "weight of what ranks before a vector's positive, on every prefix, if it has one"
    ),
    "eval.sts": Key(
        (),
        'files of scored pairs, each "NAME=FILE": .npz with vectors a and b, and score',
        items="words",
        resume=True,
        path=True,
    ),
}
