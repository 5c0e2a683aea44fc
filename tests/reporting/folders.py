"""Run folders as the training command leaves them, with numbers that follow from dim and seed."""

import json

import numpy as np
from PIL import Image

from mrl_jax.record.results import Series

DIMS = (2, 4, 8)


def entry(*series, dim, value, stderr, n):
    """An entry of results.json; `series` are the first fields of `Series`."""
    return Series(*series).result(dim, value, stderr, n)._asdict()


def make_results(kind, dims, seed):
    """results.json of a run whose accuracies follow from dim and seed."""
    name = {"separate": "mrl", "shared": "mrl_e", "fixed": f"fixed={dims[-1]}"}[kind]
    results = []
    for split in ("val", "test"):
        for dim in (2, 3, 4, 6, 8):
            if dim > dims[-1]:
                continue
            value = {2: 0.6, 3: 0.7, 4: 0.8, 6: 0.85, 8: 0.9}[dim] + seed / 100
            value -= {"separate": 0.0, "shared": 0.01, "fixed": 0.02 * seed}[kind]
            row = {"dim": dim, "value": value, "stderr": 0.02, "n": 400}
            if kind != "separate" or dim in dims:
                results.append(entry("", split, "top1", **row))
            spaces = ("trained", "pca", "random")
            results += [entry("", split, "1nn", space, **row) for space in spaces]
    return {
        "schema": 2,
        "run": f"digits:{name}",
        "config": {
            "name": f"digits:{name}",
            "seed": seed,
            "steps": 600,
            "nesting": {"dims": list(dims), "weights": []},
            "head": {"kind": kind, "normalize": "none"},
            "model": {"name": "cnn", "embedding_dim": 8},
        },
        "commit": "abc1234",
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "command": f"python -m mrl_jax.train --config configs/digits.py:{name}",
        "device": "cpu x1",
        "data": "",
        "read": {},
        "results": results,
        "metrics": {},
        "skipped": {},
    }


def write_run(folder, results, done=True):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(results["config"]))
    (folder / "results.json").write_text(json.dumps(results))
    if done:
        (folder / "DONE").touch()


def write_sweep(root, folders):
    root.mkdir(exist_ok=True)
    entries = [{"dir": folder, "arg": "mrl", "overrides": {}} for folder in folders]
    values = {"schema": 1, "config": "configs/digits.py", "runs": entries}
    (root / "sweep.json").write_text(json.dumps(values))


def add_evaluation(root, folder, split="test"):
    """Examples of "top1" that agree with results.json, a shift, a picture and an unknown metric."""
    results = json.loads((root / folder / "results.json").read_text())
    results["data"] = "fingerprint"
    found = [r for r in results["results"] if (r["split"], r["metric"]) == (split, "top1")]
    rows = []
    for result in found:
        rows.append(np.arange(result["n"]) < round(result["value"] * result["n"]))
        result["value"] = float(rows[-1].mean())
        results["results"].append({**result, "set": "v2", "split": ""})
        results["results"].append({**result, "metric": "strange"})
    dims = np.array([result["dim"] for result in found], np.int32)
    evaluation = root / folder / "evaluation"
    evaluation.mkdir()
    names = {f"{split}/top1": np.stack(rows), f"{split}/top1/dims": dims}
    np.savez(evaluation / "examples.npz", **names)
    Image.new("RGB", (9, 9), "red").save(evaluation / f"{split}_attribution.png")
    (root / folder / "results.json").write_text(json.dumps(results))
