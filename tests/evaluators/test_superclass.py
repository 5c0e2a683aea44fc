import json

import numpy as np
import pytest
from evaluators.subjects import CLASSES, clusters, subject_of

from mrl_jax.data.hierarchy import Hierarchy, read
from mrl_jax.errors import DataError
from mrl_jax.evaluators import Finding, superclass

NAMES = ("cat", "dog", "car", "tree", "van")
ANIMALS = {"cat": "animal", "dog": "animal", "car": "vehicle", "van": "vehicle"}

# A piece of WordNet's database as it is laid out: licence, then "offset file n words(hex) [word
# id]... pointers [symbol offset kind place]... | gloss". Words may look like pointers.
DATA_NOUN = """\
  1 This is the place of the licence; @ 00000001 n 0000 | in it says nothing.
  2 Its lines begin with two blanks.
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all there is
00000002 05 n 02 animal 0 beast 1 002 @ 00000001 n 0000 ~ 00000003 n 0000 | moves; "@ 00000009 n"
00000003 05 n 01 canine 0 001 @ 00000002 n 0000 | wolf-like
00000004 05 n 0b dog 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 @ 0 j 0 k 0 003 @ 00000003 n 0000 #m 00000009 \
n 0000 @ 00000005 n 0000 | barks
00000005 05 n 01 pet 0 001 @ 00000002 n 0000 | kept
00000006 05 n 01 Lassie 0 002 @i 00000004 n 0000 ;c 00000009 n 0000 | one of them
00000009 06 n 01 thing 0 001 @ 00000001 n 0000 | artifact
"""
IDS = tuple(f"n{k:08d}" for k in (6, 4, 3, 5, 2, 9, 8))


def put(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({**ANIMALS, "cow": "animal", "rock": "stone"})),
        ("b.json", json.dumps({"vehicle": ["van", "car"], "animal": ["dog", "cow", "cat"]})),
        ("c.csv", "class,superclass\ncat,animal\n\nvan, vehicle\n" + '"dog",animal\ncar,vehicle'),
        ("d.tsv", "\ufeffcat\tanimal\nvan\tvehicle\r\ndog\tanimal\ndog\tanimal\ncar\tvehicle\n"),
    ],
)
def test_files_are_read(tmp_path, name, text):
    hierarchy = read(put(tmp_path / name, text), NAMES)
    assert hierarchy.names == ("animal", "vehicle")
    assert hierarchy.group_c.tolist() == [0, 0, 1, -1, 1]
    assert hierarchy.group_c.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"dog": "animal", "dog": "pet"}', "key 'dog' occurs twice"),
        ("a.json", '{"animal": ["dog"], "pet": ["cat", "dog"]}', "'dog' in two superclasses"),
        ("a.json", '{"cow": "animal"}', "none of the 5 classes a superclass; .* like 'cat'"),
        ("a.json", "{}", "none of the 5 classes"),
        ("a.json", '{"all": ["cat", "dog", "car", "tree", "van"]}', "all classes in one .*'all'"),
        ("a.json", '["dog"]', r"must be \{.class"),
        ("a.json", '{"dog": 3}', "'dog' has neither"),
        ("a.json", '{"dog": [3]}', "'dog' has neither"),
        ("a.json", "dog", "not valid JSON"),
        ("a.csv", "dog,animal\ncat,animal,pet", r"line 2: must be class and superclass, got \['c"),
        ("a.csv", "dog\tanimal", "line 1: must be class and superclass"),
        ("a.tsv", "dog\t", "line 1: must be class and superclass"),
        ("data.noun", DATA_NOUN, r"must be NAME.json, .*data.noun:n02084071"),
    ],
)
def test_wrong_files_are_refused(tmp_path, name, text, message):
    path = put(tmp_path / name, text)
    with pytest.raises(DataError, match=message) as caught:
        read(path, NAMES)
    assert str(tmp_path / name) in str(caught.value)


def test_names_of_another_unicode_form_are_named(tmp_path):
    names = ("caf\u00e9", "dog")
    text = json.dumps({"cafe\u0301": "place", "dog": "animal"})
    with pytest.raises(DataError, match=r"'caf\\xe9' and 'cafe\\u0301' have the same letters"):
        read(put(tmp_path / "a.json", text), names)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    for path, problem in (
        ("a.json", "not UTF-8"),
        ("b.json", "No such"),
        ("c:n00000001", "No such"),
    ):
        with pytest.raises(DataError, match=problem):
            read(str(tmp_path / path), NAMES)


@pytest.mark.parametrize(
    ("superclasses", "expected"),
    [
        # Both canine and pet lie above dog and Lassie; animal gives way to what is below it.
        ("n00000002,n00000009", "2 2 2 2 2 9 -"),
        ("n00000003,n00000002", "3 3 3 2 2 - -"),
        ("n00000004,n00000005,n00000001", "4 4 1 5 1 1 -"),
        ("n00000006", "6 - - - - - -"),
    ],
)
def test_wordnet_gives_the_lowest_superclass(tmp_path, superclasses, expected):
    hierarchy = read(put(tmp_path / "data.noun", DATA_NOUN) + ":" + superclasses, IDS)
    found = [hierarchy.names[k][-1] if k >= 0 else "-" for k in hierarchy.group_c]
    assert found == expected.split()


