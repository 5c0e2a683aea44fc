"""Compiled loops of an index: scan lists of codes, keep the best, compare them again.

Numba compiles them at first use and caches them. They hold no lock, so threads run them side by
side, each on queries of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index.compiling import compiled as _compile

COSINE, INNER, L2 = 0, 1, 2
METRICS = {"cosine": COSINE, "inner": INNER, "l2": L2}
# The type of a product of codes: bits that differ are counted here, the others are numkong's.
INT32, FLOAT32, FLOAT64, BITS = 0, 1, 2, 3
NO_ROW = -1
_TOGETHER = 16  # scores that are compared with a bound at a time
_TINY = float(np.finfo(np.float32).tiny)
_SMALL = np.float32(2.0**-90)  # squares and products of vectors this short may be subnormal


class Product(NamedTuple):
    """How codes of some dims are multiplied, and how products become scores.

    Attributes:
      dot: multiplies two rows of codes, see `codes.product_function`; not used for bits.
      kind: what it gives.
      metric: one of `METRICS`.
      dims: of the codes.
    """

    dot: Callable
    kind: int
    metric: int
    dims: int


class Block(NamedTuple):
    """Codes of the dims that a stage adds, of rows in list order.

    Attributes:
      code_nw: [N, bytes].
      gain_n: [N] float32, see `codes.encode`.
      norm_n: [N] float32, of the prefix up to the stage's dim.
    """

    code_nw: np.ndarray
    gain_n: np.ndarray
    norm_n: np.ndarray


class Codes(NamedTuple):
    """Codes of queries: [B, bytes], and their gains [B]."""

    code_bw: np.ndarray
    gain_b: np.ndarray


class Candidates(NamedTuple):
    """What a scan has found so far.

    Attributes:
      score_bc: [B, C] float32; C, the room, is at least twice as many as are kept.
      place_bc: [B, C] int64, in list order.
      count_b: [B] int64, how many there are.
      bound_b: [B] float32, what a score must exceed.
    """

    score_bc: np.ndarray
    place_bc: np.ndarray
    count_b: np.ndarray
    bound_b: np.ndarray

    @classmethod
    def none(cls, queries: int, room: int) -> "Candidates":
        """Before the scan."""
        return cls(
            np.empty((queries, room), np.float32),
            np.empty((queries, room), np.int64),
            np.zeros(queries, np.int64),
            np.full(queries, -np.inf, np.float32),
        )


@_compile
def _bits_different(word_nw, n, word_w):
    """In how many bits the n-th row of words differs from another row."""
    different = np.uint64(0)
    for j in range(len(word_w)):
        x = word_nw[n, j] ^ word_w[j]
        # Counts the ones of a word, in a form that compilers turn into the machine's instruction.
        x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
        low = x & np.uint64(0x3333333333333333)
        x = low + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        different += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return np.int64(different)


@_compile
def _raw(kind, int_n, float_n, double_n, j):
    """The j-th product, from that of three views of the same memory as which it was written."""
    if kind == INT32:
        return np.float32(int_n[2 * j])
    if kind == FLOAT64:
        return np.float32(double_n[j])
    return float_n[2 * j]


@_compile
def _score(metric, product, norm):
    """Ranks rows as the metric does, given the norm of the row's prefix but not the query's."""
    if metric == COSINE:
        return product / norm
    if metric == L2:
        return product - norm * norm / 2
    return product


@_compile
def _product_of(metric, score, norm):
    """The product that has this score."""
    if metric == COSINE:
        return score * norm
    if metric == L2:
        return score + norm * norm / 2
    return score


@_compile
def _largest(x_n, k):
    """The k-th largest number, by halving an interval: counting runs in vectors, sorting does not.

    The bits of floating-point numbers, read as whole numbers, are in the order of the numbers; of
    negative ones once all bits but the sign are inverted.
    """
    bits_n, key_n = x_n.view(np.int32), np.empty(len(x_n), np.int32)
    for j in range(len(x_n)):
        key_n[j] = bits_n[j] ^ ((bits_n[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))
    low, high = np.int64(key_n.min()), np.int64(key_n.max())
    while low < high:
        middle, count = low + (high - low + 1) // 2, np.int32(0)
        key = np.int32(middle)
        for j in range(len(key_n)):
            count += np.int32(key_n[j] >= key)
        if count >= k:
            low = middle
        else:
            high = middle - 1
        if count == k:
            break
    found = np.float32(np.inf)
    key = np.int32(low)
    for j in range(len(key_n)):
        if key_n[j] >= key:
            found = min(found, x_n[j])
    return found


@_compile
def _keep_best(score_c, place_c, count, keep):
    """Brings the `keep` best to the front, of equals the first; gives how many, and the lowest."""
    if count <= keep:
        return count, np.float32(-np.inf)
    bound = _largest(score_c[:count], keep)
    equal = np.int64(keep)
    for i in range(count):
        equal -= np.int64(score_c[i] > bound)
    n = 0
    for i in range(count):
        # Without branches, which no processor could predict: what is not kept is written over.
        score = score_c[i]
        among = np.int64(score == bound) & np.int64(equal > 0)
        score_c[n], place_c[n] = score, place_c[i]
        equal -= among
        n += np.int64(score > bound) | among
    return n, bound


@_compile
def _take(score_n, first, alive_n, keep, found, b):
    """Takes in a query's scores of rows from `first` on; if there is no room, `keep` stay."""
    score_c, place_c = found.score_bc[b], found.place_bc[b]
    count, bound = found.count_b[b], found.bound_b[b]
    for start in range(0, len(score_n), _TOGETHER):
        end = min(start + _TOGETHER, len(score_n))
        # Most rows are no candidates; checking many at a time finds that out fastest.
        above = np.int32(0)
        if end - start == _TOGETHER:
            for j in range(_TOGETHER):
                above += np.int32(score_n[start + j] > bound)
        else:
            above = np.int32(1)
        if above == 0:
            continue
        for j in range(start, end):
            score = score_n[j]
            if score > bound and alive_n[first + j]:
                if count == len(score_c):
                    count, bound = _keep_best(score_c, place_c, count, keep)
                    if score <= bound:
                        continue
                score_c[count], place_c[count] = score, first + j
                count += 1
    found.count_b[b], found.bound_b[b] = count, bound


