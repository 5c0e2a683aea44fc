"""What two trained towers read: images, or texts."""

from mrl_jax.tasks import inputs


class Inputs(inputs.Inputs):
    """Images or texts; see `tasks.inputs.Inputs`."""
