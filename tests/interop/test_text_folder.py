import dataclasses
import json

import jax
import numpy as np
import pytest
import text_models
from safetensors.numpy import load_file, save_file

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import UNLIMITED, keep_layers, read_text_folder
from mrl_jax.models.text import Bert

FAMILIES = {
    "bert": {},
    "roberta": {"types": 1, "position_offset": 2},
    "mpnet": {"types": 0, "position_offset": 2, "relative": True},
    "distilbert": {"types": 0},
}


@pytest.fixture
def folder(tmp_path):
    """A BERT with a Dense, as written."""
    text_models.bert_folder(tmp_path / "m", projection=16)
    return tmp_path / "m"


def change(path, **values):
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def retensor(path, edit):
    state = edit(load_file(path))
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)


def same(a, b):
    assert a.encoder == b.encoder
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    fields = ("max_length", "prompts", "trained_dims", "normalize", "default_prompt")
    for field in (*fields, "truncate_dim"):
        assert getattr(a, field) == getattr(b, field), field
    for x, y in zip(*(f.tokenizer.encode(["a zebra!"], 9) for f in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert", "mean"), ("roberta", "cls"), ("mpnet", "last"), ("distilbert", "mean")],
)
def test_what_is_written_reads_back_the_same(tmp_path, name, pooling):
    given = dataclasses.replace(
        text_models.bert(pooling=pooling, activation="gelu_tanh", **FAMILIES[name]),
        max_length=17,
        prompts={"query": "find: "},
        default_prompt="query",
        trained_dims=(4, 8, 32),
        truncate_dim=8,
        normalize=True,
    )
    write_sentence_folder(tmp_path / "m", given)
    same(read_text_folder(tmp_path / "m"), given)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == name


@pytest.mark.parametrize("bias", [True, False])
def test_a_table_and_a_projection_read_back_the_same(tmp_path, bias):
    given = text_models.static(projection=5, projection_bias=bias)
    write_sentence_folder(tmp_path / "m", given)
    same(read_text_folder(tmp_path / "m"), given)
    assert given.max_length == UNLIMITED
    short = dataclasses.replace(given, max_length=7)
    write_sentence_folder(tmp_path / "m", short)  # in place of the first
    same(read_text_folder(tmp_path / "m"), short)


def test_the_files_are_those_that_sentence_transformers_looks_for(folder, tmp_path):
    def files(path):
        return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())

    assert files(folder) == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "mrl_jax.files.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    given = dataclasses.replace(text_models.static(), normalize=True, trained_dims=(8, 32))
    write_sentence_folder(tmp_path / "table", given)
    assert files(tmp_path / "table") == [
        "0_StaticEmbedding/model.safetensors",
        "0_StaticEmbedding/tokenizer.json",
        "0_StaticEmbedding/tokenizer_config.json",
        "README.md",
        "config_sentence_transformers.json",
        "matryoshka.json",
        "modules.json",
        "mrl_jax.files.json",
    ]
    modules = json.loads((tmp_path / "table" / "modules.json").read_text())
    assert [(m["idx"], m["path"], m["type"]) for m in modules] == [
        (0, "0_StaticEmbedding", "sentence_transformers.models.StaticEmbedding"),
        (1, "1_Normalize", "sentence_transformers.models.Normalize"),
    ]
    assert (tmp_path / "table" / "1_Normalize").is_dir()


def test_the_card_tells_dims_scores_prompts_and_how_to_cut(tmp_path):
    given = dataclasses.replace(
        text_models.bert(), prompts={"query": "find: "}, trained_dims=(4, 16, 32)
    )
    scores = {"STS-B": {32: 0.81234, 4: 0.7}, "nDCG@10": {32: 0.3}}
    write_sentence_folder(tmp_path / "small-cat", given, scores=scores)
    text = (tmp_path / "small-cat" / "README.md").read_text()
    for part in (
        "# small-cat\n",
        "at most 30 tokens",
        "an embedding of 32 dims",
        "stand alone: 4, 16, 32.",
        "truncate_dim=16)",
        "normalize_embeddings=True",
        'prompt_name="query"',
        '- `query`: "find: "',
        'In training and for the scores: "find: " before queries, nothing before documents,',
        "| dims | STS-B | nDCG@10 |\n| --- | --- | --- |\n"
        "| 32 | 0.8123 | 0.3000 |\n| 4 | 0.7000 |  |\n",
    ):
        assert part in text, part
    assert text.startswith("---\nlibrary_name: sentence-transformers\n")


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_plain_folder_with_old_names_a_pooler_and_a_head(folder, prefix):
    """transformers alone: no modules.json, gamma and beta, heads of pre-training."""
    whole = read_text_folder(folder)
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()

    def old(state):
        names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        found = {}
        for name, value in state.items():
            for new, ancient in names:
                name = name.replace(new, ancient)
            found[prefix + name] = value
        extra = ("cls.predictions.bias", "cls.seq_relationship.weight")
        found |= {name: np.zeros(3, np.float32) for name in extra}
        return found | {f"{prefix}embeddings.position_ids": np.arange(30)[None]}

    retensor(folder / "model.safetensors", old)
    change(folder / "tokenizer_config.json", model_max_length=10**30)
    found = read_text_folder(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params["backbone"], whole.params["backbone"])
    assert found.encoder.pooling == "mean"
    assert found.encoder.projection == 0
    assert (found.max_length, found.normalize, found.trained_dims) == (30, False, ())


