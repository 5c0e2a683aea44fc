import jax
import numpy as np
import pytest
import scipy.stats
import text_models

from mrl_jax.data import beir
from mrl_jax.data import text as texts
from mrl_jax.evaluators import text_retrieval, text_sts
from mrl_jax.evaluators.text_retrieval import Searched
from mrl_jax.evaluators.text_sets import TextSet, check_layers
from mrl_jax.model import Model
from mrl_jax.nesting import Nesting
from mrl_jax.runtime import mesh as meshes
from mrl_jax.tasks.sentence_pairs.measure import SentenceEvaluation
from mrl_jax.tasks.sentence_pairs.task import SentencePairs

DIMS = (4, 16)
SENTENCES = text_models.SENTENCES


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The encoder, and what is measured of it after one of its two layers and after both."""
    path = tmp_path_factory.mktemp("texts")
    rows = [
        f"{a}\t{b}\t{i % 7}"
        for i, (a, b) in enumerate(zip(SENTENCES[:-5], SENTENCES[5:], strict=True))
    ]
    (path / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    pairs = [f"{a}\t{b}" for a, b in zip(SENTENCES[:8], SENTENCES[8:16], strict=True)]
    for name in ("train", "val"):
        (path / f"{name}.tsv").write_text("\n".join(["anchor\tpositive", *pairs]))
    data = texts.load(str(path), files=(), columns=(), drop=())
    folder = text_models.bert(width=16, layers=2, hidden=16)
    mesh = meshes.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    task = SentencePairs(folder.encoder, Nesting(DIMS), ("anchor", "positive"), 30)
    collection = beir.Collection(
        list(SENTENCES[:12]),
        [f"d{i}" for i in range(12)],
        list(SENTENCES[12:18]),
        [f"q{i}" for i in range(6)],
        np.arange(6),
        np.arange(6) + 3,
        np.ones(6, np.int64),
    )
    scored = texts.load("", files=(f"train={path / 'sts.tsv'}",), columns=(), drop=())
    evaluation = SentenceEvaluation(
        task,
        mesh,
        folder.tokenizer,
        data,
        dims=DIMS,
        batch_size=32,
        sets=[
            TextSet("sts", "sts", text_sts, path, text_sts.of_split(scored.splits["train"])),
            TextSet("mine", "retrieval", text_retrieval, path, Searched(collection)),
        ],
        layers=(1,),
    )
    return Model.of_text_folder(folder), evaluation.run(jax.device_put(folder.params), {}, ("val",))


def test_the_main_numbers_after_a_layer_are_those_of_an_encoder_that_stops_there(found):
    model, finding = found
    by_name = {(r.name, r.dim): r.value for r in finding.results}
    scores = [i % 7 for i in range(len(SENTENCES) - 5)]
    for depth, suffix in ((1, "_layer1"), (2, "")):
        for dim in DIMS:
            z_nd = model.embed(SENTENCES, dim=dim, depth=depth).astype(np.float64)
            cosine_n = (z_nd[:-5] * z_nd[5:]).sum(1)
            expected = scipy.stats.spearmanr(cosine_n, scores).statistic
            assert by_name[f"sts/spearman{suffix}", dim] == pytest.approx(expected, abs=1e-3)
            cosine_nn = z_nd[:8] @ z_nd[8:16].T
            right = (cosine_nn.argmax(1) == np.arange(8)).mean()
            assert by_name[f"val/match{suffix}", dim] == pytest.approx(right)
    assert by_name["sts/spearman_layer1", 4] != by_name["sts/spearman", 4]
    assert by_name["mine/ndcg10_layer1", 4] != by_name["mine/ndcg10", 4]


def test_a_layer_has_no_other_numbers_and_no_files(found):
    _, finding = found
    layered = {r.name for r in finding.results if "_layer" in r.name}
    assert layered == {"sts/spearman_layer1", "val/match_layer1", "mine/ndcg10_layer1"}
    assert {"sts_sts.json", "mine_retrieval.json"} == {*finding.files}
    assert {*finding.examples} == {"val/match", "val/match_layer1"}


def test_layers_that_are_not_there_are_refused():
    assert check_layers((3, 1), 4) == (1, 3)
    assert check_layers((), 1) == ()
    for layers, there, message in (
        ((4,), 4, "different numbers from 1 to 3, the encoder has 4 layers; got"),
        ((0,), 4, "different numbers from 1 to 3"),
        ((2, 2), 4, "different numbers from 1 to 3"),
        ((1,), 1, "legal is none, the encoder has 1 layer"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layers(layers, there)
