"""Config keys of the task masked_lm."""

from mrl_jax.config.keys import Key
from mrl_jax.tasks import text_keys

KEYS = {
    **text_keys.DATA,
    **text_keys.ENCODER,
    "text.mask_rate": Key(0.15, "share of a sequence's tokens that are to be predicted"),
    **text_keys.PROJECTIONS,
}
