import json

import numpy as np
import pytest

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators import cross_modal
from mrl_jax.evaluators.cross_modal import Captions
from mrl_jax.record.finding import Unmeasurable
from mrl_jax.record.results import Series

DIMS, AT = (2, 3, 8), Series(split="test")


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def brute_force(image, text, captions, dim):
    """Rank by rank: what is not surely farther and says something else is ahead."""
    photo, same = captions
    says = [{same[t] for t in range(len(text)) if photo[t] == p} for p in range(len(image))]
    scores = np.array([[cosine(x[:dim], y[:dim]) for y in text] for x in image], np.float64)
    of_photos, of_captions = [], []
    for p in range(len(image)):
        own = [scores[p, t] for t in range(len(text)) if same[t] in says[p]]
        others = [scores[p, t] for t in range(len(text)) if same[t] not in says[p]]
        of_photos.append(1 + sum(s >= max(own) - 1e-6 for s in others) if own else 1)
    for t in range(len(text)):
        others = [scores[p, t] for p in range(len(image)) if same[t] not in says[p]]
        of_captions.append(1 + sum(s >= scores[photo[t], t] - 1e-6 for s in others))
    return of_photos, of_captions


def photos_and_captions(photos=12, noise=1.0, seed=0):
    """Captions near their photos, in no order; with texts that several photos share."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(photos, 8))
    photo = rng.permutation(np.repeat(np.arange(photos), 3))
    text = image[photo] + noise * rng.normal(size=(len(photo), 8))
    same = rng.permutation(len(photo)) * 7
    for a, b in ((0, 5), (1, 9), (1, 20)):
        same[b], text[b] = same[a], text[a]
    return image.astype(np.float32), text.astype(np.float32), Captions(photo, same)


@pytest.mark.parametrize("scores", [2**22, 100])
def test_ranks_are_the_definition_at_every_prefix(monkeypatch, scores):
    """Also where photos are gone through a few at a time, and with a photo without captions."""
    monkeypatch.setattr(cross_modal, "_MAX_SCORES", scores)
    image, text, captions = photos_and_captions()
    image = np.concatenate([image, image[:1] + 0.1])
    rank_gp, rank_gt = cross_modal.ranks(image, text, captions, DIMS)
    for dim, rank_p, rank_t in zip(DIMS, rank_gp, rank_gt, strict=True):
        of_photos, of_captions = brute_force(image, text, captions, dim)
        assert rank_p.tolist() == of_photos
        assert rank_t.tolist() == of_captions
    assert rank_gp.max() > 2
    assert rank_gt.max() > 2


def test_equally_near_and_undefined_cosines_make_ranks_worse():
    captions = Captions(np.arange(4), np.arange(4))
    for x in (np.ones((4, 2)), np.zeros((4, 2)), np.full((4, 2), np.nan)):
        for rank_gn in cross_modal.ranks(x, x, captions, (1, 2)):
            assert (rank_gn == 4).all()


def test_what_nobody_could_tell_apart_is_not_wrong():
    """Photos 0 and 1 share a caption, that of photo 2 says something else."""
    image = np.array([[1, 0], [0.9, 0.1], [0, 1]])
    text = np.array([[0.8, 0.2], [0.8, 0.2], [0, 1]])
    shared = Captions(np.array([0, 1, 2]), np.array([4, 4, 5]))
    assert [r.tolist() for r in cross_modal.ranks(image, text, shared, (2,))] == [[[1, 1, 1]]] * 2
    told_apart = shared._replace(same_t=np.arange(3))
    # Equally near captions tie, and photo 1 is nearer to both.
    of_photos, of_captions = cross_modal.ranks(image, text, told_apart, (2,))
    assert of_photos.tolist() == [[2, 2, 1]]
    assert of_captions.tolist() == [[2, 1, 1]]


def test_numbers_follow_from_ranks():
    image, text, captions = photos_and_captions(40, noise=1.5)
    # The last photo has no captions; photo 3 has one less than the others.
    kept = (captions.photo_t != 39) & (np.arange(len(text)) != np.argmax(captions.photo_t == 3))
    text, captions = text[kept], Captions(*(number_t[kept] for number_t in captions))
    found = cross_modal.measure(image, text, captions, AT, DIMS)
    value = {(r.metric, r.dim): r for r in found.results}
    rank_gp, rank_gt = cross_modal.ranks(image, text, captions, DIMS)
    for way, rank_gq in (("image_to_text", rank_gp[:, :39]), ("text_to_image", rank_gt)):
        for dim, rank_q in zip(DIMS, rank_gq, strict=True):
            for k in (1, 5, 10):
                result = value[f"{way}_recall{k}", dim]
                assert result.value == pytest.approx((rank_q <= k).mean())
                assert result.n == 39
            assert value[f"{way}_median_rank", dim].value == np.median(rank_q)
        dims, right_gn = found.examples[f"test/{way}_recall1"]
        assert (dims, right_gn.shape) == (DIMS, (3, 39))
        np.testing.assert_allclose(right_gn.mean(1), (rank_gq <= 1).mean(1), rtol=1e-5)
    assert len(found.results) == 3 * 2 * 4


def test_intervals_are_of_photos_with_all_their_captions():
    """Five equal captions a photo tell no more than one: intervals must not get narrower."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 8))
    text = image + rng.normal(size=(60, 8))
    once = Captions(np.arange(60), np.arange(60))
    often = Captions(*(np.tile(number_t, 5) for number_t in once))

    def told(text, captions):
        found = cross_modal.measure(image, text, captions, AT, (8,))
        content = json.loads(found.files["test_cross_modal.json"])
        both = (found.results, sorted(content["intervals"], key=lambda i: i["metric"]))
        asked = ([x for x in of if "text_to_image" in str(x)] for of in both)
        return content, *asked

    content, results, intervals = told(text, once)
    repeated, again, same = told(np.tile(text, (5, 1)), often)
    assert [r.value for r in results] == pytest.approx([r.value for r in again])
    assert [r.stderr for r in results] == pytest.approx([r.stderr for r in again], rel=0.02)
    assert [i["low"] for i in intervals] == pytest.approx([i["low"] for i in same])
    assert (content["photos"], content["captions"], repeated["captions"]) == (60, 60, 300)
    assert (content["resampled"], content["resamples"]) == ("photos", 1000)
    results.sort(key=lambda r: r.metric)
    for result, interval in zip(results, intervals, strict=True):
        assert interval["low"] <= result.value <= interval["high"]
        width = (interval["high"] - interval["low"]) / 4
        assert "rank" in result.metric or width == pytest.approx(result.stderr, rel=0.2)


