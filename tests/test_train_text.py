import dataclasses
import gzip
import json
import shutil
import signal

import commands
import jax
import numpy as np
import pytest
import test_train
import text_models
from sklearn.metrics import ndcg_score

import mrl_jax
from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import CheckpointError, DataError, UsageError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.models.text.tokenizer import Tokenizer

CONFIG = commands.ROOT / "configs" / "static_sentence.py"
SMALL = (
    "--config.text.width=8",
    "--config.text.vocab_size=200",
    "--config.nesting.dims=2,4,8",
    "--config.eval.dims=2,3,4,8",
    "--config.steps=40",
    "--config.batch_size=16",
    "--config.eval.batch_size=16",
    "--config.log_every=1",
    "--config.optimizer.warmup_steps=5",
    "--config.checkpoint.every=10",
)
WHO = ("a man", "the woman", "a small child", "two dogs", "the old cat", "some people", "a bird")
WHAT = ("plays the guitar", "runs on the beach", "sleeps", "eats an apple near a tree", "waits")
WHERE = ("today", "in the rain", "while it is getting dark")


def groups():
    """Of every who and what all wheres: texts of a group share most of their words."""
    return [{"texts": [f"{who} {what} {w}" for w in WHERE]} for who in WHO for what in WHAT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    rows = groups()
    lines = "".join(json.dumps(row) + "\n" for row in rows[:28]).encode()
    (path / "train.jsonl.gz").write_bytes(gzip.compress(lines))
    (path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[28:]))
    scored = ["sentence1\tsentence2\tscore"]
    for i, row in enumerate(rows[:20]):
        scored.append("\t".join([row["texts"][0], row["texts"][1], "5.0"]))
        scored.append("\t".join([row["texts"][0], rows[i + 9]["texts"][2], "0.5"]))
    (path / "test.tsv").write_text("\n".join(scored))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, commands.here(train(workdir, folder))


def train(workdir, folder, *overrides, arg="mrl"):
    where = ("--config", f"{CONFIG}:{arg}", "--workdir", workdir)
    sets = (f"--config.data.path={folder}", f"--config.eval.sts=again={folder / 'test.tsv'}")
    return commands.command("mrl_jax.train", *where, *SMALL, *sets, *overrides)


def test_a_run_learns_and_leaves_what_it_promises(finished):
    workdir, output = finished
    for part in ("backbone/tokens/embedding", "val/match", "test/spearman", "again/spearman"):
        assert part in output
    by_name = commands.by_name(workdir)
    assert {dim for name, dim in by_name if name == "val/match"} == {2, 3, 4, 8}
    assert by_name["val/match", 8].n == 7
    assert by_name["test/spearman", 8].n == 40
    assert by_name["test/spearman", 8].value > 0.8
    assert by_name["test/spearman", 8].value == by_name["again/spearman", 8].value
    written = test_train.records(workdir)
    assert [r["step"] for r in written] == [*range(1, 41), 40]
    assert written[39]["train/loss/0008"] < 0.7 * written[0]["train/loss/0008"]


def test_a_loss_from_outside_the_package_is_trained_as_that_in_the_table_is(
    finished, folder, tmp_path, monkeypatch
):
    (tmp_path / "my_losses.py").write_text(
        "from mrl_jax.losses.pairs import info_nce\n"
        "def twice(a_bd, b_bd, *, keep_bn, mask_b, nesting, temperature, mesh):\n"
        "    given = dict(keep_bn=keep_bn, mask_b=mask_b, nesting=nesting, mesh=mesh)\n"
        "    loss, loss_g = info_nce(a_bd, b_bd, **given, temperature=temperature)\n"
        "    return 2 * loss, 2 * loss_g\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--config.pairs.loss=my_losses:twice", "--config.steps=6")
    commands.here(train(tmp_path / "run", folder, *own))
    (found, *_), (expected, *_) = map(test_train.records, (tmp_path / "run", finished[0]))
    assert found["train/loss"] == 2 * expected["train/loss"]


