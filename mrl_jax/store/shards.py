"""The folder that bulk embedding writes: vectors cut into shards, and what is known of them.

- `vectors-00000-of-00003.npy`, float32 [rows, width], and `ids-00000-of-00003.npy`, int64 [rows];
  or `vectors-00000-of-00003.parquet` with columns `id`, `vector` (a fixed-size list of float32)
  and, where vectors have names, `name`;
- `names.txt` beside .npy shards whose vectors have names: line i is the name of id i, from 0;
- `manifest.json`: rows, width, what the vectors were made from, and every shard's rows and sha256.

A shard without checksums is unfinished. Files appear under their names once they are whole.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.store import files, json_files, tables
from mrl_jax.store.json_files import field

SCHEMA = 1
MANIFEST = "manifest.json"
NAMES = "names.txt"
Format = Literal["npy", "parquet"]
_GROUP_BYTES = 2**22  # of vectors in a row group of Parquet, the least that is read at a time


class Shard(NamedTuple):
    """How many vectors, and the sha256 of every file, {} while it is unfinished."""

    rows: int
    sha256: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
      width: dims of every vector.
      format: of the shards' files.
      shards: in the order of their rows.
      made_from: what must be the same for the same vectors to come out.
    """

    width: int
    format: Format
    shards: tuple[Shard, ...]
    made_from: dict[str, Any]

    @property
    def rows(self) -> int:
        """Of all shards."""
        return sum(shard.rows for shard in self.shards)

    def span(self, index: int) -> tuple[int, int]:
        """The first row of a shard among all, and the one after its last."""
        first = sum(shard.rows for shard in self.shards[:index])
        return first, first + self.shards[index].rows

    def files(self, index: int) -> tuple[str, ...]:
        """The names of a shard's files: vectors and, where they are apart, ids."""
        place = f"{index:05d}-of-{len(self.shards):05d}"
        if self.format == "parquet":
            return (f"vectors-{place}.parquet",)
        return f"vectors-{place}.npy", f"ids-{place}.npy"

    def with_shard(self, index: int, sha256: dict[str, str]) -> "Manifest":
        """The same with these checksums of one shard's files."""
        shards = list(self.shards)
        shards[index] = shards[index]._replace(sha256=sha256)
        return dataclasses.replace(self, shards=tuple(shards))

    def write(self, folder: pathlib.Path) -> None:
        """Writes manifest.json, whole or not at all."""
        content = {
            "schema": SCHEMA,
            "rows": self.rows,
            "width": self.width,
            "format": self.format,
            "made_from": self.made_from,
            "shards": [shard._asdict() for shard in self.shards],
        }
        files.write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: pathlib.Path) -> Manifest:
    """What the folder's manifest.json says.

    Raises:
      DataError: it is missing, unreadable or of another version.
    """
    path = folder / MANIFEST
    try:
        content = json_files.read_object(path)
    except json_files.MissingError:
        raise DataError(f"{folder} has no {MANIFEST}, as mrl_jax.embed writes it") from None
    where = str(path)
    if (schema := field(content, "schema", int, where)) != SCHEMA:
        raise DataError(f"{path} is of schema {schema}, {SCHEMA} is read")
    shards = tuple(
        Shard(field(shard, "rows", int, where), field(shard, "sha256", dict, where))
        for shard in field(content, "shards", list, where)
    )
    manifest = Manifest(
        field(content, "width", int, where),
        field(content, "format", str, where),
        shards,
        field(content, "made_from", dict, where),
    )
    whole = (
        manifest.format in get_args(Format)
        and manifest.width > 0
        and shards
        and all(shard.rows > 0 for shard in shards)
        and manifest.rows == field(content, "rows", int, where)
    )
    if not whole:
        raise DataError(f"{path} is damaged: its format, width and rows do not go together")
    return manifest


def write_shard(
    folder: pathlib.Path,
    manifest: Manifest,
    index: int,
    ids_n: np.ndarray,
    z_nd: np.ndarray,
    names: Sequence[str] | None = None,
) -> dict[str, str]:
    """Writes the files of one shard, each whole or not at all.

    Args:
      folder: of the manifest.
      manifest: which shards there are.
      index: of the shard.
      ids_n: [rows] int64.
      z_nd: [rows, width] float32.
      names: of the vectors, for Parquet.

    Returns:
      The sha256 of every file, for `Manifest.with_shard`.
    """
    sha256 = {}
    for name, array in zip(manifest.files(index), (z_nd, ids_n), strict=False):
        with files.whole(folder / name) as part:
            if manifest.format == "parquet":
                _write_parquet(part, ids_n, z_nd, names)
            else:
                with part.open("wb") as file:  # np.save appends .npy to names that lack it
                    np.save(file, array, allow_pickle=False)
            sha256[name] = files.sha256(part)
    return sha256


def _write_parquet(path, ids_n, z_nd, names) -> None:
    pq = tables.parquet()
    import pyarrow as pa

    width = z_nd.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(z_nd.ravel()), width)
    columns = {"id": pa.array(ids_n), "vector": vectors}
    if names is not None:
        columns["name"] = pa.array(names, pa.string())
    pq.write_table(
        pa.table(columns),
        path,
        row_group_size=max(_GROUP_BYTES // (4 * width), 1),
        compression="none",  # floats hardly get smaller
        use_dictionary=False,
        write_page_checksum=True,
    )


def intact(folder: pathlib.Path, manifest: Manifest, index: int) -> bool:
    """Whether a shard is finished and every byte of its files is as it was written."""
    expected = manifest.shards[index].sha256
    try:
        return bool(expected) and expected == {
            name: files.sha256(folder / name) for name in manifest.files(index)
        }
    except OSError:
        return False
