"""Which images and dims are shown, and the two files, from tiny networks on random images."""

import io
import json

import jax
import numpy as np
import pytest
from evaluators.subjects import clusters, random_dataset, subject_of
from PIL import Image

from mrl_jax import NestedHead, Nesting, data
from mrl_jax.evaluators import attribution, contact_sheet
from mrl_jax.evaluators.attribution import KINDS, MOST_IMAGES, chosen_examples, shown_dims
from mrl_jax.evaluators.subject import Instruments, Subject
from mrl_jax.models.resnet import ResNet
from mrl_jax.record.finding import Unmeasurable
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.task import Classification

DIMS, CLASSES = (1, 3, 8), 7
RESNET = ResNet((1,), bottleneck=False, width=8, stem="small")


def resnet_subject(dataset, batch_size=8, measured=DIMS, seed=0):
    head = NestedHead(Nesting(DIMS), CLASSES, "shared")
    task = Classification(RESNET, head, dataset.image_shape)
    rng = np.random.default_rng(1)
    values = jax.tree.map(
        lambda p: np.abs(rng.normal(size=p.shape)).astype(p.dtype),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    signed = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), values[0])
    tools = Instruments(task, make_mesh(), batch_size, measured)
    return Subject(tools, dataset, signed, values[1], seed=seed)


def test_files_hold_the_picture_and_what_is_in_it():
    subject = resnet_subject(random_dataset({"train": 4, "val": 40}), measured=(1, 2, 3, 8))
    finding = attribution.measure(subject, "val")
    assert finding.results == []
    assert finding.files.keys() == {"val_attribution.json", "val_attribution.png"}
    assert attribution.measure(subject, "val").files == finding.files
    content = json.loads(finding.files["val_attribution.json"])
    assert content["dims"] == list(DIMS)  # 2 was measured, but not trained
    assert len(content["images"]) == MOST_IMAGES
    predictions = subject.predictions("val")
    at = [predictions.dims.index(m) for m in DIMS]
    for image in content["images"]:
        row = image["example"]
        assert image["class"] == predictions.label_n[row]
        assert image["predicted"] == predictions.predicted_gn[at, row].tolist()
        assert image["right"] == (predictions.rank_gn[at, row] == 1).tolist()
        assert image["kind"] == KINDS[image["right"][0], image["right"][-1]]
        assert image["confidence"] == pytest.approx(predictions.confidence_gn[at, row], abs=1e-4)
        assert len(image["top_share"]) == 3
        assert len(image["neighbour_correlation"]) == 2
        assert all(0.2 <= share <= 1 for share in image["top_share"] if share is not None)
    picture = Image.open(io.BytesIO(finding.files["val_attribution.png"]))
    columns = 1 + len(DIMS)
    width = contact_sheet.LEFT + columns * (contact_sheet.CELL + contact_sheet.GAP)
    assert picture.width == pytest.approx(contact_sheet.DPI * width, abs=1)
    assert picture.height > contact_sheet.DPI * MOST_IMAGES * contact_sheet.CELL


def test_images_of_a_stream_are_the_same_as_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", 3)):
        for label in range(CLASSES):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    files = []
    for stream in (False, True):
        dataset = data.load(
            "image_folder", path=str(tmp_path), image_size=32, eval_crop=0.5, stream=stream
        )
        files.append(attribution.measure(resnet_subject(dataset), "val").files)
    assert files[0]
    assert files[0] == files[1]


def test_a_split_of_fewer_images_than_rows():
    files = attribution.measure(resnet_subject(random_dataset({"train": 4, "val": 2})), "val").files
    content = json.loads(files["val_attribution.json"])
    assert sorted(image["example"] for image in content["images"]) == [0, 1]


def test_a_network_without_a_map_gives_nothing():
    subject = subject_of({"val": clusters(9, 8)}, "separate")
    with pytest.raises(Unmeasurable, match="no feature map"):
        attribution.measure(subject, "val")


def test_examples_are_drawn_in_turn_from_every_kind():
    first = np.array([0] * 40 + [1] * 30 + [1] * 20 + [0] * 10, bool)
    last = np.array([1] * 40 + [0] * 30 + [1] * 20 + [0] * 10, bool)
    right_gn = np.stack([first, ~last, last])
    examples = chosen_examples(right_gn, 0)
    kinds = [kind for kind, _ in examples]
    assert kinds == [
        *["wrong, then right"] * 2,
        *["right, then wrong"] * 2,
        "right",
        "wrong",
    ]
    assert all(KINDS[first[row], last[row]] == kind for kind, row in examples)
    assert len({row for _, row in examples}) == MOST_IMAGES
    assert chosen_examples(right_gn, 0) == examples != chosen_examples(right_gn, 1)
    # What a kind lacks the others make up for.
    kinds = [kind for kind, _ in chosen_examples(right_gn[:, 70:91], 0)]
    assert kinds == ["right"] * 5 + ["wrong"]


def test_shown_dims_are_trained_ones_from_the_smallest_to_the_largest():
    powers = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    between = tuple(sorted({*powers, *(3 * m // 2 for m in powers[:-1])}))
    shown = shown_dims(between, powers)
    assert len(shown) == 6
    assert set(shown) < set(powers)
    assert (shown[0], shown[-1]) == (8, 2048)
    # Of a network trained at one dim its prefixes are shown.
    assert shown_dims((2, 4, 8), (8,)) == (2, 4, 8)
    assert shown_dims((8,), (8,)) == (8,)