def test_pairs_of_ids_are_a_tree_of_last_parents(tmp_path):
    lines = "n00000002 n00000003\nn00000003 n00000004\nn00000001 n00000002\nn00000005 n00000004\n"
    path = put(tmp_path / "wordnet.is_a.txt", lines)
    hierarchy = read(path + ":n00000003,n00000005", IDS)
    assert hierarchy.names == ("n00000003", "n00000005")
    assert hierarchy.group_c.tolist() == [-1, 1, 0, 1, -1, -1, -1]
    # As long as what the paper's 31 ways take.
    many = ",".join(f"n{k:08d}" for k in range(100, 130))
    with pytest.raises(DataError, match=r"is_a.txt has no 'n00000100'; superclasses are ids such"):
        read(f"{path}:{many}", IDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DATA_NOUN, "'n00000006' in two superclasses, 'n00000003' and 'n00000005'"),
        ("n00000001 dog\n", "line 1: neither a line of WordNet's data.noun nor two ids"),
        (DATA_NOUN + "0000000a", "line 10: neither"),
        (DATA_NOUN + "00000007 38 v 01 go 0 001 @ 00000001 v 0000 | moves", "line 10: neither"),
        (DATA_NOUN + "00000007 38 n 01 go 0 002 @", "line 10: neither"),
    ],
)
def test_wrong_wordnet_is_refused(tmp_path, text, message):
    path = put(tmp_path / "data.noun", text)
    with pytest.raises(DataError, match=message):
        read(path + ":n00000003,n00000005", IDS)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(3)
    head = {"kernel": rng.normal(size=(8, CLASSES)), "bias": rng.normal(size=CLASSES)}
    head = {name: array.astype(np.float32) for name, array in head.items()}
    return {"head": head}, clusters(61, 8, spread=0.7, seed=4)


def by_hand(params, z_nd, label_n, group_c, m):
    """(superclass right, has a superclass) of every example."""
    head = {name: np.asarray(p, np.float64) for name, p in params["head"].items()}
    said_n = (z_nd[:, :m] @ head["kernel"][:m] + head["bias"]).argmax(1)
    right = [group_c[a] == group_c[b] for a, b in zip(said_n, label_n, strict=True)]
    return np.array(right), np.array([group_c[k] >= 0 for k in label_n])


# Class 6 is no example's; without superclass are none, some, or all that the examples have.
@pytest.mark.parametrize(
    "group_c", [(0, 1, 1, 2, 0, 2, 2), (0, -1, 1, 1, -1, 0, 2), (-1,) * 6 + (0,)]
)
def test_superclasses_equal_brute_force(setting, group_c):
    params, (z_nd, label_n) = setting
    label_n = label_n % 6
    group_c = np.array(group_c, np.int32)
    names = ("x", "y", "z")[: group_c.max() + 1]
    subject = subject_of(
        {"test": (z_nd, label_n)}, params=params, hierarchy=Hierarchy(names, group_c)
    )
    finding = superclass.measure(subject, "test")
    found = {(r.name, r.dim): r for r in finding.results}
    expected_names = set()
    content = json.loads(finding.files["test_superclass.json"])
    assert (content["schema"], content["dims"]) == (1, [1, 3, 8])
    for g, m in enumerate((1, 3, 8)):
        right_n, has_n = by_hand(params, z_nd, label_n, group_c, m)
        for name, chosen_n in (
            ("test/superclass", has_n),
            ("test/superclass_reject", np.full(61, (group_c < 0).any())),
        ):
            if chosen_n.any():
                expected_names.add(name)
                result = found[name, m]
                assert (result.value, result.n) == (right_n[chosen_n].mean(), chosen_n.sum())
                np.testing.assert_array_equal(finding.examples[name].right_gn[g], right_n[chosen_n])
        for row in content["superclasses"]:
            index = -1 if row["name"] is None else names.index(row["name"])
            here_n = group_c[label_n] == index
            assert row["n"] == here_n.sum()
            assert row["classes"] == (group_c == index).sum()
            if row["n"]:
                assert row["accuracy"][g] == pytest.approx(right_n[here_n].mean())
            else:
                assert row["accuracy"] is None
    listed = [row["name"] for row in content["superclasses"]]
    assert listed == ([None] if (group_c < 0).any() else []) + list(names)
    assert {name for name, _ in found} == expected_names == set(finding.examples)


def test_nan_is_wrong_and_no_hierarchy_is_no_finding(setting):
    params, (_, label_n) = setting
    z_nd = np.full((61, 8), np.nan, np.float32)
    hierarchy = Hierarchy(("x",), np.array([0] * (CLASSES - 1) + [-1], np.int32))
    subject = subject_of({"val": (z_nd, label_n)}, params=params, hierarchy=hierarchy)
    finding = superclass.measure(subject, "val")
    assert len(finding.results) == 6
    assert {r.value for r in finding.results} == {0}
    subject.hierarchy = None
    assert superclass.measure(subject, "val") == Finding()
