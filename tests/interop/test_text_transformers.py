"""Hidden states against transformers itself, where it and torch are installed."""

import jax
import numpy as np
import pytest
import text_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mrl_jax.interop.sentence_folder import write_sentence_folder  # noqa: E402
from mrl_jax.interop.text_folder import read_text_folder  # noqa: E402

COMMON = {"vocab_size": 100, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3}
BERT = {**COMMON, "intermediate_size": 40, "max_position_embeddings": 150, "layer_norm_eps": 1e-5}
DISTIL = {"vocab_size": 100, "dim": 24, "n_heads": 3, "n_layers": 3, "hidden_dim": 40}
MODELS = {
    "bert": ("Bert", BERT),
    "minilm": ("Bert", {**BERT, "layer_norm_eps": 1e-12, "hidden_act": "gelu_new"}),
    "relu": ("Bert", {**BERT, "hidden_act": "relu"}),
    "silu": ("Bert", {**BERT, "hidden_act": "silu"}),
    "roberta": ("Roberta", {**BERT, "type_vocab_size": 1, "pad_token_id": 1}),
    "roberta_pad_4": ("Roberta", {**BERT, "pad_token_id": 4}),
    "xlm_roberta": ("XLMRoberta", {**BERT, "type_vocab_size": 1}),
    "mpnet": ("MPNet", BERT),
    "distilbert": ("DistilBert", {**DISTIL, "max_position_embeddings": 150}),
}
LENGTHS = (140, 3, 77)


def torch_model(name, kind="Model"):
    stem, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**fields)
    model = getattr(transformers, f"{stem}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch():
    """Tokens that are none of the special ones, and their lengths."""
    rng = np.random.default_rng(1)
    tokens_bt = rng.integers(5, 100, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
    return tokens_bt, np.array(LENGTHS, np.int32)


def their_states(model, tokens_bt, lengths_b):
    base = getattr(model, model.base_model_prefix, model)
    pad = model.config.pad_token_id
    real_bt = np.arange(tokens_bt.shape[1]) < lengths_b[:, None]
    ids = torch.tensor(np.where(real_bt, tokens_bt, pad), dtype=torch.long)
    with torch.no_grad():
        out = base(
            input_ids=ids, attention_mask=torch.tensor(real_bt).long(), output_hidden_states=True
        )
    return [state.numpy() for state in out.hidden_states], real_bt


def check(model, folder):
    tokens_bt, lengths_b = batch()
    exact, real_bt = their_states(model, tokens_bt, lengths_b)
    backbone = folder.encoder.backbone
    params = {"params": folder.params["backbone"]}
    found = jax.jit(backbone.apply)(params, tokens_bt, lengths_b)
    assert len(found) == len(exact) == 4
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real_bt], theirs[real_bt], atol=1e-4)


@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_transformers(tmp_path, name, kind):
    """ForMaskedLM: names with a prefix, and a head that is passed over."""
    model = torch_model(name, kind)
    model.save_pretrained(tmp_path)
    text_models.tokenizer(pad=model.config.pad_token_id).save(tmp_path, 64)
    folder = read_text_folder(tmp_path)
    assert folder.encoder.backbone.layers == 3
    check(model, folder)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_we_write(tmp_path, name):
    model = torch_model(name)
    model.save_pretrained(tmp_path / "theirs")
    text_models.tokenizer(pad=model.config.pad_token_id).save(tmp_path / "theirs", 64)
    folder = read_text_folder(tmp_path / "theirs")
    write_sentence_folder(tmp_path / "ours", folder)
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    check(model.eval(), folder)
