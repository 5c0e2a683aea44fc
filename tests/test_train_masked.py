import shutil
import signal
from collections import Counter

import commands
import jax
import numpy as np
import pytest
import safetensors.numpy
import test_train
import text_models

from mrl_jax import config as configs
from mrl_jax import dry_run, evaluate, experiment, export, report
from mrl_jax.errors import UsageError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import TextFolder, read_text_folder
from mrl_jax.models.text import Bert, SentenceEncoder
from mrl_jax.models.text.tokenizer import Tokenizer

CONFIG = commands.ROOT / "configs" / "bert_mlm.py"
WORDS = ("apple", "bread", "cherry", "date", "egg", "fig", "grape", "honey")
STEPS = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder of 16 dims in `encoder`; in `texts` documents that say one word all the time."""
    path = tmp_path_factory.mktemp("masked")
    tokenizer = Tokenizer.train(WORDS, 80)
    encoder = SentenceEncoder(Bert(tokenizer.vocab_size, 16, 1, 2, 24, max_positions=16))
    params = text_models.random_params(encoder)
    write_sentence_folder(path / "encoder", TextFolder(encoder, params, tokenizer, 16))
    (path / "texts").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("val", 20), ("test", 20)):
        said = rng.integers(0, len(WORDS), count)
        documents = [" ".join([WORDS[i]] * rng.integers(8, 30)) for i in said]
        (path / "texts" / f"{split}.txt").write_text("\n".join(documents))
    return path


def keys(place):
    return [
        f"--config.text.encoder={place / 'encoder'}",
        f"--config.data.path={place / 'texts'}",
        "--config.text.dropout=0.0",
        "--config.text.max_length=12",
        "--config.nesting.dims=2,4,16",
        "--config.eval.dims=2,4,8,16",
        "--config.batch_size=16",
        "--config.eval.batch_size=16",
        f"--config.steps={STEPS}",
        "--config.optimizer.learning_rate=0.02",
        "--config.optimizer.warmup_steps=5",
        "--config.log_every=1",
        "--config.eval.every=0",
        "--config.checkpoint.every=50",
    ]


def train(workdir, place, *overrides, arg="mrl_e,small"):
    where = ("--config", f"{CONFIG}:{arg}", "--workdir", workdir)
    return commands.command("mrl_jax.train", *where, *keys(place), *overrides)


def load(place, *overrides, arg="mrl_e,small"):
    return configs.load(f"{CONFIG}:{arg}", [*keys(place), *overrides])


def test_the_tokenizer_that_is_kept_goes_before_the_encoders(place, tmp_path):
    first = Tokenizer.load(place / "encoder")
    (tmp_path / "tokenizer.json").write_text(first.to_json())
    shutil.copytree(place / "encoder", tmp_path / "encoder")
    Tokenizer.train(["abc apple"] * 3, 40).save(tmp_path / "encoder", 16)
    config = load(place, f"--config.text.encoder={tmp_path / 'encoder'}")
    kept, changed = (experiment.from_config(config, run) for run in (tmp_path, None))
    assert kept.dataset.tokenizer.raw.to_str() == first.raw.to_str()
    assert kept.dataset.fingerprint() == experiment.from_config(load(place)).dataset.fingerprint()
    assert kept.dataset.fingerprint() != changed.dataset.fingerprint()


def test_the_length_is_the_folders_unless_it_is_said(place):
    for asked, expected in ((0, 16), (12, 12)):
        setup = experiment.from_config(load(place, f"--config.text.max_length={asked}"))
        assert setup.program.task.max_length == expected


def values(workdir):
    return commands.values(workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, place):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, commands.here(train(workdir, place))


def test_an_easy_language_is_learned_by_every_prefix(finished, place):
    workdir, output = finished
    for part in ("encoder from", "test/masked_accuracy", "train 1", "sequences of 12 tokens"):
        assert part in output
    found = values(workdir)
    words = (place / "texts" / "test.txt").read_text().split()
    unigram = max(Counter(words).values()) / len(words)
    for dim in (2, 4, 8, 16):
        assert 0 < found["test/masked_probability", dim] < 1
    assert unigram < 0.3
    # Documents are short of the rows: at their ends the other word is often meant.
    assert found["test/masked_accuracy", 4] > unigram + 0.3
    assert found["test/masked_accuracy", 16] > unigram + 0.4
    written = test_train.records(workdir)
    assert [r["step"] for r in written] == [*range(1, STEPS + 1), STEPS]
    assert written[-2]["train/loss/0016"] < 0.5 * written[0]["train/loss/0016"]


@pytest.mark.slow
def test_killed_it_goes_on_bit_for_bit(finished, place, tmp_path):
    workdir = tmp_path / "run"
    process = test_train.start(train(workdir, place), devices=8)
    test_train.wait_for_step(workdir, 120, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "resuming from step" in commands.here(train(workdir, place))
    assert test_train.records(workdir) == test_train.records(finished[0])
    (_, mine), (_, other) = (test_train.final_arrays(w) for w in (workdir, finished[0]))
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_array_equal(one, two)
    assert values(workdir) == values(finished[0])


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(finished, place, tmp_path):
    workdir = tmp_path / "run"
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    split = "--config.sharding=(('tokens/embedding','largest:fsdp'),('.*','replicate'))"
    options = ("--config.mesh.data=1", "--config.mesh.fsdp=2", split, "--config.steps=20")
    commands.succeed([*launcher, *train(workdir, place, *options)])
    mine, one = test_train.records(workdir), test_train.records(finished[0])
    assert mine[0]["train/loss"] == pytest.approx(one[0]["train/loss"], rel=1e-5)
    assert mine[0]["train/grad_norm"] == pytest.approx(one[0]["train/grad_norm"], rel=1e-3)
    assert test_train.results_of(workdir)["data"] == test_train.results_of(finished[0])["data"]


@pytest.mark.slow
def test_on_a_mesh_it_is_measured_the_same_and_beside_rivals(finished, tmp_path, capsys):
    before = values(finished[0])
    evaluate.main(["--workdir", str(finished[0]), "--config.eval.projections=True"])
    assert "test/masked_accuracy_pca" in capsys.readouterr().out
    after = values(finished[0])
    for key, value in before.items():
        assert after[key] == pytest.approx(value, abs=0.01)
    for suffix in ("_pca", "_svd", "_rotation"):
        # All coordinates of another basis say what the embedding says.
        name = f"test/masked_accuracy{suffix}"
        assert after[name, 16] == pytest.approx(after["test/masked_accuracy", 16], abs=0.01)
        assert 0 < after[name, 2] <= 1
    report.main([str(finished[0]), "--out", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()  # which has the tables of all measures
    assert "Hidden tokens, test" in page
    assert "Hidden tokens, 1 / perplexity" in page
    assert "Hidden tokens, validation" in page
    assert (tmp_path / "masked_accuracy_by_dim.png").exists()


def test_the_encoder_becomes_a_folder_to_start_from(finished, place, tmp_path):
    out = tmp_path / "encoder"
    form = ("--format", "sentence_transformers")
    export.main(["--workdir", str(finished[0]), "--out", str(out), *form])
    folder = read_text_folder(out)
    setup, state = experiment.restored(finished[0])
    expected = np.asarray(state["params"]["backbone"]["tokens"]["embedding"])
    np.testing.assert_array_equal(folder.params["backbone"]["tokens"]["embedding"], expected)
    assert folder.trained_dims == ()
    assert "masked_accuracy" not in (out / "README.md").read_text()
    assert folder.max_length == setup.program.task.max_length == 12
    again = experiment.from_config(load(place, f"--config.text.encoder={out}"))
    assert again.start[0] == f"encoder from {out}"


@pytest.mark.slow
def test_what_is_embedded_leaves_for_other_programs(finished, tmp_path):
    out = tmp_path / "embedding"
    export.main(["--workdir", str(finished[0]), "--out", str(out), "--format", "stablehlo"])
    called = jax.export.deserialize(bytearray((out / "embed.stablehlo").read_bytes())).call
    tokens, lengths = np.full((3, 7), 9, np.int32), np.array([7, 4, 1], np.int32)
    setup, state = experiment.restored(finished[0])
    expected = setup.program.task.embed(
        state["params"], {}, {"tokens": np.tile(tokens, (8, 1)), "lengths": np.tile(lengths, 8)}
    )
    found = called(tokens, lengths)["embedding"]
    np.testing.assert_allclose(found, expected[:3], rtol=1e-4, atol=1e-4)


def with_head(folder, width, vocab, left_out=()):
    """Puts BERT's head for hidden tokens beside the encoder's weights."""
    rng, path = np.random.default_rng(1), folder / "model.safetensors"
    shapes = {
        "transform.dense.weight": (width, width),
        "transform.dense.bias": (width,),
        "transform.LayerNorm.weight": (width,),
        "transform.LayerNorm.bias": (width,),
        "bias": (vocab,),
        "decoder.weight": (vocab, width),
    }
    head = {
        f"cls.predictions.{name}": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
        if name not in left_out
    }
    safetensors.numpy.save_file({**safetensors.numpy.load_file(path), **head}, path)
    return head


def test_an_output_layer_is_read_with_the_encoder(place, tmp_path):
    folder = tmp_path / "bert"
    written = text_models.bert_folder(folder, layers=1)
    words = written.tokenizer.vocab_size
    head = with_head(folder, 32, words)
    config = load(place, f"--config.text.encoder={folder}")
    setup = experiment.from_config(config)
    source, put_in = setup.start
    assert source == f"encoder and output layer from {folder}"
    program = setup.program
    params = put_in(program.init_state(program.run_key(0)))["params"]
    dense = params["transform"]["dense"]
    theirs = head["cls.predictions.transform.dense.weight"]
    np.testing.assert_array_equal(dense["kernel"], theirs.T)
    np.testing.assert_array_equal(params["head"]["bias"], head["cls.predictions.bias"])
    np.testing.assert_array_equal(
        params["backbone"]["tokens"]["embedding"],
        written.params["backbone"]["tokens"]["embedding"],
    )
    other = tmp_path / "other"
    text_models.bert_folder(other, layers=1)
    with_head(other, 32, words, left_out=("bias",))
    with pytest.raises(UsageError, match="no tensor for head/bias"):
        _ = experiment.from_config(load(place, f"--config.text.encoder={other}")).start


def test_what_a_step_costs_is_told_without_texts(place):
    config = configs.load(f"{CONFIG}:mrl_e", ["--config.batch_size=8"])
    program = dry_run.program_of(config)
    task, spec = program.task, program.largest_batch
    assert task.nesting.dims == (12, 24, 48, 96, 192, 384, 768)
    assert task.backbone.vocab_size == 30522
    assert (spec["tokens"].shape, spec["places"].shape) == ((8, 512), (8, 77))
    assert "FLOP per example" in dry_run.report(load(place))


def test_a_fresh_encoder_has_the_vocabulary_of_its_texts(place):
    setup = experiment.from_config(load(place, "--config.text.encoder=bert_tiny"))
    assert setup.start is None
    task = setup.program.task
    assert task.backbone.vocab_size == Tokenizer.train(WORDS, 4096).vocab_size
    assert (task.backbone.width, task.predictions) == (128, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.kind=separate"], "config.head.kind of masked_lm is shared (MRL-E: the output"),
        (["head.kind=fixed"], "or fixed, for one dim; got fixed for 3 dims"),
        (["text.encoder=static"], "config.text: encoder: a static table sees one token at a time"),
        (["text.encoder=nowhere"], "nowhere not found"),
        (["text.tokenizer={place}/encoder"], "is a folder and has its own"),
        (["text.max_length=17"], "config.text: max_length 17: {place}/encoder takes at most 16"),
        (["text.max_length=-1"], "config.text.max_length must be >= 0, got -1"),
        (["text.mask_rate=1.5"], "config.text.mask_rate must be in (0, 1), got 1.5"),
        (["nesting.dims=8,32"], "config.nesting: nesting dim 32 is wider than the embedding (16"),
        (["data.path="], "needs data.path=FOLDER or data.files=train=FILE,..."),
        (["pairs.margin=0.5"], "config.pairs.margin: task masked_lm does not read it"),
        (["text.pooling=cls"], "config.text.pooling: task masked_lm does not read it"),
        (["eval.dims=32"], "config.eval.dims (32,) are all wider than the nesting"),
    ],
)
def test_experiments_that_cannot_run_say_why(place, overrides, message):
    with pytest.raises(UsageError) as error:
        experiment.from_config(
            load(place, *[f"--config.{o}".format(place=place) for o in overrides])
        )
    assert message.format(place=place) in str(error.value)
    assert "\n" not in str(error.value)


def test_sentence_pairs_do_not_hide_tokens():
    with pytest.raises(UsageError, match=r"mask_rate: task sentence_pairs does not"):
        configs.load("configs/static_sentence.py:mrl", ["--config.text.mask_rate=0.5"])


def test_arguments_of_the_config_file():
    config = configs.load(f"{CONFIG}:fixed=16,small")
    assert (config.head.kind, config.nesting.dims) == ("fixed", (16,))
    with pytest.raises(UsageError, match="unknown change 'tiny'; legal is small"):
        configs.load(f"{CONFIG}:mrl_e,tiny")
    runs = configs.sweep_of(str(CONFIG))
    assert runs[:2] == [("mrl_e,small", {}), ("fixed=8,small", {})]
    assert len(runs) == 6
