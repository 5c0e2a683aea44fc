"""Text encoders: tokens [B, T] and lengths [B] to hidden states, and those to embeddings."""

from mrl_jax.models.text.bert import Bert
from mrl_jax.models.text.clip import ClipText
from mrl_jax.models.text.sentence import Pooling, SentenceEncoder
from mrl_jax.models.text.static import Static

__all__ = ["Bert", "ClipText", "Pooling", "SentenceEncoder", "Static"]
