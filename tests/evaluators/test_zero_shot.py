import numpy as np
import pytest

from mrl_jax.errors import UsageError
from mrl_jax.evaluators import cross_modal, zero_shot
from mrl_jax.record.finding import Unmeasurable
from mrl_jax.record.results import Series

DIMS, AT = (1, 3, 8), Series("pets")
TEMPLATES = ("a photo of a {}.", "{}")


def unit(x):
    return x / np.linalg.norm(x)


def make(images=40, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(classes, 8))
    label = rng.integers(0, classes, images)
    image = centre[label] + rng.normal(size=(images, 8))
    # Texts of very different lengths.
    text = np.repeat(centre, 2, 0) + 0.7 * rng.normal(size=(2 * classes, 8))
    return image, label, text * rng.uniform(0.1, 10, (2 * classes, 1))


def test_every_template_names_every_class():
    assert zero_shot.texts(["cat", "sea {lion}"], TEMPLATES) == [
        *("a photo of a cat.", "cat"),
        *("a photo of a sea {lion}.", "sea {lion}"),
    ]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ((), r'templates is empty; an example: "a photo of a \{\}\."'),
        (("a photo",), "has one .* where the name of a class goes; got 'a photo'"),
        (("{} and {}",), "got '{} and {}'"),
    ],
)
def test_templates_have_one_place_for_a_name(templates, message):
    with pytest.raises(UsageError, match=message):
        zero_shot.check_templates(templates)
    zero_shot.check_templates(TEMPLATES)


def test_classes_are_means_of_what_is_cut_and_scaled():
    image, label, text = make()
    found = zero_shot.measure(image, label, text, 4, AT, DIMS)
    for dim, result, right_n in zip(
        DIMS, found.results, found.examples["pets/zero_shot"].right_gn, strict=True
    ):
        classes = [unit(text[i, :dim]) + unit(text[i + 1, :dim]) for i in range(0, 8, 2)]
        for x, k, right in zip(image, label, right_n, strict=True):
            scores = [float(x[:dim] @ c / max(np.linalg.norm(c), 1e-12)) for c in classes]
            others = max(s for j, s in enumerate(scores) if j != k)
            assert right == (scores[k] > others + 1e-6 * np.linalg.norm(x[:dim]))
        assert (result.metric, result.set, result.n) == ("zero_shot", "pets", 40)
    assert found.results[0].value < found.results[-1].value < 1


def test_equal_names_are_never_right():
    image, label, _ = make()
    found = zero_shot.measure(image, label, np.ones((4, 8)), 4, AT, DIMS)
    assert [r.value for r in found.results] == [0, 0, 0]
    with pytest.raises(Unmeasurable, match="needs at least 2 classes, got 1"):
        zero_shot.check(["cat"])


def test_rivals_take_the_mean_of_each_tower_off():
    image, label, text = make(300)
    image, text = image - 9, text + 9
    spaces = cross_modal.rivals(image, text, 0)
    found = zero_shot.measure(image[:40], label[:40], text, 4, AT, (8,), spaces=spaces)
    right = {name: examples.right_gn for name, examples in found.examples.items()}
    np.testing.assert_array_equal(right["pets/zero_shot_rotation"], right["pets/zero_shot"])
    # All principal components only turn what is centred.
    centred = [np.stack([unit(x) for x in z]) for z in (image, text)]
    centred = [z - z.mean(0) for z in centred]
    alone = zero_shot.measure(centred[0][:40], label[:40], centred[1], 4, AT, (8,))
    expected = alone.examples["pets/zero_shot"].right_gn
    np.testing.assert_array_equal(right["pets/zero_shot_pca"], expected)
    assert (right["pets/zero_shot_pca"] != right["pets/zero_shot"]).any()


def test_the_nearest_labelled_image_tells_the_class():
    image, label, _ = make(80)
    found = zero_shot.neighbours(image[:40], label[:40], image[40:], label[40:], AT, DIMS)
    for dim, result in zip(DIMS[1:], found.results[1:], strict=True):
        units = [unit(x[:dim]) for x in image]
        nearest = [int(np.argmax([x @ y for y in units[:40]])) for x in units[40:]]
        assert result.value == (label[nearest] == label[40:]).mean()
    assert [r.name for r in found.results] == ["pets/1nn"] * 3
