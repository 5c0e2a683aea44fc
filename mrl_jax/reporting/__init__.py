"""From finished runs to tables, plots and one self-contained page.

The walk: `runs` reads and checks run folders, `methods` names what was trained, `statistics`
holds the few formulas, `tables` joins them by dimension, `headline` says in words what the tables
carry, `plots` draws them, `markdown` and `page` write them down.
"""
