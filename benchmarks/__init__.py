"""Timings and memory of the package beside plain JAX and PyTorch: `python -m benchmarks.losses`."""
