"""Search collections in BEIR's layout: documents, queries, and which document answers which query.

    FOLDER/corpus.jsonl           {"_id": "d1", "title": "...", "text": "..."}
    FOLDER/queries.jsonl          {"_id": "q1", "text": "..."}; or queries.SPLIT.jsonl
    FOLDER/qrels/SPLIT.tsv        query-id, corpus-id, score; or FOLDER/qrels.SPLIT.tsv

Each may be gzipped (.gz). Layout as in arXiv 2104.08663.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.text_files import Row, columns_besides, first_columns, read_rows
from mrl_jax.errors import DataError, listed, shown

_TEXT = ("_id", "title", "text")
_JUDGED = ("query-id", "corpus-id", "score")


class Collection(NamedTuple):
    """Queries that have a relevant document, and all documents.

    Attributes:
      documents: title and text joined by a space.
      query_r: [R] int64, for each judgement the number of its query, rising.
      document_r: [R] int64, and that of its document, rising for each query.
      grade_r: [R] int64 > 0, how relevant the document is to the query.
    """

    documents: list[str]
    document_ids: list[str]
    queries: list[str]
    query_ids: list[str]
    query_r: np.ndarray
    document_r: np.ndarray
    grade_r: np.ndarray


def load(folder: str | pathlib.Path, split: str = "test") -> Collection:
    """Reads a collection; grades of 0 and below mean not relevant.

    Queries without a relevant document cannot be answered, and are left out.

    Raises:
      DataError: a file is missing or damaged, an id occurs twice or is unknown, or no query is
        left; names file and line.
    """
    folder = pathlib.Path(folder)
    corpus, asked, qrels = _files(folder, split)
    documents, queries = _texts(corpus), _texts(asked)
    if not {*_JUDGED} <= {*(there := first_columns(qrels))}:
        raise DataError(
            f"{qrels} line 1 must name the columns {', '.join(_JUDGED)}, and judgements must "
            f"follow; it has {listed(there) if there else 'no second line'}"
        )
    document_number, query_number = ({i: n for n, i in enumerate(t)} for t in (documents, queries))
    grades: dict[tuple[int, int], int] = {}
    for row in read_rows(qrels):
        pair = (
            _number(row, "query-id", query_number, "queries"),
            _number(row, "corpus-id", document_number, "documents"),
        )
        if pair in grades:
            raise DataError(f"{row.where}: the same query and document as in an earlier line")
        grades[pair] = _grade(row)
    relevant = sorted((*pair, grade) for pair, grade in grades.items() if grade > 0)
    if not relevant:
        raise DataError(f"{qrels}: no query has a relevant document")
    query_r, document_r, grade_r = np.array(relevant, np.int64).T
    kept, query_r = np.unique(query_r, return_inverse=True)
    query_ids = list(queries)
    return Collection(
        list(documents.values()),
        list(documents),
        [queries[query_ids[i]] for i in kept],
        [query_ids[i] for i in kept],
        query_r,
        document_r,
        grade_r,
    )


def unread(folder: str | pathlib.Path, split: str = "test") -> list[str]:
    """The columns of a collection that are not read; raises as `load`."""
    return columns_besides((*_TEXT, *_JUDGED), _files(pathlib.Path(folder), split))


def _files(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """The files of the documents, the queries and the judgements."""
    return (
        _find(folder, "corpus.jsonl"),
        _find(folder, f"queries.{split}.jsonl", "queries.jsonl"),
        _find(folder, f"qrels/{split}.tsv", f"qrels.{split}.tsv"),
    )


def _find(folder: pathlib.Path, *names: str) -> pathlib.Path:
    tried = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {' or '.join(names)} (or .gz)")


def _texts(path: pathlib.Path) -> dict[str, str]:
    """Texts by id, in the order of the file."""
    found: dict[str, str] = {}
    for row in read_rows(path):
        identity = str(_value(row, "_id"))
        if identity in found:
            raise DataError(f"{row.where}: _id {shown(identity)} occurs twice")
        parts = [row.values.get("title") or "", _value(row, "text")]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{row.where}: title and text must be texts, got {shown(parts)}")
        found[identity] = " ".join(part for part in parts if part)
    if not found:
        raise DataError(f"{path} is empty")
    return found


def _value(row: Row, column: str) -> Any:
    if column not in row.values:
        raise DataError(f"{row.where}: {column} is missing; found {listed(row.values)}")
    return row.values[column]


def _number(row: Row, column: str, numbers: dict[str, int], what: str) -> int:
    identity = _value(row, column)
    if identity not in numbers:
        raise DataError(f"{row.where}: {column} {shown(identity)} is not among the {what}")
    return numbers[identity]


def _grade(row: Row) -> int:
    try:
        return int(_value(row, "score"))
    except ValueError:
        raise DataError(
            f"{row.where}: score must be an integer, got {shown(row.values['score'])}"
        ) from None


def grades_at(collection: Collection, row_bk: np.ndarray) -> Iterator[np.ndarray]:
    """Grades [k] of the documents in each row of [B, k], 0 for those that are not relevant."""
    start = np.searchsorted(collection.query_r, np.arange(len(row_bk) + 1))
    for b, row_k in enumerate(row_bk):
        judged = slice(start[b], start[b + 1])
        document_j, grade_j = collection.document_r[judged], collection.grade_r[judged]
        at_k = np.minimum(np.searchsorted(document_j, row_k), len(document_j) - 1)
        yield np.where(document_j[at_k] == row_k, grade_j[at_k], 0)
