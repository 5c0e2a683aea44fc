"""What comes from the cache is bit for bit what is made in memory."""

import gzip
import json
import os

import jax
import numpy as np
import pytest
import text_models

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.data import text, token_cache
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_batches import TrainTexts
from mrl_jax.data.text_files import Reading, read_rows
from mrl_jax.data.token_cache import Tokens, tokens_of, vectors_of, vocabulary_of
from mrl_jax.errors import DataError, UsageError
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

SENTENCES = text_models.SENTENCES


def drawn(rng, count):
    return [SENTENCES[i] for i in rng.integers(0, len(SENTENCES), count)]


def rows(kind, count=60):
    """With repeated texts and repeated rows."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        if kind == "groups":
            made.append({"texts": [f"é{rng.integers(0, 99)} {t}" for t in drawn(rng, 3)] + ["ü"]})
        else:
            one = dict(zip(("anchor", "positive"), drawn(rng, 2), strict=True))
            more = {
                "pairs": {},
                "triplets": {"negatives": drawn(rng, 2)},
                "scored": {"score": float(rng.normal())},
            }
            made.append({**one, **more[kind]})
    return [*made, *made[:5]]


def jsonl(path, content):
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def load(file, cache="", **options):
    return text.load(files=(f"train={file}",), cache=str(cache), **options)


def parquet(path, content):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(content), path)
    return path


@pytest.mark.parametrize(
    ("kind", "name", "write"),
    [
        ("groups", "t.jsonl.gz", jsonl),
        ("pairs", "t.jsonl", jsonl),
        ("triplets", "t.parquet", parquet),
        ("scored", "t.parquet", parquet),
    ],
)
def test_a_split_and_its_batches_are_the_same(tmp_path, kind, name, write):
    file, cache = write(tmp_path / name, rows(kind)), tmp_path / "cache"
    found = [load(file, where) for where in ("", cache, cache)]
    assert len({data.summary() for data in found}) == 1
    assert "rows repeat another" in found[0].summary()
    assert len({data.digest for data in found}) == 1
    plain, *kept = (data.splits["train"] for data in found)
    assert plain.source == ""
    assert kept[0].source == kept[1].source == next(cache.glob("texts-*")).name
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    tokenizer, batches = text_models.tokenizer(), []
    for split, where in ((plain, ""), *((split, str(cache)) for split in kept)):
        assert split.kind == kind
        source = TrainTexts(
            split,
            lambda side, split=split, where=where: tokens_of(
                split.texts, tokenizer, 9, cache=where, source=split.source
            ),
            9,
        )
        batches.append(source.batches(8, 3, sharding))
    for step in (0, 1, 70):
        one, *others = (batch.host_batch(step) for batch in batches)
        for other in others:
            assert one.keys() == other.keys()
            for key, values in one.items():
                assert values.dtype == other[key].dtype
                np.testing.assert_array_equal(values, other[key])


def test_texts_are_numbered_and_joined_as_sets_would(tmp_path):
    content = rows("groups", 200)
    split = load(jsonl(tmp_path / "t.jsonl", content), tmp_path).splits["train"]
    numbers = {
        t: i for i, t in enumerate(dict.fromkeys(t for row in content for t in row["texts"]))
    }
    assert tuple(split.texts) == tuple(numbers)
    sets = []
    for row, start, end in zip(content, split.starts, split.starts[1:], strict=False):
        group = list(dict.fromkeys(numbers[t] for t in row["texts"]))
        assert split.members[start:end].tolist() == group
        joined = set(group).union(*(s for s in sets if s & set(group)))
        sets = [s for s in sets if not s & joined] + [joined]
    assert {frozenset(s) for s in sets} == {
        frozenset(np.flatnonzero(split.same_t == i).tolist()) for i in set(split.same_t.tolist())
    }
    distinct = {frozenset(row["texts"]) for row in content}
    assert split.repeated == len(content) - len(distinct)


def test_a_changed_file_is_noticed_by_its_content(tmp_path):
    file, cache = jsonl(tmp_path / "t.jsonl", [{"anchor": "a", "positive": "b"}]), tmp_path / "c"
    assert list(load(file, cache).splits["train"].texts) == ["a", "b"]
    before = file.stat()
    jsonl(file, [{"anchor": "a", "positive": "c"}])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert list(load(file, cache).splits["train"].texts) == ["a", "c"]
    # Other columns of the same file are other data, and the file may move.
    columns = ("anchor=positive", "positive=anchor")
    assert list(load(file, cache, columns=columns).splits["train"].texts) == ["c", "a"]
    moved = file.rename(tmp_path / "moved.jsonl")
    load(moved, cache)
    assert len(list(cache.glob("texts-*"))) == 3


def test_what_is_dropped_is_known_the_second_time(tmp_path):
    content = [*rows("pairs", 9), {"anchor": "x", "positive": "y", "flag": True}]
    file = jsonl(tmp_path / "t.jsonl", content)
    for _ in range(2):
        data = load(file, tmp_path / "cache", drop=("flag",))
        assert data.dropped == 1
        assert "1 rows dropped" in data.summary()
        with pytest.raises(UsageError, match="no row has a column 'flagg'"):
            load(file, tmp_path / "cache", drop=("flagg",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"anchor": "a"}', "line 2: column positive is missing"),
        ('{"anchor": "a", "positive": "\\ud800"}', "line 2: positive is not valid Unicode"),
    ],
)
def test_a_damaged_file_leaves_nothing_in_the_cache(tmp_path, content, message):
    file, cache = jsonl(tmp_path / "t.jsonl", rows("pairs", 1)[:1]), tmp_path / "cache"
    file.write_text(file.read_text() + content)
    for where in ("", cache):
        with pytest.raises(DataError, match=message) as error:
            load(file, where)
        assert str(file) in str(error.value)
    assert [path.name for path in cache.iterdir()] == [".lock"]
    file.write_text("\n")
    with pytest.raises(DataError, match=r"t\.jsonl has no rows"):
        load(file, cache)
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "nowhere.jsonl", cache)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"score": 1e300', "line 1: score must be a finite number, got 1e\\+300"),  # float32: inf
        (f'"score": 1{"0" * 400}', "line 1: score must be a finite number, got 1000"),
        (f'"deep": {"[" * 100000}', "line 1: brackets are nested"),
    ],
    ids=["beyond float32", "beyond float64", "deep"],
)
def test_what_json_can_say_and_arrays_cannot(tmp_path, value, message):
    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"anchor": "a", "positive": "b", {value}}}\n')
    with pytest.raises(DataError, match=message):
        load(file)


def test_a_damaged_stream_of_gzip(tmp_path):
    file = jsonl(tmp_path / "t.jsonl.gz", rows("pairs", 200))
    content = bytearray(file.read_bytes())
    content[10] |= 6  # a kind of block that there is not
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*invalid block type"):
        load(file)


def test_parquet_that_cannot_be_meant(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file, one = tmp_path / "t.parquet", pyarrow.array(["a"])
    parts = [None, pyarrow.py_buffer(np.int32([0, 1])), pyarrow.py_buffer(b"\xff")]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, parts)
    for columns, names, message in (
        ([one, broken], ["anchor", "positive"], "cannot read .*utf-8"),
        ([one, one, one], ["anchor", "positive", "anchor"], "two columns of the same name"),
    ):
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), file)
        with pytest.raises(DataError, match=message):
            load(file)


def test_parquet_that_changes_while_it_is_read_is_refused(tmp_path):
    file, reading = parquet(tmp_path / "t.parquet", rows("pairs", 3)), Reading()
    found = read_rows(file, reading)
    next(found)
    os.utime(file, ns=(0, 0))
    with pytest.raises(DataError, match="was changed while it was read"):
        list(found)
    assert reading.digests == []


def test_tokens_are_made_in_parts_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART", 5)
    monkeypatch.setattr(token_cache, "PART_LETTERS", 60)
    tokenizer, cache = text_models.tokenizer(), str(tmp_path)
    expected = Tokens.of(tokenizer.encode(list(SENTENCES), 8))
    for texts in (iter(SENTENCES), None):
        # The second time nobody even looks at the texts.
        found = tokens_of(texts, tokenizer, 8, cache=cache, source="s")
        np.testing.assert_array_equal(found.flat, expected.flat)
        np.testing.assert_array_equal(found.starts, expected.starts)
        assert (found.flat.dtype, found.starts.dtype) == (np.int32, np.int64)
    longer = tokens_of(SENTENCES, tokenizer, 20, cache=cache, source="s")
    assert longer.lengths.max() > 8
    bare = tokens_of(SENTENCES, text_models.tokenizer(marks=False), 8, cache=cache, source="s")
    assert bare.flat[0] != expected.flat[0]
    assert len(list(tmp_path.glob("tokens-*"))) == 3
    assert len(tokens_of([], tokenizer, 8, cache=cache, source="none")) == 0


def test_vectors_are_made_in_parts_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART_VECTORS", 7)
    asked = []

    def embed(texts):
        asked.append(len(texts))
        return np.array([[len(text), 1] for text in texts])

    for _ in range(2):
        found = vectors_of(SENTENCES, embed, cache=str(tmp_path), source="s")
        np.testing.assert_array_equal(found, np.float32([[len(t), 1] for t in SENTENCES]))
    assert asked == [7, 7, 7, 3]


def test_a_vocabulary_is_the_same_from_memory_stream_and_cache(tmp_path):
    expected = text_models.Tokenizer.train(iter(SENTENCES), 90).raw.to_str()
    kept = {"cache": str(tmp_path), "source": "s"}
    for texts, options in ((Strings.of(SENTENCES), {}), (SENTENCES, kept), ((), kept)):
        found = vocabulary_of(texts, 90, marks=False, **options)
        assert found.raw.to_str() == expected
        assert not found.marks


def test_strings_are_a_sequence():
    texts = ("a", "", "é\0", "drei vier")
    found = Strings.of(texts)
    assert len(found) == 4
    assert tuple(found) == tuple(found[i] for i in range(4)) == texts
    assert found[-1] == "drei vier"
    assert found[::2] == ["a", "é\0"]
    assert found[1:][:2] == ["", "é\0"]
    with pytest.raises(IndexError):
        found[4]
    assert list(Strings.of([])) == []


def test_a_run_reads_the_same_with_a_cache_and_a_teacher(tmp_path):
    folder, teacher = tmp_path / "texts", tmp_path / "teacher"
    folder.mkdir()
    jsonl(folder / "train.jsonl", rows("pairs"))
    text_models.static_folder(teacher, width=8)
    small = {
        **{"data.path": folder, "text.width": 8, "text.vocab_size": 90, "nesting.dims": "4,8"},
        **{"eval.dims": "4,8"},
        **{"batch_size": 16, "eval.batch_size": 16, "pairs.teacher": teacher},
        **{"pairs.loss": "distill_similarity", "optimizer.warmup_steps": 5},
    }
    found = []
    for cache in ("", tmp_path / "cache", tmp_path / "cache"):
        sets = [f"--config.{key}={value}" for key, value in {**small, "data.cache": cache}.items()]
        setup = experiment.from_config(configs.load("configs/static_sentence.py", sets))
        found.append((setup.dataset.fingerprint(), setup.notes, setup.batches(0).host_batch(3)))
    (mark, note, batch), *others = found
    assert "anchor_teacher" in batch
    for other_mark, other_note, other in others:
        assert (other_mark, other_note) == (mark, note)
        assert other.keys() == batch.keys()
        for key, values in batch.items():
            np.testing.assert_array_equal(values, other[key])
    kinds = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*-*"))
    assert kinds == ["texts", "tokens", "vectors", "vocabulary"]
