"""Runs whose numbers a test chooses, in memory or with an evaluation folder."""

import json

import numpy as np

from mrl_jax.record.artefacts import Artefacts
from mrl_jax.record.results import Series
from mrl_jax.record.runs import Run


def series(place, metric="", space="trained", layer=None):
    """What is measured on one of the data's splits, or on a set of this name."""
    own = place in ("train", "val", "test")
    return Series("" if own else place, place if own else "", metric, space, layer)


def make_run(kind, dims, seed, values, *, split="test", data="", artefacts=None, **config):
    """A run with results {(metric, dim): value} on 100 examples of one split.

    A metric in another space than the trained one is a pair of both.
    """
    named = (((m,) if isinstance(m, str) else m, dim, v) for (m, dim), v in values.items())
    results = tuple(series(split, *m).result(dim, v, 0.01, 100) for m, dim, v in named)
    folder = f"{kind}-{dims[-1]}-{seed}-{'-'.join(map(str, config.values()))}"
    flat = {"seed": seed, "head.kind": kind, "nesting.dims": list(dims), "name": folder, **config}
    described = (folder, folder, kind, tuple(dims), seed, flat, "c0ffee", {}, "train", "cpu")
    return Run(*described, results, data, artefacts or Artefacts(None))


def top1(**by_dim):
    """{("top1", 2): 0.8} from d2=0.8."""
    return {("top1", int(dim[1:])): value for dim, value in by_dim.items()}


def judged_run(folder, kind, dims, seed, right, *, data="d1", split="test", **config):
    """A run that recorded which examples were right: {(metric, dim): [N] bool}."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for metric in {metric for metric, _ in right}:
        at = sorted(dim for name, dim in right if name == metric)
        named = series(split, *((metric,) if isinstance(metric, str) else metric)).name
        arrays[named] = np.stack([right[metric, dim] for dim in at])
        arrays[f"{named}/dims"] = np.array(at, np.int32)
    np.savez(folder / "examples.npz", **arrays)
    values = {key: float(np.mean(of)) for key, of in right.items()}
    artefacts = Artefacts(folder)
    return make_run(kind, dims, seed, values, split=split, data=data, artefacts=artefacts, **config)


def write_file(folder, name, content):
    """A JSON file of an evaluator."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"schema": 1, **content}))


def flags(*runs_of):
    """flags((3, True), (2, False)) -> [True, True, True, False, False]."""
    return np.concatenate([np.full(n, value) for n, value in runs_of])


def cells(rendered, dim):
    """The cells of a row by column."""
    row = next(row for row in rendered.rows if row.head.split()[0] == str(dim))
    return dict(zip(rendered.columns[1:], row.cells, strict=True))
