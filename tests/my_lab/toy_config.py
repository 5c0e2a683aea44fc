"""A config of the toy task, as a user writes it."""

from mrl_jax.config import default_config, set_method


def get_config(arg="mrl"):
    c = default_config("my_lab.toy")
    c.name = f"toy:{arg}"
    c.nesting.dims = (2, 4, 8)
    set_method(c, arg)
    c.steps = 60
    c.batch_size = 16
    c.log_every = 5
    c.optimizer.warmup_steps = 3
    c.optimizer.learning_rate = 0.05
    c.checkpoint.every = 20
    c.eval.every = 20
    c.eval.batch_size = 32
    c.sharding = ((".*", "replicate"),)
    return c
