"""What happens to measures that the data do not allow."""

import functools
import pathlib

import numpy as np
import pytest
from evaluators.subjects import random_dataset, random_params, task_of

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.data.vector_splits import read_scored
from mrl_jax.errors import DataError, UsageError
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.record.finding import Finding, Unmeasurable, digest_of
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.measure import ClassificationEvaluation

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def failing(error):
    raise error


def test_a_measure_that_fails_keeps_the_numbers_of_the_others():
    found, number = Finding(), Series("", "val", "x").result(8, 0.5, 0.0, 2)
    unread = DataError("b.jpg is no image")
    attempt(found, "equal", functools.partial(failing, Unmeasurable("all scores are equal")))
    attempt(found, "val/x", lambda: Finding([number]))
    attempt(found, "val/y", functools.partial(failing, unread))
    assert found.results == [number]
    assert found.skipped == {"equal": "all scores are equal", "val/y": "b.jpg is no image"}
    assert found.unread == [unread]
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        attempt(found, "z", lambda: 1 / 0)
    whole = Finding()
    whole.add(found)
    assert whole == found


def test_a_check_says_what_the_measurement_will():
    """One validation example: no cascade, no few shots, no long tail; all other numbers."""
    task = task_of("separate")
    dataset = random_dataset({"train": 4, "val": 1})
    asked = ("accuracy", "cascade", "few_shot", "long_tail")
    options = {"dims": (3, 8), "batch_size": 8, "seed": 0, "measures": asked}
    evaluation = ClassificationEvaluation(task, make_mesh(), dataset, **options)
    reasons = evaluation.check(("val",))
    assert list(reasons) == ["val/cascade", "val/few_shot", "val/long_tail"]
    assert reasons["val/cascade"] == "needs at least 2 examples to fit and test on, got 1"
    found = evaluation.run(*random_params(task), ("val",))
    assert found.skipped == reasons
    assert {r.name for r in found.results} == {"val/top1", "val/top5"}


def built(config, *overrides):
    """An experiment of a config file; small in all that a test may choose."""
    small = ("nesting.dims=2,4", "eval.dims=2,4", "eval.batch_size=8", "batch_size=8", *overrides)
    return experiment.from_config(
        configs.load(str(CONFIGS / config), [f"--config.{key}" for key in small])
    )


def test_adaptors_are_measured_by_what_there_is_enough_of(tmp_path):
    x_nd = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for name, rows in (("train", x_nd), ("val", x_nd[:5]), ("val_positives", x_nd[:5])):
        np.save(tmp_path / f"{name}.npy", rows)
    scores = {"good": np.arange(5), "equal": np.ones(5)}
    for name, score_n in scores.items():
        np.savez(tmp_path / f"{name}.npz", a=x_nd[:5], b=x_nd[5:10], score=score_n)
    sets = ",".join(f"{name}={tmp_path / name}.npz" for name in scores)
    setup = built("adaptor.py:linear", f"data.path={tmp_path}", f"eval.sts={sets}")
    reasons = setup.check()
    assert reasons == {
        "val/overlap10": "needs at least 12 vectors, got 5",
        "val/ndcg10": "each of the 5 vectors is its own positive",
        "equal": "all 5 scores are equal (1)",
    }
    program = setup.program
    found = setup.evaluate(program.init_state(program.run_key(0)))
    assert found.skipped == reasons
    assert {r.set for r in found.results} == {"good"}


@pytest.mark.parametrize(
    ("name", "score", "message"),
    [
        ("words", ["x"] * 5, "s.npz must hold numbers as scores"),
        ("one", 3.0, r"s.npz must hold a and b \[N, 4\] and score \[N\], it has"),
        ("nan", [0, 1, np.nan, 3, 4], "s.npz: row 2 of score holds NaN or infinity"),
        ("flags", [True] * 5, "s.npz must hold numbers as scores"),
    ],
)
def test_scores_that_a_person_must_mend_are_refused_at_once(tmp_path, name, score, message):
    x_nd = np.ones((5, 4), np.float32)
    np.savez(tmp_path / "s.npz", a=x_nd, b=x_nd, score=score)
    with pytest.raises(DataError, match=message):
        read_scored(tmp_path / "s.npz", 4)


