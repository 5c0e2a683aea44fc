"""The report command on run folders: what it reads, writes, prints and refuses."""

import base64
import copy
import csv
import html.parser
import io
import json
import re
import shutil
import sys
import urllib.parse

import commands
import pytest
from PIL import Image
from reporting.folders import DIMS, entry, make_results, write_run, write_sweep

from mrl_jax import report
from mrl_jax.errors import DataError, UsageError
from mrl_jax.record.runs import read_study
from mrl_jax.reporting.document import compose

EVIL = "<script>alert(1)</script> a|b `c` [d](http://e) $x$ ```"


def quickstart(root):
    """Two seeds of MRL, MRL-E, FF-2 and FF-8 as a finished sweep, and an older run beside it."""
    folders = []
    for seed in (0, 1):
        for kind, dims in (("separate", DIMS), ("shared", DIMS), ("fixed", (2,)), ("fixed", (8,))):
            folders.append(f"{kind}{dims[-1]}-{seed}")
            write_run(root / folders[-1], make_results(kind, dims, seed))
    write_run(root / "older", make_results("separate", DIMS, 7))
    write_sweep(root, folders)
    return root


@pytest.fixture
def root(tmp_path):
    return quickstart(tmp_path / "quickstart")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A sweep in which its report was written, and what the command printed."""
    root = quickstart(tmp_path_factory.mktemp("reported") / "quickstart")
    return root, commands.here(commands.command("mrl_jax.report", root))


class Loads(html.parser.HTMLParser):
    """Collects what a page would load, its tags and its text outside of style."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "srcset", "href", "data", "action", "poster"):
                self.loaded.append(value)

    def handle_data(self, data):
        self.text.append(data)


def test_sweep_report_files_and_table(reported):
    root, printed = reported
    # MRL at 4 dims: 0.80 and 0.81, mean 80.5, sample sd 0.7071 points.
    assert re.search(r"^ *4 +80\.50 \+- 0\.71", printed, re.MULTILINE)
    assert "not finished" not in printed
    written = {path.name for path in root.iterdir() if path.is_file()}
    plots = {"accuracy_by_dim.png", "nn_by_dim.png"}
    assert written == {"sweep.json", "report.md", "report.html", "results.csv", *plots}
    for name in plots:
        with Image.open(root / name) as image:
            assert image.format == "PNG"
    markdown = (root / "report.md").read_text()
    # MRL-E 79.5 at 4; FF-8 cut: 0.80, 0.79.
    row = "| 4 | **80.50 ± 0.71** | 79.50 ± 0.71 |  | 79.50 ± 0.71 |  |"
    assert row in markdown
    # At 2: MRL 0.60, 0.61; FF-2 0.60, 0.59; differences 0, 2 points; interval 1 +- 12.706 x 1.
    assert "| +1.00 \\[−11.71, +13.71\\] |" in markdown
    assert "400 test examples" in markdown
    assert "8 of 8 runs finished" in markdown
    assert "older" not in markdown


def test_measures_that_data_did_not_allow_are_listed_once(root):
    for seed in (0, 1):
        results = make_results("separate", DIMS, seed)
        results["skipped"] = {"equal": "all 9 scores are equal"}
        if seed:
            results["skipped"] |= {f"s{i}": "too few" for i in range(12)}
        (root / f"separate8-{seed}" / "results.json").write_text(json.dumps(results))
    (root / "sweep.json").unlink()
    for path in root.iterdir():
        if not path.name.startswith("separate8"):
            shutil.rmtree(path)
    document, _ = compose(read_study(root))
    listed = [warning for warning in document.warnings if "measure" in warning]
    assert listed[0] == "equal was not measured: all 9 scores are equal."
    assert listed[1] == "s0 was not measured in separate8-1: too few."
    assert listed[10:] == ["3 more measures are missing."]