@_compile
def _scores(metric, raw_n, query_gain, gain_n, norm_n, score_n):
    """The scores of products of codes."""
    for j in range(len(raw_n)):
        score_n[j] = _score(metric, raw_n[j] * gain_n[j] * query_gain, norm_n[j])


@_compile
def scan_lists(product, block, alive_n, bounds_l, list_bp, queries, keep, found):
    """Scans the lists that queries ask for, each for all its queries, so it is fetched only once.

    In `list_bp` the number of lists stands for none.
    """
    asking, probes = list_bp.shape
    lists = len(bounds_l) - 1
    # Queries by list: counting sort.
    start_l = np.zeros(lists + 2, np.int64)
    for b in range(asking):
        for p in range(probes):
            start_l[list_bp[b, p] + 1] += 1
    start_l = np.cumsum(start_l)
    asks = np.empty(asking * probes, np.int32)
    at_l = start_l[:-1].copy()
    for b in range(asking):
        for p in range(probes):
            asks[at_l[list_bp[b, p]]] = b
            at_l[list_bp[b, p]] += 1
    codes, row_bytes = block.code_nw.ctypes.data, block.code_nw.strides[0]
    longest = np.diff(bounds_l).max()
    raw_n, score_n = np.empty(longest, np.float32), np.empty(longest, np.float32)
    double_n = np.empty(longest, np.float64)
    float_n, int_n = double_n.view(np.float32), double_n.view(np.int32)
    products = double_n.ctypes.data
    for which in range(lists):
        first, last = bounds_l[which], bounds_l[which + 1]
        rows = last - first
        for ask in range(start_l[which], start_l[which + 1]):
            b = asks[ask]
            if product.kind == BITS:
                word_nw, word_w = block.code_nw.view(np.uint64), queries.code_bw[b].view(np.uint64)
                for j in range(rows):
                    float_n[2 * j] = product.dims - 2 * _bits_different(word_nw, first + j, word_w)
            else:
                query = queries.code_bw.ctypes.data + b * queries.code_bw.strides[0]
                for j in range(rows):
                    row = codes + (first + j) * row_bytes
                    product.dot(row, query, product.dims, products + 8 * j)
            for j in range(rows):
                raw_n[j] = _raw(product.kind, int_n, float_n, double_n, j)
            gain_r, norm_r = block.gain_n[first:last], block.norm_n[first:last]
            gain = queries.gain_b[b]
            _scores(product.metric, raw_n[:rows], gain, gain_r, norm_r, score_n[:rows])
            _take(score_n[:rows], first, alive_n, keep, found, b)


