"""Photos with captions: what is read of files, tar shards and TFDS, and the batches of it."""

import io
import json
import tarfile

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from mrl_jax.data import Options
from mrl_jax.data.token_cache import Tokens
from mrl_jax.tasks.image_text import captions
from mrl_jax.tasks.image_text.captions import TrainPairs
from mrl_jax.tasks.image_text.sources import Where

SIZE = 4
# The captions of each photo: two have one in common, and one has a caption twice.
ALL = [
    ["a dog", "two\tdogs"],
    ["a cat"],
    ["a dog", "a bird", "a dog"],
    ["ein Vögelchen"],
    ["x", "y"],
]


def photo(grey, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (grey, 2 * grey, 0)).save(file, kind)
    return file.getvalue()


def jsonl(folder, rows, split="train"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)


def as_files(folder):
    (folder / "images").mkdir(parents=True)
    for grey in range(len(ALL)):
        (folder / "images" / f"{grey}.png").write_bytes(photo(grey))
    rows = [{"image": f"images/{i}.png", "captions": texts} for i, texts in enumerate(ALL)]
    jsonl(folder, rows)
    jsonl(folder, rows[:1], "test")
    return {"path": str(folder)}


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def as_shards(folder):
    """Two shards in which keys come again, one with captions in JSON."""
    first = [[(f"{i}.png", photo(i)), (f"{i}.txt", "\n".join(ALL[i]).encode())] for i in (0, 1)]
    second = [
        [(f"{i - 2}.png", photo(i)), (f"{i - 2}.json", json.dumps({"captions": ALL[i]}).encode())]
        for i in (2, 3, 4)
    ]
    for number, samples in enumerate((first, second)):
        tar(folder / f"train-{number:03}.tar", [member for sample in samples for member in sample])
    tar(folder / "test.tar", first[0])
    return {"path": str(folder)}


def load(where, train=True, **options):
    options = Options("image_folder", path="captions", image_size=SIZE, **options)
    return captions.load(options, Where(**where), train=train)


def pairs_of(split):
    """(grey, caption) of all pairs."""
    greys = split.images.image[:, 0, 0, 0] if hasattr(split.images, "image") else None
    if greys is None:
        batches = split.images.padded(2, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        greys = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    pairs = zip(split.photo_n.tolist(), split.text_n.tolist(), strict=True)
    return [(int(greys[p]), split.texts[t]) for p, t in pairs]


EXPECTED = sorted((grey, text) for grey, texts in enumerate(ALL) for text in set(texts))


@pytest.fixture(scope="module", params=[as_files, as_shards], ids=["files", "shards"])
def data(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("stream", [False, True])
def test_every_photo_has_its_captions_once(data, stream):
    splits, notes = load(data, stream=stream)
    assert sorted(pairs_of(splits["train"])) == EXPECTED
    assert sorted(pairs_of(splits["test"])) == [e for e in EXPECTED if e[0] == 0]
    assert notes[0] == "train: 5 photos, 8 pairs, 7 different captions"
    assert notes[1] == "train: captions that their photo has already: 1, the first is 'a dog'"
    ids = splits["train"].ids(np.arange(8))
    assert len(np.unique(ids["image_id"])) == 5
    assert len(np.unique(ids["text_id"])) == 7
    assert not {*ids["image_id"].tolist()} & {*ids["text_id"].tolist()}


def sharding(data, model):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return NamedSharding(Mesh(devices, ("data", "model")), P("data"))


def batches_of(split, layout, steps, vectors=()):
    tokens = Tokens.of([np.arange(1, 2 + i) for i in range(len(split.texts))])
    made = {tower: lambda: np.arange(7.0)[:, None].astype(np.float32) for tower in vectors}
    batches = TrainPairs(split, 9, lambda: tokens, made).batches(8, 3, layout)
    return [{name: np.asarray(x) for name, x in batches(step).items()} for step in steps]


def test_a_batch_is_a_function_of_seed_and_step_alone(data):
    """In memory and streamed, on any mesh, and from any step on."""
    in_memory, streamed = (load(data, stream=stream)[0]["train"] for stream in (False, True))
    expected = batches_of(in_memory, sharding(1, 1), range(4))
    for split in (in_memory, streamed):
        for layout, steps in ((sharding(8, 1), range(4)), (sharding(2, 4), (2, 3))):
            for step, found in zip(steps, batches_of(split, layout, steps), strict=True):
                assert found.keys() == expected[step].keys()
                for name, value in found.items():
                    np.testing.assert_array_equal(value, expected[step][name], name)
    # Eight pairs make an epoch of one batch: all of them are in it, image and text side by side.
    greys = [expected[1]["image"][:, 0, 0, 0].tolist(), expected[1]["text_lengths"].tolist()]
    texts = {n + 1: text for n, text in enumerate(in_memory.texts)}
    assert sorted((g, texts[n]) for g, n in zip(*greys, strict=True)) == EXPECTED


def test_a_process_reads_what_its_devices_hold(data, monkeypatch):
    split = load(data, stream=True)[0]["train"]
    read = []
    records = type(split.images.records)
    original = records.__getitem__
    monkeypatch.setattr(records, "__getitem__", lambda s, row: read.append(row) or original(s, row))
    monkeypatch.setattr("mrl_jax.data.stream.local_positions", lambda *_: np.array([2, 3]))
    stream = split.images.batches(8, 0, sharding(1, 1))
    stream._load(0)
    assert len(read) == 2


def test_what_is_kept_in_a_cache_is_what_is_read(data, tmp_path, monkeypatch):
    fresh, notes = load(data)
    for _ in range(2):
        kept, again = load({**data, "cache": str(tmp_path)})
        assert again == notes
        assert pairs_of(kept["train"]) == pairs_of(fresh["train"])
        assert list(kept["train"].names) == list(fresh["train"].names)
        # The second time no line and no header is read.
        monkeypatch.setattr("mrl_jax.tasks.image_text.sources.read_rows", None)
        monkeypatch.setattr("mrl_jax.tasks.image_text.sources.samples", None)
    assert captions.fingerprint(kept, "") == captions.fingerprint(fresh, "")


def test_a_folder_that_moved_holds_the_same_pairs(tmp_path):
    for number, make in enumerate((as_files, as_shards)):
        old, new = tmp_path / f"old{number}", tmp_path / f"new{number}"
        make(old)
        digests = []
        for folder in (old, new):
            if folder is new:
                old.rename(new)
            splits, _ = load({"path": str(folder), "cache": str(tmp_path / "cache")}, stream=True)
            digests.append(captions.fingerprint(splits, ""))
        assert digests[0] == digests[1]
    assert len(list((tmp_path / "cache").glob("captions-*"))) == 4