def test_scored_vectors_may_be_none_but_not_torn(tmp_path):
    path, x_nd = tmp_path / "s.npz", np.zeros((0, 4), np.float32)
    np.savez(path, a=x_nd, b=x_nd, score=[])
    assert len(read_scored(path, 4).score_n) == 0
    x_nd = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.savez_compressed(path, a=x_nd, b=x_nd, score=np.arange(50))
    whole = bytearray(path.read_bytes())
    for place in (len(whole) // 3, 2 * len(whole) // 3):
        path.write_bytes(whole[:place])
        with pytest.raises(DataError, match=r"s\.npz must be \.npz with arrays"):
            read_scored(path, 4)
        path.write_bytes(whole[:place] + b"\xff\xff\xff" + whole[place + 3 :])
        with pytest.raises(DataError, match=r"s\.npz must be \.npz with arrays"):
            read_scored(path, 4)


def test_texts_are_measured_by_what_there_is_enough_of(tmp_path):
    pairs = [f"a man {i}\tsome man {i}" for i in range(9)]

    def write(name, header, rows):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join([header, *rows]))

    write("train.tsv", "anchor\tpositive", pairs)
    write("val.tsv", "anchor\tpositive", pairs[:1])
    write(
        "few.tsv", "sentence1\tsentence2\tscore", [f"{row}\t{i}" for i, row in enumerate(pairs[:2])]
    )
    write("new/train.tsv", "text\tlabel", ["a\tx", "b\ty"])
    write("new/test.tsv", "text\tlabel", ["c\tz"])
    setup = built(
        "static_sentence.py",
        *(f"data.path={tmp_path}", "text.width=4", "text.vocab_size=60"),
        *(f"eval.sts=few={tmp_path / 'few.tsv'}", f"eval.classification=new={tmp_path / 'new'}"),
    )
    assert setup.check() == {
        "val/match": "needs at least 2 different pairs, got 1 in 1 rows",
        "few": "needs at least 3 pairs, got 2",
        "new": "no training text has the test label 'z'",
    }


def test_what_is_not_read_and_what_is_hidden_is_told_at_the_start(tmp_path):
    rows = "".join(f"a man {i}\tsome man {i}\t{i}\n" for i in range(9))
    (tmp_path / "train.tsv").write_text("anchor\tpositive\tid\n" + rows)
    (tmp_path / "s.tsv").write_text("sentence_A\tsentence_B\trelatedness_score\tgenre\n" + "".join(
        f"{line}\tnews\n" for line in rows.splitlines()))  # fmt: skip
    (tmp_path / "c.tsv").write_text("text\tlabel\tid\n" + rows)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a", "metadata": {}}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "b"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1\n")
    keys = (
        *(f"data.path={tmp_path}", "text.width=4", "text.vocab_size=60"),
        *(f"eval.sts=s={tmp_path / 's.tsv'}", f"eval.clustering=c={tmp_path / 'c.tsv'}"),
        f"eval.retrieval=mine={tmp_path}",
    )
    setup = built("static_sentence.py", *keys, "eval.ignore_identical_ids=mine")
    told = setup.notes
    assert told[0].endswith("; columns that are not read: id")
    assert "mine: no query is shown the document with its own id" in told
    for name, column in (("s", "genre"), ("c", "id"), ("mine", "metadata")):
        assert f"{name}: columns that are not read: {column}" in told
    with pytest.raises(UsageError, match=r"other is not a set of .* [(]mine[)]"):
        built("static_sentence.py", *keys, "eval.ignore_identical_ids=other").check()


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
