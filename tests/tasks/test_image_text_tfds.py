"""Captioned photos of TensorFlow Datasets."""

import io

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mrl_jax.data import Options
from mrl_jax.errors import DataError
from mrl_jax.tasks.image_text import captions
from mrl_jax.tasks.image_text.sources import Where

F = tfds.features
# As coco_captions, as flickr30k, and as a caption alone.
FORMS = {
    "none": ({"words": F.Text()}, "words"),
    "table": ({"captions": F.Sequence({"id": np.int64, "text": F.Text()})}, "captions"),
    "list": ({"caption": F.Sequence(F.Text())}, "caption"),
    "text": ({"text": F.Text(), "other": F.Text()}, "text"),
}


class Captions(tfds.core.GeneratorBasedBuilder):
    """Photos, each with a grey and captions of its own."""

    VERSION = tfds.core.Version("1.0.0")
    form, sizes = "text", {}

    def _info(self):
        features = F.FeaturesDict({"image": F.Image(shape=(None, None, 3)), **FORMS[self.form][0]})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {name: self._generate_examples(*span) for name, span in self.sizes.items()}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            file = io.BytesIO()
            Image.new("RGB", (4, 4), (i,) * 3).save(file, "PNG")
            texts = [f"photo {i}", "é"] if i != 2 else []
            value = {
                "none": {"words": ""},
                "table": {"captions": [{"id": i, "text": text} for text in texts]},
                "list": {"caption": texts},
                "text": {"text": "\n".join(texts), "other": ""},
            }
            yield i, {"image": io.BytesIO(file.getvalue()), **value[self.form]}


def prepare(folder, form="text", **sizes):
    Captions.form, Captions.sizes = form, sizes
    Captions(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return {"path": str(folder / "captions" / "1.0.0")}


def load(where, train=True, **options):
    options = Options("image_folder", path="captions", image_size=4, **options)
    return captions.load(options, Where(**where), train=train)


def pairs_of(split):
    batches = split.images.padded(2, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    grey_p = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    grey_n, texts = grey_p[split.photo_n], list(split.texts)
    return sorted(zip(grey_n.tolist(), (texts[t] for t in split.text_n), strict=True))


EXPECTED = sorted((i, text) for i in (0, 1, 3) for text in (f"photo {i}", "é"))


@pytest.mark.parametrize("form", ["table", "list", "text"])
def test_captions_are_found_in_every_form(tmp_path, form):
    where = prepare(tmp_path, form, train=(0, 4), validation=(4, 6), blind=(6, 7))
    for stream in (False, True):
        splits, notes = load({**where, "cache": str(tmp_path / "cache")}, stream=stream)
        assert pairs_of(splits["train"]) == EXPECTED
        assert [grey for grey, _ in pairs_of(splits["val"])] == [4, 4, 5, 5]
        assert notes[0] == "train: 3 photos, 6 pairs, 4 different captions"
        assert notes[1].startswith("train: not read (photos without a caption): 1, the first is tr")
        assert notes[-1] == "not read (other splits): 1, the first is blind (1 images)"


def test_the_name_and_parts_of_a_data_set_may_be_given(tmp_path):
    prepare(tmp_path, test=(0, 6))
    where = {
        "path": str(tmp_path),
        "dataset": "captions",
        "splits": ["train=test[:4]", "test=test[4:]"],
    }
    splits, _ = load(where, stream=True)
    assert [split.examples for split in splits.values()] == [6, 4]
    assert set(splits["train"].names).isdisjoint(splits["test"].names)
    assert not set(splits["train"].images.places()) & set(splits["test"].images.places())
    with pytest.raises(DataError, match="needs a train split and a validation or test split with"):
        load({**where, "splits": []})


def test_a_data_set_without_captions_is_refused(tmp_path):
    where = prepare(tmp_path, "none", train=(0, 1), test=(0, 1))
    with pytest.raises(
        DataError, match=r"needs one of the columns caption, .*; found image, words"
    ):
        load(where)
