"""Which role each column of a row has: two texts that go together, negatives, a score.

The column names of data sets of sentence-transformers, SimCSE, FlagEmbedding and SICK are known.
Only the letters and digits of a name count: "sentence_A" is "sentencea". A column that could change
what is learned is never ignored silently: a second column for the same role, or an unknown one that
looks like a score or a negative, is refused until `data.columns` says what it is.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mrl_jax.data import named
from mrl_jax.errors import DataError, listed

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
IGNORE = "ignore"  # the role that `data.columns` gives to columns without a role
# Negatives may also be numbered: negative_0, negative_1, ...
_NUMBERED = re.compile(r"(?:hard)?neg(?:ative)?s?(\d+)")
_SUSPECTS = {
    "score": re.compile("score|label|simil|relat|relev|dupl|paraphras|entail|gold|rating|grade"),
    "negative": re.compile("neg"),
}


class Roles(NamedTuple):
    """The columns of a row by role; `texts`, or at least `anchor` and `positive`, are given."""

    texts: str | None = None
    anchor: str | None = None
    positive: str | None = None
    negatives: tuple[str, ...] = ()
    score: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        found = (self.texts, self.anchor, self.positive, *self.negatives, self.score)
        return tuple(column for column in found if column is not None)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Attributes:
      given: names by role; the other roles have the names in `NAMES`.
      dropped: columns that only say which rows are left out.
      required: whether rows must have the given columns. If not, a row that has none of them is
        read by `NAMES` alone.
    """

    given: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    required: bool = False

    def follows(self) -> dict[str, Any]:
        """Everything that the roles of columns depend on, as JSON values."""
        given = {role: list(names) for role, names in self.given.items()}
        known = {role: list(names) for role, names in NAMES.items()}
        return {"given": given, "known": known, "required": self.required}

    def unread(self, names: Sequence[str], roles: Roles) -> list[str]:
        """The columns of a row that are not read."""
        read = {*roles.columns, *self.dropped, *self.given.get(IGNORE, ())}
        return [name for name in names if name not in read]

    def roles(self, names: Sequence[str], where: str) -> Roles:
        """The role of each column of a row.

        Raises:
          DataError: columns are missing or ambiguous; names `where` and the columns.
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
        free = self.unread(names, Roles(negatives=tuple(wanted)))
        found = {
            role: given.get(role) or tuple(name for name in free if _plain(name) in known)
            for role, known in NAMES.items()
        }
        if "negative" not in given:
            numbered = [name for name in free if _NUMBERED.fullmatch(_plain(name))]
            numbered.sort(key=lambda name: int(_NUMBERED.fullmatch(_plain(name))[1]))
            found["negative"] += tuple(numbered)
        roles = self._checked(found, names, where)
        for role, suspect in _SUSPECTS.items() if roles.texts is None else ():
            for name in self.unread(names, roles):
                if suspect.search(_plain(name)) and not (role == "score" and roles.score):
                    short = listed([name])
                    raise DataError(
                        f"{where}: column {short} looks like a {role}: "
                        f"data.columns={role}={short} reads it as one, "
                        f"data.columns=ignore={short} leaves it out"
                    )
        return roles

    def _checked(
        self, found: dict[str, tuple[str, ...]], names: Sequence[str], where: str
    ) -> Roles:
        for role in ("texts", "anchor", "positive", "score"):
            if len(found[role]) > 1:
                raise DataError(
                    f"{where}: columns {listed(found[role])} could each be the {role}: "
                    f"data.columns={role}=NAME says which one it is"
                )
        texts, anchor, positive, score = (
            found[role][0] if found[role] else None
            for role in ("texts", "anchor", "positive", "score")
        )
        roles = Roles(texts, anchor, positive, found["negative"], score)
        if texts is not None:
            if len(roles.columns) > 1:
                raise DataError(
                    f"{where}: column {listed([texts])} is a list of texts that all go together, "
                    f"so {listed(roles.columns[1:])} cannot be used: data.columns=ignore=NAME "
                    "leaves a column out"
                )
            return roles
        if anchor is None or positive is None:
            raise DataError(
                f"{where}: needs a column texts (a list), or the columns anchor and positive (or "
                f"sentence1 and sentence2, query and answer, ...); found {listed(names)}"
                + ": data.columns=anchor=NAME,positive=NAME says which they are"
                * self.required
            )
        return roles


def parse_columns(entries: Sequence[str], drop: Sequence[str] = ()) -> Columns:
    """Column names from "ROLE=COLUMN" strings; `drop` holds the conditions of `text_files.Filter`.

    Raises:
      UsageError: a string of another form.
    """
    given: dict[str, tuple[str, ...]] = {}
    for role, column in named.pairs("data.columns", entries, (*NAMES, IGNORE), "ROLE=COLUMN"):
        given[role] = (*given.get(role, ()), column)
    return Columns(given, tuple(condition.partition("=")[0] for condition in drop))
