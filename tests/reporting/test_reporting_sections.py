"""The parts of a report: what each says, shows and folds, and which it leaves out."""

import numpy as np
import pytest
from reporting.studies import cells, flags, judged_run, make_run, series, top1, write_file

from mrl_jax.cascade.study import Judged, study
from mrl_jax.errors import DataError
from mrl_jax.evaluators import agreement, robustness
from mrl_jax.record.artefacts import Artefacts
from mrl_jax.reporting import findings, methods, published, sections, tables
from mrl_jax.reporting import sheet as sheet_lib

PNG = b"\x89PNG\r\n\x1a\nrest"


def headings(found):
    return [section.heading for section in found]


def titles(section):
    return [sheet.title for sheet in section.folded]


def test_every_metric_has_a_place_and_unknown_ones_too():
    names = ("top1", "top5", "top1_flip", "1nn", "knn20", "map10", "map25", "p10", "r10", "probe")
    names += ("ncm_10way_1shot", "ncm_10way_5shot", "ncm_allway_5shot", "superclass", "ece")
    names += ("tail_pretrain_head", "tail_novel_tail", "oracle", "vote", "strange", "odd_pca")
    values = {(name, dim): 0.5 for name in names for dim in (2, 4)}
    found, main = sections.of_study(
        methods.group([make_run("separate", (2, 4), 0, values)]), "test"
    )
    assert headings(found) == [
        "Linear top-1",
        "1-NN",
        "Retrieval, mAP@10",
        "Linear probe",
        "Agreement of granularities",
        "Few-shot class means, 10-way 5-shot",
        "Long tail, novel tail",
        "Superclass",
        "Expected calibration error",
        "Other measures",
    ]
    assert len(main) == 8
    shown = {s.title for section in found for s in (*section.sheets, *section.folded)}
    for name in names:
        assert f"{tables.metrics.describe(name).title}, test" in shown
    assert {"strange, test", "odd_pca, test"} <= {*titles(found[-1])}
    open_tables = [s.title for section in found for s in section.sheets]
    assert open_tables == ["Linear top-1, test", "1-NN, test"]
    files = [figure.file for section in found for figure in section.figures]
    assert len({*files}) == len(files) == 8


def test_sections_are_there_only_where_data_is():
    found, _ = sections.of_study(
        methods.group([make_run("separate", (2,), 0, top1(d2=1.0))]), "test"
    )
    assert headings(found) == ["Linear top-1"]
    assert sections.of_study(methods.group([make_run("separate", (2,), 0, {})]), "test") == ([], [])


def test_searches_across_modalities_are_compared_photo_by_photo(tmp_path):
    """Of a photo with five captions of which two are answered two fifths count."""
    both = ("text_to_image_recall1", "image_to_text_recall1")
    rng, runs = np.random.default_rng(0), []
    for kind, dims, chance in (
        ("separate", (2, 4), 0.8),
        ("fixed", (2,), 0.3),
        ("fixed", (4,), 0.8),
    ):
        share_n = rng.binomial(5, chance, 90).astype(np.float32) / 5
        right = {(both[0], dim): share_n for dim in dims}
        right |= {(both[1], dim): share_n > 0.5 for dim in dims}
        runs.append(judged_run(tmp_path / f"{kind}{dims}", kind, dims, 0, right))
    ranks = {("text_to_image_median_rank", dim): 3.0 for dim in (2, 4)}
    runs.append(make_run("shared", (2, 4), 0, ranks))
    found, main = sections.of_study(methods.group(runs), "test")
    assert headings(found) == ["Text to image, recall@1", "Image to text, recall@1"]
    assert titles(found[0]) == ["Text to image, median rank, test"]
    assert [s.title for section in found for s in section.sheets] == [
        "Text to image, recall@1, test",
        "Image to text, recall@1, test",
    ]
    (comparison,) = main[0].comparisons
    assert (comparison.unit, comparison.by_dim[2].units) == ("photos", 90)
    assert comparison.dims("better") == [2]
    assert "95% intervals over 90 photos, 1 seed each" in found[0].sheets[0].note
    assert [c.by_dim[2].units for c in main[1].comparisons] == [90]


