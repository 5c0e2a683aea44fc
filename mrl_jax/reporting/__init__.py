"""From finished runs to tables, plots and one self-contained page.

The walk: `methods` names what was trained and holds its numbers, `statistics` the few formulas,
`tables` joins numbers by dimension, `sheet` and `charts` show them. `sections` goes through all
measures, `findings` through what evaluators left in files of their own, `document` puts the parts
(`content`) in order, `plots` draws them and `render` writes them down by the templates. `published`
holds the paper's numbers.
"""