def test_old_and_new_names_of_pooling_and_of_limits(folder):
    for mode, ours in (("cls", "cls"), (["lasttoken"], "last"), ("mean", "mean")):
        config = {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        assert read_text_folder(folder).encoder.pooling == ours
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    change(folder / "sentence_roberta_config.json", max_seq_length=12)
    assert read_text_folder(folder).max_length == 12
    change(folder / "sentence_roberta_config.json", max_seq_length=512)
    assert read_text_folder(folder).max_length == 30  # there are no more positions


def test_the_limit_is_the_folders_wherever_it_stands(folder):
    for sentence, tokens, expected in ((20, 7, 20), (None, 7, 7), (None, 10**30, 30)):
        change(folder / "sentence_bert_config.json", max_seq_length=sentence)
        change(folder / "tokenizer_config.json", model_max_length=tokens)
        assert read_text_folder(folder).max_length == expected
    change(folder / "tokenizer_config.json", model_max_length=None, max_len=9)
    assert read_text_folder(folder).max_length == 9


def drop(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


LAYER = "encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop(LAYER), "no tensor for layer_01/fc2/bias; legal: the weights that the folder"),
        (lambda s: s | {"encoder.layer.3.output.dense.bias": s[LAYER]}, "no parameter for enc.*3"),
        (lambda s: s | {"classifier.weight": s[LAYER]}, "no parameter for classifier.weight"),
        (
            lambda s: s | {LAYER: s[LAYER][:5]},
            r"wrong shape: .*1.output.dense.bias \[5\] for layer",
        ),
        (lambda s: {}, "no tensor for .* more"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, edit, message):
    retensor(folder / "model.safetensors", edit)
    with pytest.raises(UsageError, match=message) as caught:
        read_text_folder(folder)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused(folder):
    retensor(folder / "model.safetensors", lambda s: s | {LAYER: s[LAYER] * np.nan})
    with pytest.raises(DataError, match=f"{LAYER} has 32 values that are NaN"):
        read_text_folder(folder)


def test_pickles_and_parts_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model.bin is a pickle.* weights_only=True"):
        read_text_folder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"weights in several files; legal: one model.safetensors"):
        read_text_folder(folder)
    with pytest.raises(UsageError, match=r"folder of a text encoder .*/none not found"):
        read_text_folder(folder / "none")


@pytest.mark.parametrize(
    ("file", "values", "kind", "message"),
    [
        (
            "config.json",
            {"model_type": "t5"},
            UsageError,
            "'t5' is not supported; legal: bert, ro",
        ),
        (
            "config.json",
            {"hidden_act": "mish"},
            UsageError,
            "hidden_act 'mish' is not supported; .* gelu_new",
        ),
        ("config.json", {"hidden_size": None}, DataError, "config.json lacks hidden_size"),
        (
            "config.json",
            {"num_attention_heads": 5},
            DataError,
            "5 heads do not divide the width 32",
        ),
        ("config.json", {"position_embedding_type": "relative_key"}, UsageError, "'relative_key'"),
        ("config.json", {"is_decoder": True}, UsageError, "is_decoder True .* legal: False"),
        ("config.json", {"add_cross_attention": True}, UsageError, "add_cross_attention True"),
        ("config.json", {"pruned_heads": {"0": [1]}}, UsageError, "pruned_heads"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, UsageError, "'fill-mask'"),
        ("sentence_bert_config.json", {"tokenizer_args": {"a": 1}}, UsageError, "tokenizer_args"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, DataError, "'long' tokens"),
        ("tokenizer_config.json", {"never_split": ["a"]}, UsageError, "never_split"),
        ("config.json", {"num_hidden_layers": 2}, UsageError, "no parameter for encoder.layer.2"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, UsageError, "cls and mean"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, UsageError, "max is not .*: cls, mean"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 9}, DataError, "9 dims, .* has 32"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Tanh"}, UsageError, "Tanh; leg"),
        ("2_Dense/config.json", {"use_residual": True}, UsageError, "residual; legal: Identity"),
        ("2_Dense/config.json", {"out_features": 17}, UsageError, r"wrong shape: linear.*\[17\]"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query"},
            DataError,
            "default_prompt_name 'query'; legal: none",
        ),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, DataError, "be texts"),
        (
            "config_sentence_transformers.json",
            {"truncate_dim": 17},
            DataError,
            "dim 17, .* 1 to 16",
        ),
    ],
)
def test_settings_that_are_not_ours_are_refused(folder, file, values, kind, message):
    change(folder / file, **values)
    with pytest.raises(kind, match=message) as caught:
        read_text_folder(folder)
    assert "\n" not in str(caught.value)


