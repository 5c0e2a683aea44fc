import json

import numpy as np

from mrl_jax.evaluators import found_photos
from mrl_jax.evaluators.cross_modal import Captions, ranks
from mrl_jax.record.results import Series

PHOTOS, EACH, WIDTH = 9, 2, 6


def made(rng):
    """Photos, their captions of which the first two photos share one, and names of all."""
    image_pd = rng.normal(size=(PHOTOS, WIDTH))
    photo_t = np.repeat(np.arange(PHOTOS), EACH).astype(np.int32)
    text_nd = image_pd[photo_t] + rng.normal(size=(len(photo_t), WIDTH))
    same_t = np.arange(len(photo_t))
    same_t[EACH] = same_t[0]
    text_nd[EACH] = text_nd[0]
    return image_pd, text_nd, Captions(photo_t, same_t)


def found(captions, *sides, seed=0):
    asked = []

    def photos(rows):
        asked.extend(rows)
        return np.stack([np.full((4, 5, 3), 20 * row, np.uint8) for row in rows])

    options = {"at": Series(split="val"), "dims": (1, 2, 3, 6), "photos": photos, "seed": seed}
    finding = found_photos.measure(*sides, captions, "caption {}".format, **options)
    assert asked == sorted(set(asked))
    return finding


def test_what_is_shown_is_what_is_nearest():
    *sides, captions = made(np.random.default_rng(1))
    finding = found(captions, *sides)
    assert not finding.results
    told = json.loads(finding.files["val_found_photos.json"])
    assert told["dims"] == [1, 2, 6]
    assert len({captions.photo_t[int(c["caption"][8:])] for c in told["captions"]}) == 6
    _, rank_gt = ranks(*sides, captions, told["dims"])
    for one in told["captions"]:
        row = int(one["caption"][8:])
        right = set(captions.photo_t[captions.same_t == captions.same_t[row]].tolist())
        for g, dim in enumerate(told["dims"]):
            image_pd, text_d = sides[0][:, :dim], sides[1][row, :dim]
            cosine_p = image_pd @ text_d / np.linalg.norm(image_pd, axis=1) / np.linalg.norm(text_d)
            best = np.argsort(-np.round(cosine_p, 9), kind="stable")
            if dim > 1:  # at one dim, half of all tie
                assert one["photos"][g] == best[:5].tolist()
            assert one["rank"][g] == rank_gt[g, row]
            assert one["right"][g] == [p in right for p in one["photos"][g]]


def test_the_picture_is_the_same_each_time_and_another_with_another_seed():
    *sides, captions = made(np.random.default_rng(1))
    pictures = [
        found(captions, *sides, seed=seed).files["val_found_photos.png"] for seed in (0, 0, 1)
    ]
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1] != pictures[2]


def test_few_photos_and_letters_that_no_font_has():
    rng = np.random.default_rng(2)
    image_pd, captions = rng.normal(size=(2, 3)), Captions(np.arange(2), np.arange(2))
    finding = found_photos.measure(
        image_pd,
        image_pd,
        captions,
        lambda row: "犬 \U0001f436 $x$\n" * 200,
        Series(split="test"),
        (3,),
        lambda rows: np.zeros((len(rows), 2, 2, 3), np.uint8),
    )
    told = json.loads(finding.files["test_found_photos.json"])
    assert [one["rank"] for one in told["captions"]] == [[1], [1]]
    assert finding.files["test_found_photos.png"].startswith(b"\x89PNG")