def test_csv_is_a_long_table(reported):
    rows = list(csv.DictReader(io.StringIO((reported[0] / "results.csv").read_text())))
    fields = ("set", "split", "metric", "space", "layer", "dim", "value", "stderr", "n")
    assert tuple(rows[0]) == ("run", "method", "seed", *fields)
    # Per seed and split: MRL 3 + 15, MRL-E 5 + 15, FF-2 1 + 3, FF-8 5 + 15.
    assert len(rows) == 2 * 2 * (18 + 20 + 4 + 20)
    wanted = {"run": "shared8-1", "split": "val", "metric": "top1", "dim": "6"}
    (row,) = (r for r in rows if wanted.items() <= r.items())
    assert (row["method"], row["seed"], row["n"]) == ("MRL-E", "1", "400")
    assert float(row["value"]) == pytest.approx(0.85)
    assert float(row["stderr"]) == 0.02
    assert {r["method"] for r in rows} == {"MRL", "MRL-E", "FF-2", "FF-8"}


def test_page_loads_nothing_and_holds_its_images(reported):
    content = (reported[0] / "report.html").read_text()
    page = Loads(content)
    loaded = [source for source in page.loaded if not source.startswith("#")]
    assert len(loaded) == 4  # two plots, each for light and dark
    for source in loaded:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", content, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_validation_is_folded_and_runs_are_described(reported):
    page = (reported[0] / "report.html").read_text()
    before, folded = page.split("<summary>Validation accuracy")
    assert "validation" not in before
    assert "1-NN, validation" in folded
    text = "".join(Loads(folded).text)
    for needed in ("configs/digits.py:fixed=8", "abc1234", "jax = 0.10.2", "cpu x1", "steps = 600"):
        assert needed in text


def test_unfinished_runs_are_named(root, capsys):
    (root / "shared8-1" / "DONE").unlink()
    for path in (root / "fixed2-0").iterdir():
        path.unlink()
    (root / "fixed2-0").rmdir()
    report.main([str(root)])
    printed = capsys.readouterr().out
    assert "not finished: fixed2-0\n" in printed
    assert "not finished: shared8-1\n" in printed
    for name in ("report.md", "report.html"):
        text = (root / name).read_text()
        assert "2 runs have not finished" in text
        assert "fixed2-0 and shared8-1" in text
        assert "6 of 8 runs finished" in text


