"""Losses on pairs of embeddings, and the table from which `config.pairs.loss` picks one.

All but `info_nce` are of one granularity: `lift.nested` makes them a loss on all prefixes. All take
`mask_b` [B], 1 for examples that count and 0 for padding, which may hold anything; all count where
it is not given, and a batch of padding alone has loss 0. Cosines are taken of the vectors as given,
whatever their length. Results are float32, or float64 if the embeddings are.

To add a loss, write it here and add it to `LOSSES`, or keep it in a module of your own and name it
by its import path. Its parameters say what it needs, see `find`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.errors import shown
from mrl_jax.imported import by_path
from mrl_jax.kernels import nested_info_nce
from mrl_jax.losses.lift import nested, unit_length
from mrl_jax.losses.rows import cosines_of_all, mean_of, other_rows, valid_rows, without_padding
from mrl_jax.nesting import Nesting


def info_nce(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *negatives: jax.Array,
    nesting: Nesting,
    keep_bn: jax.Array,
    mask_b: jax.Array,
    temperature: float = 0.05,
    symmetric: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Tells b from all others of the batch and from all hard negatives, on every prefix at once.

    `keep_bn` [B, N] says which columns are negatives of which rows, see `losses.negatives`.

    Returns (loss, per_granularity_g) as `kernels.nested_info_nce`, which does the work.
    """
    return nested_info_nce(
        a_bd,
        b_bd,
        nesting,
        temperature=temperature,
        symmetric=symmetric,
        mask=(mask_b, keep_bn),
        extra_negatives=jnp.concatenate(negatives) if negatives else None,
        mesh=mesh,
    )