def make_judged_study(tmp_path, seeds):
    """MRL far better than FF-2, PCA of FF-4 far better than MRL, at 2 dims of 4."""
    runs = []
    for seed in seeds:
        half, most, few = (flags((n, True), (200 - n, False)) for n in (100, 180, 40))
        mrl = {("top1", 2): np.roll(half, seed), ("top1", 4): most}
        place = tmp_path / str(seed)
        runs.append(judged_run(place / "mrl", "separate", (2, 4), seed, mrl))
        runs.append(judged_run(place / "ff2", "fixed", (2,), seed, {("top1", 2): few}))
        widest = {("top1", 4): most, (("top1", "pca"), 2): most, (("top1", "random"), 2): few}
        runs.append(judged_run(place / "ff4", "fixed", (4,), seed, widest))
    return methods.group(runs)


def test_the_overview_counts_verdicts(tmp_path):
    found, main = sections.of_study(make_judged_study(tmp_path, (0,)), "test")
    sheet = sheet_lib.overview(main)
    assert sheet.title == "MRL against every baseline, test"
    assert sheet.columns == ("measure", "FF-m", "random m dims", "PCA to m")
    (row,) = sheet.rows
    assert (row.head, [cell.text for cell in row.cells]) == (
        "Linear top-1",
        ["1 / 1 / 0", "1 / 0 / 0", "0 / 0 / 1"],
    )
    assert {cell.below for cell in row.cells} == {""}
    assert "better ‡ at 2" in found[0].lead


def test_with_few_seeds_these_networks_are_judged_apart(tmp_path):
    found, main = sections.of_study(make_judged_study(tmp_path, (0, 30)), "test")
    # Both seeds have the same accuracies, which is no evidence about training again.
    row = sheet_lib.overview(main).rows[0]
    assert [(cell.text, cell.below) for cell in row.cells][2] == ("0 / 1 / 0", "0 / 0 / 1")
    assert "better for these networks alone at 2" in found[0].lead
    assert cells(sheet_lib.of_table(main[0]), 2)["MRL − FF"].below == "△"
    assert cells(sheet_lib.of_rivals(main[0]), 2)["MRL − FF-4, PCA to m"].below == "▽"


def test_one_seed_without_examples_has_no_overview():
    runs = [make_run("separate", (2,), 0, top1(d2=0.8)), make_run("fixed", (2,), 0, top1(d2=0.7))]
    _, main = sections.of_study(methods.group(runs), "test")
    assert sheet_lib.overview(main) is None


def imagenet(kind, dims, values, **config):
    config = {"data.classes": 1000, "nesting.weights": [], **config}
    run = make_run(kind, dims, 0, values, split="val", **config)
    run.config["name"] = "imagenet_resnet50:whatever"
    return run


def test_the_papers_numbers_stand_beside_ours():
    runs = [imagenet("separate", published.DIMS, {("top1", 8): 0.67, ("1nn", 8): 0.6219})]
    runs.append(imagenet("fixed", (8,), {("top1", 8): 0.65}))
    found = methods.group(runs)
    sheet = published.beside(tables.build(found, series("val", "top1")), found)
    assert sheet.columns == ("dim", "MRL", "paper: MRL", "FF-m", "paper: FF")
    first = sheet.rows[0]
    assert first.head == "8"
    assert [(cell.text, cell.below) for cell in first.cells] == [
        ("67.00", "+0.37"),
        ("66.63", ""),
        ("65.00", "−0.29"),
        ("65.29", ""),
    ]
    # 32 dims of FF: the source at hand does not quote it.
    assert sheet.rows[2].cells[3].text == ""
    assert "arXiv 2205.13147" in sheet.note
    sections_of, _ = sections.of_study(found, "val")
    assert [s.title for s in sections_of[0].sheets] == [
        "Linear top-1, validation",
        "Linear top-1, validation, beside the paper's Table 1",
    ]
    assert "SVD of FF-2048 is ahead of MRL" in sections_of[1].sheets[1].note


@pytest.mark.parametrize(
    "changed",
    [
        {"data.classes": 10},
        {"data.classes": 0},
        {"nesting.weights": [2, 1]},
    ],
)
def test_other_data_and_other_weights_are_not_the_papers(changed):
    found = methods.group([imagenet("separate", published.DIMS, top1(d8=0.6), **changed)])
    assert published.beside(tables.build(found, series("val", "top1")), found) is None
    found = methods.group([imagenet("separate", (8, 16), top1(d8=0.6))])
    assert published.beside(tables.build(found, series("val", "top1")), found) is None


def test_published_columns_are_complete_rows():
    for about in published.TABLES.values():
        for _, _, values in about.columns:
            assert len(values) == len(published.DIMS)
            assert min(value for value in values if value) > 1  # percent, not fractions


