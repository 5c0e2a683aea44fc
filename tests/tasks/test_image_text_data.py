"""Photos with captions: what is read of files, tar shards and TFDS, and the batches of it."""

import dataclasses
import io
import json
import tarfile
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from interop.torch_reference import resnet_state
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from mrl_jax.config import default_config
from mrl_jax.data import Options
from mrl_jax.data.token_cache import Tokens, vocabulary_of
from mrl_jax.errors import DataError, UsageError
from mrl_jax.models import build
from mrl_jax.models.resnet import ResNet
from mrl_jax.nesting import Nesting
from mrl_jax.tasks import text_encoder
from mrl_jax.tasks.image_text import captions, towers
from mrl_jax.tasks.image_text.captions import TrainPairs
from mrl_jax.tasks.image_text.sources import Where
from mrl_jax.tasks.image_text.task import ImageText

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
    """One red all over, and a blue that is another one everywhere."""
    pixels_hwc = np.zeros((5, 6, 3), np.uint8)
    pixels_hwc[..., 0], pixels_hwc[..., 2] = grey, np.arange(30).reshape(5, 6) * 8
    file = io.BytesIO()
    Image.fromarray(pixels_hwc).save(file, kind)
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


def refused(where, message, error=DataError, **options):
    with pytest.raises(error, match=message) as caught:
        load(where, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"photo": "0.png", "caption": "a"},
            "train.jsonl line 2: needs one of the columns image, file_name, filename, filepath; "
            "found photo, caption",
        ),
        (
            {"image": "0.png", "words": "a"},
            "line 2: needs one of the columns caption, captions, .*; found image, words",
        ),
        ({}, "line 2: needs one of the columns .*; found none"),
        ({"image": "0.png", "caption": " "}, "line 2: caption is empty"),
        ({"image": "0.png", "captions": []}, "line 2: captions is empty"),
        ({"image": "0.png", "captions": ["a", None]}, "line 2: captions must be a text, got None"),
        ({"image": "0.png", "caption": "\ud800"}, "line 2: caption is not valid Unicode"),
        ({"image": 3, "caption": "a"}, "line 2: image must be a text, got 3"),
        ({"image": "notes.txt", "caption": "a"}, "line 2: image must name an image file"),
        (
            {"image": "away.png", "captions": ["a", "b"]},
            "cannot read image .*/away.png: No such file or directory$",
        ),
        ({"image": "zero\0.png", "caption": "a"}, "cannot read image .*embedded null byte"),
        ({"image": "folder.png", "caption": "a"}, "folder.png is a folder, where a file is needed"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    (tmp_path / "0.png").write_bytes(photo(1))
    (tmp_path / "folder.png").mkdir()
    jsonl(tmp_path, [{"image": "0.png", "caption": "a"}, row])
    refused({"path": str(tmp_path)}, message)


def test_all_missing_photos_are_counted(tmp_path):
    (tmp_path / "0.png").write_bytes(photo(1))
    jsonl(tmp_path, [{"image": f"{i}.png", "caption": "a"} for i in range(3)])
    message = r"cannot read image .*/1.png: No such file or directory \(2 of 3 photos cannot be\)"
    refused({"path": str(tmp_path)}, message)


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_photo_is_named(tmp_path, stream):
    whole = photo(1, "JPEG")
    tar(tmp_path / "train.tar", [("a.jpg", whole[:-200]), ("a.txt", b"a")])
    (tmp_path / "0.jpg").write_bytes(whole[:-200])
    jsonl(tmp_path, [{"image": "0.jpg", "caption": "a"}])
    files = [f"train={tmp_path}/train.jsonl"]
    wheres = ({"path": str(tmp_path)}, "train.tar: a.jpg"), ({"files": files}, "0.jpg")
    for where, name in wheres:
        with pytest.raises(DataError, match=f"cannot read image .*{name}"):
            pairs_of(load(where, stream=stream)[0]["train"])


def test_names_may_be_absolute_or_lead_up_and_one_file_is_one_photo(tmp_path):
    """However it is called: its captions are never each other's negatives."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(photo(7))
    (tmp_path / "photos" / "1.png").write_bytes(photo(8))
    (tmp_path / "texts" / "link.png").symlink_to("../photos/0.png")
    names = [str(tmp_path / "photos" / "0.png"), "../photos/0.png", "../photos/1.png", "link.png"]
    jsonl(
        tmp_path / "texts",
        [{"image": n, "caption": f"{i}"} for i, n in enumerate([*names, names[0]])],
    )
    splits, notes = load({"path": str(tmp_path / "texts")})
    pairs = pairs_of(splits["train"])
    assert pairs == [(7, "0"), (7, "1"), (7, "3"), (7, "4"), (8, "2")]
    assert list(splits["train"].names) == [names[0], names[2]]
    assert notes[1:] == ["train: other names of photos: 2, the first is ../photos/0.png"]


def test_photos_in_two_splits_and_columns_and_files_beside_are_remarked(tmp_path):
    where = as_files(tmp_path)
    (tmp_path / "extra.csv").touch()
    rows = [{"image": "images/3.png", "caption": "x", "split": "val", "text": "y"}]
    jsonl(tmp_path, rows, "val")
    expected = [
        "val: not read (other columns): 2, the first is split",
        "warning: 1 of 1 images of test are in train as well",
        "warning: 1 of 1 images of val are in train as well",
        f"not read (in no split): 1, the first is {tmp_path}/extra.csv",
    ]
    for stream in (False, True):
        notes = load(where, stream=stream)[1]
        assert sorted(set(notes) & {*expected}) == sorted(expected)
        assert len(notes) == len(expected) + 4  # three splits, and a caption that comes again


def test_files_in_several_folders_name_photos_from_their_own(tmp_path):
    for grey, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(photo(grey))
        (tmp_path / name / "train.tsv").write_text(f"caption\tfile_name\n{name}\t0.png\n")
    files = [f"train={tmp_path / name}/train.tsv" for name in ("a", "b")]
    assert pairs_of(load({"files": files})[0]["train"]) == [(0, "a"), (1, "b")]
    where = {"files": files, "images": str(tmp_path / "b")}
    assert pairs_of(load(where)[0]["train"]) == [(1, "a"), (1, "b")]


def test_what_a_shard_lacks_is_counted(tmp_path):
    """As img2dataset writes them: the caption in words and again among other facts."""
    about = json.dumps({"caption": "a", "url": "u"}).encode()
    sample = [("0.jpg", photo(1, "JPEG")), ("0.txt", b"a\r\n\n b "), ("0.json", about)]
    others = [
        ("1.jpg", photo(2, "JPEG")),
        ("2.txt", b"b"),
        ("3.png", photo(3)),
        ("3.txt", b" \n"),
        ("4.png", photo(4)),
        ("4.json", json.dumps({"caption": None}).encode()),
        ("5.cls", b"7"),
    ]
    path = tar(tmp_path / "train" / "00000.tar", [*sample, *others])
    (tmp_path / "notes").mkdir()
    (tmp_path / "train" / "00000.parquet").touch()
    splits, notes = load({"path": str(tmp_path)})
    assert [text for _, text in pairs_of(splits["train"])] == ["a", "b"]
    assert list(splits["train"].names) == ["00000.tar/0.jpg"]
    assert notes == [
        "train: 1 photos, 2 pairs, 2 different captions",
        f"train: not read (other members of a key): 2, the first is {path}: 0.json",
        f"train: not read (photos without a caption): 3, the first is {path}: 1",
        f"train: not read (captions without a photo): 1, the first is {path}: 2",
        f"not read (in no split): 1, the first is {tmp_path}/notes",
        f"not read (in no split): 1, the first is {tmp_path}/train/00000.parquet",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", b""), ("0.txt", b"\xff")], "train.tar: 0.txt: not UTF-8"),
        ([("0.png", b""), ("0.json", b"[]")], "train.tar: 0.json: must be a JSON object"),
        ([("0.png", b""), ("0.json", b"{")], "train.tar: 0.json"),
        ([("0.png", b""), ("0.json", b'{"url": 1}')], "0.json: needs one of the columns caption"),
        ([("0.png", b"")], "train has no photo with a caption"),
        ([], "train has no photo with a caption"),
    ],
)
def test_wrong_captions_of_shards_are_named(tmp_path, members, message):
    tar(tmp_path / "train.tar", members)
    for cache in ("", str(tmp_path / "cache")):
        refused({"path": str(tmp_path), "cache": cache}, message)
    assert [path.name for path in tmp_path.glob("cache/*")] == [".lock"]


def test_a_trained_model_is_measured_without_training_data(tmp_path):
    for make, train in ((as_files, "train.jsonl"), (as_shards, "train-*.tar")):
        where = make(tmp_path / make.__name__)
        for path in (tmp_path / make.__name__).glob(train):
            path.unlink()
        splits, _ = load(where, train=False)
        assert [grey for grey, _ in pairs_of(splits["test"])] == [0, 0]


def test_keys_that_contradict_each_other_are_refused(tmp_path):
    tar(tmp_path / "train.tar", [])
    jsonl(tmp_path, [])
    both = [f"train={tmp_path}/train.tar", f"train={tmp_path}/train.jsonl"]
    refused({"files": both}, "train has both tar shards and other files", UsageError)
    twice = [f"val={tmp_path}/a.tar", f"val={tmp_path}/./a.tar"]
    refused({"files": [*both[:1], *twice]}, "data.files: val has one file twice", UsageError)
    refused({"path": str(tmp_path), "splits": ["train=train"]}, "data sets of TFDS", UsageError)
    refused({"dataset": "mnist", "images": "a"}, "not for data sets of TFDS", UsageError)
    refused({}, "data.path=FOLDER", UsageError)
    tar(tmp_path / "other" / "test.tar", [])
    refused({"path": str(tmp_path / "other")}, r"has no train split \(train-000.tar or so\)")
    refused({"path": str(tmp_path), "images": "a"}, "images is not for tar shards", UsageError)
    (tmp_path / "train.tar").rename(tmp_path / "train.tar.gz")
    (tmp_path / "train.tar.gz").write_bytes(b"\x1f\x8bxxxxxxxxxxxxxxxx")
    refused({"path": str(tmp_path)}, "train.tar.gz is compressed")


def test_a_shard_that_changed_is_gone_through_again(tmp_path):
    where = {"path": str(tmp_path), "cache": str(tmp_path / "cache")}
    for grey in (1, 2):
        extra = [(f"{i}.cls", b"") for i in range(grey)]
        tar(tmp_path / "train.tar", [*extra, ("a.png", photo(grey)), ("a.txt", b"a")])
        ((grey_found, _),) = pairs_of(load(where)[0]["train"])
        assert grey_found == grey


def towers_of(split, **keys):
    """Both towers with weights of their own, and a config with these keys below data."""
    config = default_config("image_text")
    config.text.encoder, config.text.width, config.eval.batch_size = "static", 3, 2
    config.data.update(keys)
    backbone = build("mlp", embedding_dim=5, width=7, depth=1)
    encoder, _, _ = text_encoder.of_config(config, None, pooling="", width=3)
    tokenizer = vocabulary_of(split.texts, 60)
    encoder = encoder.with_vocabulary(tokenizer.vocab_size)
    image_shape, key = (SIZE, SIZE, 3), jax.random.key(0)
    one = jnp.zeros((1, 2), jnp.int32), jnp.full(1, 2)
    return config, towers.Start(
        *(backbone, encoder, tokenizer, image_shape, (127.5,), (127.5,)),
        image=backbone.init(key, jnp.zeros((1, *image_shape))),
        text=encoder.module.init(key, *one)["params"],
    )


@pytest.fixture
def torch_image_tower(tmp_path):
    """A network of PyTorch in a file, and one like it with a linear layer more on top."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    state = resnet_state((1, 1, 1, 1), False, 4)
    save_file({n: np.ascontiguousarray(x) for n, x in state.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", ResNet((1, 1, 1, 1), False, 4, embedding_dim=6)


ANY = types.SimpleNamespace(texts=["a dog", "a cat"])


def test_what_a_file_of_weights_lacks_starts_fresh(torch_image_tower):
    config, start = towers_of(ANY)
    path, backbone = torch_image_tower
    config.weights = str(path)
    start = towers.with_weights(config, start._replace(backbone=backbone, image=None, text=None))
    two = ImageText(backbone, start.encoder.module, Nesting((2, 4)), 4, (SIZE, SIZE, 3), 8)
    state = dict(
        zip(("params", "model_state"), jax.eval_shape(two.init, jax.random.key(0)), strict=True)
    )
    given = types.SimpleNamespace(task=two, state=state, with_values=lambda _, *values: values)
    where, put = towers.put_in(config, given, start)
    assert where == f"image tower from {path}"
    params, model_state = put(None)
    image = traverse_util.flatten_dict(params["image"], sep="/")
    fresh = {name for name, leaf in image.items() if not isinstance(leaf, np.ndarray)}
    assert fresh == {"embedding/bias", "embedding/kernel"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model_state))


def test_a_locked_tower_has_weights_for_all_of_it(torch_image_tower):
    config, start = towers_of(ANY)
    path, backbone = torch_image_tower
    config.weights, config.towers.locked = str(path), "image"
    with pytest.raises(UsageError, match=r"embedding/bias.* would stay as random as it starts"):
        towers.with_weights(config, start._replace(backbone=backbone, image=None))


def vectors_of(split, start, config):
    found = towers.vectors_of(start, split, ("image", "text"), config)
    return {tower: made() for tower, made in found.items()}


def folders(cache):
    return {path.name for path in cache.glob("vectors-*")}


def test_vectors_are_those_of_the_towers_and_their_cache_moves(data, tmp_path, monkeypatch):
    monkeypatch.setattr(towers, "PART_VECTORS", 3)
    memory, streamed = (load(data, stream=stream)[0]["train"] for stream in (False, True))
    config, start = towers_of(memory)
    expected = vectors_of(memory, start, config)
    image_bhwc = (memory.images.image.astype(np.float32) - 127.5) / 127.5
    direct = start.backbone.apply(start.image, image_bhwc)
    np.testing.assert_allclose(expected["image"], direct, rtol=1e-5, atol=1e-6)
    assert expected["text"].shape == (7, 3)
    assert len(np.unique(expected["text"].round(4), axis=0)) == 7
    config, _ = towers_of(memory, cache=str(tmp_path / "old"))
    for split in (memory, streamed, memory):
        found = vectors_of(split, start, config)
        for tower, vectors in found.items():
            np.testing.assert_array_equal(vectors, expected[tower])
            assert not vectors.flags.owndata
            assert not vectors.flags.writeable
    names = folders(tmp_path / "old")
    assert len(names) == 3  # texts are the same however photos are read
    (tmp_path / "old").rename(tmp_path / "new")
    config, _ = towers_of(memory, cache=str(tmp_path / "new"))
    monkeypatch.setattr(towers, "_of_images", None)
    np.testing.assert_array_equal(vectors_of(memory, start, config)["image"], expected["image"])
    assert folders(tmp_path / "new") == names


def test_vectors_of_another_tower_or_of_other_pixels_are_made_anew(data, tmp_path):
    """Also where weights and files are the same, and what is done to pixels or texts differs."""
    split = load(data, stream=True)[0]["train"]
    config, start = towers_of(split, cache=str(tmp_path))
    first = vectors_of(split, start, config)
    assert len(folders(tmp_path)) == 2
    bigger = dataclasses.replace(split, images=dataclasses.replace(split.images, eval_crop=0.5))
    cropped = towers_of(split, cache=str(tmp_path), eval_crop=0.5)[0]
    short = start.encoder._replace(max_length=3)
    others = {
        "image": [(split, start._replace(std=(50.0,)), config), (bigger, start, cropped)],
        "text": [(split, start._replace(encoder=short), config)],
    }
    for tower, cases in others.items():
        for case in cases:
            found, before = vectors_of(*case), folders(tmp_path)
            assert not np.array_equal(found[tower], first[tower])
            vectors_of(*case)
            assert folders(tmp_path) == before
    assert len(folders(tmp_path)) == 5


def test_damaged_vectors_are_made_again_and_two_starts_share_them(data, tmp_path, capfd):
    split = load(data)[0]["train"]
    config, start = towers_of(split, cache=str(tmp_path))
    found = []
    starts = [
        threading.Thread(target=lambda: found.append(vectors_of(split, start, config)))
        for _ in range(3)
    ]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    assert len(found) == 3
    assert len(folders(tmp_path)) == 2
    expected = {tower: np.array(vectors) for tower, vectors in found[0].items()}
    for tower, vectors in expected.items():
        np.testing.assert_array_equal(found[1][tower], vectors)
    for path in tmp_path.glob("vectors-*/vectors.bin"):
        path.write_bytes(b"\0" * path.stat().st_size)
    again = vectors_of(split, start, config)
    for tower, vectors in expected.items():
        np.testing.assert_array_equal(again[tower], vectors)
    assert "is damaged" in capfd.readouterr().out
