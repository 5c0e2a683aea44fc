import gzip
import json

import numpy as np
import pytest

from mrl_jax.data import beir
from mrl_jax.errors import DataError

CORPUS = [
    {"_id": "d1", "title": "Ships", "text": "that sail", "metadata": {}},
    {"_id": "d2", "title": "", "text": "only text"},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": q, "text": f"question {q}"} for q in ("q1", "q2", "q3", "q4")]
QRELS = [("q4", "d2", 1), ("q1", "d3", 2), ("q1", "d1", 1), ("q2", "d1", 0), ("q3", "d2", -1)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(qrels):
    return "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, q)) + "\n" for q in qrels)


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(content.encode()))
        else:
            path.write_text(content)
    return folder


LAYOUTS = {
    "as published": ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"),
    "gzipped, by split": ("corpus.jsonl.gz", "queries.test.jsonl.gz", "qrels.test.tsv.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_are_read_and_queries_without_an_answer_left_out(tmp_path, layout):
    contents = lines(CORPUS), lines(QUERIES), table(QRELS)
    found = beir.load(write(tmp_path, dict(zip(LAYOUTS[layout], contents, strict=True))))
    assert found.documents == ["Ships that sail", "only text", ""]
    assert found.document_ids == ["d1", "d2", "d3"]
    assert found.query_ids == ["q1", "q4"]
    assert found.queries == ["question q1", "question q4"]
    np.testing.assert_array_equal(found.query_r, [0, 0, 1])
    np.testing.assert_array_equal(found.document_r, [0, 2, 1])
    np.testing.assert_array_equal(found.grade_r, [1, 2, 1])
    assert beir.unread(tmp_path) == ["metadata"]
    grades = list(beir.grades_at(found, np.array([[2, 1, 0], [0, -1, 1]])))
    np.testing.assert_array_equal(grades, [[2, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus.jsonl": None}, r"has no corpus.jsonl \(or .gz\)"),
        ({"queries.jsonl": None}, "has no queries.test.jsonl or queries.jsonl"),
        ({"qrels/test.tsv": None}, "has no qrels/test.tsv or qrels.test.tsv"),
        ({"corpus.jsonl": lines([*CORPUS, CORPUS[0]])}, "line 4: _id 'd1' occurs twice"),
        ({"corpus.jsonl": lines([{"_id": "d1"}])}, "line 1: text is missing; found _id"),
        ({"corpus.jsonl": lines([{"_id": "d1", "text": 3}])}, "line 1: title and text must be"),
        ({"corpus.jsonl": ""}, "corpus.jsonl is empty"),
        ({"qrels/test.tsv": table([("q9", "d1", 1)])}, "query-id 'q9' is not among the queries"),
        ({"qrels/test.tsv": table([("q1", "d9", 1)])}, "corpus-id 'd9' is not among the documents"),
        ({"qrels/test.tsv": table([("q1", "d1", "x")])}, "score must be an integer, got 'x'"),
        ({"qrels/test.tsv": table([("q1", "d1", 0)])}, "no query has a relevant document"),
        ({"qrels/test.tsv": table([("q1", "d1", 1)] * 2)}, "line 3: the same query and document"),
        # A file of trec_eval has no line of names.
        ({"qrels/test.tsv": "q1\td1\t1\nq1\td2\t1\n"}, "line 1 must name the .* q1, d1, 1"),
        ({"qrels/test.tsv": "q1 0 d1 1\n"}, "line 1 must name the columns .* no second line"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\n1\t2\n"}, "line 1 must name the columns"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, change, message):
    files = {
        "corpus.jsonl": lines(CORPUS),
        "queries.jsonl": lines(QUERIES),
        "qrels/test.tsv": table(QRELS),
    } | change
    write(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(DataError, match=message) as error:
        beir.load(tmp_path)
    assert "\n" not in str(error.value)