def test_prompts_that_are_not_pooled_are_refused(folder):
    change(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert read_text_folder(folder).prompts == {}
    change(folder / "config_sentence_transformers.json", prompts={"query": "q: ", "document": ""})
    with pytest.raises(UsageError, match="pooling without the prompt"):
        read_text_folder(folder)
    change(folder / "1_Pooling" / "config.json", include_prompt=True)
    found = read_text_folder(folder)
    assert found.prompts == {"query": "q: ", "document": ""}
    write_sentence_folder(folder.parent / "again", found)
    assert read_text_folder(folder.parent / "again").prompts == found.prompts


@pytest.mark.parametrize(
    ("modules", "kind", "message"),
    [
        ([("Transformer", "")], UsageError, "Transformer are not known; legal: Transformer > Pool"),
        ([("Transformer", ""), ("CNN", "1")], UsageError, "modules Transformer > CNN are not"),
        ([("StaticEmbedding", "../m")], DataError, "'../m' is not inside the folder"),
        ([("StaticEmbedding", "/m")], DataError, "'/m' is not inside the folder"),
        ([], UsageError, "are not known"),
    ],
)
def test_modules_that_are_not_ours_are_refused(folder, modules, kind, message):
    entries = [{"type": f"sentence_transformers.models.{t}", "path": p} for t, p in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(kind, match=message):
        read_text_folder(folder)
    (folder / "modules.json").write_text('[{"path": ""}]')
    with pytest.raises(DataError, match="field 'type' is missing"):
        read_text_folder(folder)
    (folder / "modules.json").write_text('{"path": ""}')
    with pytest.raises(DataError, match="must be a list of modules"):
        read_text_folder(folder)


def test_a_normalize_whose_empty_folder_was_lost_is_read(tmp_path):
    """As in clones of published models: Git keeps no empty folders."""
    given = dataclasses.replace(text_models.static(), normalize=True)
    write_sentence_folder(tmp_path / "m", given)
    (tmp_path / "m" / "1_Normalize").rmdir()
    same(read_text_folder(tmp_path / "m"), given)


def test_some_layers_can_be_kept():
    given = text_models.bert()
    first, last = (keep_layers(given, layers) for layers in ((1, 2), (2, 3)))
    tokens_bt, lengths_b = np.arange(12, dtype=np.int32).reshape(2, 6), np.array([6, 4], np.int32)

    def embedded(folder, **options):
        return folder.encoder.apply({"params": folder.params}, tokens_bt, lengths_b, **options)

    np.testing.assert_allclose(embedded(first), embedded(given, depth=2), atol=1e-6)
    jax.tree.map(
        np.testing.assert_array_equal,
        [last.params["backbone"][f"layer_{n:02d}"] for n in (0, 1)],
        [given.params["backbone"][f"layer_{n:02d}"] for n in (1, 2)],
    )
    same(keep_layers(given, (1, 2, 3)), given)
    for layers in ((0, 1), (2, 1), (3, 3), (4,)):
        with pytest.raises(ValueError, match="layers must be rising numbers from 1 to 3"):
            keep_layers(given, layers)
    with pytest.raises(ValueError, match="a static table has none"):
        keep_layers(text_models.static(), (1,))


def test_ids_without_a_row_are_refused(folder):
    text_models.Tokenizer.train(text_models.SENTENCES, 130).save(folder, 28)
    with pytest.raises(DataError, match=r"ids up to 1\d\d, the table 100 rows"):
        read_text_folder(folder)


def test_nothing_else_is_overwritten_and_nothing_half_is_left(tmp_path, monkeypatch):
    given = text_models.bert()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(UsageError, match="something other than a sentence encoder"):
            write_sentence_folder(tmp_path / name, given)
    (tmp_path / "m").mkdir()  # empty
    write_sentence_folder(tmp_path / "m", given)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.rglob("*"))
    other = text_models.bert(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("mrl_jax.interop.sentence_folder.card", full)
        with pytest.raises(DataError, match=r"cannot write .*/m: No space left on device"):
            write_sentence_folder(tmp_path / "m", other)
    assert sorted(tmp_path.rglob("*")) == before
    same(read_text_folder(tmp_path / "m"), given)
    write_sentence_folder(tmp_path / "m", other)
    same(read_text_folder(tmp_path / "m"), other)


def test_a_tokenizer_that_pads_with_another_token_is_refused(tmp_path):
    given = text_models.bert(**FAMILIES["mpnet"])
    write_sentence_folder(tmp_path / "m", given)
    message = "positions begin after padding of id 1, the tokenizer pads with 0"
    text_models.tokenizer().save(tmp_path / "m", 28)
    with pytest.raises(DataError, match=f"/m: {message}"):
        read_text_folder(tmp_path / "m")
    wrong = dataclasses.replace(given, tokenizer=text_models.tokenizer())
    with pytest.raises(DataError, match=f"the encoder: {message}"):
        write_sentence_folder(tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()


def test_encoders_that_no_family_has_are_refused(tmp_path):
    given = text_models.bert(types=0, epsilon=1e-5)
    with pytest.raises(
        UsageError, match="transformers has no encoder with relative=False, types=0"
    ):
        write_sentence_folder(tmp_path / "m", given)
    with pytest.raises(UsageError, match="pools by mean, the encoder by cls"):
        write_sentence_folder(tmp_path / "m", text_models.static(pooling="cls"))
    assert not list(tmp_path.iterdir())


def test_the_settings_of_the_config_are_those_of_the_module(tmp_path):
    fields = {"hidden": 44, "heads": 2, "layers": 1, "max_positions": 33, "dropout": 0.2}
    text_models.bert_folder(tmp_path / "m", activation="silu", attention_dropout=0.3, **fields)
    found = read_text_folder(tmp_path / "m").encoder.backbone
    assert found == Bert(100, 32, activation="silu", attention_dropout=0.3, **fields)


_MARK_ID = "tokenizer.json", ["post_processor", "special_tokens", "[CLS]", "ids", 0]


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("config.json", ["vocab_size"], None, "field 'vocab_size' must be int, got None"),
        ("config.json", ["hidden_size"], [], "field 'hidden_size' must be int"),
        ("config.json", ["num_hidden_layers"], 10**18, "num_hidden_layers must be 1 to 1000"),
        ("config.json", ["num_attention_heads"], 0, "num_attention_heads must be 1 to"),
        ("config.json", ["max_position_embeddings"], 1, "max_position_embeddings must be 8 to"),
        ("config.json", ["pad_token_id"], [], r"field 'pad_token_id' must be int, got \[\]"),
        ("config.json", ["pad_token_id"], -1, "pad_token_id must be 0 to"),
        ("config.json", ["layer_norm_eps"], "x", "field 'layer_norm_eps' must be int or float"),
        ("config.json", ["hidden_act"], ["gelu"], "field 'hidden_act' must be str"),
        ("2_Dense/config.json", ["out_features"], None, "field 'out_features' must be int"),
        ("2_Dense/config.json", ["out_features"], -1, "out_features must be 1 to"),
        ("config_sentence_transformers.json", ["prompts"], True, "prompts must be texts by name"),
        ("config_sentence_transformers.json", ["prompts"], "x", "prompts must be texts by name"),
        ("matryoshka.json", ["dims"], None, "field 'dims' must be list, got None"),
        ("config_sentence_transformers.json", ["default_prompt_name"], [1], "must be a text"),
        ("modules.json", [0, "path"], "\ud800", "has no folder '"),
        ("modules.json", [0], None, "field 'type' is missing"),
        ("tokenizer.json", ["version"], "x" * 3000, r"not a tokenizer .{,210}$"),
        ("tokenizer.json", ["model", "unk_token"], "x", "cannot tokenise"),
        (
            "tokenizer.json",
            ["post_processor", "single", 0, "SpecialToken", "id"],
            "x",
            "does not define it",
        ),
        (*_MARK_ID, 2**31, "post_processor puts id 2147483648 around a text, but no token has it"),
        (*_MARK_ID, 100, "post_processor puts id 100 around a text, but no token has it"),
    ],
)
def test_fields_of_another_type_are_named(tmp_path, file, path, value, message):
    text_models.bert_folder(tmp_path / "m", projection=16)
    (tmp_path / "m/tokenizer_config.json").unlink()
    (tmp_path / "m/matryoshka.json").write_text('{"dims": [4, 16]}')
    content = inner = json.loads((tmp_path / "m" / file).read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "m" / file).write_text(json.dumps(content))
    with pytest.raises((DataError, UsageError), match=message):
        read_text_folder(tmp_path / "m")
