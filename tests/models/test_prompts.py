import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import text_models

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import read_text_folder
from mrl_jax.model import Model
from mrl_jax.models.text import prompts

ROOT = pathlib.Path(__file__).parents[2]
WHO = ("a man", "the woman", "two dogs", "the old cat")
WHAT = ("sleeps", "runs along the beach", "eats a red apple")
PAIRS = [(who, what) for who in WHO for what in WHAT]


def test_what_sentence_transformers_calls_them():
    own = {"query": "q ", "passage": "p ", "other": "o ", "none": ""}
    assert prompts.by_role(own, "") == {"query": "q ", "document": "p ", "default": ""}
    assert prompts.by_role({**own, "document": ""}, "other") == {
        "query": "q ", "document": "", "default": "o ",
    }  # fmt: skip
    assert prompts.by_role({"other": "o "}, "other") == dict.fromkeys(
        ("query", "document", "default"), "o "
    )
    by_role = prompts.by_role(own, "other")
    sides = ("anchor", "positive", "negative_0")
    asked = {"anchor": "q ", "positive": "p ", "negative_0": "p "}
    assert prompts.by_side(by_role, "triplets", sides) == asked
    for kind in ("groups", "scored"):
        assert prompts.by_side(by_role, kind, sides[:2]) == dict.fromkeys(sides[:2], "o ")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pairs to learn from, scored pairs, a collection, and a table with prompts of its own."""
    path = tmp_path_factory.mktemp("prompts")
    for name in ("train", "val"):
        lines = ["anchor\tpositive", *(f"{a}\t{b}" for a, b in PAIRS)]
        (path / f"{name}.tsv").write_text("\n".join(lines))
    scored = (f"{a}\t{b}\t{i % 5}" for i, (a, b) in enumerate(PAIRS))
    (path / "scored.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *scored]))
    (path / "found" / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", WHAT), ("queries", WHO)):
        rows = [json.dumps({"_id": f"{name}{i}", "text": t}) + "\n" for i, t in enumerate(texts)]
        (path / "found" / f"{name}.jsonl").write_text("".join(rows))
    judged = [f"queries{i}\tcorpus{i % 3}\t1" for i in range(len(WHO))]
    text = "\n".join(["query-id\tcorpus-id\tscore", *judged])
    (path / "found" / "qrels" / "test.tsv").write_text(text)
    own = {"query": "people near ", "document": "playing ", "some": "guitar "}
    table = dataclasses.replace(text_models.static(width=8), prompts=own, default_prompt="some")
    write_sentence_folder(path / "table", table)
    return path


def load(place, *overrides):
    files = f"train={place / 'train.tsv'},val={place / 'val.tsv'}"
    keys = {
        **{"text.encoder": place / "table", "text.width": 0, "text.max_length": 0},
        **{"data.files": files, "nesting.dims": "4,8", "eval.dims": "4,8", "batch_size": 8},
        **{"steps": 1, "eval.batch_size": 8, "optimizer.warmup_steps": 0},
        "eval.sts": f"sts={place / 'scored.tsv'}",
        "eval.retrieval": f"found={place / 'found'}",
    }
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    return configs.load(str(ROOT / "configs" / "static_sentence.py"), [*given, *overrides])


def texts_of(setup, batch, side):
    """The texts of a side, as words of the tokenizer."""
    decode = setup.dataset.tokenizer.raw.decode
    rows = zip(batch[f"{side}_tokens"], batch[f"{side}_lengths"], strict=True)
    return [decode(list(map(int, tokens_t[:length]))) for tokens_t, length in rows]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("()", ("people near ", "playing ", "guitar ")),
        ("('query=the woman ','document=')", ("the woman ", "", "")),
        ("('default=',)", ("", "", "")),
        ("('default=two ',)", ("two ", "two ", "two ")),
    ],
)
def test_training_and_measuring_read_texts_with_their_prompts(place, given, expected):
    """Of the folder, of the config, or none, by what a text is there for."""
    setup = experiment.from_config(load(place, f"--config.text.prompts={given}"))
    query, document, default = expected
    batch = setup.dataset.splits["train"].batches(4, 0, sharding(setup)).host_batch(0)
    for side, prompt, parts in (("anchor", query, WHO), ("positive", document, WHAT)):
        seen = texts_of(setup, batch, side)
        assert set(seen) <= {prompt + text for text in parts}, seen
    folder = setup.text_folder(read_text_folder(place / "table").params)
    embed = functools.partial(Model.of_text_folder(folder).embed, prompt_name="")
    state = {"params": folder.params, "model_state": {}, "step": np.int32(0)}
    found = setup.evaluate(state, ("val",))
    values = {(r.name, r.dim): r.value for r in found.results}
    assert found.prompts == (
        dict(zip(("query", "document", "default"), expected, strict=True)) if any(expected) else {}
    )
    # As the prompts would be put there by hand.
    a_nd, b_nd = embed([query + a for a, _ in PAIRS]), embed([document + b for _, b in PAIRS])
    cosine_qd = embed([query + w for w in WHO]) @ embed([document + w for w in WHAT]).T
    rank_q = 1 + (cosine_qd > cosine_qd[range(4), [0, 1, 2, 0]][:, None] + 1e-6).sum(1)
    assert values["found/mrr10", 8] == pytest.approx((1 / rank_q).mean())
    cosine_n = (
        embed([default + a for a, _ in PAIRS]) * embed([default + b for _, b in PAIRS])
    ).sum(1)
    pearson = np.corrcoef(cosine_n, np.arange(len(PAIRS)) % 5)[0, 1]
    assert values["sts/pearson", 8] == pytest.approx(pearson, abs=1e-4)
    match = matched(a_nd, b_nd)
    assert values["val/match", 8] == pytest.approx(match, abs=1e-6)


def matched(a_nd, b_nd):
    """How often a partner is the nearest; others of the same anchor or partner do not compete."""
    cosine_nn, right = a_nd @ b_nd.T, 0
    for i, (a, b) in enumerate(PAIRS):
        rivals = [j for j, (c, d) in enumerate(PAIRS) if c != a and d != b]
        right += bool((cosine_nn[i, rivals] < cosine_nn[i, i]).all())
    return right / len(PAIRS)


def sharding(setup):
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_runs_with_other_prompts_are_other_runs_and_none_are_as_before(place):
    config = functools.partial(load, place)
    whole = [
        experiment.from_config(config(f"--config.text.prompts={given}")).dataset
        for given in ("()", "('query=x ','document=')", "('default=',)")
    ]
    assert len({data.training_fingerprint() for data in whole}) == 3
    bare = dataclasses.replace(read_text_folder(place / "table"), prompts={}, default_prompt="")
    write_sentence_folder(place / "bare", bare)
    without = experiment.from_config(config(f"--config.text.encoder={place / 'bare'}")).dataset
    assert without.training_fingerprint() == whole[2].training_fingerprint()


def test_what_is_exported_and_reported_tells_the_prompts(place):
    setup = experiment.from_config(load(place))
    written = place / "exported"
    write_sentence_folder(written, setup.text_folder(read_text_folder(place / "table").params))
    again = read_text_folder(written)
    assert again.prompts == {"query": "people near ", "document": "playing ", "some": "guitar "}
    assert again.default_prompt == "some"
    card = (written / "README.md").read_text()
    assert '"people near " before queries, "playing " before documents, "guitar " before' in card
    assert "prompts: query 'people near ', document 'playing ', default 'guitar '" in "\n".join(
        setup.notes
    )
    # Under the names that sentence-transformers looks for.
    setup = experiment.from_config(load(place, "--config.text.prompts=('default=two ',)"))
    folder = setup.text_folder({})
    assert folder.prompts == {"query": "two ", "document": "two ", "default": "two "}
    assert folder.default_prompt == "default"


@pytest.mark.parametrize(
    "given", ["('find: ',)", "('qeury=a',)", "('query=a','query=b')", "('passage=a',)"]
)
def test_prompts_that_cannot_be_meant_are_refused(place, given):
    with pytest.raises(UsageError, match=r"config.text: prompts must be some of 'query=TEXT', "):
        experiment.from_config(load(place, f"--config.text.prompts={given}")).check()


@pytest.mark.parametrize("loss", ["info_nce", "distill_vectors"])
def test_a_teacher_gives_all_its_dims_with_its_own_prompts(place, tmp_path, loss):
    teacher = dataclasses.replace(
        text_models.static(seed=3, width=8),
        prompts={"query": "the woman ", "t": "two "},
        default_prompt="t",
        truncate_dim=2,
        trained_dims=(2, 4),
        max_length=4,
    )
    write_sentence_folder(tmp_path / "teacher", teacher)
    keys = (f"--config.pairs.teacher={tmp_path / 'teacher'}", f"--config.pairs.loss={loss}")
    setups = [
        experiment.from_config(load(place, *keys, f"--config.data.cache={cache}"))
        for cache in ("", tmp_path / "cache", tmp_path / "cache")
    ]
    wide = dataclasses.replace(teacher, trained_dims=())
    embed = functools.partial(Model.of_text_folder(wide).embed, dim=8, prompt_name="")
    for setup in setups:
        train = setup.dataset.splits["train"]
        batch = train.batches(4, 0, sharding(setup)).host_batch(0)
        for side, prompt in (("anchor", "the woman "), ("positive", "two ")):
            # The student's tokens have its own prompt before them.
            own = {"anchor": "people near ", "positive": "playing "}[side]
            texts = [text.removeprefix(own) for text in texts_of(setup, batch, side)]
            exact = embed([prompt + text for text in texts])
            np.testing.assert_allclose(batch[f"{side}_teacher"], exact, atol=1e-6)
    assert "teacher: 8 dims of texts cut after 4 tokens" in "\n".join(setups[0].notes)
    assert "teacher: prompts: query 'the woman ', document 'two '" in "\n".join(setups[0].notes)
    changed = dataclasses.replace(teacher, default_prompt="")
    write_sentence_folder(tmp_path / "teacher", changed)
    other = experiment.from_config(load(place, *keys))
    assert other.dataset.training_fingerprint() != setups[0].dataset.training_fingerprint()
