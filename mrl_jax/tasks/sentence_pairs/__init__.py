"""The task sentence_pairs."""