@_compile
def keep_best(found, keep):
    """Keeps the best `keep` candidates of every query."""
    for b in range(len(found.count_b)):
        count = found.count_b[b]
        found.count_b[b], _ = _keep_best(found.score_bc[b], found.place_bc[b], count, keep)


@_compile
def bounds(score_bn, keep, bound_b):
    """For each query, just below its `keep`-th largest score: what `keep` scores exceed."""
    for b in range(len(score_bn)):
        bound_b[b] = np.nextafter(_largest(score_bn[b], keep), np.float32(-np.inf))


@_compile
def take_products(metric, product_bn, first, gain_n, norm_n, alive_n, query_gain_b, keep, found):
    """Takes in rows from `first` on, given the products of their codes with all queries."""
    last = first + product_bn.shape[1]
    score_n = np.empty(product_bn.shape[1], np.float32)
    for b in range(len(product_bn)):
        gain_r, norm_r = gain_n[first:last], norm_n[first:last]
        _scores(metric, product_bn[b], query_gain_b[b], gain_r, norm_r, score_n)
        _take(score_n, first, alive_n, keep, found, b)


@_compile
def add_block(product, block, norm_before_n, queries, keep, found):
    """Compares candidates by one more block of dims, whose products are added."""
    codes, row_bytes = block.code_nw.ctypes.data, block.code_nw.strides[0]
    double_n = np.empty(found.score_bc.shape[1], np.float64)
    float_n, int_n = double_n.view(np.float32), double_n.view(np.int32)
    products = double_n.ctypes.data
    for b in range(len(found.count_b)):
        score_c, place_c, count = found.score_bc[b], found.place_bc[b], found.count_b[b]
        if product.kind == BITS:
            word_nw, word_w = block.code_nw.view(np.uint64), queries.code_bw[b].view(np.uint64)
            for j in range(count):
                float_n[2 * j] = product.dims - 2 * _bits_different(word_nw, place_c[j], word_w)
        else:
            query = queries.code_bw.ctypes.data + b * queries.code_bw.strides[0]
            for j in range(count):
                row = codes + place_c[j] * row_bytes
                product.dot(row, query, product.dims, products + 8 * j)
        for j in range(count):
            i = place_c[j]
            raw = _raw(product.kind, int_n, float_n, double_n, j)
            total = _product_of(product.metric, score_c[j], norm_before_n[i])
            total += raw * block.gain_n[i] * queries.gain_b[b]
            score_c[j] = _score(product.metric, total, block.norm_n[i])
        found.count_b[b], _ = _keep_best(score_c, place_c, count, keep)


