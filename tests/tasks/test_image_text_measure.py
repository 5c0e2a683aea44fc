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
from mrl_jax.evaluators import cross_modal, zero_shot
from mrl_jax.evaluators.cross_modal import Captions
from mrl_jax.models.text.tokenizer import pad
from mrl_jax.record import runs
from mrl_jax.record.results import Series
from mrl_jax.reporting import document

DIMS, TEMPLATE = (2, 4, 8), "a {} picture"
CLASSES = ("light_grey", "red")


def write_classes(folder, per_class, seed):
    """Images of the size that the run reads, so that nothing has to scale them."""
    rng = np.random.default_rng(seed)
    for colour in CLASSES:
        (folder / colour).mkdir(parents=True)
        rgb = commands.COLOURS[colour.removeprefix("light_")]
        for i in range(per_class):
            pixels = np.clip(rng.normal(rgb, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / colour / f"{i}.png")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of labelled images, one without and one with images to compare with."""
    path = tmp_path_factory.mktemp("sets")
    write_classes(path / "colours", 3, 0)
    write_classes(path / "both" / "train", 2, 1)
    write_classes(path / "both" / "test", 4, 2)
    return path


def command(sets):
    return (
        f"--config.eval.zero_shot=colours={sets / 'colours'},both={sets / 'both'}",
        f"--config.eval.templates=('{TEMPLATE}',)",
        "--config.eval.projections=True",
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory, towers_run, sets):
    """The folder of a run that was measured once more, by everything there is."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(towers_run[0], workdir)
    evaluate.main(["--workdir", str(workdir), *command(sets)])
    return workdir


@pytest.fixture(scope="module")
def embedded(measured):
    """The data of the run, and what embeds images and texts without the code that is tested."""
    setup, state = experiment.restored(measured, (), None, measured=True)
    embed = functools.partial(setup.program.task.embed, state["params"], state["model_state"])
    rows = 8  # always as many: nothing is compiled anew

    def images(given):
        filled = np.concatenate([given, np.zeros((rows - len(given), *given.shape[1:]), "u1")])
        return np.asarray(embed({"image": filled}))[: len(given)]

    def texts(given):
        tokens_bt, lengths_b = pad(setup.dataset.tokenizer.encode(list(given), 12), 12, rows)
        return np.asarray(embed({"tokens": tokens_bt, "lengths": lengths_b}))[: len(given)]

    return setup.dataset, images, texts


def test_everything_is_measured_at_every_prefix(measured, towers_run):
    results = commands.by_name(measured)
    both = ("image_to_text", "text_to_image")
    names = [f"{way}_recall{k}" for way in both for k in (1, 5, 10)]
    names += [*(f"{way}_median_rank" for way in both), "caption_1nn"]
    spaces = ("", "_rotation", "_pca", "_random")
    wanted = {f"{split}/{name}{s}" for split in ("val", "test") for name in names for s in spaces}
    # Of a run as it is trained, without sets and rivals:
    own = {f"{split}/{name}" for split in ("val", "test") for name in names}
    assert {name for name, _ in commands.by_name(towers_run[0])} == own
    wanted |= {f"{name}/zero_shot{s}" for name in ("colours", "both") for s in spaces}
    wanted |= {f"both/1nn{s}" for s in spaces}
    assert {name for name, _ in results} == wanted
    assert {dim for _, dim in results} == {*DIMS}
    assert results["test/text_to_image_recall1", 8].n == 4
    assert (measured / "evaluation" / "test_cross_modal.json").exists()
    read = json.loads((measured / "results.json").read_text())["read"]
    assert list(read) == ["zero_shot.colours", "zero_shot.both"]


def test_searches_are_those_of_what_the_model_embeds(measured, towers_run, embedded):
    data, images, texts = embedded
    rows = [json.loads(line) for line in (towers_run[1] / "test.jsonl").read_text().splitlines()]
    said = [text for row in rows for text in row["captions"]]
    image, text = images(data.captioned["test"].images.image), texts(said)
    captions = Captions(np.repeat(np.arange(4), 2), np.unique(said, return_inverse=True)[1])
    results = commands.by_name(measured)
    ranks = cross_modal.ranks(image, text, captions, DIMS)
    for way, rank_gq in zip(("image_to_text", "text_to_image"), ranks, strict=True):
        for dim, rank_q in zip(DIMS, rank_gq, strict=True):
            assert results[f"test/{way}_median_rank", dim].value == np.median(rank_q)
            assert results[f"test/{way}_recall1", dim].value == np.mean(rank_q <= 1)
    assert max(rank_gq.max() for rank_gq in ranks) > 1


def test_classes_are_those_of_their_names_and_images(measured, sets, embedded):
    _, images, texts = embedded

    def of(folder):
        files = sorted((sets / folder).glob("*/*.png"))
        names = sorted({file.parent.name for file in files})
        labels = np.array([names.index(file.parent.name) for file in files])
        return images(np.stack([Image.open(file) for file in files])), labels

    named = texts([TEMPLATE.replace("{}", name) for name in ("light grey", "red")])
    results = commands.by_name(measured)
    for name, folder in (("colours", "colours"), ("both", "both/test")):
        found = zero_shot.measure(*of(folder), named, 2, Series(name), DIMS)
        for result in found.results:
            assert results[f"{name}/zero_shot", result.dim] == result
    (train, label), (image, own) = of("both/train"), of("both/test")
    for dim in DIMS:
        cut = [
            z[:, :dim] / np.linalg.norm(z[:, :dim], axis=1, keepdims=True) for z in (image, train)
        ]
        nearest = label[(cut[0] @ cut[1].T).argmax(1)]
        assert results["both/1nn", dim].value == np.mean(nearest == own)


def test_evaluation_finds_the_numbers_again(measured, tmp_path, sets):
    workdir = tmp_path / "run"
    shutil.copytree(measured, workdir)
    before = commands.by_name(workdir)
    (workdir / "results.json").unlink()
    evaluate.main(["--workdir", str(workdir), *command(sets)])
    again = commands.by_name(workdir)
    assert again.keys() == before.keys()
    for key, result in again.items():
        assert result[6:] == pytest.approx(before[key][6:], abs=1e-6), key


def test_the_report_shows_both_ways_and_the_classes(measured):
    composed, (first, *_) = document.compose(runs.read_study(measured))
    assert [section.heading for section in composed.sections] == [
        "Text to image, recall@1",
        "Image to text, recall@1",
        "What captions find",
        "Nearest other caption is of the same photo",
        "both: 1-NN",
        "both: Zero-shot",
        "colours: Zero-shot",
    ]
    assert first.title == "Text to image, recall@1, test"
    folded = {sheet.title: sheet for sheet in composed.sections[0].folded}
    median = folded["Text to image, median rank, test"]
    assert median.note.startswith("Cells: median rank, one seed; 4 test photos, standard error")
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
    tmp_path, towers_run, sets, override, code, message
):
    override = override.replace("FOLDER", str(sets / "colours"))
    argv = [*commands.train_towers(tmp_path / "run", towers_run[1]), f"--config.eval.{override}"]
    line = commands.refused(argv, code)
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "run" / "results.json").exists()


def test_templates_change_what_is_asked():
    assert "eval.templates" not in configs.compare_alike()
    assert "eval.zero_shot" in configs.compare_alike()
    assert configs.default_config("image_text").eval.templates == ("a photo of a {}.",)