def judged(n, seed, dims=(2, 4, 8)):
    """Examples of which longer prefixes get more right, and say so."""
    rng = np.random.default_rng(seed)
    right_gn = rng.random((len(dims), n)) < np.array([[0.6], [0.8], [0.9]])[: len(dims)]
    confidence_gn = np.where(right_gn, 0.8, 0.4) + 0.1 * rng.random(right_gn.shape)
    return Judged(dims, confidence_gn, right_gn)


def nested_method(folder, *, seeds=(0,), dims=(2, 4, 8), kind="separate"):
    return methods.group(
        [
            make_run(kind, dims, seed, top1(d8=0.9), artefacts=Artefacts(folder / str(seed)))
            for seed in seeds
        ]
    )


@pytest.fixture(scope="module")
def cascade_content():
    content, _ = study(judged(80, 0), judged(100, 1), shared=False, seed=0)
    return {"n": 100, "fitted_on": "val", **content}


def test_cascades(tmp_path, cascade_content):
    write_file(tmp_path / "0", "test_cascade.json", cascade_content)
    section = findings.cascades(nested_method(tmp_path), series("test"))
    dim = cascade_content["headline"][0]["expected_dim"]
    assert f"A cascade of MRL, seed 0 takes {dim['value']:.1f} dims per example" in section.lead
    (sheet,) = section.sheets
    heads = [row.head for row in sheet.rows]
    assert (heads[0], heads[-1]) == (
        "MRL, seed 0, may lose 0.00",
        "MRL, seed 0, best choice for every example",
    )
    first, *_, best = (dict(zip(sheet.columns[1:], row.cells, strict=True)) for row in sheet.rows)
    assert first["dims"].text == f"{dim['value']:.1f}"
    assert first["dims"].below == f"[{dim['low']:.1f}, {dim['high']:.1f}]"
    oracle = cascade_content["oracle"]["accuracy"]["value"]
    assert best["accuracy, %"].text == f"{100 * oracle:.2f}"
    curves = cascade_content["curves"]
    points = len(cascade_content["single"]) + sum(len(curves[name]) for name in findings.CURVES)
    assert [len(one.rows) for one in section.folded] == [points]
    assert section.figures[0].draw(False).startswith(b"\x89PNG")
    write_file(tmp_path / "1", "test_cascade.json", cascade_content)
    both = findings.cascades(nested_method(tmp_path, seeds=(0, 1)), series("test"))
    (of_both,) = both.sheets
    assert [row.head for row in of_both.rows] == heads + [h.replace("d 0", "d 1") for h in heads]
    assert titles(both) == ["MRL, seed 0: all thresholds"]
    assert findings.cascades(nested_method(tmp_path / "other"), series("test")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("single", [3]),
        ("headline", {}),
        ("headline", [{}]),
        ("oracle", {"accuracy": {"value": float("nan"), "low": 0, "high": 1}}),
        ("curves", []),
        ("fitted_on", 3),
    ],
)
def test_damaged_cascades(tmp_path, cascade_content, key, value):
    write_file(tmp_path / "0", "test_cascade.json", {**cascade_content, key: value})
    with pytest.raises(DataError, match=r"0/test_cascade\.json: "):
        findings.cascades(nested_method(tmp_path), series("test"))


def agreement_content(seed=0):
    dims, _, right_gn = judged(90, seed)
    predicted_gn = np.where(right_gn, 0, 1)
    trends = agreement.trends(np.array([[10, 20, 30], [30, 20, 10]]), np.array([45, 45]))
    return {
        "n": 90,
        "dims": list(dims),
        "oracle": agreement.oracle(dims, right_gn),
        "pairs": agreement.pairs(predicted_gn, right_gn),
        "classes": {"trends": trends},
    }


def test_agreement_of_granularities(tmp_path):
    for seed in (0, 1):
        write_file(tmp_path / str(seed), "test_agreement.json", agreement_content(seed))
    section = findings.agreements(nested_method(tmp_path, seeds=(0, 1)), series("test"))
    of_seeds = [100 * agreement_content(seed)["oracle"]["accuracy"] for seed in (0, 1)]
    assert f"right for {np.mean(of_seeds):.2f}% of the examples" in section.lead
    shown = cells(section.sheets[0], "MRL")
    right = f"{np.mean(of_seeds):.2f} ± {np.std(of_seeds, ddof=1):.2f}"
    assert shown["some right, %"].text == right
    assert [shown[f"classes: {name}"].text for name in ("rises", "no trend")] == ["1", "1"]
    (sheet,) = section.folded
    assert sheet.rows[0].cells[0].text == "100.00"


