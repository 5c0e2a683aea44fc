"""What changes an index: each is there at once, when the manifest names it, or not at all."""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import (
    backends,
    balance,
    clusters,
    files,
    merging,
    pages,
    rotation,
    segment,
)
from mrl_jax.search.index.ids import KnownIdError, UnknownIdError
from mrl_jax.search.index.rows import Rows
from mrl_jax.search.index.segment import Alive, Segment, Shared
from mrl_jax.search.index.snapshot import Snapshot
from mrl_jax.search.plan import Plan

with extras.needed("search", "an index"):
    import pyarrow as pa

_EXAMPLE_NUMBERS = 2**28  # of whole vectors in memory to learn from, 1 GiB
_log = logging.getLogger(__name__)
_FEW = 100  # one row of so many is a small change, and after so many changes one is looked at


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
        nothing = Snapshot(
            temporary, {**content, "segments": []}, plan, source.width, shared, segments=()
        )
        content["clusters"] = _balanced(nothing.changed(content))
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
def begun(now: Snapshot, wait: float) -> Iterator[Snapshot]:
    """The index as it is on disk now, which no other command can change meanwhile.

    While another one does, this waits for so many seconds; then UsageError.
    """
    with files.writing(now.folder, wait), files.written(now.folder):
        manifest = files.read_manifest(now.folder)
        # Of commands that were stopped; below, of this one.
        files.remove_left_overs(now.folder, _named(manifest))
        try:
            yield now if manifest == now.manifest else Snapshot.read(now.folder, now)
        finally:
            # What cannot be removed now is removed before the next change.
            with contextlib.suppress(OSError, DataError):
                manifest = files.read_manifest(now.folder)
                files.remove_left_overs(now.folder, _named(manifest))


def add(now: Snapshot, source: Rows, progress: bool) -> Snapshot:
    """More rows, whose ids must be new."""
    found_n = now.places(source.ids)[0] >= 0
    if found_n.any():
        one = source.ids[found_n.argmax()].as_py()
        raise KnownIdError(f"id {one} is in the index already")
    nothing = np.empty(0, np.int64)
    return _tidied(_replaced(now, nothing, nothing, source, progress), source.rows)


def upsert(now: Snapshot, source: Rows, progress: bool) -> Snapshot:
    """More rows, in place of those that have their ids."""
    segment_n, row_n = now.places(source.ids)
    there_n = segment_n >= 0
    changed = _replaced(now, segment_n[there_n], row_n[there_n], source, progress)
    return _tidied(changed, source.rows)


def delete(now: Snapshot, ids: pa.Array) -> Snapshot:
    """Less by the rows of these ids, which must be there."""
    ids = ids.unique()
    return _tidied(_replaced(now, *found(now, ids), None, False), len(ids))


def compact(now: Snapshot, progress: bool) -> Snapshot:
    """The same rows in one segment."""
    return _commit(now, [_added(now, _left(now), progress)])


def recluster(now: Snapshot, progress: bool) -> Snapshot:
    """The same rows in one segment, made with what is fitted on them."""
    source, name = _left(now), _next(now, "shared")
    if now.plan.lists > source.rows:
        raise DataError(
            f"{now.folder}: the plan has {now.plan.lists} lists, there are {source.rows} vectors: "
            "build a new index"
        )
    with files.finished(now.folder / name) as temporary:
        about = _write_shared(temporary, source, now.plan, seed=0)
    about = {**about, "name": name}
    shared = Shared(pages.Folder(now.folder / name, about), now.plan)
    # No segment of it is left, as they were made with something else.
    manifest = {**now.manifest, "shared": about, "segments": []}
    now = dataclasses.replace(now, manifest=manifest, shared=shared, segments=())
    segments = [_added(now, source, progress)]
    made = _balanced(now.changed({**manifest, "segments": segments}))
    now = dataclasses.replace(now, manifest={**manifest, "clusters": made})
    return _commit(now, segments)


def _left(now: Snapshot) -> Alive:
    """What is to be written again; DataError if that is nothing."""
    source = Alive(now.segments, now.width)
    if not source.rows:
        raise DataError(f"{now.folder}: all vectors are deleted; build a new index")
    return source