def test_text_of_runs_is_escaped(tmp_path):
    results = make_results("separate", DIMS, 0)
    results |= {"run": EVIL, "commit": EVIL, "device": EVIL, "command": EVIL}
    results["versions"] = {EVIL: EVIL}
    results["config"]["model"] = {EVIL: EVIL, "name": EVIL}
    other = copy.deepcopy(results)
    other["config"]["model"]["name"] = "cnn"  # so that EVIL becomes part of a label
    folder = "<b>a&b|c"
    write_run(tmp_path / "runs" / folder, results)
    write_run(tmp_path / "runs" / "```", other)  # as if it ended the listing it stands in
    report.main([str(tmp_path / "runs")])
    page = Loads((tmp_path / "runs" / "report.html").read_text())
    assert not {"script", "b"} & set(page.tags)
    assert folder in page.text
    assert f"MRL, name={EVIL}" in page.text
    markdown = (tmp_path / "runs" / "report.md").read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "python -m" not in outside
    assert "nesting.dims" not in outside
    assert "[d](" not in outside
    for line in outside.splitlines():
        if line.startswith("| dim") or line.startswith("| 2 |"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4  # dim and two methods


def test_folder_of_runs_and_out(root, tmp_path):
    (root / "sweep.json").unlink()
    report.main([str(root), "--out", str(tmp_path / "new" / "place")])
    assert not (root / "report.md").exists()
    assert "9 of 9 runs finished" in (tmp_path / "new" / "place" / "report.md").read_text()


def test_one_run(root, capsys):
    report.main([str(root / "separate8-1")])
    printed = capsys.readouterr().out
    assert re.search(r"^ *4 +81\.00$", printed, re.MULTILINE)
    markdown = (root / "separate8-1" / "report.md").read_text()
    assert "MRL reaches 91.00% at 8 dims" in markdown
    assert "Cells: accuracy in percent, one seed" in markdown


def test_data_without_a_test_split_is_reported_by_its_validation_split(root, tmp_path, capsys):
    for path in root.glob("*/results.json"):
        results = json.loads(path.read_text())
        results["results"] = [r for r in results["results"] if r["split"] == "val"]
        path.write_text(json.dumps(results))
    report.main([str(root), "--out", str(tmp_path)])
    assert "Linear top-1, validation" in capsys.readouterr().out
    markdown = (tmp_path / "report.md").read_text()
    assert "has no test split: all numbers are of the validation split" in markdown
    assert "**Linear top-1, validation**" in markdown
    assert "MRL − FF" in markdown
    assert "the split that tuning may look at" not in markdown  # not once more, folded
    assert (tmp_path / "accuracy_by_dim.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "1-NN, validation" in page


def test_same_runs_same_bytes(reported, root, tmp_path):
    report.main([str(root), "--out", str(tmp_path / "out")])
    written = list((tmp_path / "out").iterdir())
    assert len(written) == 5
    for path in written:
        assert path.read_bytes() == (reported[0] / path.name).read_bytes()


def test_nothing_half_written_stays(root, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    files = {report.PAGE: b"# R", "report.html": b"old"}
    report.write_files(root, files)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UsageError, match=r"report\.md cannot be written: No space left"):
        report.write_files(root, {**files, "report.html": b"new"})
    assert (root / "report.html").read_bytes() == b"old"
    assert not list(root.glob("*.tmp"))


def test_a_report_replaces_only_what_a_report_wrote(tmp_path):
    files = {report.PAGE: b"# R", "results.csv": b"run", "plot.png": b"PNG"}
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"results\.csv was not written by this command"):
        report.write_files(tmp_path, files)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    (tmp_path / "results.csv").rename(tmp_path / "notes.csv")
    report.write_files(tmp_path, files)
    # A plot that there is no more of stays a report's own.
    report.write_files(tmp_path, {report.PAGE: b"# R", "results.csv": b"other"})
    report.write_files(tmp_path, files)
    assert (tmp_path / "results.csv").read_text() == "run"
    assert (tmp_path / "notes.csv").read_text() == "mine"
    # Whoever has written more below the last line keeps it.
    with (tmp_path / "report.md").open("a") as page:
        page.write("What I think of it\n")
    with pytest.raises(UsageError, match=r"report\.md was not written by this command"):
        report.write_files(tmp_path, files)


def test_out_that_is_a_file(tmp_path):
    write_run(tmp_path / "run", make_results("separate", DIMS, 0))
    file = tmp_path / "run" / "config.json"
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json.*cannot be written"):
        report.main([str(tmp_path / "run"), "--out", str(file)])


def test_the_command_fails_in_one_line(tmp_path):
    done = commands.run(commands.command("mrl_jax.report", tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)


def test_bad_roots(tmp_path):
    with pytest.raises(UsageError, match="absent: no such folder"):
        report.main([str(tmp_path / "absent")])
    with pytest.raises(DataError, match="holds no finished run"):
        report.main([str(tmp_path)])
    write_run(tmp_path / "run", make_results("separate", DIMS, 0), done=False)
    with pytest.raises(DataError, match="run: this run has not finished"):
        report.main([str(tmp_path / "run")])
    write_sweep(tmp_path, ["run"])
    with pytest.raises(DataError, match=r"sweep\.json: none of the 1 runs it lists has finished"):
        report.main([str(tmp_path)])
    for arguments in ([], ["--x"]):
        with pytest.raises(UsageError, match="--help"):
            report.main(arguments)


@pytest.mark.parametrize("folder", ["../run", "/tmp/run", ""])
def test_sweep_entries_stay_inside(tmp_path, folder):
    write_sweep(tmp_path, [folder])
    with pytest.raises(DataError, match=r"sweep\.json: runs\[0\]: dir must lie inside"):
        report.main([str(tmp_path)])


def _set(path, value):
    def change(results):
        *parents, last = path
        for key in parents:
            results = results[key]
        if value is KeyError:
            del results[last]
        else:
            results[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(["schema"], 3), "schema must be 2 or 1, got 3"),
        (_set(["schema"], KeyError), "schema must be 2 or 1, got None"),
        (_set(["command"], KeyError), "field 'command' is missing"),
        (_set(["config", "seed"], KeyError), "field 'config.seed' is missing"),
        (_set(["config", "seed"], True), "field 'config.seed' must be int, got True"),
        (_set(["config", "head"], "mrl"), "field 'config.head.kind' is missing"),
        (_set(["config", "head", "kind"], "mlr"), "must be one of separate, shared, fixed"),
        (_set(["config", "nesting", "dims"], [4, 2]), "must be increasing integers"),
        (_set(["results"], {}), "field 'results' must be list"),
        (_set(["results", 0], 3), r"results\[0\]: field 'set' is missing"),
        (_set(["results", 0, "split"], ""), "a result has a metric, a set or split, and a space"),
        (_set(["results", 0, "space"], "mars"), "a space of trained, cut, .*got .*mars"),
        (_set(["metrics"], {"odd": {"titel": "Odd"}}), "the row of 'odd' is damaged"),
        (_set(["metrics"], {"odd": {"title": "Odd", "low": "0"}}), "low of 'odd' is damaged: '0'"),
        (_set(["results", 0, "value"], 95.0), r"fraction in \[0, 1\], got 95.0"),
        (
            _set(["results", 1], entry("v2", "", "top1", dim=2, value=1.5, stderr=0, n=1)),
            "v2/top1",
        ),
        (_set(["results", 0, "value"], float("nan")), "NaN is not a JSON number"),
        (_set(["data"], 7), "field 'data' must be str, got 7"),
        (_set(["results", 0, "n"], 0), "dim and n must be >= 1"),
        (_set(["results", 0, "dim"], "2"), "field 'dim' must be int"),
    ],
)
def test_bad_results_name_file_and_fault(tmp_path, change, message):
    results = make_results("separate", DIMS, 0)
    change(results)
    write_run(tmp_path / "run", {"config": {}} | results)
    with pytest.raises(DataError, match=rf"run/results\.json.*{message}"):
        report.main([str(tmp_path / "run")])


