import jax
import numpy as np
import pytest
from data.test_masked import LENGTH, RATE, WORDS

from mrl_jax.data.masked import Documents, tokenise
from mrl_jax.models.text import Bert
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.masked_lm import measure
from mrl_jax.tasks.masked_lm.task import MaskedLM

DIMS = (2, 4, 8)


def log_probabilities(logits_nv):
    logits_nv = np.asarray(logits_nv, np.float64)
    return logits_nv - np.log(np.exp(logits_nv).sum(1, keepdims=True))


@pytest.mark.parametrize("most", [2**20, 240])
def test_what_a_prefix_says_of_each_token(monkeypatch, most):
    """Also in parts, of which the last is filled up."""
    monkeypatch.setattr(measure, "_ROWS", 1)
    monkeypatch.setattr(measure, "_LOGITS", most)
    rng = np.random.default_rng(0)
    x_nd, kernel_dv = (rng.normal(size=s).astype(np.float32) for s in ((7, 8), (8, 20)))
    bias_v, label_n = rng.normal(size=20).astype(np.float32), rng.integers(0, 20, 7)
    right_gn, loss_gn = measure.judged(x_nd, kernel_dv, bias_v, label_n, DIMS)
    for g, m in enumerate(DIMS):
        log_nv = log_probabilities(x_nd[:, :m] @ kernel_dv[:m] + bias_v)
        np.testing.assert_allclose(loss_gn[g], -log_nv[np.arange(7), label_n], rtol=1e-5)
        np.testing.assert_array_equal(right_gn[g], log_nv.argmax(1) == label_n)


def test_equal_logits_are_no_answer():
    kernel_dv, bias_v = np.zeros((2, 3), np.float32), np.array([1, 1, 0], np.float32)
    right_gn, _ = measure.judged(
        np.ones((1, 2), np.float32), kernel_dv, bias_v, np.zeros(1, int), (2,)
    )
    assert not right_gn.any()


def test_every_prefix_and_rival_is_measured(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = [" ".join(rng.choice(WORDS, 20)) for _ in range(20)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    documents = {split: Documents((tmp_path / f"{split}.txt",)) for split in ("train", "test")}
    tokenizer = Tokenizer.train(WORDS, 80)
    data = tokenise("words", documents, tokenizer, length=LENGTH, rate=RATE)
    split = data.splits["test"]
    backbone = Bert(tokenizer.vocab_size, 16, 1, 2, 8, max_positions=LENGTH)
    task = MaskedLM(backbone, Nesting(DIMS), LENGTH, split.masking.predictions)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    params["head"] = {"bias": rng.normal(size=tokenizer.vocab_size).astype(np.float32)}
    evaluation = measure.MaskedEvaluation(
        task, make_mesh(), data.splits, dims=(2, 3, 8, 12), batch_size=16, projections=True
    )
    found = evaluation.run(params, {}, ("test",))
    by_name = {(r.name, r.dim): r for r in found.results}
    masked = split.held_out(np.arange(split.examples))

    def read(masked):
        h_npd = jax.jit(task.predicted)(params, {k: masked[k] for k in ("tokens", "places")})
        return np.asarray(h_npd, np.float64)[masked["mask"] > 0][:, :8]

    h_nd, label_n = read(masked), masked["labels"][masked["mask"] > 0]
    kernel_dv, bias_v = (np.asarray(x, np.float64) for x in task.kernel_and_bias(params))
    train_nd = read(data.splits["train"].held_out(np.arange(data.splits["train"].examples)))
    mean_d = train_nd.mean(0)
    _, _, axes_ed = np.linalg.svd(train_nd - mean_d, full_matrices=False)
    for m in (2, 3, 8):
        kept = {
            "": np.where(np.arange(8) < m, h_nd, 0),
            "_pca": mean_d + (h_nd - mean_d) @ axes_ed[:m].T @ axes_ed[:m],
        }
        for suffix, z_nd in kept.items():
            log_nv = log_probabilities(z_nd @ kernel_dv + bias_v)
            accuracy = by_name[f"test/masked_accuracy{suffix}", m]
            assert accuracy.value == pytest.approx((log_nv.argmax(1) == label_n).mean())
            assert accuracy.n == len(label_n)
            loss_n = -log_nv[np.arange(len(label_n)), label_n]
            probability = by_name[f"test/masked_probability{suffix}", m]
            assert probability.value == pytest.approx(np.exp(-loss_n.mean()), rel=1e-5)
            error = np.exp(-loss_n.mean()) * loss_n.std(ddof=1) / np.sqrt(len(loss_n))
            assert probability.stderr == pytest.approx(error, rel=1e-4)
    assert ("test/masked_accuracy", 12) not in by_name  # beyond what was trained
    assert ("test/masked_accuracy_svd", 8) in by_name
    assert found.examples["test/masked_accuracy"].right_gn.shape == (3, len(label_n))
