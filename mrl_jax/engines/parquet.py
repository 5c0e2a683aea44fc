"""Parquet files that other engines load: ids, vectors, and the prefixes that they index."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

from mrl_jax.engines import arrays
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store import ids, outputs, tables

_FILE_BYTES = 2**28  # of one file, about: what a loader that works in parallel takes at a time


def export(
    folder: pathlib.Path,
    chunks: Iterable[arrays.Chunk],
    schedule: Schedule,
    *,
    metric: Metric = "cosine",
) -> int:
    """Writes a folder of Parquet files, whole or not at all.

    Columns: `id` int64, `vector` with all dims, and `prefix_64` and so on for every dim the
    schedule compares before, lists of one length of float32. Prefixes are not scaled: engines do
    that where cosine is asked for. The schema's metadata has the schedule and the metric under
    "mrl_jax", as JSON.

    Args:
      folder: where; must not exist.
      chunks: (ids_n, z_nd) in any number.
      schedule: which prefixes.
      metric: by which they are to be compared.

    Returns:
      How many rows were written.

    Raises:
      UsageError: the folder exists, or a schedule of more dims than there are; no pyarrow.
      DataError: ids or vectors of another form, an id that comes twice, NaN or infinity.
    """
    pq = tables.parquet()
    import pyarrow as pa

    arrays.check_choice("metric", metric)
    width, blocks = arrays.checked_blocks(chunks, schedule)
    dims = {f"prefix_{dim}": dim for dim in schedule.dims if dim < width} | {"vector": width}
    kinds = {name: pa.list_(pa.float32(), dim) for name, dim in dims.items()}
    about = json.dumps({"schedule": str(schedule), "metric": metric})
    columns = pa.schema({"id": pa.int64(), **kinds}, {"mrl_jax": about})
    rows, files, writer, all_ids = 0, 0, None, []
    rows_per_file = max(_FILE_BYTES // (4 * sum(dims.values())), 1)
    with outputs.made(folder) as new:
        try:
            for ids_n, z_nd in blocks:
                if writer is None or rows >= files * rows_per_file:
                    if writer is not None:
                        writer.close()
                    path = new / f"part-{files:05d}.parquet"
                    # Floats hardly get smaller by compression or a dictionary.
                    writer = pq.ParquetWriter(
                        path, columns, compression="none", use_dictionary=False
                    )
                    files += 1
                arrays_c = [
                    pa.FixedSizeListArray.from_arrays(pa.array(z_nd[:, :dim].ravel()), dim)
                    for dim in dims.values()
                ]
                table = pa.Table.from_arrays([pa.array(ids_n), *arrays_c], schema=columns)
                writer.write_table(table)
                rows += len(ids_n)
                all_ids.append(ids_n)
        finally:
            if writer is not None:
                writer.close()
        ids.check_unique(np.concatenate(all_ids), "the vectors")
    return rows
