"""What the columns of a row of texts are for: two texts that go together, negatives, a score.

Names that data sets of sentence-transformers, SimCSE, FlagEmbedding and SICK have are known.
Of a name only letters and digits count: "sentence_A" is "sentencea". What may change what is
learned is never passed over: a second column for the same thing, or one that looks like a score or
a negative and is known under no such name, is refused until `data.columns` says what it is.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mrl_jax.errors import DataError, UsageError, listed, shown

NAMES = {
    "anchor": (
        *("anchor", "query", "question", "sentence0", "sentence1", "sentencea", "sent0"),
        *("text0", "text1", "texta", "question1", "caption1", "title1"),
    ),
    "positive": (
        *("positive", "pos", "document", "answer", "passage", "response"),
        *("sentence2", "sentenceb", "sent1", "text2", "textb", "question2", "caption2", "title2"),
    ),
    "negative": (
        *("negative", "negatives", "neg", "negs"),
        *("hardnegative", "hardnegatives", "hardneg", "hardnegs"),
    ),
    "score": (
        *("score", "scores", "label", "labels", "similarity", "similarityscore"),
        *("relatedness", "relatednessscore"),
    ),
    "texts": ("texts", "captions", "sentences"),
}
IGNORE = "ignore"  # a role that `data.columns` may give: of nothing
# Also negative_0, negative_1, ..., as many as there are.
_NUMBERED = re.compile(r"(?:hard)?neg(?:ative)?s?(\d+)")
_SUSPECTS = {
    "score": re.compile("score|label|simil|relat|relev|dupl|paraphras|entail|gold|rating|grade"),
    "negative": re.compile("neg"),
}


class Layout(NamedTuple):
    """The columns of a row by what they are for; `texts`, or `anchor` and `positive` at least."""

    texts: str | None = None
    anchor: str | None = None
    positive: str | None = None
    negatives: tuple[str, ...] = ()
    score: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        found = (self.texts, self.anchor, self.positive, *self.negatives, self.score)
        return tuple(column for column in found if column is not None)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


@dataclasses.dataclass(frozen=True)
class Columns:
    """How columns are called.

    Attributes:
      given: their names by role; roles that are not there have one of `NAMES`.
      dropped: columns that say which rows are left out, and nothing else.
      required: whether rows must have what is given. Else a row without any of it is read by
        `NAMES` alone.
    """

    given: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    required: bool = False

    def follows(self) -> dict[str, Any]:
        """What the layouts of rows follow from, as JSON."""
        given = {role: list(names) for role, names in self.given.items()}
        known = {role: list(names) for role, names in NAMES.items()}
        return {"given": given, "known": known, "required": self.required}

    def unread(self, names: Sequence[str], layout: Layout) -> list[str]:
        """The columns of a row that nothing reads."""
        read = {*layout.columns, *self.dropped, *self.given.get(IGNORE, ())}
        return [name for name in names if name not in read]

    def layout(self, names: Sequence[str], where: str) -> Layout:
        """What each column of a row is for.

        Raises:
          DataError: too little, or what might be meant in two ways; names `where` and the columns.
        """
        given = {role: columns for role, columns in self.given.items() if role != IGNORE}
        wanted = [name for columns in given.values() for name in columns]
        if not self.required and not {*wanted} & {*names}:
            given, wanted = {}, []
        for name in wanted:
            if name not in names:
                raise DataError(
                    f"{where}: column {listed([name])} is missing; found {listed(names)}"
                )
        free = self.unread(names, Layout(negatives=tuple(wanted)))
        found = {
            role: given.get(role) or tuple(name for name in free if _plain(name) in known)
            for role, known in NAMES.items()
        }
        if "negative" not in given:
            numbered = [name for name in free if _NUMBERED.fullmatch(_plain(name))]
            numbered.sort(key=lambda name: int(_NUMBERED.fullmatch(_plain(name))[1]))
            found["negative"] += tuple(numbered)
        layout = self._checked(found, names, where)
        for role, suspect in _SUSPECTS.items() if layout.texts is None else ():
            for name in self.unread(names, layout):
                if suspect.search(_plain(name)) and not (role == "score" and layout.score):
                    short = listed([name])
                    raise DataError(
                        f"{where}: {short} looks like a {role}: data.columns={role}={short} reads "
                        f"it as one, data.columns=ignore={short} leaves it out"
                    )
        return layout

    def _checked(
        self, found: dict[str, tuple[str, ...]], names: Sequence[str], where: str
    ) -> Layout:
        for role in ("texts", "anchor", "positive", "score"):
            if len(found[role]) > 1:
                raise DataError(
                    f"{where}: {listed(found[role])} could each be the {role}: "
                    f"data.columns={role}=NAME says which one is"
                )
        texts, anchor, positive, score = (
            found[role][0] if found[role] else None
            for role in ("texts", "anchor", "positive", "score")
        )
        layout = Layout(texts, anchor, positive, found["negative"], score)
        if texts is not None:
            if len(layout.columns) > 1:
                raise DataError(
                    f"{where}: {listed([texts])} is a list of texts that all go together, beside "
                    f"which {listed(layout.columns[1:])} means nothing: data.columns=ignore=NAME "
                    "leaves a column out"
                )
            return layout
        if anchor is None or positive is None:
            raise DataError(
                f"{where}: needs a column texts (a list), or columns anchor and positive (or "
                f"sentence1 and sentence2, query and answer, ...); found {listed(names)}"
                + ": data.columns=anchor=NAME,positive=NAME says what they are" * self.required
            )
        return layout


def parse_columns(entries: Sequence[str], drop: Sequence[str] = ()) -> Columns:
    """Names from "ROLE=COLUMN" strings; `drop` are the conditions of `text_files.Filter`.

    Raises:
      UsageError: a string that is none.
    """
    given: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        role, equals, column = entry.partition("=")
        if not equals or role not in (*NAMES, IGNORE) or not column:
            raise UsageError(
                f"data.columns must be ROLE=COLUMN, ROLE one of {', '.join((*NAMES, IGNORE))}; "
                f"got {shown(entry)}"
            )
        given[role] = (*given.get(role, ()), column)
    return Columns(given, tuple(condition.partition("=")[0] for condition in drop))