@_compile
def lengths(vector_nd):
    """Euclidean lengths [N] float64 of float32 vectors, of which none is too short or too long."""
    length_n = np.empty(len(vector_nd), np.float64)
    for n in range(len(vector_nd)):
        total = 0.0
        for d in range(vector_nd.shape[1]):
            total += np.float64(vector_nd[n, d]) * np.float64(vector_nd[n, d])
        length_n[n] = np.sqrt(total)
    return length_n


@_compile
def _compare(metric, vector_d, query_d, query_length):
    """The metric's score of a row, summed in a fixed order: equal rows get equal scores.

    In float64, where products of float32 are exact and none is too small or too large.
    """
    total = 0.0
    if metric == L2:
        for d in range(len(query_d)):
            difference = np.float64(vector_d[d]) - np.float64(query_d[d])
            total -= difference * difference
    elif metric == INNER:
        for d in range(len(query_d)):
            total += np.float64(vector_d[d]) * np.float64(query_d[d])
    else:
        squares = 0.0
        for d in range(len(query_d)):
            number = np.float64(vector_d[d])
            total += number * np.float64(query_d[d])
            squares += number * number
        if total != 0:
            total /= np.sqrt(squares) * query_length
    return total


@_compile
def _insert(score, row, count, row_k, score_k):
    """Inserts a row among the `count` best so far; of equal scores the smaller row comes first."""
    at = min(count, len(row_k))
    while at > 0 and (
        score_k[at - 1] < score or (score_k[at - 1] == score and row_k[at - 1] > row)
    ):
        if at < len(row_k):
            score_k[at], row_k[at] = score_k[at - 1], row_k[at - 1]
        at -= 1
    if at < len(row_k):
        score_k[at], row_k[at] = score, row


@_compile
def compare_vectors(
    metric, vector_nd, row_n, query_bd, query_length_b, place_bc, count_b, row_bk, score_bk
):  # fmt: skip
    """Compares candidates by whole vectors: rows [B, k], best first, and the metric's own scores.

    Of equal scores the smaller row comes first. Places beyond the last candidate stay unchanged.
    """
    for b in range(len(count_b)):
        for j in range(count_b[b]):
            # By insertion: k is small, so that it costs less than the comparison.
            row = row_n[place_bc[b, j]]
            score = _compare(metric, vector_nd[row], query_bd[b], query_length_b[b])
            _insert(score, row, j, row_bk[b], score_bk[b])


@_compile
def rank_found(metric, vector_nd, query_bd, row_bc, row_bk, score_bk):
    """Compares the rows that were found of each query, then -1, by whole vectors.

    Gives the best rows [B, k], the best first, and their scores as `compare_vectors`; `NO_ROW` and
    -inf where fewer were found.
    """
    for b in range(len(row_bc)):
        squares = 0.0
        for d in range(query_bd.shape[1]):
            squares += np.float64(query_bd[b, d]) * np.float64(query_bd[b, d])
        length, count = np.sqrt(squares), 0
        row_bk[b], score_bk[b] = NO_ROW, -np.inf
        for c in range(row_bc.shape[1]):
            row = row_bc[b, c]
            if row >= 0:
                score = _compare(metric, vector_nd[row], query_bd[b], length)
                _insert(score, row, count, row_bk[b], score_bk[b])
                count += 1


@_compile
def found(row_bc):
    """The largest row that was found, and the fewest rows of a query that are not -1."""
    largest, fewest = np.int64(-1), np.int64(row_bc.shape[1])
    for b in range(len(row_bc)):
        count = np.int64(0)
        for c in range(row_bc.shape[1]):
            largest = max(largest, row_bc[b, c])
            count += np.int64(row_bc[b, c] >= 0)
        fewest = min(fewest, count)
    return largest, fewest


@_compile
def directions(z_nd):
    """Vectors [N, d] float32 of unit length; those of no length stay."""
    unit_nd = np.empty_like(z_nd)
    for n in range(len(z_nd)):
        squares = 0.0
        for d in range(z_nd.shape[1]):
            squares += np.float64(z_nd[n, d]) * np.float64(z_nd[n, d])
        length = np.float32(max(np.sqrt(squares), _TINY))
        for d in range(z_nd.shape[1]):
            unit_nd[n, d] = z_nd[n, d] / length
    return unit_nd


