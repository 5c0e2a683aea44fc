"""Kernels in Pallas for GPU and TPU. Not timed on a GPU yet; nothing chooses them by itself."""
