"""Kernels in Pallas. Not timed on a GPU or TPU yet: only `implementation="pallas"` runs them."""
