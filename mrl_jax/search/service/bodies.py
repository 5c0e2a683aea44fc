"""What requests and answers hold: names with values, as JSON, .npy or .npz."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import cut, listed, shown
from mrl_jax.store.ids import without_objects

with extras.needed("serve", "the service"):
    import orjson

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
_LONGEST = 300  # characters of a message


class Refusal(Exception):
    """A request that is answered by an error: its status, and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(cut(message, _LONGEST))
        self.status = status


def read(kind: str, content: bytes, most: int) -> dict[str, Any]:
    """What a body holds, by name: values of JSON, or arrays.

    Args:
      kind: its content type.
      content: of an .npy file, which is called vectors; of an .npz file; or a JSON object.
      most: bytes that it may unpack to.

    Raises:
      Refusal: another content type (415), a damaged body (400), or one that unpacks to more (413).
    """
    if kind == JSON:
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the body is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise Refusal(400, "the body must be a JSON object, with names and values")
        return found
    if kind not in (NPY, NPZ):
        given = shown(kind) if kind else "none"
        raise Refusal(415, f"Content-Type must be {JSON}, {NPY} or {NPZ}; got {given}")
    try:
        if kind == NPY:
            return {"vectors": _array(io.BytesIO(content), len(content))}
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            sizes = {member.filename: member.file_size for member in members.infolist()}
            if sum(sizes.values()) > most:
                raise Refusal(413, f"the body unpacks to more than {most:,} bytes")
            return {
                name.removesuffix(".npy"): _array(io.BytesIO(members.read(name)), size)
                for name, size in sizes.items()
            }
    except Refusal:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for what lies
        ending = "npy" if kind == NPY else "npz"
        raise Refusal(400, f"the body is no whole .{ending} file: {error!r}") from None


def _array(file: io.BytesIO, size: int) -> np.ndarray:
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or file.tell() != size:
        raise ValueError("it must hold one array and nothing else")
    if array.size and not array.dtype.itemsize:  # any number of them, in no bytes
        raise ValueError(f"it holds {array.size:,} values of no size")
    return array


class Fields:
    """The named values of a request, each checked when it is asked for.

    Raises:
      Refusal: there is a name that is not one of the `legal` ones.
    """

    def __init__(self, values: Mapping[str, Any], legal: tuple[str, ...]):
        self._values = values
        other = sorted(values.keys() - set(legal))
        if other:
            raise Refusal(400, f"there is no {listed(map(shown, other))}; legal: {listed(legal)}")

    def given(self, name: str) -> Any:
        """A value as it is; None if there is none."""
        return self._values.get(name)

    def vectors(self, dims: tuple[int, int]) -> np.ndarray:
        """Vectors [n, D] or one [D] of floating point numbers, of `dims[0]` to `dims[1]` dims."""
        given = self._needed("vectors")
        if isinstance(given, np.ndarray):
            z_nd, numbers = given, given.dtype.kind == "f"
        else:
            z_nd = _as_array(given)
            numbers = z_nd.dtype.kind in "fiu"
            z_nd = z_nd.astype(np.float64) if numbers else z_nd
        least, most = dims
        wanted = f"{least}" if least == most else f"{least} to {most}"
        if not numbers or z_nd.ndim not in (1, 2):
            found = f"{z_nd.dtype} of shape {z_nd.shape}" if z_nd.dtype != object else shown(given)
            raise Refusal(
                400,
                f"vectors must be one or several of {wanted} floating point numbers, got {found}",
            )
        if not least <= z_nd.shape[-1] <= most:
            raise Refusal(400, f"vectors must have {wanted} dims, got {z_nd.shape[-1]}")
        return z_nd

    def ids(self, name: str = "ids") -> Any:
        """Ids [n], or one; of which kind they are is looked at by the index."""
        given = self._needed(name)
        array = given if isinstance(given, np.ndarray) else _as_array(given)
        # A mask would depend on an order that others may change meanwhile.
        if array.dtype.kind == "b" or array.ndim > 1:
            raise Refusal(400, f"{name} must be ids: whole numbers or texts, one or a list of them")
        return given

    def count(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 to `most`; of an array, its only number; of a text, as it says."""
        given = self._values.get(name, default)
        if isinstance(given, np.ndarray) and given.ndim == 0:
            given = given.item()
        if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 10:
            given = int(given)
        if type(given) is not int or not 1 <= given <= most:
            raise Refusal(
                400, f"{name} must be a whole number from 1 to {most}, got {shown(given)}"
            )
        return given

    def _needed(self, name: str) -> Any:
        if self._values.get(name) is None:
            raise Refusal(400, f"{name} is missing")
        return self._values[name]


def _as_array(given: Any) -> np.ndarray:
    """An array of a JSON value; of type object where it is none."""
    try:
        return np.asarray(given)
    except (ValueError, OverflowError):  # lists of several lengths
        return np.asarray(None)


def write(kind: str, values: Mapping[str, Any]) -> bytes:
    """The body of an answer: JSON or .npz.

    In JSON, arrays of scores and their ids end where fewer were found than were asked for.
    """
    if kind == NPZ:
        content = io.BytesIO()
        arrays = {name: without_objects(np.asarray(value)) for name, value in values.items()}
        np.savez(content, **arrays)
        return content.getvalue()
    plain = dict(values)
    if "scores" in plain:
        plain["ids"], plain["scores"] = _found(plain["ids"], plain["scores"])
    for name, value in plain.items():
        if isinstance(value, np.ndarray) and value.dtype == object:
            plain[name] = value.tolist()
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _found(ids: np.ndarray, scores: np.ndarray) -> tuple[Any, Any]:
    """The same without what stands for none found: JSON has no -inf."""
    there = scores > -np.inf
    if there.all():
        return ids, scores
    if scores.ndim == 1:
        return ids[there], scores[there]
    counts_b = there.sum(1)
    pairs = zip(ids, scores, counts_b, strict=True)
    rows = [(id_k[:n].tolist(), score_k[:n]) for id_k, score_k, n in pairs]
    return [id_k for id_k, _ in rows], [score_k for _, score_k in rows]
