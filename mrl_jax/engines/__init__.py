"""Handing vectors over to systems that hold more of them than one machine can.

`postgres` (pgvector) and `milvus` have the same `load` and `search`: a shortlist by a prefix, which
is ranked again by more dims where the vectors are, as a `Schedule` says. `parquet` writes files
that other systems load, and `ray` lets many workers embed and search. docs/engines.md compares
them. Each needs a library of its own, so import it by name: `from mrl_jax.engines import milvus`.
"""
