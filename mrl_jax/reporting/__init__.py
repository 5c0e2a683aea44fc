"""From finished runs to tables, plots and one self-contained page.

The walk: `runs` reads and checks run folders, `artefacts` what evaluators left in them, `methods`
names what was trained, `metrics` what was measured, `statistics` holds the few formulas, `tables`
joins them by dimension, `headline` says in words what the tables carry, `sheet` and `charts` show
them. `sections` goes through all measures; those with files of their own have a module each
(`cascades`, `agreements`, `shifted`, `attribution`). `document` puts the parts in order, `plots`
draws them, `markdown` and `page` write them down. `published` holds the paper's numbers.
"""
