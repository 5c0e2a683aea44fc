"""What changes an index: each is there at once, when the manifest names it, or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import approximate, clusters, files, pages, segment
from mrl_jax.search.index.rows import Rows
from mrl_jax.search.index.segment import Alive, Shared
from mrl_jax.search.index.snapshot import Snapshot
from mrl_jax.search.plan import Plan

with extras.needed("search", "an index"):
    import pyarrow as pa


def check_new(folder: pathlib.Path) -> None:
    """UsageError if a folder that is to be written is there."""
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or give another folder")


def build(folder: pathlib.Path, source: Rows, plan: Plan, seed: int, progress: bool) -> None:
    """Writes an index; the folder appears when it is whole. Raises as `Index.build`."""
    if plan.schedule.final > source.width:
        raise DataError(
            f"the plan {plan.schedule} needs {plan.schedule.final} dims, "
            f"the vectors have {source.width}"
        )
    if plan.lists > source.rows:
        raise DataError(f"the plan has {plan.lists} lists, there are {source.rows} vectors")
    with files.finished(folder) as temporary:
        about_shared = _write_shared(temporary / "shared-00001", source, plan, seed)
        shared = Shared(pages.Folder(temporary / "shared-00001", about_shared), plan)
        about = _write_segment(temporary / "segment-00001", source, plan, shared, progress)
        content = {"version": 1, "plan": plan.to_json(), "width": source.width}
        content |= {"shared": about_shared, "segments": [about]}
        files.write_manifest(temporary, content)


def copy(now: Snapshot, folder: pathlib.Path) -> None:
    """Copies an index, which nobody may change meanwhile; the folder appears when it is whole."""
    with files.finished(folder) as temporary:
        for name in _named(now.manifest):
            if (now.folder / name).is_dir():
                ignored = shutil.ignore_patterns(files.LOCK)
                shutil.copytree(now.folder / name, temporary / name, ignore=ignored)
            else:
                shutil.copyfile(now.folder / name, temporary / name)
        files.write_manifest(temporary, now.manifest)


@contextlib.contextmanager
def begun(now: Snapshot) -> Iterator[Snapshot]:
    """The index as it is on disk now, which no other command can change meanwhile."""
    with files.writing(now.folder), files.written(now.folder):
        manifest = files.read_manifest(now.folder)
        # Of commands that were stopped; below, of this one.
        files.remove_left_overs(now.folder, _named(manifest))
        try:
            yield now if manifest == now.manifest else Snapshot.read(now.folder)
        finally:
            # What cannot be removed now is removed before the next change.
            with contextlib.suppress(OSError, DataError):
                manifest = files.read_manifest(now.folder)
                files.remove_left_overs(now.folder, _named(manifest))


def add(now: Snapshot, source: Rows, progress: bool) -> Snapshot:
    """More rows, whose ids must be new."""
    found_n = now.places(source.ids)[0] >= 0
    if found_n.any():
        raise DataError(f"id {source.ids[found_n.argmax()].as_py()} is in the index already")
    return _commit(now, [*now.manifest["segments"], _added(now, source, progress)])


def upsert(now: Snapshot, source: Rows, progress: bool) -> Snapshot:
    """More rows, in place of those that have their ids."""
    about = _added(now, source, progress)
    return _commit(now, [*_without(now, *now.places(source.ids)), about])


def delete(now: Snapshot, ids: pa.Array) -> Snapshot:
    """Less by the rows of these ids, which must be there."""
    ids = ids.unique()
    return _commit(now, _without(now, *found(now, ids)))


def compact(now: Snapshot, progress: bool) -> Snapshot:
    """The same rows in one segment."""
    source = Alive(now.segments, now.width)
    if not source.rows:
        raise DataError(f"{now.folder}: all vectors are deleted; build a new index")
    return _commit(now, [_added(now, source, progress)])


def found(now: Snapshot, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Segments and rows of unique ids, see `Snapshot.places`; DataError if one is not there."""
    segment_n, row_n = now.places(ids)
    if (segment_n < 0).any():
        raise DataError(f"id {ids[segment_n.argmin()].as_py()} is not in the index")
    return segment_n, row_n


def _without(now: Snapshot, segment_n: np.ndarray, row_n: np.ndarray) -> list[dict]:
    """What the manifest says of all segments when these rows are deleted."""
    segments = []
    for s, (part, about) in enumerate(zip(now.segments, now.manifest["segments"], strict=True)):
        gone_n = row_n[segment_n == s]
        if len(gone_n):
            deleted_n = ~part.alive
            deleted_n[gone_n] = True
            path = now.folder / f"{_next(now, 'deleted')}-{about['name']}.npy"
            about = {**about, "deleted": files.write_deleted(path, deleted_n)}
        segments.append(about)
    return segments


def _added(now: Snapshot, source: Rows | Alive, progress: bool) -> dict:
    """Writes a new segment; gives what the manifest says of it."""
    name = _next(now, "segment")
    with files.finished(now.folder / name) as temporary:
        about = _write_segment(temporary, source, now.plan, now.shared, progress)
    return {**about, "name": name}


def _commit(now: Snapshot, segments: list[dict]) -> Snapshot:
    """Opens what is new before the manifest names it: after that nothing can fail."""
    manifest = {**now.manifest, "segments": segments, "version": now.manifest["version"] + 1}
    changed = now.changed(manifest)
    files.write_manifest(now.folder, manifest)
    return changed


def _next(now: Snapshot, kind: str) -> str:
    return f"{kind}-{now.manifest['version'] + 1:05d}"


def _named(manifest: dict) -> set[str]:
    """The files and folders that a manifest names."""
    named = {manifest["shared"]["name"]}
    for about in manifest["segments"]:
        named.add(about["name"])
        if about["deleted"] is not None:
            named.add(about["deleted"]["name"])
    return named


def _write_segment(
    folder: pathlib.Path, source: Rows | Alive, plan: Plan, shared: Shared, progress: bool
) -> dict:
    folder.mkdir(exist_ok=True)
    segment.write(folder, source, plan, shared, progress=progress)
    return {**files.describe(folder), "rows": source.rows, "deleted": None}


def _write_shared(folder: pathlib.Path, source: Rows, plan: Plan, seed: int) -> dict:
    """Fits on examples what all segments are made with; gives what the manifest says of it."""
    folder.mkdir()
    dim = plan.schedule.stages[0].dim if plan.factory else plan.list_dim
    rows = min(source.rows, clusters.EXAMPLES * max(plan.lists, 4096))
    if plan.lists > 1:
        example_nd = source.sample(rows, seed, dim)
        centroid_ld = clusters.fit(example_nd, plan.lists, plan.metric, seed)
        files.save(folder / "centroids.npy", centroid_ld)
    if plan.factory:
        example_nd = source.sample(rows, seed, dim)
        trained = approximate.train(example_nd, plan.factory, plan.parameters, plan.metric)
        approximate.write(trained, folder / "trained.faiss")
    return files.describe(folder)
