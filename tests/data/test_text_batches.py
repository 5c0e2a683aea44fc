import collections
import functools

import jax
import numpy as np
import pytest

from mrl_jax.data.strings import Strings
from mrl_jax.data.text import TextSplit
from mrl_jax.data.text_batches import WINDOW, TrainTexts
from mrl_jax.data.token_cache import Tokens, vectors_of
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

LONGEST = 20


def encode(texts):
    """The text "7" becomes one token, "7 7" two."""
    return [np.array([int(word) + 1 for word in text.split()], np.int32) for text in texts]


def texts_of(count):
    rng = np.random.default_rng(0)
    return Strings.of(" ".join([str(i)] * int(rng.integers(1, LONGEST + 1))) for i in range(count))


def pairs(count, **options):
    numbers = np.arange(2 * count, dtype=np.int32)
    sides = {"anchor": numbers[:count], "positive": numbers[count:]}
    return TextSplit(texts_of(2 * count), sides, same_t=numbers, **options)


def groups(count, size):
    members = np.arange(count * size, dtype=np.int32)
    starts = np.arange(count + 1, dtype=np.int64) * size
    return TextSplit(texts_of(count * size), members=members, starts=starts, same_t=members // size)


def batches(split, batch_size=8, seed=0, devices=1, **options):
    mesh = make_mesh(devices=jax.devices()[:devices])
    source = TrainTexts(split, lambda side: Tokens.of(encode(split.texts)), LONGEST, **options)
    return source.batches(batch_size, seed, batch_sharding(mesh))


def test_tokens_are_padded_with_zeros():
    tokens = Tokens.of([np.array([5, 6, 7]), np.array([8]), np.array([9, 10])])
    np.testing.assert_array_equal(tokens.padded(np.array([2, 0]), 4), [[9, 10, 0, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(tokens.lengths, [3, 1, 2])


@pytest.mark.parametrize("examples", [WINDOW * 8, 100])
def test_every_example_is_there_once_per_epoch(examples):
    """Also where a window of batches holds several epochs."""
    split = pairs(examples)
    found = batches(split)
    seen, repeating = collections.Counter(), 0
    steps = WINDOW * 5
    for step in range(steps):
        rows = found.host_batch(step)["anchor_id"].tolist()
        seen.update(rows)
        repeating += len({*rows}) < len(rows)
    expected = steps * 8 / examples
    # An example and its copy of the next epoch may meet where one epoch ends, only there.
    assert repeating <= expected
    assert len(seen) == examples
    assert set(seen.values()) <= {int(expected), int(np.ceil(expected))}


def test_a_batch_holds_the_rows_it_says():
    score_n = np.arange(50, dtype=np.float32)
    found = batches(pairs(50, score_n=score_n), score_max=5.0)
    for step in (0, 3, 70):
        batch = found.host_batch(step)
        rows = batch["anchor_id"]
        np.testing.assert_array_equal(batch["positive_id"], rows + 50)
        np.testing.assert_allclose(batch["score"], rows / 5)
        np.testing.assert_array_equal(batch["mask"], np.ones(8))
        for side in ("anchor", "positive"):
            for tokens, length, text in zip(
                *(batch[f"{side}_{name}"] for name in ("tokens", "lengths", "id")), strict=True
            ):
                # All tokens of text i are i + 1 here.
                assert tokens[:length].tolist() == [text + 1] * length
                assert not tokens[length:].any()


def test_batches_depend_on_seed_and_step_alone():
    split = groups(40, 3)
    one, again, other = batches(split), batches(split), batches(split, seed=1)
    forwards = [one.host_batch(step) for step in range(0, 200, 7)]
    backwards = [again.host_batch(step) for step in reversed(range(0, 200, 7))][::-1]
    for mine, theirs in zip(forwards, backwards, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    assert any(
        (one.host_batch(s)["anchor_id"] != other.host_batch(s)["anchor_id"]).any() for s in range(3)
    )
    split_over = batches(split, devices=4)(7)
    assert len(split_over["anchor_tokens"].sharding.device_set) == 4
    np.testing.assert_array_equal(split_over["anchor_tokens"], forwards[1]["anchor_tokens"])


def test_groups_give_two_different_texts_and_in_time_all_of_them():
    found = batches(groups(30, 4))
    drawn = collections.defaultdict(set)
    for step in range(300):
        batch = found.host_batch(step)
        np.testing.assert_array_equal(batch["anchor_id"], batch["positive_id"])
        a, b = batch["anchor_tokens"][:, 0] - 1, batch["positive_tokens"][:, 0] - 1
        assert (a != b).all()
        np.testing.assert_array_equal(a // 4, batch["anchor_id"])
        np.testing.assert_array_equal(b // 4, batch["anchor_id"])
        for pair in zip(a % 4, b % 4, strict=True):
            drawn[pair[0]].add(pair[1])
    assert dict(drawn) == {k: {0, 1, 2, 3} - {k} for k in range(4)}


def test_texts_of_a_batch_are_about_equally_long():
    found = batches(pairs(WINDOW * 8))
    spread, lengths = [], []
    for step in range(WINDOW):
        batch = found.host_batch(step)
        longest = np.maximum(batch["anchor_lengths"], batch["positive_lengths"])
        spread.append(np.ptp(longest))
        lengths.append(longest.max())
        assert batch["anchor_tokens"].shape[1] in (8, 16, LONGEST)
    assert np.mean(spread) < 1.5
    # In random order: short and long batches take turns.
    assert np.abs(np.diff(lengths)).mean() > 2


def test_a_side_that_is_far_shorter_is_padded_for_itself():
    texts = Strings.of(["1", "2", " ".join(["3"] * 20), " ".join(["4"] * 20)])
    sides = {"anchor": np.int32([0, 1]), "positive": np.int32([2, 3])}
    split = TextSplit(texts, sides, same_t=np.arange(4, dtype=np.int32))
    batch = batches(split, 2).host_batch(0)
    assert batch["anchor_tokens"].shape == (2, 8)
    assert batch["positive_tokens"].shape == (2, LONGEST)


def test_the_teacher_embeds_every_text_once():
    asked = []

    def teacher(texts):
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    split = pairs(16)
    vectors = functools.cache(lambda: vectors_of(split.texts, teacher))
    batch = batches(split, teacher=lambda side: vectors()).host_batch(0)
    assert asked == list(split.texts)
    expected = [[len(split.texts[i]), 1] for i in batch["positive_id"]]
    np.testing.assert_array_equal(batch["positive_teacher"], expected)
