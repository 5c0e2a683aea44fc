"""Text encoders: tokens [B, T] and their lengths to hidden states, and from those to embeddings."""

from mrl_jax.models.text.bert import ACTIVATIONS, Bert
from mrl_jax.models.text.sentence import Pooling, SentenceEncoder
from mrl_jax.models.text.static import Static

__all__ = ["ACTIVATIONS", "Bert", "Pooling", "SentenceEncoder", "Static"]