def test_damaged_agreement(tmp_path):
    content = agreement_content()
    content["pairs"]["agree"] = [[1.0]]
    write_file(tmp_path / "0", "test_agreement.json", content)
    with pytest.raises(DataError, match=r"pairs\.agree must be a square of 3 dims"):
        findings.agreements(nested_method(tmp_path), series("test"))


def shifted_run(folder, kind, dims, right, clean, seed=0):
    """On "v2" so many of 100 are right by dim, of the clean ones so many."""
    judge = {("top1", m): flags((n, True), (100 - n, False)) for m, n in right.items()}
    judge |= {("top1_clean", m): flags((n, True), (100 - n, False)) for m, n in clean.items()}
    run = judged_run(folder, kind, dims, seed, judge, split="v2")
    drops = [robustness.relative_drop(right[m], 100, clean[m], 100) for m in right]
    about = {"data": "d", "classes": ["a"], "n": 100, "dims": list(right)}
    about["relative_drop"], about["relative_drop_95"] = map(list, zip(*drops, strict=True))
    write_file(folder, "test_robustness.json", {"clean": "test", "shifts": {"v2": about}})
    return run


def test_shifted_test_sets(tmp_path):
    mrl = shifted_run(tmp_path / "a", "separate", (2, 8), {2: 40, 8: 60}, {2: 80, 8: 80})
    fixed = shifted_run(tmp_path / "b", "fixed", (8,), {8: 30}, {8: 60})
    found = methods.group([mrl, fixed])
    assert [base.place for base in findings.sets(found)] == ["v2"]
    section = findings.shifts(found, series("test"))
    assert "v2 50.00% at 2 and 25.00% at 8 dims of MRL" in section.lead
    assert titles(section) == ["Linear top-1, v2"]
    assert cells(section.folded[0], 8)["MRL − FF"].below == "▲ ‡"
    (lost,) = section.sheets
    assert lost.title == "v2: share of the clean accuracy that is lost"
    assert lost.columns == ("dim", "MRL", "FF-m")
    drop, (low, high) = robustness.relative_drop(60, 100, 80, 100)
    first = lost.rows[1].cells[0]
    assert first.text == f"{100 * drop:.2f}"
    assert first.below == f"[{100 * low:.2f}, {100 * high:.2f}]"
    assert lost.rows[1].cells[1].text == "50.00"
    assert section.figures[0].draw(False).startswith(b"\x89PNG")
    assert (
        findings.shifts(methods.group([make_run("separate", (2,), 0, top1(d2=1.0))]), "x") is None
    )


@pytest.mark.parametrize("interval", [3, [1], ["a", "b"]])
def test_damaged_drops(tmp_path, interval):
    run = shifted_run(tmp_path, "separate", (2,), {2: 40}, {2: 80})
    about = {"data": "d", "classes": [], "dims": [2], "relative_drop_95": [interval]}
    write_file(tmp_path, "test_robustness.json", {"shifts": {"v2": about}})
    with pytest.raises(DataError, match=r"test_robustness\.json: relative_drop_95 of v2"):
        findings.shifts(methods.group([run]), series("test"))


def attribution_content(**changed):
    image = {"top_share": [0.5, None, 0.3], "neighbour_correlation": [0.8, None], **changed}
    return {"dims": [2, 4, 8], "images": [image, {**image, "top_share": [0.7, 0.5, 0.5]}]}


def test_attribution(tmp_path):
    write_file(tmp_path / "0", "test_attribution.json", attribution_content())
    (tmp_path / "0" / "test_attribution.png").write_bytes(PNG)
    section = findings.attribution(nested_method(tmp_path), series("test"))
    assert "holds 60% of a map at 2 dims and 40% at 8;" in section.lead
    assert "correlate by 0.80" in section.lead
    (figure,) = section.figures
    assert figure.wide
    assert figure.draw(False) == figure.draw(True) == PNG
    assert findings.attribution(nested_method(tmp_path / "other"), series("test")) is None


@pytest.mark.parametrize("share", [[0.5], ["a", "b", "c"], 3])
def test_damaged_attribution(tmp_path, share):
    content = attribution_content(top_share=share)
    content["images"] = content["images"][:1]
    write_file(tmp_path / "0", "test_attribution.json", content)
    (tmp_path / "0" / "test_attribution.png").write_bytes(PNG)
    with pytest.raises(DataError, match=r"test_attribution\.json: .*top_share"):
        findings.attribution(nested_method(tmp_path), series("test"))
