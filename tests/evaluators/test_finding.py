import numpy as np

from mrl_jax.evaluators.finding import Finding, digest_of


def test_digests_tell_contents_apart_and_not_where_they_lie():
    contents = [
        ["a", "b"],
        ["ab"],
        [["a"], "b"],
        ["a", ["b"]],
        [],
        [[]],
        ["1", "2"],
        [np.array([1, 2])],
        [np.array([1, 2], np.int32)],
        [np.array([[1, 2]])],
        ["\ud800"],  # half a character, as damaged files have them
    ]
    assert len({digest_of(content) for content in contents}) == len(contents)
    whole = np.arange(12.0).reshape(3, 4)
    assert digest_of((whole[:, ::2], ("x",))) == digest_of([whole[:, ::2].copy(), ["x"]])


def test_findings_bring_along_what_was_read():
    found = Finding(read={"sts.a": "1"})
    found.add(Finding(read={"hierarchy": "2"}))
    assert found.read == {"sts.a": "1", "hierarchy": "2"}
