"""Proposes how to search: which prefixes, codes and clusters reach a wanted recall."""
