"""Random damages of every file of every kind of index: refused, or without any effect."""

import shutil

import numpy as np
import pytest
from brute_force import best, draw, similar, store

from mrl_jax.errors import DataError
from mrl_jax.search.index import Index, files, pages
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D = 3000, 24
FUNNEL = Schedule.parse(f"8:120 > 16:60 > {D}")
LISTS = {"lists": 8, "list_dim": 12, "probes": 3}
ONE = Schedule.parse(f"8:60 > {D}")
PLANS = {
    "exact": Plan(Schedule.exact(D), "l2"),
    "float32": Plan(FUNNEL),
    "float16": Plan(FUNNEL, "inner", "float16", **LISTS),
    "int8": Plan(FUNNEL, code="int8"),
    "int8 lists": Plan(FUNNEL, "l2", "int8", **LISTS),
    "bits": Plan(FUNNEL, code="binary", **LISTS),
    "IVF": Plan(ONE, factory="IVF4,Flat", parameters="nprobe=3"),
    "HNSW": Plan(ONE, factory="HNSW8"),
}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """By name: the folder of an index of two segments with deleted rows, and what it answers."""
    folder, query_bd = tmp_path_factory.mktemp("indexes"), draw(30, D, seed=1)
    z_nd = draw(N + 20, D)
    found = {}
    for name, plan in PLANS.items():
        index = Index.build(folder / name, store(folder, z_nd[:N]), plan=plan)
        index.add(store(folder, z_nd[N:], np.arange(N, N + 20)))
        index.delete([7, N + 3])
        found[name] = folder / name, query_bd, answers(folder / name, query_bd)
    truth_bn = similar(z_nd, query_bd, "l2")
    truth_bn[:, [7, N + 3]] = -np.inf
    np.testing.assert_array_equal(found["exact"][2][0], best(truth_bn, 10))
    return found


@pytest.fixture(autouse=True)
def _page_by_page(monkeypatch):
    """As of files that are too large to be compared at once."""
    monkeypatch.setattr(pages, "_FEW", 0)


def answers(folder, query_bd):
    """To many queries, and to a single one that comes first; the ids, and the vectors of some."""
    index = Index.open(folder)
    index.search(query_bd[:1], 10)
    ids_bk, scores_bk = index.search(query_bd, 10)
    return ids_bk, scores_bk, index.ids, index.vectors.read(100, 110)


def damage(folder, generator):
    """Changes a file of an index; the file, and what undoes it."""
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = np.array([p.stat().st_size for p in inside], float)
    likely = generator.choice([np.ones(len(sizes)), sizes])  # every file, and every byte
    path = generator.choice(inside, p=likely / likely.sum())
    content = path.read_bytes()
    changed = bytearray(content)
    at = generator.integers(len(content))
    match generator.integers(6):
        case 0:
            changed[at] ^= 1 << generator.integers(8)
        case 1:
            changed = changed[:at]
        case 2:  # a page that was never written
            at -= at % 4096
            changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
        case 3:  # two parts of the file change places
            size = 16
            at, other = np.sort(generator.integers(0, max(1, len(content) - size), 2))
            a, b = content[at : at + size], content[other : other + size]
            if other >= at + size:
                changed[at : at + size], changed[other : other + size] = b, a
        case 4:  # another file lies in its place, of the same size if there is one
            alike = [p for p in inside if p.stat().st_size == len(content) and p != path]
            other = alike[generator.integers(len(alike))] if alike else inside[0]
            changed = other.read_bytes()
        case 5:
            path.unlink()
            return path, lambda: path.write_bytes(content)
    if changed != content:
        path.unlink()  # what is mapped still has the old content
        path.write_bytes(changed)
    return path, lambda: path.write_bytes(content)


def check(indexes, name, folder, damages, seed):
    whole, query_bd, wanted = indexes[name]
    folder = shutil.copytree(whole, folder)
    generator, refused = np.random.default_rng(seed), 0
    for n in range(damages):
        path, undo = damage(folder, generator)
        try:
            found = answers(folder, query_bd)
        except DataError as error:
            line = str(error)
            if "\n" in line or not (str(path) in line or path.name == files.MANIFEST):
                pytest.fail(f"{n}: {path}: {line}")
            refused += 1
        else:
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{n}: {path}")
        undo()
    answers(folder, query_bd)
    return refused


@pytest.mark.parametrize("name", PLANS)
def test_damages_are_refused_or_without_effect(indexes, name, tmp_path):
    assert check(indexes, name, tmp_path / "index", 25, 0) > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_many_damages_are_refused_or_without_effect(indexes, name, tmp_path):
    assert check(indexes, name, tmp_path / "index", 250, 1) > 200