@_compile
def _at_most(metric, product_n, norm_n, query_norm, rounding, most_n):
    """Upper bounds of rows' scores, given products that are off by `rounding` times both norms."""
    for j in range(len(product_n)):
        norm = norm_n[j]
        if metric == COSINE:
            most_n[j] = product_n[j] / norm + rounding
        elif metric == L2:
            both = norm + query_norm
            most_n[j] = np.float32(2) * product_n[j] - norm * norm - query_norm * query_norm
            most_n[j] += rounding * both * both
        else:
            most_n[j] = product_n[j] + rounding * norm * query_norm
        # Below this, products of float32 lose digits or become 0.
        if norm * query_norm < _SMALL:
            most_n[j] = np.float32(np.inf)


@_compile
def compare_products(
    metric, product_bn, first, vector_nd, norm_n, query_bd, query_length_b,
    compared_norm_b, count_b, row_bk, score_bk,
):  # fmt: skip
    """Adds the best of some rows, numbered from `first` on, given their products with all queries.

    A matrix product rounds equal rows differently, depending on their place and the processor. So
    it only rules out rows that cannot be among the best; the others are compared as in
    `compare_vectors`. Its factors are the vectors themselves, but by cosine the queries' directions
    and by l2 perhaps the differences of both from one point; `norm_n` and `compared_norm_b` are
    their lengths. `count_b` is the number of rows compared so far for each query.
    """
    rows = product_bn.shape[1]
    # This bounds the error of a float32 sum of products in any order, and of what is added to it.
    rounding = np.float32((query_bd.shape[1] + 32) * 2.0**-24)
    last = row_bk.shape[1] - 1
    most_n = np.empty(rows, np.float32)
    for b in range(len(product_bn)):
        compared_norm = np.float32(compared_norm_b[b])
        _at_most(metric, product_bn[b], norm_n, compared_norm, rounding, most_n)
        for start in range(0, rows, _TOGETHER):
            end = min(start + _TOGETHER, rows)
            # Most rows are too far away; checking many at a time finds that out fastest.
            bound, above = score_bk[b, last], np.int32(0)
            if end - start == _TOGETHER:
                for j in range(_TOGETHER):
                    above += np.int32(most_n[start + j] > bound)
            else:
                above = np.int32(1)
            if above == 0:
                continue
            for j in range(start, end):
                if most_n[j] > score_bk[b, last]:
                    score = _compare(metric, vector_nd[j], query_bd[b], query_length_b[b])
                    _insert(score, first + j, count_b[b], row_bk[b], score_bk[b])
                    count_b[b] += 1


@_compile
def within_products(
    metric, product_bn, least, vector_nd, norm_n, query_bd, query_length_b, compared_norm_b
):  # fmt: skip
    """Queries, rows and scores [F] of all scores of at least `least`; see `compare_products`."""
    rows = product_bn.shape[1]
    rounding = np.float32((query_bd.shape[1] + 32) * 2.0**-24)
    most_n = np.empty(rows, np.float32)
    room, count = 1024, 0
    query_f, row_f, score_f = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
    for b in range(len(product_bn)):
        _at_most(metric, product_bn[b], norm_n, np.float32(compared_norm_b[b]), rounding, most_n)
        for j in range(rows):
            if most_n[j] >= least:
                score = _compare(metric, vector_nd[j], query_bd[b], query_length_b[b])
                if score >= least:
                    if count == room:
                        query_f, row_f = np.append(query_f, query_f), np.append(row_f, row_f)
                        score_f, room = np.append(score_f, score_f), 2 * room
                    query_f[count], row_f[count], score_f[count] = b, j, score
                    count += 1
    return query_f[:count], row_f[:count], score_f[:count]
