"""Which WordNet synsets lie above which; ids are as in ImageNet, n02084071 = noun 02084071.

Read from one of two files: WordNet's own data.noun (ImageNet's ids are of version 3.0), or lines
"parent child" such as ImageNet's wordnet.is_a.txt. In data.noun all parents of a child count, in
the latter only the last one, as in MadryLab's robustness package, whose superclasses we thus get.
"""

import pathlib
import re
from collections.abc import Iterable, Iterator

from mrl_jax.errors import DataError
from mrl_jax.store import inputs

_ID = re.compile("n[0-9]{8}")


def lowest_above(
    path: pathlib.Path, wanted: list[str], names: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """(name, id) for every name that is, or lies below, one of the wanted ids.

    Of several wanted ids only those are given that lie above none of the others: one, or more
    where branches meet.

    Raises:
      DataError: a file that cannot be read or is neither of the two, an id that is not in it.
    """
    parents = _parents(path)
    for synset in wanted:
        if synset not in parents:
            raise DataError(f"{path} has no {synset!r}; superclasses are ids such as n02084071")

    def upwards(synset):
        found, rest = {synset}, [synset]
        while rest:
            new = set(parents.get(rest.pop(), ())) - found
            found |= new
            rest.extend(new)
        return found

    over = {synset: (upwards(synset) - {synset}).intersection(wanted) for synset in wanted}
    for name in names:
        above = upwards(name).intersection(wanted)
        lowest = above.difference(*(over[synset] for synset in above))
        yield from ((name, synset) for synset in sorted(lowest))


def read_text(path: pathlib.Path, encoding: str) -> str:
    """The content of a file; a DataError if it cannot be read."""
    inputs.check_file(path)
    try:
        return path.read_text(encoding)
    except OSError as error:
        raise DataError(f"cannot read hierarchy {path}: {error.strerror}") from error


def _parents(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """The ids right above every id."""
    parents = {}
    for number, line in enumerate(read_text(path, "latin-1").splitlines(), 1):
        if not line.strip() or line.startswith("  "):
            continue  # data.noun begins with its licence, indented
        fields = line.partition("|")[0].split()
        try:
            if len(fields) == 2 and all(_ID.fullmatch(field) for field in fields):
                parents.setdefault(fields[0], ())
                parents[fields[1]] = (fields[0],)
            else:
                parents["n" + fields[0]] = _hypernyms(fields)
        except (IndexError, ValueError):
            raise DataError(
                f"{path}, line {number}: neither a line of WordNet's data.noun nor two ids"
            ) from None
    return parents


def _hypernyms(fields: list[str]) -> tuple[str, ...]:
    """Of "offset file n words(hex) [word id]... pointers [symbol offset kind place]... "."""
    if fields[2] != "n":
        raise ValueError
    count = 4 + 2 * int(fields[3], 16)
    first, last = count + 1, count + 1 + 4 * int(fields[count])
    pairs = zip(fields[first:last:4], fields[first + 1 : last : 4], strict=True)
    return tuple("n" + offset for symbol, offset in pairs if symbol in ("@", "@i"))
