"""JSON that anyone may have written: what is wrong with it is said in one line.

Python's own reader ends in a RecursionError at a thousand brackets, keeps the last of two equal
keys, and takes NaN and 1e999 for numbers.
"""

import json
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

from mrl_jax.errors import DataError, shown
from mrl_jax.store import inputs

MOST_BYTES = 1 << 28  # of a file; the largest tokenizers take a tenth of it
DEEPEST = 100  # brackets within brackets
_MOST_DIGITS = 300  # of a whole number: one with no more fits a float


class MissingError(DataError):
    """There is no such file."""


def read(path: str | os.PathLike) -> Any:
    """The content of a UTF-8 file, with a byte order mark or without.

    Raises:
      MissingError: there is no such file.
      DataError: it is not a file, cannot be read, is larger than `MOST_BYTES`, or see `parse`.
    """
    path = pathlib.Path(path)
    inputs.check_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        kind = MissingError if missing else DataError
        raise kind(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"cannot read {shown(str(path))}: {error}") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path} is larger than {MOST_BYTES:,} bytes, too large for a JSON file")
    return parse(content, str(path))


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """As `read`, of a file that must hold an object."""
    content = read(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must be a JSON object, got {shown(content)}")
    return content


def parse(text: str | bytes, where: str, *, strict: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      text: UTF-8 if it is bytes.
      where: where it stands, for messages.
      strict: also refuse NaN, Infinity and numbers too large for a float.

    Raises:
      DataError: not UTF-8, not JSON, a key that occurs twice in an object, or brackets nested more
        than `DEEPEST` deep.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if not text.strip():
            raise DataError(f"{where} is empty")
        value = (_STRICT if strict else _LENIENT).decode(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError:
        value = None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if _too_deep(text, value):
        raise DataError(f"{where}: brackets are nested more than {DEEPEST} deep")
    return value


def field(values: Any, key: str, types: type | tuple[type, ...], where: str) -> Any:
    """`values[key]`, where key may be dotted, checked to be of one of `types`.

    Raises:
      DataError: it is missing or of another type; names `where`.
    """
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            raise DataError(f"{where}: field {shown(key)} is missing")
        values = values[part]
    types = types if isinstance(types, tuple) else (types,)
    # bool is an int to Python; True as a seed or a dim is a slip.
    if not isinstance(values, types) or (isinstance(values, bool) and bool not in types):
        legal = " or ".join(t.__name__ for t in types)
        raise DataError(f"{where}: field {shown(key)} must be {legal}, got {shown(values)}")
    return values


def check_schema(values: Any, schemas: Collection[int], where: str) -> int:
    """The `schema` of a file's content, which must be one of these.

    Raises:
      DataError: it is another, or none; names `where`.
    """
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, bool) or schema not in schemas:
        legal = " or ".join(map(str, schemas))
        raise DataError(f"{where}: schema must be {legal}, got {shown(schema)}")
    return schema


def _too_deep(text: str, value: Any) -> bool:
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    if value is None:  # the parser itself gave up
        return True
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = (x.values() if isinstance(x, dict) else x for x in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        depth += 1
    return depth > DEEPEST


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"key {shown(twice)} occurs twice")
    return values


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {shown(text)} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"number {shown(text)} is too large")
    return int(text)


_LENIENT = json.JSONDecoder(object_pairs_hook=_object)
_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
)
