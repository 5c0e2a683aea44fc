"""Where photos with captions come from: files of captions, tar shards, or a data set of TFDS."""

import contextlib
import os
import pathlib
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from mrl_jax.data.array_cache import Parts, stored
from mrl_jax.data.folder import Chosen, File, FolderRecords
from mrl_jax.data.images import IMAGE_SUFFIXES, LEGAL
from mrl_jax.data.named import SPLITS
from mrl_jax.data.remarks import Remarks, left_in
from mrl_jax.data.strings import Strings
from mrl_jax.data.tar_shards import TarRecords, find_shards, is_shard, read_at, samples
from mrl_jax.data.text_files import MOST_BYTES, Reading, find_files, read_rows, sha256
from mrl_jax.data.text_rows import Distinct, utf8
from mrl_jax.data.tfds import TfdsRecords, check_parts, open_parts
from mrl_jax.errors import DataError, UsageError, listed, shown
from mrl_jax.store import inputs, json_files

# Names of the columns, the first that a row has.
PHOTO = ("image", "file_name", "filename", "filepath")
CAPTION = ("caption", "captions", "text", "title", "sentence")
COLUMNS = {"photo": list(PHOTO), "caption": list(CAPTION)}


class Where(NamedTuple):
    """Where the data lie: keys of the config below `data`, see `keys.py`."""

    path: str = ""
    files: Sequence[str] = ()
    images: str = ""
    dataset: str = ""
    splits: Sequence[str] = ()
    cache: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return self.dataset or self.path or ", ".join(self.files)


class Pairs(NamedTuple):
    """P photos and N different pairs of a photo and a caption, in the order of the photos.

    `records` are the photos, see `data.folder.FolderRecords`, and `names` [P] what they are called;
    `texts` the different captions; `photo_n` and `text_n` [N] int32 the numbers of a pair.
    """

    records: Any
    names: Sequence[str]
    texts: Strings
    photo_n: np.ndarray
    text_n: np.ndarray


class _Rows:
    """Collects photos with captions in arrays: no object per photo or caption is kept."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self._photos, self._texts = Distinct(parts, "photo"), Distinct(parts, "text")
        self._sizes = array("i")  # captions of each row

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, photo: str, captions: list[bytes]) -> None:
        """One more row."""
        self._photos.add(photo.encode())
        for caption in captions:
            self._texts.add(caption)
        self._sizes.append(len(captions))

    def finish(self, remarks: Remarks) -> None:
        """Writes `photos` and `texts` with their starts, and the pairs as `photo` and `text`."""
        photo_r, _ = self._photos.finish()
        text_m, _ = self._texts.finish()
        photo_m = np.repeat(photo_r, np.frombuffer(self._sizes, np.int32))
        place_n = _first_of_pairs(photo_m, text_m)
        if len(place_n) < len(text_m):
            repeated = np.setdiff1d(np.arange(len(text_m)), place_n)
            texts = Strings(self.parts.array("texts"), self.parts.array("text_starts"))
            first = shown(texts[int(text_m[repeated[0]])])
            remarks.add("captions that their photo has already", first, len(repeated))
        self.parts.append("photo", photo_m[place_n])
        self.parts.append("text", text_m[place_n])


def _first_of_pairs(photo_m: np.ndarray, text_m: np.ndarray) -> np.ndarray:
    """Where each different pair stands first, in the order of photos and texts."""
    return np.unique(photo_m.astype(np.int64) << 32 | text_m, return_index=True)[1]


class _Source(Protocol):
    """Where one split comes from; `name` is for messages."""

    name: str

    def facts(self) -> dict[str, Any]:
        """What its pairs depend on, as JSON."""

    def read(self, rows: _Rows, remarks: Remarks) -> dict[str, Any]:
        """Adds all photos and captions; gives the facts as they were found on the way."""

    def records(self, names: Strings, arrays: Mapping[str, np.ndarray]) -> Any:
        """The photos of these names."""


class _Files(NamedTuple):
    """Files of captions: names of photos start at a folder, or at the file's own."""

    name: str
    files: Sequence[pathlib.Path]
    images: str

    @property
    def _root(self) -> pathlib.Path:
        return pathlib.Path(self.images) if self.images else self.files[0].parent

    def _follows(self) -> dict[str, Any]:
        folders = [self._before(file) for file in self.files]
        return {"columns": COLUMNS, "folders": folders}

    def _before(self, file: pathlib.Path) -> str:
        """What is put before the names in a file, "" where they start at the root."""
        other = not self.images and file.parent != self._root
        return str(file.parent.absolute()) if other else ""

    def facts(self) -> dict[str, Any]:
        return {**self._follows(), "files": [sha256(file) for file in self.files]}

    def read(self, rows: _Rows, remarks: Remarks) -> dict[str, Any]:
        total = sum(file.stat().st_size for file in self.files if file.exists())
        unread: dict[str, None] = {}
        with _bar(f"reading {self.name}", total) as bar:
            reading = Reading(bar.update)
            for file in self.files:
                before = self._before(file)
                for where, values in read_rows(file, reading):
                    photo = _column(values, PHOTO, where)
                    caption = _column(values, CAPTION, where)
                    name = utf8(values[photo], photo, where).decode()
                    if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                        raise DataError(
                            f"{where}: {photo} must name an image file ({LEGAL}), got {shown(name)}"
                        )
                    captions = _listed(values[caption], caption, where)
                    rows.add(os.path.join(before, name), captions)
                    unread |= dict.fromkeys(values.keys() - {photo, caption})
        for column in sorted(unread):
            remarks.add("not read (other columns)", column)
        return {**self._follows(), "files": reading.digests}

    def records(self, names: Strings, arrays: Mapping[str, np.ndarray]) -> FolderRecords:
        del arrays
        about_p3, missing = np.zeros((3, len(names)), np.uint64), []
        for row, name in enumerate(names):
            path = os.path.join(self._root, name)
            try:
                about = os.stat(path)
            except (OSError, ValueError) as error:
                missing = missing or [f"{path}: {getattr(error, 'strerror', None) or error}", 0]
                missing[1] += 1
                continue
            if not stat.S_ISREG(about.st_mode):
                inputs.check_file(path)
            about_p3[:, row] = File.of(about)
        if missing:
            more = f" ({missing[1]:,} of {len(names):,} photos cannot be)"
            raise DataError(f"cannot read image {missing[0]}" + more * (missing[1] > 1))
        size, modified, place = about_p3
        size, modified = size.astype(np.int64), modified.astype(np.int64)
        return FolderRecords(
            self._root, names, size, modified, np.zeros(len(names), np.int32), place
        )


