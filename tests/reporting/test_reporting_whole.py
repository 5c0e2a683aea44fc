"""The report command on runs with evaluation folders."""

import pytest
from PIL import Image
from reporting.folders import DIMS, add_evaluation, make_results, write_run

from mrl_jax import report
from mrl_jax.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Two seeds of MRL, FF-2 and FF-8."""
    for seed in (0, 1):
        for kind, dims in (("separate", DIMS), ("fixed", (2,)), ("fixed", (8,))):
            write_run(tmp_path / f"{kind}{dims[-1]}-{seed}", make_results(kind, dims, seed))
    return tmp_path


def test_the_whole_evaluation_is_shown(root, capsys):
    for folder in ("separate8-0", "separate8-1", "fixed2-0", "fixed2-1", "fixed8-0", "fixed8-1"):
        add_evaluation(root, folder)
    report.main([str(root)])
    written = {path.name for path in root.iterdir() if path.is_file()}
    assert {"shifts_by_dim.png", "attribution.png"} <= written
    with Image.open(root / "attribution.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
    markdown = (root / "report.md").read_text()
    page = (root / "report.html").read_text()
    assert "95% intervals over 2 seeds and 400 examples" in markdown
    assert "**MRL against every baseline, test**" in markdown
    assert "Linear top-1, v2" in page
    assert "strange, test" in page
    assert "![Where each prefix looks](attribution.png)" in markdown
    for heading in ("Linear top-1", "1-NN", "Shifted test sets", "Where each prefix looks"):
        assert f"<h2>{heading}</h2>" in page
    # The main table comes first, then its plot, and only then what is folded.
    before, _, _ = page.partition("<img")
    assert '80.50 <span class="spread">± 0.71</span>' in before
    assert "<details>" not in before
    # A photograph is the same by day and night; plots are not.
    assert page.count("<source") == page.count("<img") - 1
    assert "v2,,top1,trained,,2," in (root / "results.csv").read_text()
    assert "strange" not in capsys.readouterr().out


def test_one_seed_says_what_its_verdicts_are_worth(tmp_path):
    for kind, dims in (("separate", DIMS), ("fixed", (2,))):
        write_run(tmp_path / "runs" / kind, make_results(kind, dims, 0))
        add_evaluation(tmp_path / "runs", kind)
    report.main([str(tmp_path / "runs")])
    markdown = (tmp_path / "runs" / "report.md").read_text()
    assert "> **Note:** Compared at one seed: what is called better or worse here holds" in markdown
    assert "95% intervals over 400 examples (McNemar's exact test), 1 seed each" in markdown


def test_a_damaged_evaluation_is_one_line(root, tmp_path):
    for folder in ("separate8-0", "fixed2-0"):
        add_evaluation(root, folder)
    (root / "fixed2-0" / "evaluation" / "examples.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"fixed2-0/evaluation/examples\.npz: damaged"):
        report.main([str(root), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