def test_a_result_listed_twice(tmp_path):
    results = make_results("separate", DIMS, 0)
    results["results"].append(results["results"][0])
    write_run(tmp_path / "run", results)
    with pytest.raises(DataError, match=r"val/top1 at dim 2 is listed twice"):
        report.main([str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"not valid JSON \(Expecting"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "brackets are nested"),
    ],
)
def test_broken_json(tmp_path, content, message):
    write_run(tmp_path / "run", make_results("separate", DIMS, 0))
    (tmp_path / "run" / "results.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"results\.json: {message}"):
        report.main([str(tmp_path / "run")])


def test_the_command_waits_for_no_library_that_it_may_not_need():
    heavy = "{'jax', 'cv2', 'grain', 'scipy', 'sklearn', 'matplotlib'}"
    loaded = f"import sys, mrl_jax.report; print({heavy} & {{*sys.modules}})"
    done = commands.run([sys.executable, "-c", loaded])
    assert (done.returncode, done.stdout) == (0, "set()\n")


def test_names_of_sets_and_classes_become_neither_paths_nor_markup(tmp_path):
    evil = "../../up](x) <b>|"
    results = make_results("separate", DIMS, 0)
    entry = {"set": evil, "split": "", "metric": "ndcg10", "space": "trained", "layer": None}
    results["results"] += [{**entry, "dim": d, "value": 0.5, "stderr": 0.1, "n": 9} for d in DIMS]
    write_run(tmp_path / "a" / "b" / "run", results)
    report.main([str(tmp_path / "a" / "b")])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    (plot,) = (tmp_path / "a" / "b").glob("*ndcg10_by_dim.png")
    markdown = (tmp_path / "a" / "b" / "report.md").read_text()
    (link,) = re.findall(r"\]\((\S*ndcg10_by_dim\.png)\)", markdown)
    assert urllib.parse.unquote(link) == plot.name
    assert "<b>" not in markdown
    assert "b" not in Loads((tmp_path / "a" / "b" / "report.html").read_text()).tags
    shown = next(line for line in markdown.splitlines() if line.startswith('## <a id="s3">'))
    assert shown.endswith(r"../../up\](x) &lt;b&gt;\|: Retrieval, nDCG@10")