def _column(values: Mapping[str, Any], legal: tuple[str, ...], where: str) -> str:
    for column in legal:
        if column in values:
            return column
    raise DataError(
        f"{where}: needs one of the columns {', '.join(legal)}; found {listed(values) or 'none'}"
    )


def _listed(value: Any, column: str, where: str) -> list[bytes]:
    captions = value if isinstance(value, list) else [value]
    if not captions:
        raise DataError(f"{where}: {column} is empty")
    return [utf8(caption, column, where) for caption in captions]


class _Shards(NamedTuple):
    """Tar shards: a caption for every line of KEY.txt, or those in KEY.json."""

    name: str
    paths: Sequence[pathlib.Path]

    @property
    def _root(self) -> pathlib.Path:
        one = len({path.parent for path in self.paths}) == 1
        return self.paths[0].parent if one else pathlib.Path()

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(os.path.relpath(path, self._root) for path in self.paths)

    def facts(self) -> dict[str, Any]:
        shards = []
        for name, path in zip(self._names, self.paths, strict=True):
            try:
                about = path.stat()
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            shards.append([name, about.st_size, about.st_mtime_ns])
        return {"shards": shards, "columns": COLUMNS}

    def read(self, rows: _Rows, remarks: Remarks) -> dict[str, Any]:
        facts = self.facts()
        with _bar(f"reading {self.name}", sum(size for _, size, _ in facts["shards"])) as bar:
            for number, (name, size, _) in enumerate(facts["shards"]):
                places = array("q")
                for image, captions in _captioned(self.paths[number], remarks):
                    rows.add(f"{name}/{image.name}", captions)
                    places.extend((image.offset, image.size))
                offset_n, size_n = np.frombuffer(places, np.int64).reshape(-1, 2).T
                rows.parts.append("offset", offset_n)
                rows.parts.append("size", size_n)
                rows.parts.append("shard", np.full(len(size_n), number, np.int32))
                bar.update(size)
        return facts

    def records(self, names: Strings, arrays: Mapping[str, np.ndarray]) -> TarRecords:
        return TarRecords.of(self._root, self._names, names, arrays)


