"""The guide for those who come from other libraries: what it shows of ours runs as it stands."""

import re

import numpy as np
from commands import ROOT

GUIDE = (ROOT / "docs" / "from_faiss.md").read_text()


def test_every_snippet_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    ours = [code for code in snippets if code.startswith("# mrl_jax\n")]
    assert (len(ours), len(snippets)) == (8, 14)
    assert all(re.match("# (faiss|mrl_jax)\n", code) for code in snippets)
    names = {}
    for code in ours:
        exec(code, names)
        if "search(Q[0]" in code:
            nearest = names["X"] @ names["Q"][0] / np.linalg.norm(names["X"], axis=1)
            np.testing.assert_array_equal(names["ids_k"], np.argsort(-nearest)[:10] + 5000)
        if "recent" in code:
            year, rows_bk = names["year"], names["ids_bk"] - 5000
            assert (year[rows_bk] >= 2020).all()
            assert (rows_bk % 2 == 0).all()
    assert names["names_bk"][0, 0].startswith("photos/")
    np.testing.assert_array_equal(names["vectors"], [2 * names["X"][0], names["X"][3]])
