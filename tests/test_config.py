import dataclasses
import json
import re
import sys
import textwrap
import types

import commands
import pytest

from mrl_jax import config as configs
from mrl_jax import data, experiment
from mrl_jax.config import tasks
from mrl_jax.config.keys import COMMON
from mrl_jax.errors import DataError, UsageError
from mrl_jax.evaluators import text_sets
from mrl_jax.record import folder

DIGITS = "configs/digits.py"


def load(*overrides, arg="mrl"):
    return configs.load(f"{DIGITS}:{arg}", overrides)


def test_arguments_of_the_digits_config():
    assert load().head.kind == "separate"
    assert load(arg="mrl_e").head.kind == "shared"
    fixed = load(arg="fixed=8")
    assert (fixed.head.kind, fixed.nesting.dims, fixed.name) == ("fixed", (8,), "digits:fixed=8")
    assert configs.load(DIGITS).head.kind == "separate"
    slim = load(arg="slim=16")
    assert (slim.head.kind, slim.nesting.dims) == ("fixed", (16,))
    assert (slim.model.width, slim.model.embedding_dim) == (128 * 16 // 64, 16)
    assert configs.load("configs/imagenet_resnet50.py:slim=512").model.width == 16
    for config, arg in (("cifar10", "slim=4"), ("imagenet_vit", "slim=64"), ("digits", "slim=0")):
        with pytest.raises(UsageError, match=r"slim=\d+ needs model.width x"):
            configs.load(f"configs/{config}.py:{arg}")


def test_overrides_keep_types():
    config = load(
        "--config.seed=3",
        "--config.nesting.dims=4,8",
        "--config.nesting.weights=(1,0.5)",
        "--config.optimizer.learning_rate=1",
        "--config.data.path",
        "a b=c",
    )
    assert (config.seed, config.nesting.dims) == (3, (4, 8))
    assert config.nesting.weights == (1, 0.5)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.data.path == "a b=c"


def test_the_last_value_of_a_key_counts():
    config = load("--config.nesting.dims=2,4", "--config.seed=1", "--config.nesting.dims=8,16")
    assert config.nesting.dims == (8, 16)


def test_overriding_leaves_the_original_alone():
    config = load()
    changed = configs.override(config, ["--config.seed=5", "--config.data.image_size=7"])
    assert (changed.seed, changed.data.image_size) == (5, 7)
    assert (config.seed, config.data.image_size) == (0, 32)


def test_config_is_locked():
    with pytest.raises(AttributeError):
        load().optimizer.momentumm = 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.sead=3"], "unknown config key 'sead'; did you mean 'seed'?"),
        (["--config.learning_rate=3"], "did you mean 'optimizer.learning_rate'?"),
        (["--config.optimizer.learning_rat=3"], "did you mean 'optimizer.learning_rate'?"),
        (
            ["--config.xyzzy=3"],
            "unknown config key 'xyzzy'; the keys are name, seed, task, ",
        ),
        (["--config.nesting=4"], "'nesting' is a group; its keys are nesting.dims"),
        (["--config.seed=x"], "invalid literal"),
        (["--config.seed=1.5"], "1.5"),
        (["--confog.seed=1"], "unexpected argument '--confog.seed=1'"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--config.seed"], "--config.seed needs a value"),
        (["--config.eval.shifts=(1,)"], "'eval.shifts' must hold texts, got 1"),
        (["--config.task=adaptor"], "the config file decides, by default_config('adaptor')"),
        (
            ["--config.text.width=8"],
            "config.text.width: task classification does not read it",
        ),
        (["--config.sharding=(('.*',3),)"], "'sharding' must hold pairs of texts, got ('.*', 3)"),
        (["--config.sharding=((1,2),)"], "'sharding' must hold pairs of texts, got (1, 2)"),
        (["--config.sharding=('.*',)"], "'sharding' must hold pairs of texts, got '.*'"),
        (["--config.data.mean=('x',)"], "'data.mean' must hold numbers, got 'x'"),
        (["--config.data.mean=nan"], "'data.mean' must hold numbers, got 'nan'"),
        (["--config.data.std=((1,2),)"], "'data.std' must hold numbers, got (1, 2)"),
        (["--config.data.std=(True,)"], "'data.std' must hold numbers, got True"),
        (["--config.eval.shifts=(('a','b'),)"], "'eval.shifts' must hold texts, got ('a', 'b')"),
        (
            ["--config.data.resolutions=((0,'x'),)"],
            "'data.resolutions' must hold pairs of numbers, got (0, 'x')",
        ),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(UsageError) as error:
        load(*overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "has no get_config() function"),
        ("def get_config(): return {}", "must return a ConfigDict, got {}"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def get_config(: pass", "SyntaxError"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def get_config(): raise RuntimeError", ": RuntimeError"),
        ("def get_config(): return None", "must return a ConfigDict, got None"),
        ("def get_config(): return 'x' * 10**6", "must return a ConfigDict, got 'xxx"),
        ("get_config = 3", "has no get_config() function"),
        ("import sys; sys.exit()", "it called sys.exit(None)"),
        ("import sys; sys.exit('bye')", "it called sys.exit('bye')"),
        ("def get_config(): raise SystemExit(0)", "it called sys.exit(0)"),
        ("class Odd(BaseException): pass\nraise Odd('so')", "Odd: so"),
        ("def get_config(arg): pass", "TypeError: get_config() missing 1 required"),
        ("def get_config(): return get_config()", "RecursionError: maximum recursion depth"),
    ],
)
def test_broken_config_files(tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UsageError) as error:
        configs.load(str(path))
    assert message in str(error.value)


def test_config_file_cannot_invent_or_mistype_keys(tmp_path):
    body = """
        from mrl_jax.config import default_config
        def get_config():
            config = default_config()
            {line}
            return config
    """
    path = tmp_path / "own.py"
    for line, message in (
        ("config.stepps = 3", "this config has no key 'stepps'; did you mean 'steps'?"),
        ("config.text.width = 8", "has no key 'text'; it is for task sentence_pairs or masked_lm"),
        ("config.head.pairs = 8", "has no key 'pairs'; it is for task sentence_pairs"),
        ("config.head.kin = 8", "this config has no key 'kin'; did you mean 'kind'?"),
        ("config.update({'adaptor': {}})", "has no key 'adaptor'; it is for task adaptor"),
        ("config.steps = 'many'", "steps"),
        ("config.steps = True", "must be int, got True"),
        ("config.nesting.dims = 8", "dims"),
        ("config.unlock(); config.extra = 1", "unknown config key 'extra'"),
        ("config.unlock(); del config.seed", "config key 'seed' is missing"),
        ("config.data.path = 'a\\0b'", "'data.path' holds a zero character"),
        ("config.eval.shifts = ('a', 'b\\0')", "'eval.shifts' holds a zero character"),
        ("config.task = 'adaptor'", "read by classification, not by adaptor"),
        ("config.task = 'nothing'", "config.task must be one of classification, "),
        ("config.task = 'no.such'", "config.task no.such: there is no module no"),
        ("config.data.path = chr(0xd800)", "'data.path' is not valid Unicode"),
        ("x = []; x.append(x); config.nesting.dims = x", "a value of a config holds itself"),
    ):
        path.write_text(textwrap.dedent(body).format(line=line))
        with pytest.raises(UsageError, match=message):
            configs.load(str(path))
    path.write_text(textwrap.dedent(body).format(line="config.steps = 7"))
    assert configs.load(str(path)).steps == 7


def own_config(folder, *lines):
    """A config file whose get_config goes through these lines, with a few names at hand."""
    path = folder / "own.py"
    head = (
        "from __future__ import annotations",
        "import dataclasses, pathlib",
        "import numpy as np",
        "from ml_collections import ConfigDict, FrozenConfigDict, config_dict",
        "from mrl_jax.config import default_config, set_method",
        "def get_config(arg='mrl'):",
        "    c = default_config()",
    )
    path.write_text("\n".join([*head, *(f"    {line}" for line in lines), "    return c"]))
    return path


def test_references_follow_the_command_line(tmp_path):
    path = own_config(
        tmp_path,
        "c.steps = 1000",
        "c.optimizer.warmup_steps = c.get_ref('steps') // 10 + 1",
        "c.checkpoint.every = c.get_oneway_ref('steps')",
        "c.optimizer.learning_rate = c.get_ref('batch_size').to_float() / 1280",
        "c.eval.dims = c.nesting.get_ref('dims')",
        "set_method(c, arg)",
    )

    def numbers(arg, *overrides):
        c = configs.load(f"{path}:{arg}", overrides)
        assert c.is_locked
        schedule = (c.steps, c.optimizer.warmup_steps, c.checkpoint.every)
        return (*schedule, c.optimizer.learning_rate, c.eval.dims)

    assert numbers("mrl") == (1000, 101, 1000, 0.1, (8, 16, 32, 64))
    assert numbers("fixed=8", "--config.steps=200") == (200, 21, 200, 0.1, (8,))
    # The other end of a reference is a key like any other.
    assert numbers("mrl", "--config.optimizer.warmup_steps=7", "--config.steps=50") == (
        *(50, 7, 50, 0.1),
        (8, 16, 32, 64),
    )
    assert numbers("mrl", "--config.checkpoint.every=5", "--config.batch_size=64")[:4] == (
        *(1000, 101, 5, 0.05),
    )
    assert numbers("mrl", "--config.nesting.dims=4,64")[4] == (4, 64)


def test_placeholders_must_be_given(tmp_path):
    for kind in ("required_placeholder(int)", "placeholder(int)"):
        path = own_config(
            tmp_path, f"c.seed = config_dict.{kind}", "c.steps = c.get_ref('batch_size') * 2"
        )
        with pytest.raises(UsageError, match=r"'seed' has no value; give one with --config\.seed"):
            configs.load(str(path), ["--config.batch_size=4"])
        config = configs.load(str(path), ["--config.batch_size=4", "--config.seed=3"])
        assert (config.seed, config.steps) == (3, 8)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["c.seed = 1; c.log_every = c.get_ref('steps') // c.get_ref('seed')"], "'log_every': int"),
        (["c.log_every = c.get_ref('steps') * 0.1"], "'log_every' must be int, got 20.0"),
        (["c = ConfigDict({'steps': 5, 'stepps': 7})"], "unknown config key 'stepps'"),
        (["c.unlock(); c.data = None"], "config key 'data' has no value"),
        (["c.nesting.dims = (8, None)"], "'nesting.dims' must hold numbers, got None"),
        (["c.steps = c.get_ref('batch_size'); c.batch_size = c.get_ref('steps')"], "ycle"),
    ],
)
def test_broken_references_are_one_line(tmp_path, lines, message):
    path = own_config(tmp_path, *lines)
    with pytest.raises(UsageError) as error:
        configs.load(str(path), ["--config.steps=200", "--config.seed=0"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_any_config_dict_takes_overrides_of_the_declared_types(tmp_path):
    lines = (
        "c = ConfigDict({**c.to_dict(), 'optimizer': {**c.optimizer, 'learning_rate': 1}})",
        "c = FrozenConfigDict(c)",
    )
    for count in (1, 2):
        path = own_config(tmp_path, *lines[:count])
        config = configs.load(str(path), ["--config.optimizer.learning_rate=0.5"])
        assert config.optimizer.learning_rate == 0.5


def test_a_config_that_a_file_keeps_is_left_alone(tmp_path, monkeypatch):
    kept = types.SimpleNamespace(config=configs.default_config())
    monkeypatch.setitem(sys.modules, "kept", kept)
    path = own_config(tmp_path, "import kept", "c = kept.config")
    assert configs.load(str(path), ["--config.data.image_size=7"]).data.image_size == 7
    assert configs.load(str(path)).data.image_size == 32


def test_numbers_of_numpy_are_plain_numbers(tmp_path):
    path = own_config(
        tmp_path,
        "c.nesting.dims = tuple(2 ** np.arange(3, 5))",
        "c.nesting.weights = tuple(np.linspace(0.5, 1, 2, dtype=np.float32))",
        "c.optimizer.learning_rate = np.float64(0.25)",
        "c.eval.shifts = (pathlib.Path('a=b'),)",
    )
    config = configs.load(str(path))
    assert json.loads(configs.to_json(config))["nesting"] == {"dims": [8, 16], "weights": [0.5, 1]}
    assert type(config.optimizer.learning_rate) is float
    assert config.eval.shifts == ("a=b",)


def test_a_config_file_may_define_dataclasses(tmp_path):
    path = own_config(
        tmp_path,
        "@dataclasses.dataclass",
        "class Recipe:",
        "    steps: int = 70",
        "import typing",
        "assert typing.get_type_hints(Recipe) == {'steps': int}",
        "c.steps = Recipe().steps",
    )
    assert configs.load(str(path)).steps == 70


def test_colons_in_paths_and_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "at_10:30").mkdir()
    path = own_config(tmp_path / "at_10:30", "c.name = arg")
    for file in (str(path), "at_10:30/own.py", "./at_10:30/../at_10:30/own.py"):
        assert configs.split_config_arg(file) == (file, None)
        assert configs.load(f"{file}:a:b").name == "a:b"
        assert configs.load(f"{file}:").name == ""
    for missing, split in {
        "nowhere.py:mrl": ("nowhere.py", "mrl"),
        "C:\\runs\\own.py:mrl": ("C:\\runs\\own.py", "mrl"),
        "C:\\runs\\own.py": ("C:\\runs\\own.py", None),
        "nowhere:mrl": ("nowhere", "mrl"),
        "nowhere": ("nowhere", None),
    }.items():
        assert configs.split_config_arg(missing) == split


def test_lists_of_words():
    config = load("--config.eval.measures=accuracy,flip", "--config.eval.shifts=a=/x/y")
    assert config.eval.measures == ("accuracy", "flip")
    assert config.eval.shifts == ("a=/x/y",)
    assert load("--config.eval.measures=('flip',)").eval.measures == ("flip",)
    assert load("--config.eval.shifts=2019,2020").eval.shifts == ("2019", "2020")


def test_missing_files():
    with pytest.raises(UsageError, match=r"config file nowhere\.py not found"):
        configs.load("nowhere.py:mrl")
    for empty in ("", ":mrl"):
        with pytest.raises(UsageError, match="the path of the config file is empty"):
            configs.load(empty)
    with pytest.raises(UsageError, match=r"config file x+\.py not found"):
        configs.load("x" * 5000 + ".py:mrl")  # longer than any name of a file
    with pytest.raises(UsageError, match="must be mrl, mrl_e, fixed=M or slim=M, got 'ff'"):
        load(arg="ff")


def test_survives_json():
    config = load()
    again = configs.from_dict(json.loads(configs.to_json(config)), where="config.json")
    assert again == config
    assert configs.digest(again) == configs.digest(config)
    assert configs.digest(load("--config.seed=1")) != configs.digest(config)


def test_a_run_that_is_older_than_a_key_has_its_default():
    values = json.loads(configs.to_json(load("--config.seed=3")))
    # A group that came later, keys of groups, and a key of the top.
    del values["mesh"], values["data"]["flip"], values["eval"]["shifts"], values["task"]
    older = configs.from_run(values, where="config.json")
    assert older == load("--config.seed=3")
    assert configs.digest(older) == configs.digest(load("--config.seed=3"))


def test_keys_that_are_no_longer_known_are_named(tmp_path):
    values = json.loads(configs.to_json(load("--config.seed=3")))
    # Older releases kept the keys of all tasks in every config.
    values["text"] = {"width": 0}
    assert configs.unknown_keys(values, where="config.json") == []
    values["optimizer"]["momentum"] = 0.9
    assert configs.unknown_keys(values, where="config.json") == ["optimizer.momentum"]
    assert configs.from_run(values, where="config.json") == load("--config.seed=3")
    (tmp_path / "config.json").write_text(json.dumps(values))
    said = r"does not know \(optimizer.momentum\): written by "
    with pytest.raises(UsageError, match=said + "an unknown release; train on with that release"):
        folder.check_same_run(tmp_path, load("--config.seed=3"))
    (tmp_path / "facts.json").write_text('{"release": "0.0.9", "commit": "abc"}')
    assert re.search(said + "mrl_jax 0.0.9, commit abc$", folder.unknown_keys(tmp_path))


def test_every_key_has_a_meaning_and_a_legal_default():
    for task in tasks.TASKS:
        configs.check(configs.default_config(task))
        for name, key in tasks.keys(task).items():
            assert len(key.meaning) > 10, name
    table = configs.key_table(load("--config.steps=7"))
    assert re.search("^steps +7 +optimiser steps", table, re.MULTILINE)
    assert not re.search(r"^(text|adaptor)\.", table, re.MULTILINE)


def test_keys_are_few():
    """A task reads all of the keys of its configs."""
    for task in tasks.TASKS:
        read = " ".join(
            path.read_text()
            for room in (task, "")
            for path in (commands.ROOT / "mrl_jax/tasks" / room).glob("*.py")
            if path.name not in ("keys.py", "text_keys.py")
        )
        # Keys that are handed on as a whole, by name.
        read += " ".join(("", *text_sets.KINDS, "")) if task == "sentence_pairs" else ""
        read += " ".join(field.name for field in dataclasses.fields(data.Options))
        own = tasks.keys(task).keys() - COMMON.keys()
        unread = {name for name in own if not re.search(name.rpartition(".")[2] + r"\b", read)}
        assert {name for name in unread if not name.startswith("model.")} == set(), task


def test_differences_leave_out_how_a_run_is_carried_out():
    old = load()
    new = load("--config.mesh.data=4", "--config.log_every=1", "--config.checkpoint.keep=9")
    assert configs.differences(old, new) == []
    new = load("--config.seed=1", "--config.optimizer.learning_rate=0.5")
    assert configs.differences(old, new) == ["optimizer.learning_rate: 0.01 -> 0.5", "seed: 0 -> 1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["nesting.dims=8,4"], "config.nesting: nesting dims must be strictly increasing, got 4"),
        (["nesting.dims=8,128"], "config.nesting: nesting dim 128 is wider than the embedding (64"),
        (["nesting.dims=4,x"], "'nesting.dims' must hold numbers, got '4,x'"),
        (["nesting.weights=1,2"], "one per dim: 6 dims"),
        (["batch_size=12"], "config.batch_size 12 is not divisible by the 8 parts"),
        (["eval.batch_size=9"], "config.eval.batch_size 9 is not divisible by the 8 parts"),
        (["mesh.data=3"], "config.mesh: mesh data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        (["mesh.tensor=4"], "(10,) does not divide by mesh tensor=4"),
        (["head.kind=tied"], "config.head: head kind must be one of"),
        (["head.kind=fixed"], "config.head: a fixed head (FF-m) has one granularity"),
        (["head.normalize=l2"], "config.head: head normalize must be one of"),
        (["head.loss=fused"], "config.head: loss must be one of auto, plain, blockwise, streamed"),
        (["head.label_smoothing=1.0"], "config.head.label_smoothing must be in [0, 1), got 1.0"),
        (["model.name=vgg"], "config.model: model name must be one of"),
        (
            ["optimizer.name=lion"],
            "config.optimizer: optimizer name must be one of adamw, sgd, ada",
        ),
        (
            ["optimizer.warmup_steps=600"],
            "config.optimizer: warmup_steps must be in [0, steps=600)",
        ),
        (["steps=0"], "config.steps must be >= 1, got 0"),
        (["optimizer.decay_mask=kernl"], "config.optimizer: decay_mask 'kernl' matches no param"),
        (["data.resolutions=((0,32),(5,64))"], "config.model: mlp takes images of one size"),
        (
            ["model.name=resnet18", "model.depth=0", "model.batch_norm_groups=3"],
            "config.model: batch_norm_groups 3 does not divide the 128 examples that go through",
        ),
        (["seed=-1"], "config.seed must be >= 0, got -1"),
        (["seed=2147483648"], "config.seed must be below 2**31, got 2147483648"),
        (["data.source=mnist"], "config.data.source must be one of digits, image_folder, tfds; "),
        (["eval.dims=4,2"], "config.eval.dims: nesting dims must be strictly increasing"),
        (["eval.dims=65,99"], "config.eval.dims (65, 99) are all wider than the nesting (64 dims)"),
        (["sharding=(('.*','first:data'),)"], "config.sharding: sharding rule 'first:data'"),
        (["optimizer.learning_rate=inf"], "config.optimizer.learning_rate must be a finite number"),
        (["hang_minutes=nan"], "config.hang_minutes must be a finite number, got nan"),
        (["hang_minutes=-1"], "config.hang_minutes must be >= 0, got -1.0"),
        (
            ["optimizer.learning_rate=1e39"],
            "config.optimizer.learning_rate must be a finite number",
        ),
        (["data.mean=1e400"], "config.data.mean must be a finite number, got inf"),
        (["data.mean=1e300"], "config.data.mean must be a finite number, got 1e+300"),
        ([f"model.name={'x' * 5000}"], "xxx...xxx"),
        ([f"data.source={'x' * 5000}"], "xxx...xxx"),
        ([f"nesting.dims={(2,) * 1000}"], "got 2 after 2 in (2, 2, 2, 2, 2, 2, ...)"),
        ([f"data.mean={(1,) * 1000}"], "got (1, 1, 1, 1, 1, 1, ...)"),
        (["model.depth=2147483647"], "config.model: model depth must be at most 100"),
        (["data.std=1e-320"], "config.head: std must be one positive number"),
        (["nesting.dims=(10**40,)"], "10**40"),
        (["eval.dims=4,9223372036854775808"], "config.eval.dims must be below 2**31"),
    ],
)
def test_experiments_that_cannot_run_say_why_before_compiling(overrides, message):
    with pytest.raises(UsageError) as error:
        experiment.from_config(load(*[f"--config.{o}" for o in overrides])).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vocab_size=-1", "config.text.vocab_size must be >= 6, got -1"),
        ("encoder=", "config.text: encoder is empty"),
    ],
)
def test_encoders_that_cannot_be(override, message):
    config = configs.load("configs/bert_mlm.py:mrl_e,small", [f"--config.text.{override}"])
    with pytest.raises(UsageError, match=message):
        experiment.check(config, devices=None)