def _captioned(path: pathlib.Path, remarks: Remarks) -> Iterator[tuple[Any, list[bytes]]]:
    """The photos of a shard, as members, with their captions."""
    for key, members in samples(path, remarks):
        where = f"{path}: {key}"
        images = [kind for kind in members if f".{kind}" in IMAGE_SUFFIXES]
        texts = [kind for kind in ("txt", "json") if kind in members]
        captions: list[bytes] = []
        if images and texts:
            member = members[texts[0]]
            if member.size > MOST_BYTES:
                raise DataError(f"{path}: {member.name} has more than {MOST_BYTES:,} bytes")
            content = read_at(path, member)
            captions = _OF_TEXT[texts[0]](content, f"{path}: {member.name}")
        if captions:
            yield members[images[0]], captions
        elif images:
            remarks.add("not read (photos without a caption)", where)
        elif texts:
            remarks.add("not read (captions without a photo)", where)
        read = {*images[:1], *texts[:1]}
        for kind in members.keys() - read:
            remarks.add("not read (other members of a key)", f"{path}: {members[kind].name}")


def _of_txt(content: bytes, where: str) -> list[bytes]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason})") from error
    return [line.strip().encode() for line in lines if line.strip()]


def _of_json(content: bytes, where: str) -> list[bytes]:
    values = json_files.parse(content, where, strict=False)
    if not isinstance(values, dict):
        raise DataError(f"{where}: must be a JSON object, got {shown(values)}")
    column = _column(values, CAPTION, where)
    found = values[column] if isinstance(values[column], list) else [values[column]]
    # Of pages without an alternative text, crawlers write null or nothing.
    found = [text for text in found if text is not None and text != ""]
    return [utf8(text, column, where) for text in found]


_OF_TEXT = {"txt": _of_txt, "json": _of_json}


class _OfTfds(NamedTuple):
    """A split of a data set of TFDS, with captions in one of its features."""

    name: str
    examples: TfdsRecords
    feature: str

    def facts(self) -> dict[str, Any]:
        return {"examples": self.examples.identity, "columns": COLUMNS}

    def read(self, rows: _Rows, remarks: Remarks) -> dict[str, Any]:
        examples = self.examples
        for row in tqdm(
            range(len(examples)), f"reading {self.name}", unit="img", disable=None, delay=2
        ):
            where = f"{examples.part}[{row}]"
            if captions := _texts(examples.example(row)[self.feature], f"{examples.name}:{where}"):
                rows.add(where, captions)
                rows.parts.append("row", np.array([row]))
            else:
                remarks.add("not read (photos without a caption)", where)
        return self.facts()

    def records(self, names: Strings, arrays: Mapping[str, np.ndarray]) -> Chosen:
        del names
        return Chosen(self.examples, arrays["row"])


def _texts(value: Any, where: str) -> list[bytes]:
    """The captions in a feature: texts, a list of them, or a table of which one column has them."""
    if isinstance(value, Mapping):
        return _texts(value[_column(value, CAPTION, where)], where)
    if isinstance(value, bytes):
        return _of_txt(value, where)
    if isinstance(value, str):
        return [utf8(value, "caption", where)] if value else []
    if isinstance(value, list | tuple | np.ndarray):
        return [text for one in value for text in _texts(one, where)]
    raise DataError(f"{where}: a caption must be a text, got {shown(value)}")


def _bar(name: str, total: int) -> tqdm:
    return tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None, delay=2)


def open_pairs(
    where: Where, remarks: Mapping[str, Remarks], *, train: bool
) -> tuple[dict[str, Pairs], list[str]]:
    """All splits, and lines on what else lies beside them.

    Args:
      where: they are.
      remarks: collect what is not read, by split.
      train: whether training pairs are needed. If not, that split may be missing.

    Raises:
      UsageError: keys that contradict each other, or a file of another kind.
      DataError: captions or photos are missing or damaged; names the line, the file or the shard.
    """
    sources, notes = _sources(where, train)
    return {
        split: _pairs(where, source, remarks[split]) for split, source in sources.items()
    }, notes


