"""What is read from evaluation folders, and what is said of damaged files."""

import numpy as np
import pytest
from reporting.studies import flags, judged_run, make_run, write_file

from mrl_jax.errors import DataError
from mrl_jax.record.artefacts import Artefacts
from mrl_jax.record.results import Series
from mrl_jax.reporting import methods

TOP1 = Series("", "test", "top1")


def test_examples_of_a_result(tmp_path):
    right_n = flags((2, True), (1, False))
    run = judged_run(tmp_path / "run", "separate", (2, 4), 0, {("top1", 2): right_n})
    units = run.artefacts.units(TOP1, 2)
    assert units.value_n.tolist() == [True, True, False]
    assert units.noun == "examples"
    for series, dim in ((TOP1, 4), (TOP1.of("1nn"), 2), (TOP1._replace(split="val"), 2)):
        assert run.artefacts.units(series, dim) is None
    assert Artefacts(None).units(TOP1, 2) is None
    assert Artefacts(tmp_path / "absent").units(TOP1, 2) is None


def test_episodes_of_a_result(tmp_path):
    content = {"draws": "abc", "accuracy": {"ncm_10way_5shot": {"8": [0.5, 0.7]}}}
    write_file(tmp_path, "test_few_shot.json", content)
    units = Artefacts(tmp_path).units(Series("", "test", "ncm_10way_5shot"), 8)
    assert (units.value_n.tolist(), units.noun, units.key) == ([0.5, 0.7], "episodes", "abc")
    assert Artefacts(tmp_path).units(Series("", "test", "ncm_10way_5shot"), 4) is None
    assert Artefacts(tmp_path).units(Series("", "test", "tail_novel_tail"), 8) is None


def test_shifted_examples_are_the_same_only_with_the_same_images_and_classes(tmp_path):
    keys = set()
    for i, (data, classes) in enumerate((("d", ["a"]), ("e", ["a"]), ("d", ["a", "b"]))):
        folder = tmp_path / str(i)
        judged_run(folder, "separate", (2,), 0, {("top1", 2): flags((3, True))}, split="v2")
        about = {"v2": {"data": data, "classes": classes}}
        write_file(folder, "test_robustness.json", {"shifts": about})
        keys.add(Artefacts(folder).units(Series("v2", "", "top1"), 2).key)
    assert len(keys) == 3


def test_superclasses_are_the_same_only_in_the_same_hierarchy(tmp_path):
    keys = set()
    for i, name in enumerate(("dog", "cat", None)):
        folder = tmp_path / str(i)
        judged_run(folder, "separate", (2,), 0, {("superclass", 2): flags((3, True))})
        about = [{"name": name, "classes": 2, "n": 3, "accuracy": [1.0]}]
        write_file(folder, "test_superclass.json", {"dims": [2], "superclasses": about})
        keys.add(Artefacts(folder).units(Series("", "test", "superclass"), 2).key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    "arrays",
    [
        {"test/top1": np.ones((1, 3))},  # neither bool nor float32
        {"test/top1": np.full((1, 3), np.nan, np.float32)},
        {"test/top1": np.ones(3, bool)},
        {"test/top1": np.ones((2, 3), bool)},  # more rows than dims
        {"test/top1": np.array([[None]], object)},
    ],
)
def test_examples_of_another_kind(tmp_path, arrays):
    np.savez(tmp_path / "examples.npz", **arrays, **{"test/top1/dims": np.array([2], np.int32)})
    with pytest.raises(DataError, match=r"examples\.npz: .*test/top1"):
        Artefacts(tmp_path).units(TOP1, 2)


@pytest.mark.parametrize("cut", [0, 100, 200, -30])
def test_examples_cut_short(tmp_path, cut):
    run = judged_run(tmp_path / "run", "separate", (2,), 0, {("top1", 2): flags((3, True))})
    path = tmp_path / "run" / "examples.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"run/examples\.npz: damaged"):
        run.artefacts.units(TOP1, 2)


def test_examples_without_dims(tmp_path):
    np.savez(tmp_path / "examples.npz", **{"test/top1": np.ones((1, 3), bool)})
    with pytest.raises(DataError, match=r"examples\.npz: damaged, test/top1 cannot be read"):
        Artefacts(tmp_path).units(TOP1, 2)


@pytest.mark.parametrize("values", [[], [2.0], ["a"], [True], {}])
def test_damaged_episodes(tmp_path, values):
    content = {"draws": "abc", "accuracy": {"ncm_10way_5shot": {"8": values}}}
    write_file(tmp_path, "test_few_shot.json", content)
    with pytest.raises(DataError, match=r"test_few_shot\.json: a list of fractions"):
        Artefacts(tmp_path).units(Series("", "test", "ncm_10way_5shot"), 8)


def test_tables_of_another_schema_and_pictures_that_are_none(tmp_path):
    write_file(tmp_path, "val_a.json", {"schema": 2})
    (tmp_path / "val_a.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"val_a\.json: schema must be 1, got 2"):
        Artefacts(tmp_path).table("a", "val")
    with pytest.raises(DataError, match=r"val_a\.png: not a PNG file"):
        Artefacts(tmp_path).image("a", "val")
    assert Artefacts(tmp_path).table("a", "test") is None
    assert Artefacts(tmp_path).image("b", "val") is None


def test_a_run_without_fingerprint_has_no_examples_to_compare(tmp_path):
    run = judged_run(tmp_path / "a", "separate", (2,), 0, {("top1", 2): flags((3, True))}, data="")
    (method,) = methods.group([run])
    assert method.units(TOP1, 2) == {}
    (method,) = methods.group([make_run("separate", (2,), 0, {}, data="d")])
    assert method.units(TOP1, 2) == {}
