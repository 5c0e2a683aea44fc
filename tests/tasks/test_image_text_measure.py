"""What is measured of two towers, by the commands: results, report, and what is refused."""

import functools
import json
import shutil

import commands
import numpy as np
import pytest
from PIL import Image

from mrl_jax import config as configs
from mrl_jax import evaluate, experiment
from mrl_jax.evaluators import cross_modal
from mrl_jax.evaluators.cross_modal import Captions
from mrl_jax.models.text.tokenizer import pad
from mrl_jax.record import runs
from mrl_jax.reporting import document

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 200, 0),
    "dark_blue": (0, 0, 130),
    "yellow": (250, 250, 0),
}
DIMS = (2, 4, 8)


def photo(colour, seed):
    pixels = np.random.default_rng(seed).normal(COLOURS[colour], 40, (8, 8, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_split(folder, name, count, first):
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(first, first + count):
        colour = list(COLOURS)[i % 4]
        photo(colour, i).save(folder / "photos" / f"{i}.png")
        said = colour.replace("_", " ")
        captions = [f"a {said} square", f"number {i} is {said}"]
        lines.append(json.dumps({"image": f"photos/{i}.png", "captions": captions}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


def write_classes(folder, per_class, first):
    for k, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for i in range(per_class):
            photo(colour, first + 10 * k + i).save(folder / colour / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions")
    for first, (name, count) in enumerate((("train", 64), ("val", 16), ("test", 16))):
        write_split(path, name, count, 100 * first)
    write_classes(path / "colours", 3, 500)
    write_classes(path / "both" / "train", 2, 600)
    write_classes(path / "both" / "test", 3, 700)
    (path / "config.py").write_text(CONFIG)
    return path


CONFIG = f"""
from mrl_jax.config import default_config, set_method

def get_config(arg="mrl"):
    config = default_config("image_text")
    config.name = f"colours:{{arg}}"
    config.data.image_size = 8
    config.model.name, config.model.width, config.model.depth = "mlp", 16, 1
    config.model.embedding_dim = 8
    config.text.width, config.text.vocab_size = 8, 60
    config.nesting.dims = {DIMS}
    config.batch_size = config.eval.batch_size = 16
    config.steps, config.log_every = 30, 10
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 0.03, 5
    config.eval.projections = True
    config.eval.templates = ("a {{}} square",)
    config.sharding = ((".*", "replicate"),)
    set_method(config, arg)
    return config
"""


def train(workdir, folder, *overrides, arg="mrl"):
    base = ("--config", f"{folder / 'config.py'}:{arg}", "--workdir", workdir)
    data = (f"--config.data.path={folder}",)
    sets = (f"--config.eval.zero_shot=colours={folder / 'colours'},both={folder / 'both'}",)
    return commands.command("mrl_jax.train", *base, *data, *sets, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, commands.here(train(workdir, folder))


def test_everything_is_measured_at_every_prefix(finished):
    workdir, printed = finished
    results = commands.by_name(workdir)
    both = ("image_to_text", "text_to_image")
    names = [f"{way}_recall{k}" for way in both for k in (1, 5, 10)]
    names += [*(f"{way}_median_rank" for way in both), "caption_1nn"]
    spaces = ("", "_rotation", "_pca", "_random")
    wanted = {f"{split}/{name}{s}" for split in ("val", "test") for name in names for s in spaces}
    wanted |= {f"{name}/zero_shot{s}" for name in ("colours", "both") for s in spaces}
    wanted |= {f"both/1nn{s}" for s in spaces}
    assert {name for name, _ in results} == wanted
    assert {dim for _, dim in results} == {2, 3, 4, 6, 8}
    assert results["test/text_to_image_recall1", 8].n == 16
    assert results["both/zero_shot", 8].value > 0.5  # chance is 0.25
    assert results["both/1nn", 8].value > 0.7
    assert (workdir / "evaluation" / "test_cross_modal.json").exists()
    assert "test/text_to_image_recall1" in printed
    assert "colours/zero_shot" in printed
    read = json.loads((workdir / "results.json").read_text())["read"]
    assert list(read) == ["zero_shot.colours", "zero_shot.both"]


def test_numbers_are_those_of_what_the_model_embeds(finished, folder):
    """Where the text that all photos of a colour share is no error."""
    setup, state = experiment.restored(finished[0], (), None, measured=True)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    texts = [text for row in rows for text in row["captions"]]
    tokens = setup.dataset.tokenizer.encode(texts, 20)
    tokens_bt, lengths_b = pad(tokens, 20, len(texts))
    embed = functools.partial(setup.program.task.embed, state["params"], state["model_state"])
    photos = np.stack([Image.open(folder / row["image"]) for row in rows])
    image, text = embed({"image": photos}), embed({"tokens": tokens_bt, "lengths": lengths_b})
    captions = Captions(np.repeat(np.arange(16), 2), np.unique(texts, return_inverse=True)[1])
    results = commands.by_name(finished[0])
    ranks = cross_modal.ranks(np.asarray(image), np.asarray(text), captions, DIMS)
    for way, rank_gq in zip(("image_to_text", "text_to_image"), ranks, strict=True):
        for dim, rank_q in zip(DIMS, rank_gq, strict=True):
            assert results[f"test/{way}_median_rank", dim].value == np.median(rank_q)
            assert results[f"test/{way}_recall5", dim].value == np.mean(rank_q <= 5)


def test_evaluation_finds_the_numbers_again(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = commands.by_name(workdir)
    (workdir / "results.json").unlink()
    evaluate.main(["--workdir", str(workdir)])
    again = commands.by_name(workdir)
    assert again.keys() == before.keys()
    for key, result in again.items():
        assert result == pytest.approx(before[key], abs=1e-6), key


def test_the_report_shows_both_ways_and_the_classes(finished):
    composed, (first, *_) = document.compose(runs.read_study(finished[0]))
    assert [section.heading for section in composed.sections] == [
        "Text to image, recall@1",
        "Image to text, recall@1",
        "Nearest other caption is of the same photo",
        "both: 1-NN",
        "both: Zero-shot",
        "colours: Zero-shot",
    ]
    assert first.title == "Text to image, recall@1, test"
    folded = {sheet.title: sheet for sheet in composed.sections[0].folded}
    median = folded["Text to image, median rank, test"]
    assert median.note.startswith("Cells: median rank, one seed; 16 test photos, standard error")
    assert composed.sections[0].figures[0].file == "text_to_image_recall1_by_dim.png"


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("zero_shot=nowhere=/no/such", 3, "cannot read /no/such"),
        ("zero_shot=FOLDER", 2, "must be NAME=PATH"),
        ("zero_shot=test=FOLDER", 2, "the name test is taken"),
        ("templates=('a photo',)", 2, "config.eval.templates: every template has one"),
    ],
)
def test_sets_that_cannot_be_measured_are_refused_in_one_line(
    tmp_path, folder, override, code, message
):
    override = override.replace("FOLDER", str(folder / "colours"))
    line = commands.refused(train(tmp_path / "run", folder, f"--config.eval.{override}"), code)
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "run" / "results.json").exists()


def test_templates_change_what_is_asked():
    assert "eval.templates" not in configs.compare_alike()
    assert "eval.zero_shot" in configs.compare_alike()
    assert configs.default_config("image_text").eval.templates == ("a photo of a {}.",)