@pytest.mark.parametrize(
    ("file", "override", "message"),
    [
        ("static_sentence.py", "pairs.temperature=-1", "pairs: temperature must be > 0, got -1.0"),
        ("static_sentence.py", "pairs.layers=first", "config.pairs: layers must be one of last, s"),
        ("static_sentence.py", "pairs.micro_batch=-8", "config.pairs: micro_batch must be >= 0"),
        ("static_sentence.py", "data.columns=query", "data.columns must be ROLE=COLUMN"),
        ("static_sentence.py", "head.kind=tied", "config.head.kind of sentence_pairs is separate"),
        ("digits.py", "data.source=mnist", "config.data.source must be one of digits, image_folde"),
        ("digits.py", "data.image_size=0", "config.data.image_size must be >= 1, got 0"),
        ("digits.py", "data.eval_crop=0.0", "data.eval_crop must be in (0, 1], got 0.0"),
        ("digits.py", "data.splits=train=train", "data.splits is for data.source tfds only"),
        ("digits.py", "optimizer.decay_mask=kernl", "decay_mask 'kernl' matches no parameter"),
        ("static_sentence.py", "sharding=(('table','replicate'),)", "no sharding rule matches"),
        ("adaptor.py", "adaptor.ranking=-1", "config.adaptor: ranking must be >= 0, got -1.0"),
        ("adaptor.py", "adaptor.nearest=0", "config.adaptor: nearest must be >= 1, got 0"),
        ("adaptor.py", "head.kind=tied", "config.head.kind of adaptor is separate, for a nesting"),
    ],
)
def test_all_tasks_are_checked_before_data_are_read(file, override, message):
    config = configs.load(f"configs/{file}", [f"--config.{override}"])
    with pytest.raises(UsageError) as error:
        experiment.check(config, devices=None)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("file", "override", "error"),
    [
        ("digits.py", "weights=gone", UsageError),
        ("static_sentence.py", "pairs.teacher=gone", UsageError),
        ("image_folder.py", "data.path=gone", DataError),
        ("digits.py", "eval.shifts=v2=gone", DataError),
        ("digits.py", "eval.hierarchy=gone:n1,n2", DataError),
        ("adaptor.py", "data.files=train=gone", DataError),
        ("static_sentence.py", "eval.sts=a=gone", DataError),
    ],
)
def test_what_a_run_would_read_must_be_there(tmp_path, file, override, error):
    key = override.partition("=")[0]
    with pytest.raises(error, match=f"config.{key}: gone not found"):
        experiment.check_paths(configs.load(f"configs/{file}", [f"--config.{override}"]))
    there = override.replace("gone", str(tmp_path))
    experiment.check_paths(configs.load(f"configs/{file}", [f"--config.{there}"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.resolutions=((0,33),)"], "resolutions must be multiples of 32 pixels, got 33"),
        (["data.rand_augment=(2,11.0)"], "rand_augment needs a strength from 0 to 10, got 11"),
        (["data.source=tfds", "data.splits=trian=train"], "SPLIT=PART with SPLIT one of train"),
        (["data.source=image_folder", "data.path="], "data.source image_folder needs --config.d"),
    ],
)
def test_options_of_streams_are_checked_before_data_are_read(tmp_path, overrides, message):
    given = [f"data.path={tmp_path}", *overrides]
    flags = [f"--config.{override}" for override in given]
    with pytest.raises(UsageError, match=re.escape(message)):
        experiment.check(configs.load("configs/imagenet_resnet50.py:mrl", flags), devices=None)
