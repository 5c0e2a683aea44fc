"""Milvus: a field for every prefix that a schedule compares, an index on the first.

The same calls serve a cluster, a server ("http://HOST:19530") and Milvus Lite, a file in this
process ("NAME.db", for which `pip install milvus-lite`): whatever `pymilvus.MilvusClient` opens.
"""

import math
import time
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np

from mrl_jax import extras
from mrl_jax.engines import arrays
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.schedule import Metric, Schedule

with extras.needed("engines", "Milvus"):
    import pymilvus

Index = Literal["HNSW", "IVF_FLAT", "AUTOINDEX", "FLAT"]

_METRICS = {"cosine": "COSINE", "inner": "IP", "l2": "L2"}
_FULL = "vector"
_MOST_KEPT = 16_384  # that Milvus gives for one query
_HITS = 2**16  # of one message, about


def load(
    client: "pymilvus.MilvusClient",
    collection: str,
    chunks: Iterable[arrays.Chunk],
    schedule: Schedule,
    *,
    index: Index | None = None,
    metric: Metric = "cosine",
) -> int:
    """Makes a collection of vectors and their prefixes, and gives the number of rows.

    It is built under the name COLLECTION_loading and renamed when it is whole: a load that breaks
    off leaves no collection of the name asked for, and the next load begins anew.

    Args:
      client: of any Milvus.
      collection: its name.
      chunks: (ids_n, z_nd) in any number, say `open_vectors(path).chunks(4096)` or
        [(ids_n, z_nd)]. Ids are distinct.
      schedule: every dim it names becomes a field: prefix_64, ..., and `vector` for all of them.
        Milvus allows 4 such fields unless its configuration says otherwise.
      index: of the shortest prefix; None: HNSW, or FLAT for a schedule without stages, which is
        exact. The other prefixes have FLAT, as they only rank what they are given.
      metric: of all comparisons.

    Raises:
      UsageError: arguments that do not fit.
      DataError: the collection exists, or the ids or vectors cannot be loaded.
    """
    arrays.check_choice("metric", metric)
    index = index or ("HNSW" if schedule.stages else "FLAT")
    arrays.check_choice("index", index, get_args(Index))
    width, blocks = arrays.checked_blocks(chunks, schedule)
    if client.has_collection(collection):
        raise DataError(
            f"collection {collection} exists already: drop it, or load under another name"
        )
    staging = f"{collection}_loading"
    client.drop_collection(staging)
    fields = {dim: _FULL if dim == width else f"prefix_{dim}" for dim in (*schedule.dims, width)}
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    for dim, field in fields.items():
        schema.add_field(field, pymilvus.DataType.FLOAT_VECTOR, dim=dim)
    # Whoever loads and then searches finds all rows; others do a moment later.
    client.create_collection(staging, schema=schema, consistency_level="Session")
    rows = _insert(client, staging, blocks, fields)
    indexes = client.prepare_index_params()
    for dim, field in fields.items():
        kind = index if dim == schedule.dims[0] else "FLAT"
        how = {"metric_type": _METRICS[metric], "params": _build(kind, rows)}
        indexes.add_index(field, index_type=kind, index_name=field, **how)
    client.create_index(staging, indexes, sync=False)
    _await_indexes(client, staging, fields.values())
    client.rename_collection(staging, collection)
    client.load_collection(collection)
    return rows


