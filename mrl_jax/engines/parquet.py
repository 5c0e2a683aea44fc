"""Parquet files that other engines load: ids, vectors, and the prefixes that they index."""

import contextlib
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
    """Writes a folder of Parquet files, whole or not at all, and gives the number of rows.

    Columns: `id` int64; `vector` with all dims and, for every other dim of the schedule,
    `prefix_64` and so on, fixed-size lists of float32. Prefixes are not scaled: engines do that
    where cosine is asked for. The schema's metadata has the schedule and the metric under
    "mrl_jax", as JSON.

    Args:
      folder: must not exist.
      chunks: (ids_n, z_nd) in any number.
      schedule: says which prefixes.
      metric: by which they are to be compared.

    Raises:
      UsageError: the folder exists, the schedule has more dims than the vectors, or there is no
        pyarrow.
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
    rows, files, all_ids = 0, 0, []
    rows_per_file = max(_FILE_BYTES // (4 * sum(dims.values())), 1)
    # Floats hardly get smaller by compression or a dictionary.
    options = {"compression": "none", "use_dictionary": False}
    with outputs.made(folder) as new, contextlib.ExitStack() as open_file:
        for ids_n, z_nd in blocks:
            if rows >= files * rows_per_file:
                open_file.close()
                path = new / f"part-{files:05d}.parquet"
                writer = open_file.enter_context(pq.ParquetWriter(path, columns, **options))
                files += 1
            arrays_c = [
                pa.FixedSizeListArray.from_arrays(pa.array(z_nd[:, :dim].ravel()), dim)
                for dim in dims.values()
            ]
            table = pa.Table.from_arrays([pa.array(ids_n), *arrays_c], schema=columns)
            writer.write_table(table)
            rows += len(ids_n)
            all_ids.append(ids_n)
        open_file.close()
        ids.check_unique(np.concatenate(all_ids), "the vectors")
    return rows