def test_medians_of_resamples_are_those_of_repeated_ranks():
    rng = np.random.default_rng(0)
    rising = np.sort(rng.integers(1, 99, 15))
    weights = rng.multinomial(15, np.full(15, 1 / 15), 20).astype(float)
    weights[::2, 0] += 1  # of an even number, the mean of the two in the middle
    expected = [np.median(np.repeat(rising, w.astype(int))) for w in weights]
    assert cross_modal._medians(rising, weights).tolist() == expected


def test_nearest_captions_are_the_definition():
    _, text, captions = photos_and_captions()
    photo, same = captions
    dims, right_gn = cross_modal.nearest_captions(text, captions, AT, DIMS).examples[
        "test/caption_1nn"
    ]
    assert dims == DIMS
    for dim, right_n in zip(DIMS, right_gn, strict=True):
        right = np.zeros(12)
        for t in range(len(text)):
            says = {same[u] for u in range(len(text)) if photo[u] == photo[t]}
            scores = [cosine(text[t, :dim], text[u, :dim]) for u in range(len(text))]
            own = max(s for u, s in enumerate(scores) if same[u] in says - {same[t]})
            others = [s for u, s in enumerate(scores) if same[u] not in says]
            right[photo[t]] += all(s < own - 1e-6 for s in others) / 3
        np.testing.assert_allclose(right_n, right, rtol=1e-6)
    assert 0 < right_gn.mean() < 1


def test_photos_with_one_text_have_no_nearest_other_caption():
    with pytest.raises(Unmeasurable, match="needs a photo with 2 different captions"):
        cross_modal.nearest_captions(np.eye(3), Captions(np.arange(3), np.arange(3)), AT, (2,))


def test_two_photos_are_needed_and_numbers():
    with pytest.raises(Unmeasurable, match="got photos: 1, different captions of each: 2"):
        cross_modal.measure(
            np.eye(2), np.eye(2), Captions(np.zeros(2, int), np.arange(2)), AT, (2,)
        )
    all_of_all = Captions(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1]))
    with pytest.raises(Unmeasurable, match="got photos: 2, different captions of each: 2"):
        cross_modal.check(all_of_all)
    cross_modal.check(Captions(*(number_t[1:] for number_t in all_of_all)))
    captions = Captions(np.arange(2), np.arange(2))
    bad = np.array([[1, np.nan], [0, 1]])
    with pytest.raises(NonFiniteError, match="1 of 2 embeddings of images of test hold NaN"):
        cross_modal.measure(bad, np.eye(2), captions, AT, (2,))


def far_apart(photos, seed):
    """Photos and captions around means that are far apart, in a few directions of 16."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(7).normal(size=(16, 16)))[0]
    content = rng.normal(size=(photos, 6)) @ axes[:6]
    image, text = (content + 0.3 * rng.normal(size=content.shape) for _ in range(2))
    return image + 8 * axes[8], text + 8 * axes[9]


def test_rivals_waste_no_dims_on_what_tells_the_towers_apart():
    spaces = cross_modal.rivals(*far_apart(300, 0), seed=0)
    assert list(spaces) == ["trained", "rotation", "pca", "random"]
    image, text = far_apart(60, 1)
    captions = Captions(np.arange(60), np.arange(60))
    found = cross_modal.measure(image, text, captions, AT, (2, 6, 16), spaces=spaces)
    value = {(r.space, r.dim): r.value for r in found.results if r.metric.endswith("recall10")}
    assert value["pca", 6] > 0.9 > value["random", 6] + 0.2
    assert value["pca", 2] > 0.6
    # A rotation and another order of dims keep the whole; PCA takes the means off.
    assert value["rotation", 16] == value["random", 16] == value["trained", 16] < value["pca", 16]
    both = spaces["pca"]
    np.testing.assert_array_equal(both.image.basis_de, both.text.basis_de)
    assert np.abs(both.image.mean_d - both.text.mean_d).max() > 0.2


def test_a_tower_counts_no_more_for_having_more_vectors():
    image, text = far_apart(300, 0)
    once, often = (
        cross_modal.rivals(image, np.tile(text, (n, 1)), 0)["pca"].image.basis_de for n in (1, 5)
    )
    np.testing.assert_allclose(np.abs(np.sum(once * often, 0))[:6], 1, atol=1e-6)
