"""Handing vectors over to systems that hold more of them than one machine.

`postgres` (pgvector) and `milvus` have `load` and `search` of one shape: a shortlist by a prefix,
ranked again by more dims where the vectors are, as a `Schedule` says. `parquet` writes files that
other systems load, and `ray` lets many workers embed and search. docs/engines.md compares them.
Each needs a library of its own, so they are imported by name, `from mrl_jax.engines import milvus`,
and commands begin with `python -m mrl_jax.engines`.
"""