def search(
    client: "pymilvus.MilvusClient",
    collection: str,
    queries_bd: np.ndarray,
    k: int,
    schedule: Schedule,
    *,
    metric: Metric | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for every query; the metric is the collection's.

    The first stage is one search for many queries; every later one searches, for one query, the ids
    that the stage before has kept. The k vectors that are left are fetched, and scored here.

    Args:
      client: of the Milvus that has the collection.
      collection: as `load` made it.
      queries_bd: [B, D] floating point, as wide as the collection's vectors.
      k: at most what the last stage keeps.
      schedule: of dims that are fields.
      metric: that the collection must have; None: any.

    Returns:
      ids_bk: [B, k] int64, the best first; equal scores in the order of their ids.
      scores_bk: [B, k] float32, the larger the better: cosine, inner product or minus the squared
        Euclidean distance, by the schedule's final dims.

    Raises:
      UsageError: queries, k, schedule or metric do not fit the collection.
      DataError: no such collection, or fewer than k rows in it; NaN or infinity.
    """
    fields = _fields(client, collection)
    queries_bd = arrays.checked_queries(queries_bd, k, schedule, max(fields))
    if not set(schedule.dims) <= set(fields):
        raise UsageError(f"collection {collection} has prefixes {sorted(fields)}, not {schedule}")
    limits = (*(stage.keep for stage in schedule.stages), k)
    if limits[0] > _MOST_KEPT:
        raise UsageError(f"Milvus keeps at most {_MOST_KEPT} rows, not {limits[0]}")
    client.load_collection(collection)
    about = client.describe_index(collection, fields[schedule.dims[0]])
    its_metric = {theirs: ours for ours, theirs in _METRICS.items()}[about["metric_type"]]
    arrays.check_metric(f"collection {collection}", its_metric, metric)

    def ask(stage: int, query_bd: np.ndarray, **options) -> list:
        dim, last = schedule.dims[stage], stage == len(schedule.stages)
        params = _effort(about, limits[0]) if stage == 0 else {}
        return client.search(
            collection,
            data=list(query_bd[:, :dim]),
            anns_field=fields[dim],
            limit=limits[stage],
            search_params={"metric_type": about["metric_type"], "params": params},
            output_fields=[fields[dim]] if last else [],
            **options,
        )

    together = max(_HITS // limits[0], 1)
    ids_bk = np.empty((len(queries_bd), k), np.int64)
    scores_bk = np.empty((len(queries_bd), k), np.float32)
    for start in range(0, len(queries_bd), together):
        part_bd = queries_bd[start : start + together]
        for b, hits in enumerate(ask(0, part_bd), start):
            for stage in range(1, len(limits)):
                kept = f"id in {[hit['id'] for hit in hits]}"
                (hits,) = ask(stage, queries_bd[b : b + 1], filter=kept)
            if len(hits) < k:
                raise DataError(
                    f"collection {collection} gave {len(hits)} rows where k = {k} were asked for"
                )
            query_d, field = queries_bd[b, : schedule.final], fields[schedule.final]
            ids_bk[b], scores_bk[b] = _scored(hits, field, query_d, its_metric)
    return ids_bk, scores_bk


def _insert(client, name: str, blocks: Iterable[arrays.Chunk], fields: dict[int, str]) -> int:
    """Inserts all rows. Milvus takes an id twice, so all ids are kept here and compared."""
    all_ids = []
    for ids_n, z_nd in blocks:
        rows = zip(ids_n.tolist(), z_nd, strict=True)
        client.insert(
            name,
            [{"id": i, **{field: z_d[:dim] for dim, field in fields.items()}} for i, z_d in rows],
        )
        all_ids.append(ids_n)
    ids_n, count_n = np.unique(np.concatenate(all_ids), return_counts=True)
    if count_n.max() > 1:
        client.drop_collection(name)
        raise DataError(f"ids must be distinct: {ids_n[count_n.argmax()]} came more than once")
    client.flush(name)
    return len(ids_n)


def _await_indexes(client, name: str, fields: Iterable[str]) -> None:
    """Waits for all indexes. The client's own waiting asks for a clock that Milvus Lite lacks."""
    for field in fields:
        while (state := client.describe_index(name, field)["state"]) != "Finished":
            if state == "Failed":
                raise DataError(f"Milvus could not build the index of {field} in {name}")
            time.sleep(0.2)


def _build(index: str, rows: int) -> dict[str, int]:
    """How an index is built."""
    if index == "HNSW":
        return {"M": 16, "efConstruction": 128}
    if index == "IVF_FLAT":
        return {"nlist": min(math.ceil(4 * math.sqrt(rows)), 65_536)}
    return {}


def _effort(index: dict[str, Any], keep: int) -> dict[str, int]:
    """How far the first stage looks: as many candidates as it keeps, or an eighth of all lists.

    It looks into at least 32 lists, since of few lists a larger share is needed.
    """
    if index["index_type"] == "HNSW":
        return {"ef": max(keep, 64)}
    if index["index_type"] == "IVF_FLAT":
        lists = int(index.get("nlist", 128))  # Milvus Lite has 128, whatever it is asked for
        return {"nprobe": min(max(lists // 8, 32), lists)}
    return {}


def _fields(client, collection: str) -> dict[int, str]:
    """The fields of vectors by their dims."""
    if not client.has_collection(collection):
        raise DataError(f"there is no collection {collection}")
    described = client.describe_collection(collection)["fields"]
    fields = {int(f["params"]["dim"]): f["name"] for f in described if "dim" in f["params"]}
    if not fields or fields[max(fields)] != _FULL:
        raise DataError(f"collection {collection} was not made by load: it has no field {_FULL}")
    return fields


def _scored(hits: list, field: str, query_d: np.ndarray, metric: str):
    """Ids and scores of what was found, best first.

    The engine's own distances will not do: for "l2" Milvus gives squares, Milvus Lite roots.
    """
    ids_k = np.array([hit["id"] for hit in hits], np.int64)
    z_kd = np.array([hit["entity"][field] for hit in hits], np.float64)
    query_d = query_d.astype(np.float64)
    scores_k = -np.square(z_kd - query_d).sum(1) if metric == "l2" else z_kd @ query_d
    if metric == "cosine":
        norms_k = np.linalg.norm(z_kd, axis=1) * np.linalg.norm(query_d)
        scores_k /= np.maximum(norms_k, 1e-24)
    order_k = np.lexsort((ids_k, -scores_k))
    return ids_k[order_k], scores_k[order_k].astype(np.float32)
