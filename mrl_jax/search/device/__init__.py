"""Exact and funnel search of arrays on the devices of a mesh."""
