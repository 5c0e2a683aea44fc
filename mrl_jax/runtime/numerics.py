"""JAX settings that change what a run computes, and that the environment may set."""

import os

import jax

from mrl_jax.errors import UsageError

# The defaults of JAX 0.10, which runs used before checkpoints recorded these settings.
DEFAULTS = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_default_matmul_precision": None,
}

# Values with which no run works.
UNFIT = {
    "jax_disable_jit": (True,),
    "jax_enable_x64": (True,),
    "jax_numpy_dtype_promotion": ("strict",),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
}


def settings() -> dict[str, str | bool | int | None]:
    """The settings of this process; all processes of a run must have the same."""
    return {name: getattr(jax.config, name) for name in DEFAULTS}


def pin(wanted: dict[str, str | bool | int | None]) -> list[str]:
    """Applies these settings to this process; returns "name: before -> now" for each change.

    Call it before anything is traced.
    """
    changed = {name: value for name, value in wanted.items() if settings().get(name) != value}
    lines = [f"{name}: {settings().get(name)} -> {value}" for name, value in changed.items()]
    for name, value in changed.items():
        jax.config.update(name, value)
    return lines


def check() -> None:
    """Refuses settings with which no run works.

    Raises:
      UsageError: names the first one found.
    """
    for name, unfit in UNFIT.items():
        value = getattr(jax.config, name)
        if value in unfit:
            raise UsageError(
                f"JAX is set to {name}={value} ({name.upper()} in the environment?), with which "
                "runs do not work: unset it"
            )


def environment() -> dict[str, str]:
    """The environment variables that JAX and XLA read."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("JAX_", "XLA_", "LIBTPU_"))
    }
