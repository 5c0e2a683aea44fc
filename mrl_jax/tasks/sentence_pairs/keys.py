"""Config keys of the task sentence_pairs."""

from mrl_jax.config.keys import Key
from mrl_jax.tasks import text_keys


def _sets(meaning: str) -> Key:
    return Key((), meaning, items="words", resume=True, path=True)


KEYS = {
    **text_keys.DATA,
    "data.columns": Key(
        (),
        'the role of columns, each "anchor=premise", or "ignore=year"; names that are known by '
        "themselves are in data/text_columns.py",
        items="words",
    ),
    "data.drop": Key(
        (),
        'rows to leave out, "flag" (where it is true) or "split=dev" (where it is that)',
        items="words",
    ),
    **text_keys.ENCODER,
    "text.width": Key(
        0, "static: dims of the table; others: a linear layer to so many; 0 = none", 0
    ),
    "text.pooling": Key("", 'mean | cls | last token; "" = the folder\'s, else mean'),
    "text.prompts": Key(
        (),
        "prompts, put before texts in training and evaluation and saved with the model: "
        '("query=find: ", "document=", "default="). Queries are the anchors of pairs and '
        "triplets and the queries of eval.retrieval, documents are the texts to find; default is "
        'for other texts. () = the folder\'s own prompts, ("default=",) = none',
        items="texts",
    ),
    "pairs.loss": Key(
        "info_nce",
        "the loss on every prefix. Of pairs and groups: info_nce, with hard negatives where there "
        "are. Of scored pairs: cosent | cosine_mse | angle. Of triplets: triplet. Of texts with a "
        "teacher: distill_vectors (of the same space) | distill_similarity | distill_kl. Or "
        '"MODULE:FUNCTION" of your own',
    ),
    "pairs.temperature": Key(0.05, "info_nce, distill_kl: what cosines are divided by"),
    "pairs.symmetric": Key(True, "info_nce: the mean of both directions"),
    "pairs.margin": Key(0.2, "triplet: on squared distances of unit vectors"),
    "pairs.score_max": Key(1.0, "scored pairs: scores are divided by it"),
    "pairs.micro_batch": Key(
        0,
        "pairs that go through the encoder at a time; the loss still sees all of the batch; 0 = "
        "all",
    ),
    "pairs.teacher": Key(
        "",
        "folder of a model that embeds all texts beforehand. distill_*: what is learned from; "
        "info_nce: texts that it finds nearer than the pair are no negatives",
        path=True,
    ),
    "pairs.layers": Key(
        "last",
        "layers that are trained beside the last, each at every dim: last | sampled (2D "
        "Matryoshka) | sizes (one layer per granularity, from small to large)",
    ),
    "eval.sts": _sets('files of scored pairs, each "NAME=FILE"'),
    "eval.classification": _sets(
        'folders with train.* and test.* of a text and its label, each "NAME=FOLDER"'
    ),
    "eval.clustering": _sets('files of a text and its label, each "NAME=FILE"'),
    "eval.retrieval": _sets('folders with corpus, queries and qrels, each "NAME=FOLDER"'),
    "eval.documents": Key(
        "",
        "folder of a larger model whose space the encoder has learned for queries. Each set of "
        "eval.retrieval is measured twice more: NAME_asymmetric has its documents and the "
        "encoder's queries, NAME_teacher its documents and its queries",
        resume=True,
        path=True,
    ),
    "eval.sets": Key(
        (),
        'sets of another kind, each "NAME=KIND:PATH", where the kind may be the import path of a '
        "module that reads and measures such sets; see evaluators/text_sets.py",
        items="words",
        resume=True,
    ),
    "eval.ignore_identical_ids": Key(
        (),
        "sets of eval.retrieval in which no query is shown the document with its own id, as in "
        "ArguAna, whose queries are documents",
        items="words",
        resume=True,
        asks=True,
    ),
    **text_keys.PROJECTIONS,
    "eval.layers": Key((), "measure after these layers as well, as (1, 2, 3)", resume=True),
}