def cosent(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *,
    scores_b: jax.Array,
    scale: float = 20.0,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """Ranks pairs by cosine: log(1 + sum over (i, j) of exp(scale (cos_j - cos_i))), s_i > s_j.

    Only the order of `scores_b` [B] matters. A sum over pairs of pairs, so it grows with the batch.

    Source: Su 2022, "CoSENT", https://kexue.fm/archives/8847.
    """
    _check_positive("scale", scale)
    valid_b = valid_rows(mask_b, a_bd, b_bd, scores_b=scores_b)
    return _in_order(scale * _cosines(valid_b, a_bd, b_bd), scores_b, valid_b)


def angle(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *,
    scores_b: jax.Array,
    scale: float = 20.0,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """As `cosent`, but by how little two vectors are rotated against each other in complex space.

    The first half of a vector (of a prefix, where lifted) holds real parts, the second half
    imaginary ones; with an odd number of dims the last imaginary part is 0. With both vectors at
    length 1, their complex product <a, b> is cos + i sin: the cosine, and the sum of the rotations
    of all complex coordinates. Pairs are compared by |cos + sin|, as in the source's code, whose
    gradient does not fade where cosines are near 1 or -1.

    Source: AnglE, arXiv 2309.12871, section 3.3.
    """
    _check_positive("scale", scale)
    valid_b = valid_rows(mask_b, a_bd, b_bd, scores_b=scores_b)
    a_bd, b_bd = map(unit_length, without_padding(valid_b, a_bd, b_bd))
    half = (a_bd.shape[1] + 1) // 2
    imaginary_a, imaginary_b = (
        jnp.pad(x[:, half:], ((0, 0), (0, 2 * half - x.shape[1]))) for x in (a_bd, b_bd)
    )
    sines_b = (imaginary_a * b_bd[:, :half] - a_bd[:, :half] * imaginary_b).sum(-1)
    return _in_order(scale * jnp.abs((a_bd * b_bd).sum(-1) + sines_b), scores_b, valid_b)


def _in_order(logits_b, scores_b, valid_b):
    """log(1 + sum of exp(logit_j - logit_i)) over the pairs whose scores are s_i > s_j."""
    scores_b = jnp.where(valid_b, scores_b, 0)
    ordered_bb = (scores_b[:, None] > scores_b[None]) & valid_b[:, None] & valid_b[None]
    excess_bb = jnp.where(ordered_bb, logits_b[None] - logits_b[:, None], -jnp.inf)
    return jax.nn.logsumexp(jnp.append(excess_bb.ravel(), 0.0))  # the 0 is the 1 inside the log


def cosine_mse(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *,
    scores_b: jax.Array,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean squared difference of the pairs' cosines and `scores_b` [B], which lie in [-1, 1].

    Source: Sentence-BERT, arXiv 1908.10084, section 3, regression objective.
    """
    valid_b = valid_rows(mask_b, a_bd, b_bd, scores_b=scores_b)
    cosines_b = _cosines(valid_b, a_bd, b_bd)
    return mean_of(jnp.square(cosines_b - jnp.where(valid_b, scores_b, 0)), valid_b)


def triplet(
    anchor_bd: jax.Array,
    positive_bd: jax.Array,
    negative_bd: jax.Array,
    *,
    margin: float = 0.2,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean of max(0, |a - p|^2 - |a - n|^2 + margin): squared Euclidean distances.

    On unit vectors a squared distance is 2 - 2 cos and at most 4: a margin asks the positive's
    cosine to lead by margin / 2. The paper takes 0.2. No embedding can satisfy a margin above 4,
    and long before that the loss only pushes vectors apart.

    Source: FaceNet, arXiv 1503.03832, eq. 3.
    """
    _check_positive("margin", margin)
    valid_b = valid_rows(mask_b, anchor_bd, positive_bd, negative_bd)
    a_bd, p_bd, n_bd = without_padding(valid_b, anchor_bd, positive_bd, negative_bd)
    lead_b = jnp.square(a_bd - n_bd).sum(-1) - jnp.square(a_bd - p_bd).sum(-1)
    return mean_of(jax.nn.relu(margin - lead_b), valid_b)


def distill_vectors(
    student_bd: jax.Array,
    teacher_bd: jax.Array,
    *,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean squared distance of the student's and the teacher's vectors, both at length 1.

    Both are positional: lifted, the teacher is cut where the student is and scaled to length 1
    again, so that each prefix learns from the teacher's own, and a student equal to the teacher has
    loss 0 everywhere. It gets no gradient. For a teacher of another width: `distill_similarity`.
    """
    valid_b = valid_rows(mask_b, student_bd, teacher_bd)
    student_bd, teacher_bd = map(unit_length, without_padding(valid_b, student_bd, teacher_bd))
    squares_b = jnp.square(student_bd - jax.lax.stop_gradient(teacher_bd)).sum(-1)
    return mean_of(squares_b, valid_b)


def distill_similarity(
    student_bd: jax.Array,
    *,
    teacher_bd: jax.Array,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean squared difference of the student's and the teacher's cosines, over pairs of rows.

    Cosines within the batch can be compared at any width, so every prefix learns from the whole
    teacher [B, any], which gets no gradient. A row's cosine with itself is 1 on both sides and is
    left out. The loss is 0 where the student's cosines equal the teacher's.

    Source: similarity-preserving distillation, arXiv 1907.09682, with cosines.
    """
    valid_b = valid_rows(mask_b, student_bd)
    student_bb, teacher_bb, others_bb = _similarities(valid_b, student_bd, teacher_bd)
    squares_bb = jnp.square(student_bb - teacher_bb)
    return jnp.where(others_bb, squares_bb, 0).sum() / jnp.maximum(others_bb.sum(), 1)


def distill_kl(
    student_bd: jax.Array,
    *,
    teacher_bd: jax.Array,
    temperature: float = 0.05,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean KL divergence, teacher to student, of softmax(cosines with the other rows / T).

    As `distill_similarity`, but what counts is which rows are near. Not scaled by T^2.

    Source: CompRess, arXiv 2010.14713, section 3, with the batch as anchor points.
    """
    _check_positive("temperature", temperature)
    valid_b = valid_rows(mask_b, student_bd)
    student_bb, teacher_bb, others_bb = _similarities(valid_b, student_bd, teacher_bd)
    # A large number, not infinity: probabilities come out as exact zeros and logs stay finite.
    student_bb = jax.nn.log_softmax(jnp.where(others_bb, student_bb / temperature, -1e30))
    teacher_bb = jax.nn.log_softmax(jnp.where(others_bb, teacher_bb / temperature, -1e30))
    divergence_b = jnp.where(others_bb, jnp.exp(teacher_bb) * (teacher_bb - student_bb), 0).sum(-1)
    return mean_of(divergence_b, valid_b)


def _similarities(valid_b, student_bd, teacher_bd):
    """Cosines of all pairs of rows, student's and teacher's, and which pairs count."""
    if teacher_bd.ndim != 2 or teacher_bd.shape[0] != valid_b.size:
        raise ValueError(f"teacher_bd must be [{valid_b.size}, any], got {teacher_bd.shape}")
    teacher_bb = jax.lax.stop_gradient(cosines_of_all(valid_b, teacher_bd))
    return cosines_of_all(valid_b, student_bd), teacher_bb, other_rows(valid_b)


def _cosines(valid_b, a_bd, b_bd):
    a_bd, b_bd = map(unit_length, without_padding(valid_b, a_bd, b_bd))
    return (a_bd * b_bd).sum(-1)


def _check_positive(name: str, value) -> None:
    # A learned temperature is a tracer: its value is not known here.
    if not isinstance(value, jax.core.Tracer) and not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")


_OF_PAIRS = (info_nce, cosent, angle, cosine_mse, triplet)
_OF_TEACHERS = (distill_vectors, distill_similarity, distill_kl)
LOSSES = {function.__name__: function for function in (*_OF_PAIRS, *_OF_TEACHERS)}
# What a loss may be given besides embeddings, by the name of its parameter.
GIVEN = ("mask_b", "scores_b", "teacher_bd", "keep_bn", "nesting", "mesh")
OPTIONS = ("temperature", "symmetric", "margin")  # the same, from the config
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PairLoss(NamedTuple):
    """A loss on pairs, and what its parameters say of it, see `find`.

    Attributes:
      name: of `LOSSES`, or its import path.
      function: the loss.
      needs: what a batch must hold besides anchors and positives: "score", "negatives", "teacher"
        or nothing ("").
      reads: what a batch may hold besides that; the loss would ignore anything else.
      takes: which of `GIVEN` and `OPTIONS` it is given.
      cuts_teacher: whether the teacher's vectors are cut as the student's are.
    """

    name: str
    function: Callable[..., Any]
    needs: str
    reads: frozenset[str]
    takes: frozenset[str]
    cuts_teacher: bool

    def on_prefixes(
        self, sides: Sequence[jax.Array], nesting: Nesting, **given: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The loss on every prefix: (weighted sum, per granularity [G]).

        Args:
          sides: embeddings [B, >= m_G] of anchors, positives and any hard negatives.
          nesting: granularities and weights.
          **given: at least what the loss takes; `teacher_bd` is [sides * B, any].
        """
        if "nesting" in self.takes:
            lifted = functools.partial(self.function, nesting=nesting)
        else:
            lifted = nested(self.function, nesting)
        given = {name: given[name] for name in self.takes - {"nesting"}}
        if self.needs == "teacher":
            # A teacher has vectors of every text, whatever its side.
            given["mask_b"] = jnp.tile(given["mask_b"], len(sides))
            teacher = [given.pop("teacher_bd")] if self.cuts_teacher else []
            return lifted(jnp.concatenate(sides), *teacher, **given)
        if self.needs == "negatives":
            found = [lifted(*sides[:2], negative_bd, **given) for negative_bd in sides[2:]]
            return tuple(sum(values) / len(found) for values in zip(*found, strict=True))
        return lifted(*sides, **given)


def find(name: str) -> PairLoss:
    """The loss called `name`: one of `LOSSES`, or a function at an import path "my_lab.code:loss".

    Its parameters say what it is given. B pairs have embeddings [B, m], cut to one granularity and
    scaled to length 1, and it returns a scalar:

        loss(a_bd, b_bd, *, mask_b)                 pairs
        loss(a_bd, b_bd, *, scores_b, mask_b)       pairs with a score each, [B]
        loss(a_bd, b_bd, negative_bd, *, mask_b)    called for each hard negative, then averaged
        loss(student_bd, *, teacher_bd, mask_b)     the texts of all sides as one batch

    `mask_b` [B] is 0 for padding, which must not count. A positional `teacher_bd` is cut as the
    student is. A loss may also take `*negatives`, where it can do without them; `keep_bn` [B, N]
    bool, False where a column (positives, then hard negatives) may be a right answer; `mesh`; and
    `temperature`, `symmetric` and `margin` as the config has them. With a parameter `nesting` it is
    given whole embeddings and returns (weighted sum, [G]) of all granularities. All other
    parameters need a default.

    Raises:
      ValueError: no such loss, or one that cannot be called like this.
    """
    if name not in LOSSES and ":" not in name:
        raise ValueError(
            f"loss must be one of {', '.join(LOSSES)}, or an import path; got {shown(name)}"
        )
    function = LOSSES.get(name) or by_path(name, "config.pairs.loss")
    if not callable(function):
        raise ValueError(f"loss {name} must be a function, got a {type(function).__name__}")
    parameters = inspect.signature(function).parameters
    own = [p for p in parameters.values() if p.name not in (*GIVEN, *OPTIONS)]
    required = [p for p in own if p.default is p.empty]
    for p in required:
        if p.kind is p.KEYWORD_ONLY:
            legal = ", ".join((*GIVEN, *OPTIONS))
            raise ValueError(f"loss {name}: {p.name} needs a default; what is given is {legal}")
    if "mask_b" not in parameters:
        raise ValueError(f"loss {name} must have a parameter mask_b, which is 0 for padding")
    count = sum(p.kind in _POSITIONAL for p in required)
    needs = {
        (2, False, False): "",
        (2, True, False): "score",
        (3, False, False): "negatives",
        (1, False, True): "teacher",
    }.get((count, "scores_b" in parameters, "teacher_bd" in parameters))
    if needs is None:
        raise ValueError(
            f"loss {name} must take two embeddings, also with scores_b, or three, or one with "
            f"teacher_bd; its parameters are {', '.join(parameters)}"
        )
    reads = {"teacher"} if "keep_bn" in parameters else set()
    if any(p.kind is p.VAR_POSITIONAL for p in own):
        reads.add("negatives")
    return PairLoss(
        name,
        function,
        needs,
        frozenset(reads),
        frozenset(parameters) & {*GIVEN, *OPTIONS},
        needs == "teacher" and parameters["teacher_bd"].kind in _POSITIONAL,
    )