def test_killed_it_goes_on_bit_for_bit(finished, folder, tmp_path):
    """In a process with as many devices as this one, which made `finished` and goes on."""
    workdir = tmp_path / "run"
    process = test_train.start(train(workdir, folder), devices=8)
    test_train.wait_for_step(workdir, 25, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "resuming from step" in commands.here(train(workdir, folder))
    assert test_train.records(workdir) == test_train.records(finished[0])
    (_, mine), (_, other) = (test_train.final_arrays(w) for w in (workdir, finished[0]))
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (
        test_train.results_of(workdir)["results"] == test_train.results_of(finished[0])["results"]
    )


def labelled(path, rows):
    lines = [f"{who} {what} {w}\t{what}" for who in WHO for what in WHAT for w in WHERE]
    path.write_text("\n".join(["text\tlabel", *lines[rows]]))


def collection(folder):
    """Documents are the first texts of groups, queries the second."""
    (folder / "qrels").mkdir(parents=True)
    for name, place in (("corpus", 0), ("queries", 1)):
        rows = [{"_id": str(i), "text": row["texts"][place]} for i, row in enumerate(groups())]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"{i}\t{i}\t1" for i in range(len(groups())))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(finished, folder, tmp_path):
    """On two devices each, with one cache of texts, which one makes and the other waits for."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2")
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", f"--config.data.cache={cache}")
    split = "--config.sharding=(('embedding','largest:fsdp'),('.*','replicate'))"
    argv = train(workdir, folder, *mesh, split)
    commands.succeed([*launcher, "--devices_per_process", "2", "--", *argv])
    kept = [path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir()]
    assert len(kept) == len(list(cache.glob("*/manifest.json")))
    assert {"texts", "tokens"} <= set(kept)
    for mine, one in zip(test_train.records(workdir), test_train.records(finished[0]), strict=True):
        assert mine == pytest.approx(one, rel=1e-3), mine["step"]
        for name in one:
            if name.startswith("train/"):
                assert mine[name] == pytest.approx(one[name], rel=1e-4), (mine["step"], name)


def test_evaluated_again_the_numbers_are_the_same_and_more_can_be_asked(finished, folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (tmp_path / "labels").mkdir()
    labelled(tmp_path / "labels" / "train.tsv", slice(0, 70))
    labelled(tmp_path / "labels" / "test.tsv", slice(70, None))
    collection(tmp_path / "found")
    # What cannot be measured takes no other number with it.
    rows = "".join(f"{who} sleeps\t{who} waits\t5\n" for who in WHO)
    (tmp_path / "equal.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    labelled(tmp_path / "one.tsv", slice(0, 3))
    more = (
        f"sts=equal={tmp_path / 'equal.tsv'},again={folder / 'test.tsv'}",
        *("projections=True", f"classification=what={tmp_path / 'labels'}"),
        f"clustering=one={tmp_path / 'one.tsv'},kinds={tmp_path / 'labels' / 'test.tsv'}",
        f"retrieval=others={tmp_path / 'found'}",
    )
    output = commands.here(
        commands.command(
            "mrl_jax.evaluate", "--workdir", workdir, *(f"--config.eval.{m}" for m in more)
        )
    )
    skipped = test_train.results_of(workdir)["skipped"]
    assert skipped == {
        "equal": "all 7 scores are equal (5)",
        "one": "needs at least 2 classes, and as many different texts as classes; got 1 classes "
        "and 3 different texts",
    }
    for name, reason in skipped.items():
        assert f"not measured: {name}: {reason}" in output.splitlines()
    assert test_train.results_of(finished[0])["skipped"] == {}
    before, after = (commands.values(folder) for folder in (finished[0], workdir))
    assert before.items() <= after.items()
    # Which of five things is done is easy to tell, but not for nothing.
    assert 0.4 < after["what/knn10", 8] <= 1
    assert 0.2 < after["kinds/v_measure", 8] <= 1
    assert 0.5 < after["others/ndcg10", 8] <= 1
    assert ("test/spearman_pca", 4) in after
    one, more = (test_train.results_of(w)["read"] for w in (finished[0], workdir))
    sets = {"sts.again", "classification.what", "clustering.kinds", "retrieval.others"}
    assert more.keys() == sets | {"sts.equal", "clustering.one"}
    assert one == {"sts.again": more["sts.again"]}


def test_queries_are_also_measured_among_the_documents_of_another_encoder(finished, tmp_path):
    """By numpy and scikit-learn, from what both models embed; the other one has more dims."""
    workdir, teacher, cache = (tmp_path / name for name in ("run", "teacher", "cache"))
    shutil.copytree(finished[0], workdir)
    text_models.bert_folder(teacher, layers=1)
    collection(tmp_path / "found")
    sets = (f"retrieval=mine={tmp_path / 'found'}", f"documents={teacher}", "projections=True")
    own = [*(f"--config.eval.{one}" for one in sets), f"--config.data.cache={cache}"]
    commands.here(commands.command("mrl_jax.evaluate", "--workdir", workdir, *own))
    found = commands.values(workdir)
    student, larger = mrl_jax.load(workdir), mrl_jax.load(teacher)
    documents, queries = ([row["texts"][i] for row in groups()] for i in (0, 1))
    z_nd, of_student_bd, of_larger_bd = (
        model.embed(texts, normalize=False)[:, :8]
        for model, texts in ((larger, documents), (student, queries), (larger, queries))
    )
    for dim in (2, 3, 4, 8):
        unit_nd = z_nd[:, :dim] / np.linalg.norm(z_nd[:, :dim], axis=1, keepdims=True)
        for name, z_bd in (("asymmetric", of_student_bd), ("teacher", of_larger_bd)):
            # Lengths of queries change no order.
            expected = ndcg_score(np.eye(len(documents)), z_bd[:, :dim] @ unit_nd.T, k=10)
            assert found[f"mine_{name}/ndcg10", dim] == pytest.approx(expected, abs=1e-5)
    # All dims of a rotation are as good as all dims.
    whole, turned = (found[f"mine_asymmetric/ndcg10{name}", 8] for name in ("", "_rotation"))
    assert turned == pytest.approx(whole, abs=1e-5)
    assert ("mine_teacher/ndcg10_pca", 4) in found
    assert len(list(cache.glob("vectors-*"))) == 2
    read = test_train.results_of(workdir)["read"]
    one, asymmetric, alone = (
        read[f"retrieval.mine{end}"] for end in ("", "_asymmetric", "_teacher")
    )
    assert one != asymmetric == alone


def test_documents_that_cannot_be_searched_are_refused(finished, folder, tmp_path):
    text_models.static_folder(tmp_path / "narrow", width=4)
    collection(tmp_path / "found")
    retrieval = f"--config.eval.retrieval=mine={tmp_path / 'found'}"
    for sets, line in (
        ((), "config.eval: documents: the model has 4 dims, the queries 8"),
        (
            (f"--config.eval.sts=mine_teacher={folder / 'test.tsv'}",),
            "config.eval.documents measures mine as mine_teacher too: give the set of that name",
        ),
    ):
        own = (f"--config.eval.documents={tmp_path / 'narrow'}", retrieval, *sets)
        command = commands.command("mrl_jax.evaluate", "--workdir", finished[0], *own)
        assert line in commands.refused(command, 2)


def test_other_texts_are_refused(finished, folder, tmp_path):
    changed = tmp_path / "texts"
    shutil.copytree(folder, changed)
    # The word pieces are made of these texts, so that the model becomes another one, too.
    lines = "".join(json.dumps(row) + "\n" for row in groups()[:3]).encode()
    (changed / "train.jsonl.gz").write_bytes(gzip.compress(lines))
    line = commands.refused(
        commands.command(
            "mrl_jax.evaluate", "--workdir", finished[0], f"--config.data.path={changed}"
        ),
        4,
    )
    assert "the checkpoint was trained on other data" in line


def test_a_report_of_runs_without_accuracy(finished, tmp_path):
    output = commands.here(
        commands.command("mrl_jax.report", finished[0], "--out", tmp_path / "report")
    )
    assert "report.html" in output
    page = (tmp_path / "report" / "report.html").read_text()
    assert "again: Similarity, Spearman" in page
    assert "Partner found among all of the split, validation" in page


def test_a_dry_run_is_of_the_longest_texts(folder):
    arguments = (*SMALL, f"--config.data.path={folder}", "--config.text.max_length=48")
    output = commands.here(
        commands.command("mrl_jax.train", "--config", CONFIG, "--dry_run", *arguments)
    )
    assert "FLOP per example" in output


def test_the_same_texts_give_the_same_vocabulary():
    texts = [text for row in groups() for text in row["texts"]]
    one, *others = (Tokenizer.train(texts, 120).raw.get_vocab() for _ in range(4))
    assert len(one) == 120
    assert all(other == one for other in others)


def test_the_tokenizer_of_a_run_is_kept_and_read_from_its_folder(finished, folder, tmp_path):
    made = experiment.from_config(load(folder)).dataset.tokenizer
    kept = Tokenizer.load(finished[0] / "tokenizer.json", marks=False)
    assert kept.raw.to_str() == made.raw.to_str()
    shutil.copytree(finished[0], tmp_path / "run")
    setup, _ = experiment.restored(tmp_path / "run")
    assert setup.dataset.tokenizer.raw.to_str() == kept.raw.to_str()
    # Older releases kept the tokenizer and no facts.
    (tmp_path / "run" / "facts.json").unlink()
    other = Tokenizer.train(["other texts"] * 3, 120, marks=False)
    (tmp_path / "run" / "tokenizer.json").write_text(other.to_json())
    setup = experiment.from_config(load(folder), tmp_path / "run")
    assert setup.dataset.tokenizer.raw.to_str() == other.raw.to_str()
    assert setup.program.task.encoder.backbone.vocab_size == other.vocab_size
    with pytest.raises(CheckpointError, match="trained on other data"):
        experiment.restored(tmp_path / "run", measured=True)
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"run/tokenizer.json: not a tokenizer"):
        experiment.restored(tmp_path / "run")


def test_the_tokenizer_that_is_kept_goes_before_files_that_may_have_changed(
    folder, encoder_folder, tmp_path
):
    first = text_models.tokenizer()
    (tmp_path / "tokenizer.json").write_text(first.to_json())
    encoder, file = tmp_path / "bert", tmp_path / "named.json"
    shutil.copytree(encoder_folder, encoder)
    Tokenizer.train(["other texts"] * 3, 60).save(encoder, 20)
    wide = ("--config.text.width=0", "--config.text.max_length=0")
    for task in (
        load(folder, f"--config.text.encoder={encoder}", *wide),
        load(folder, f"--config.text.tokenizer={file}"),  # gone
    ):
        setup = experiment.from_config(task, tmp_path)
        assert setup.dataset.tokenizer.raw.to_str() == first.raw.to_str()


def load(folder, *overrides, config=CONFIG):
    return configs.load(str(config), [*SMALL, f"--config.data.path={folder}", *overrides])


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "bert"
    write_sentence_folder(path, text_models.bert())
    return path


def test_fine_tuning_starts_from_the_weights_of_a_folder(folder, encoder_folder):
    setup = experiment.from_config(
        load(
            folder,
            f"--config.text.encoder={encoder_folder}",
            "--config.text.width=0",
            "--config.text.vocab_size=30522",
            "--config.text.max_length=0",
            "--config.mesh.data=1",
            "--config.mesh.fsdp=8",
        )
    )
    program = setup.program
    assert program.task.encoder.out_dim == 32
    assert program.task.max_length == 30
    state = program.init_state(program.run_key(0))
    _, put_in = setup.start
    state = put_in(state)
    expected = text_models.bert().params
    assert set(state["params"]) == set(expected) == {"backbone"}
    np.testing.assert_array_equal(
        state["params"]["backbone"]["tokens"]["embedding"],
        expected["backbone"]["tokens"]["embedding"],
    )


def of_layers(encoder_folder):
    """What makes a config that of a student of two of the folder's three layers."""
    own = (f"text.encoder={encoder_folder}", "text.layers=1,3", "text.width=0", "text.max_length=0")
    few = ("nesting.dims=4,32", "eval.dims=4,32", "steps=1", "optimizer.warmup_steps=0")
    return [f"--config.{one}" for one in (*own, "text.vocab_size=30522", *few)]