def _sources(where: Where, train: bool) -> tuple[dict[str, _Source], list[str]]:
    path, files = where.path, where.files
    info = pathlib.Path(path) / "dataset_info.json"
    if where.dataset or (path and not files and info.is_file()):
        if files or where.images:
            raise UsageError(
                "config.data.files and config.data.images are not for data sets of TFDS"
            )
        return _of_tfds(where, train)
    if where.splits:
        raise UsageError("config.data.splits is for data sets of TFDS, see config.data.dataset")
    found = find_shards(pathlib.Path(path)) if path and not files else {}
    if not found:
        found = find_files(path, files, train=train)
    elif not found.keys() & {*(("train",) if train else SPLITS)}:
        raise DataError(f"{path} has no train split (train-000.tar or so)")
    sources: dict[str, _Source] = {}
    for split, paths in found.items():
        if len({os.path.abspath(file) for file in paths}) < len(paths):
            raise UsageError(f"config.data.files: {split} has one file twice")
        kinds = {is_shard(file) for file in paths}
        if len(kinds) > 1:
            raise UsageError(f"config.data.files: {split} has both tar shards and other files")
        shards = kinds == {True}
        if shards and where.images:
            raise UsageError("config.data.images is not for tar shards, which hold their photos")
        sources[split] = _Shards(split, paths) if shards else _Files(split, paths, where.images)
    read = [file for paths in found.values() for file in paths]
    notes = left_in(path, [*read, *_beside(sources, path, read)])
    for folder in sorted({file.parent for file in read} - {pathlib.Path(path)}) if path else ():
        notes += left_in(str(folder), read)
    return sources, notes


def _beside(
    sources: Mapping[str, _Source], path: str, read: Sequence[pathlib.Path]
) -> Iterator[pathlib.Path]:
    """What lies in a folder beside the files that are read, and belongs to them."""
    yield from (file.parent for file in read)
    if path and any(isinstance(source, _Files) for source in sources.values()):
        with contextlib.suppress(PermissionError):  # a folder may be read without being listed
            for entry in pathlib.Path(path).iterdir():
                if entry.suffix.lower() in IMAGE_SUFFIXES or entry.is_dir():
                    yield entry


def _of_tfds(where: Where, train: bool) -> tuple[dict[str, _Source], list[str]]:
    remarks = Remarks()
    builder, opened = open_parts(
        where.dataset, where.path, where.splits, {"image": "Image"}, train=train
    )
    features = dict.fromkeys(sorted(builder.info.features))
    feature = _column(features, CAPTION, f"TFDS data set {builder.name!r}")
    check_parts(builder, opened, opened, remarks, train=train, needed="captions")
    sources = {split: _OfTfds(split, found, feature) for split, found in opened.items()}
    return sources, remarks.lines()


def _pairs(where: Where, source: _Source, remarks: Remarks) -> Pairs:
    def write(parts: Parts):
        seen, rows = Remarks(), _Rows(parts)
        facts = source.read(rows, seen)
        if not len(rows):
            raise DataError(f"{where.name}: {source.name} has no photo with a caption")
        rows.finish(seen)
        return facts, {"remarks": seen.counts()}

    found = stored(where.cache, "captions", source.facts, write)
    remarks.add_counts(found.values["remarks"])
    arrays = found.arrays
    names = Strings(arrays["photos"], arrays["photo_starts"])
    texts = Strings(arrays["texts"], arrays["text_starts"])
    records = source.records(names, arrays)
    pairs = Pairs(records, names, texts, arrays["photo"], arrays["text"])
    return _once(pairs, remarks) if isinstance(records, FolderRecords) else pairs


def _once(pairs: Pairs, remarks: Remarks) -> Pairs:
    """The same with one photo for all names of one file: links, or several ways to write a path."""
    r = pairs.records
    # A file system that does not number its files gives all of them one number.
    file_p3 = np.stack([r.place.view(np.int64), r.size, r.modified], 1)
    _, first, other_p = np.unique(file_p3, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(file_p3):
        return pairs
    kept = np.sort(first)
    repeated = np.setdiff1d(np.arange(len(file_p3)), kept)
    remarks.add("other names of photos", pairs.names[int(repeated[0])], len(repeated))
    number_p = np.searchsorted(kept, first)[other_p.ravel()].astype(np.int32)
    photo_n = number_p[pairs.photo_n]
    place_n = _first_of_pairs(photo_n, pairs.text_n)
    names = Strings.of(pairs.names[row] for row in kept.tolist())
    records = FolderRecords(
        r.root, names, r.size[kept], r.modified[kept], r.label[kept], r.place[kept]
    )
    return Pairs(records, names, pairs.texts, photo_n[place_n], pairs.text_n[place_n])