def found(now: Snapshot, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Segments and rows of unique ids, see `Snapshot.places`; UnknownIdError if one is not."""
    segment_n, row_n = now.places(ids)
    if (segment_n < 0).any():
        raise UnknownIdError(f"id {ids[segment_n.argmin()].as_py()} is not in the index")
    return segment_n, row_n


def _replaced(
    now: Snapshot, segment_n: np.ndarray, row_n: np.ndarray, source: Rows | None, progress: bool
) -> Snapshot:
    """Less by these rows, and more by those of a source, which small segments are merged with."""
    parts = list(now.segments)
    for s in np.unique(segment_n).tolist():
        left_n = np.ones(parts[s].rows, bool)
        left_n[row_n[segment_n == s]] = False
        parts[s] = parts[s].only(left_n)
    first = len(parts)
    if source is not None:
        rows_s = [part.alive_rows for part in parts] + [source.rows]
        first = merging.first_merged(rows_s, merging.most_rows(now.plan, now.width, source.rows))
    segments = [_with_deleted(now, s, parts[s]) for s in range(first) if parts[s].alive_rows]
    if source is not None:
        old = Alive([part for part in parts[first:] if part.alive_rows], now.width)
        source = merging.Joined(old, source) if old.rows else source
        segments.append(_added(now, source, progress))
    elif not segments:  # a manifest names one at least
        segments.append(_with_deleted(now, 0, parts[0]))
    # To look at the clusters takes milliseconds, as long as a small change does.
    watched = source is not None and (
        source.rows * _FEW >= now.rows or now.manifest["version"] % _FEW == 0
    )
    changed = _commit(now, segments, watched)
    if not now.plan.schedule.stages and now.rows < balance.FEWEST_ROWS <= changed.rows:
        balance.say_many(now.folder, changed.rows)
    return changed


def _with_deleted(now: Snapshot, s: int, part: Segment) -> dict:
    """What the manifest says of a segment, in which as many rows are found as in `part`."""
    about = now.manifest["segments"][s]
    if part.alive_rows < now.segments[s].alive_rows:
        path = now.folder / f"{_next(now, 'deleted')}-{about['name']}.npy"
        about = {**about, "deleted": files.write_deleted(path, ~part.alive)}
    return about


def _tidied(now: Snapshot, changed: int) -> Snapshot:
    """The same rows, some of them merged if that is due after a change of so many rows.

    The change is on disk: an error here is no error of it.
    """
    span = merging.next_merge(now.segments, merging.most_rows(now.plan, now.width, changed))
    if span is None:
        return now
    try:
        segments = list(now.manifest["segments"])
        segments[span] = [_added(now, Alive(now.segments[span], now.width), False)]
        return _commit(now, segments)
    except (DataError, UsageError) as error:
        _log.warning("%s was changed, but its segments cannot be merged: %s", now.folder, error)
        return now


def _added(now: Snapshot, source: Rows | Alive | merging.Joined, progress: bool) -> dict:
    """Writes a new segment; gives what the manifest says of it."""
    name = _next(now, "segment")
    with files.finished(now.folder / name) as temporary:
        about = _write_segment(temporary, source, now.plan, now.shared, progress)
    return {**about, "name": name}


def _commit(now: Snapshot, segments: list[dict], watched: bool = False) -> Snapshot:
    """Opens what is new before the manifest names it: after that nothing can fail.

    `watched`: whether to say so if the clusters do not suit the rows any more.
    """
    manifest = {**now.manifest, "segments": segments, "version": now.manifest["version"] + 1}
    changed, made, slowdown = now.changed(manifest), manifest["clusters"], 0.0
    if watched and made:
        with contextlib.suppress(DataError):  # of older rows, which those who ask for them are told
            slowdown = changed.slowdown
    said = made and slowdown >= balance.STEP * made["said"]
    if said:
        manifest = {**manifest, "clusters": {**made, "said": slowdown}}
        changed = dataclasses.replace(changed, manifest=manifest)
    files.write_manifest(now.folder, manifest)
    if said:
        balance.say_slower(now.folder, slowdown)
    return changed


def _balanced(now: Snapshot) -> dict[str, float] | None:
    """What the manifest says of new clusters: the share read, and how much slower it was said."""
    share = now.share_read
    return None if share is None else {"read": share, "said": 1.0}


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
    folder: pathlib.Path,
    source: Rows | Alive | merging.Joined,
    plan: Plan,
    shared: Shared,
    progress: bool,
) -> dict:
    folder.mkdir(exist_ok=True)
    segment.write(folder, source, plan, shared, progress=progress)
    return {**files.describe(folder), "rows": source.rows, "deleted": None}


def _write_shared(folder: pathlib.Path, source: Rows | Alive, plan: Plan, seed: int) -> dict:
    """Fits on examples what all segments are made with; gives what the manifest says of it."""
    folder.mkdir(exist_ok=True)
    rows, dims = min(source.rows, clusters.EXAMPLES * max(plan.lists, 4096)), segment.widest(plan)
    if plan.rotated:
        # Of whole vectors fewer fit into memory.
        rows = min(rows, max(_EXAMPLE_NUMBERS // plan.schedule.final, plan.lists))
        example_nd = source.sample(rows, seed, plan.schedule.final)
        rotation_dm = rotation.fit(example_nd[: rotation.EXAMPLES], dims, plan.metric)
        files.save(folder / "rotation.npy", rotation_dm)
        example_nm = example_nd @ rotation_dm
    elif plan.lists > 1 or plan.factory:
        example_nm = source.sample(rows, seed, dims)
    if plan.lists > 1:
        example_nm = example_nm[:, : plan.list_dim]
        centroid_ld = clusters.fit(example_nm, plan.lists, plan.metric, seed)
        files.save(folder / "centroids.npy", centroid_ld)
    if plan.factory:
        backends.of(plan).train(folder, example_nm, plan, seed)
    return files.describe(folder)