def test_a_student_starts_from_some_layers_of_a_folder(folder, encoder_folder, tmp_path):
    setup = experiment.from_config(load(folder, *of_layers(encoder_folder)))
    assert setup.facts["encoder"]["layers"] == setup.program.task.encoder.layers == 2
    started, given = setup.dataset.start.params["backbone"], text_models.bert().params["backbone"]
    expected = {"layer_00": given["layer_00"], "layer_01": given["layer_02"]}
    expected |= {name: value for name, value in given.items() if "layer" not in name}
    jax.tree.map(np.testing.assert_array_equal, started, expected)
    write_sentence_folder(tmp_path / "student", setup.text_folder({"backbone": started}))
    assert json.loads((tmp_path / "student/config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.slow
def test_a_student_of_some_layers_is_trained_exported_and_opened(folder, encoder_folder, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "student"
    commands.here(train(workdir, folder, *of_layers(encoder_folder)))
    kind = ("--format", "sentence_transformers")
    commands.here(commands.command("mrl_jax.export", "--workdir", workdir, "--out", out, *kind))
    texts = [row["texts"][0] for row in groups()[:5]]
    one, other = (mrl_jax.load(path).embed(texts) for path in (workdir, out))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_length_is_the_folders_unless_it_is_said(folder, tmp_path):
    table = text_models.static()
    for name, encoder, expected in (
        ("bert", text_models.bert(max_positions=400), 400),
        ("table", table, 256),
        ("short", dataclasses.replace(table, max_length=9), 9),
    ):
        write_sentence_folder(tmp_path / name, encoder)
        given = ("--config.text.width=0", f"--config.text.encoder={tmp_path / name}")
        setup = experiment.from_config(load(folder, *given, "--config.text.max_length=0"))
        assert setup.program.task.max_length == expected
        setup = experiment.from_config(load(folder, *given, "--config.text.max_length=8"))
        assert setup.program.task.max_length == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=adaptor"],
            "config.task is sentence_pairs: the config file decides, by default_con",
        ),
        (["model.name=mlp"], "config.model.name: task sentence_pairs does not read it"),
        (["data.flip=True"], "config.data.flip: task sentence_pairs does not read it"),
        (["head.kind=shared"], "config.head.kind of sentence_pairs is separate"),
        (["nesting.dims=2,16"], "config.nesting: nesting dim 16 is wider than the embedding (8"),
        (["text.encoder=nowhere"], "nowhere not found"),
        (["text.encoder=bert_tiny", "text.pooling=max"], "pooling must be one of mean, cls, last"),
        (["text.dropout=0.1"], "config.text: a static table has no dropout"),
        (["text.width=0"], "config.text: width: a static table needs so many dims"),
        (["text.layers=1"], "config.text: layers: they are chosen of a folder, static is fresh"),
        (["text.dropout=1.0"], "config.text.dropout must be in [0, 1), got 1.0"),
        (["pairs.loss=cosent"], "config.pairs: loss cosent needs pairs with a score"),
        (["pairs.micro_batch=3"], "config.pairs: micro_batch 3 does not divide the batch_size 16"),
        (["optimizer.accumulate=2"], "config.optimizer.accumulate: parts of a batch would not"),
        (["data.drop=flagg"], "data.drop: no row has a column 'flagg'"),
        (["eval.sts=x"], "config.eval.sts must be NAME=PATH,..."),
        (["eval.sts=val=x.tsv"], "config.eval.sts: the name val is taken"),
    ],
)
def test_experiments_that_cannot_run_say_why(folder, overrides, message):
    with pytest.raises((UsageError, DataError)) as error:
        experiment.from_config(load(folder, *[f"--config.{o}" for o in overrides])).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_images_do_not_read_the_keys_of_texts():
    with pytest.raises(UsageError, match=r"pairs\.margin: task classification"):
        configs.load("configs/digits.py:mrl", ["--config.pairs.margin=0.5"])


def test_embedding_the_pairs_of_a_split_is_refused(finished, tmp_path):
    line = commands.refused(
        commands.command(
            *("mrl_jax.embed", "--workdir", finished[0], "--input", "train"),
            *("--out", tmp_path / "vectors"),
        ),
        2,
    )
    assert "are not embedded one by one; give an iterable of strings, or the path" in line
