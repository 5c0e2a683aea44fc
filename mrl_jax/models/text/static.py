"""Static embeddings: just a table of tokens, whose mean is the embedding of a text."""

import flax.linen as nn
import jax


class Static(nn.Module):
    """Tokens to rows of a table.

    Attributes:
      vocab_size: rows of the table.
      width: D of a row; the rows of a fresh table have about unit length.
    """

    vocab_size: int
    width: int

    reads_padding = False  # what is beyond a text is not read

    @property
    def out_dim(self) -> int:
        """Width of the rows."""
        return self.width

    @property
    def layers(self) -> int:
        """The table alone."""
        return 1

    @nn.compact
    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        *,
        train: bool = False,
        depth: int | None = None,
    ) -> tuple[jax.Array, ...]:
        """One [B, T, D] of rows, in a tuple as `Bert` gives its hidden states.

        Raises:
          ValueError: a depth other than 1 and None.
        """
        del lengths_b, train
        if depth not in (None, 1):
            raise ValueError(f"depth must be 1, a table has no more; got {depth}")
        return (nn.Embed(self.vocab_size, self.width, name="tokens")(tokens_bt),)
