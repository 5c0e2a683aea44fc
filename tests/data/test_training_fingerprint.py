"""What a checkpoint remembers of its data: what training read, and nothing that it did not."""

import json
import os
import shutil

import numpy as np
import pytest
import text_models
from PIL import Image

from mrl_jax import experiment
from mrl_jax.config import default_config, override
from mrl_jax.data import load
from mrl_jax.errors import CheckpointError, DataError

SMALL = ("model.name=mlp", "model.width=8", "model.depth=1", "model.embedding_dim=8")
SMALL = (*SMALL, "nesting.dims=(4,8)")


def set_up(*keys, task="classification"):
    config = override(default_config(task), [f"--config.{key}" for key in keys])
    return experiment.from_config(config)


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    for s, split in enumerate(("train", "val")):
        for c, name in enumerate(("cat", "dog")):
            for i in range(3):
                noise(root / split / name / f"{i}.bmp", 100 * s + 10 * c + i)
    return root


def add_a_test_split(root):
    shutil.copytree(root / "val", root / "test")


def delete_a_validation_image(root):
    (root / "val/cat/1.bmp").unlink()


def move(root):
    root.rename(root.with_name("elsewhere"))
    for path in root.with_name("elsewhere").rglob("*"):
        os.utime(path, (1, 1))


def swap_two_labels(root):
    a, b = root / "train/cat/0.bmp", root / "train/dog/0.bmp"
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1])
    b.write_bytes(content[0])


def add_a_class(root):
    noise(root / "train/emu/0.bmp", 7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "same"),
    [
        (add_a_test_split, True),
        (delete_a_validation_image, True),
        (move, True),
        (lambda root: noise(root / "train/cat/1.bmp", 999), False),  # all .bmp are of one size
        (lambda root: noise(root / "train/cat/9.bmp", 999), False),
        (lambda root: (root / "train/cat/0.bmp").unlink(), False),
        (lambda root: (root / "train/cat/0.bmp").rename(root / "train/dog/9.bmp"), False),
        (swap_two_labels, False),
        (add_a_class, False),
    ],
)
def test_an_image_folder_may_change_where_training_did_not_look(images, stream, change, same):
    keys = (*SMALL, "data.source=image_folder", "data.image_size=8", f"data.stream={stream}")
    remembered = set_up(*keys, f"data.path={images}").remembered()
    change(images)
    path = images if images.exists() else images.with_name("elsewhere")
    now = set_up(*keys, f"data.path={path}")
    if same:
        now.adopt_and_check(remembered)
    else:
        with pytest.raises(CheckpointError, match=r"^the checkpoint was trained on other data: .*"):
            now.adopt_and_check(remembered)


def test_checkpoints_that_remember_all_splits_still_open(images):
    keys = (*SMALL, "data.source=image_folder", "data.image_size=8", f"data.path={images}")
    setup = set_up(*keys)
    older = {"data": setup.dataset.fingerprint()}
    assert older != setup.remembered()
    setup.adopt_and_check({**setup.remembered(), **older})
    delete_a_validation_image(images)
    with pytest.raises(CheckpointError, match="other data"):
        set_up(*keys).adopt_and_check({**setup.remembered(), **older})


def test_an_image_that_could_not_be_read_may_be_mended(tmp_path):
    """Of many images a checkpoint remembers the content of some, which are read before."""
    for i in range(300):
        noise(tmp_path / f"train/{'ab'[i % 2]}/{i:03d}.png", i)
    for name in "ab":
        noise(tmp_path / f"val/{name}/0.png", 1000)

    def fingerprint():
        options = {"path": str(tmp_path), "image_size": 8, "stream": True}
        try:
            return load("image_folder", **options).training_fingerprint()
        except DataError as error:
            return str(error)

    whole = fingerprint()
    named = []
    for i in range(0, 14, 2):  # not all of them are remembered
        path = tmp_path / f"train/a/{i:03d}.png"
        good = path.read_bytes()
        path.write_bytes(good[:40])
        broken = fingerprint()
        named.append(str(path) in broken)
        assert named[-1] or broken == whole
        path.write_bytes(good)
    assert set(named) == {True, False}


def test_texts_vectors_and_documents(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [{"anchor": a, "positive": a[2:]} for a in text_models.SENTENCES]

    def write(split, rows):
        for kind, values in (("pairs", rows), ("words", [{"text": r["anchor"]} for r in rows])):
            (tmp_path / kind).mkdir(exist_ok=True)
            content = "".join(json.dumps(row) + "\n" for row in values)
            (tmp_path / kind / f"{split}.jsonl").write_text(content)
        (tmp_path / "vectors").mkdir(exist_ok=True)
        np.save(tmp_path / "vectors" / f"{split}.npy", rng.normal(size=(len(rows), 8)))

    words = tmp_path / "tokenizer.json"
    text_models.tokenizer().raw.save(str(words))

    notes = {}

    def facts():
        small = ("head.kind=fixed", "nesting.dims=(8,)", "batch_size=8", "optimizer.decay_mask=.*")
        small += ('sharding=((".*","replicate"),)',)
        text = ("text.max_length=16", f"text.tokenizer={words}")
        for task, keys in (
            ("sentence_pairs", (f"data.path={tmp_path}/pairs", "text.width=8", *text)),
            ("masked_lm", (f"data.path={tmp_path}/words", "text.encoder=bert_tiny", *text)),
            ("adaptor", (f"data.path={tmp_path}/vectors",)),
        ):
            setup = set_up(*small, *keys, task=task)
            notes[task] = [line for line in setup.notes if "not read" in line]
            dataset = setup.dataset
            yield dataset.training_fingerprint(), dataset.fingerprint()

    write("train", pairs[:16])
    write("val", pairs[16:])
    (tmp_path / "words" / "train2.txt").write_text("more")
    (tmp_path / "vectors" / "notes.md").write_text("of nobody")
    first = list(facts())
    assert notes == {
        "sentence_pairs": [],
        "masked_lm": [f"not read (in no split): 1, the first is {tmp_path}/words/train2.txt"],
        "adaptor": [f"not read (in no split): 1, the first is {tmp_path}/vectors/notes.md"],
    }
    write("test", pairs[12:])
    write("val", pairs[18:])
    second = list(facts())
    write("train", [*pairs[1:16], pairs[0]])
    for (train, all_splits), (again, others), (changed, _) in zip(
        first, second, facts(), strict=True
    ):
        assert train == again != changed
        assert all_splits != others


def test_a_split_of_texts_that_leads_nowhere_is_no_missing_split(tmp_path):
    rows = [json.dumps({"anchor": a, "positive": a[2:]}) for a in text_models.SENTENCES]
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    (tmp_path / "test.jsonl").symlink_to("/mnt/not_mounted/test.jsonl")
    words = tmp_path.with_name("tokenizer.json")
    text_models.tokenizer(marks=False).raw.save(str(words))
    keys = ("text.width=64", f"text.tokenizer={words}")
    keys += (f"data.path={tmp_path}", "optimizer.decay_mask=.*", 'sharding=((".*","replicate"),)')
    with pytest.raises(DataError, match=r"cannot read .*test.jsonl: No such file .*a link to"):
        set_up(*keys, task="sentence_pairs")
    (tmp_path / "test.jsonl").unlink()
    assert sorted(set_up(*keys, task="sentence_pairs").dataset.splits) == ["train", "val"]
