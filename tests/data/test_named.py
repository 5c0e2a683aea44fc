import pathlib

import pytest

from mrl_jax.data import named
from mrl_jax.errors import UsageError


def test_paths_have_names():
    taken = {"train"}
    assert named.paths("eval.shifts", (), taken) == {}
    assert named.paths("eval.shifts", ("v2=/data/v2", "my-set_1=a=b"), taken) == {
        "v2": pathlib.Path("/data/v2"),
        "my-set_1": pathlib.Path("a=b"),
    }
    assert taken == {"train", "v2", "my-set_1"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("/data/v2",), r"eval.shifts must be NAME=PATH,... with .*got '/data/v2'"),
        (("v2=",), "must be NAME=PATH"),
        (("=x",), "letters, digits, - and _ in the name; got '=x'"),
        (("a/b=x",), "letters, digits, - and _ in the name; got 'a/b=x'"),
        (("test=x",), "the name test is taken"),
        (("a=x", "a=y"), "the name a is taken"),
    ],
)
def test_wrong_paths_are_refused(entries, message):
    with pytest.raises(UsageError, match=message):
        named.paths("eval.shifts", entries, set(named.SPLITS))


def test_pairs_have_legal_names():
    entries = ("train=a", "train=b=c", "val=d")
    found = named.pairs("data.files", entries, named.SPLITS, "SPLIT=FILE")
    assert found == [("train", "a"), ("train", "b=c"), ("val", "d")]
    for bad in ("train", "train=", "=a", "dev=a"):
        with pytest.raises(UsageError, match=f"SPLIT=FILE with SPLIT one of train, .*got '{bad}'"):
            named.pairs("data.files", (bad,), named.SPLITS, "SPLIT=FILE")
    with pytest.raises(UsageError, match="each at most once; got 'train=b=c'"):
        named.pairs("data.files", entries, named.SPLITS, "SPLIT=FILE", once=True)
