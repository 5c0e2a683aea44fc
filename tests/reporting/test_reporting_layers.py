import dataclasses

import studies

from mrl_jax.record.results import Series
from mrl_jax.record.runs import Study
from mrl_jax.reporting import document, findings, methods, sections

# Spearman by layer (None: all) and dim.
GRID = {(1, 4): 0.5, (1, 8): 0.6, (3, 4): 0.74, (3, 8): 0.795, (None, 4): 0.76, (None, 8): 0.80}


def run(seed, *, split="val", also=()):
    values = {
        (("spearman", "trained", layer), dim): value + 0.002 * seed
        for (layer, dim), value in GRID.items()
    }
    config = {"pairs.layers": "last"}
    made = studies.make_run("separate", (4, 8), seed, values, split=split, **config)
    return dataclasses.replace(made, results=(*made.results, *also))


def test_a_table_of_layers_and_dims():
    found = methods.group([run(0, split="stsb"), run(2, split="stsb")])
    section = findings.layers(found, studies.series("test"))
    (sheet,) = section.sheets
    assert "stsb: MRL by layer and dim" in sheet.title
    assert sheet.columns == ("layers", "4", "8")
    assert [row.head for row in sheet.rows] == ["1", "3", "all"]
    texts = [[cell.text for cell in row.cells] for row in sheet.rows]
    assert texts == [["50.20", "60.20"], ["74.20", "79.70"], ["76.20", "80.20"]]
    best = [[cell.best for cell in row.cells] for row in sheet.rows]
    assert best == [[False, False], [False, True], [False, True]]
    assert sheet.note.endswith(findings.UNTRAINED)
    assert "MRL reaches 79.70% after 3 layers at 8 dims" in section.lead


def test_nothing_is_said_without_layers_and_layers_are_no_other_measures():
    nothing = methods.group([studies.make_run("separate", (4,), 0, {})])
    assert findings.layers(nothing, studies.series("val")) is None
    parts, _ = sections.of_study(methods.group([run(0)]), "val")
    assert [part.heading for part in parts] == ["Similarity, Spearman", "Fewer layers"]


def test_without_a_test_split_other_sets_are_not_called_validation():
    also = tuple(
        Series(name, metric="spearman").result(8, 0.5, 0.01, 9) for name in ("stsb", "sick")
    )

    def warnings(*runs):
        return " ".join(document.compose(Study("study", runs, ()))[0].warnings)

    assert "split: all numbers are of the validation split" in warnings(run(0))
    assert "split: all numbers but those of sick and stsb are of the" in warnings(run(0, also=also))
    tested = Series("", "test", "spearman").result(8, 0.5, 0.01, 9)
    assert "no test split" not in warnings(run(0, also=(*also, tested)))
    assert "no test split" not in warnings(run(0, split="stsb"))
