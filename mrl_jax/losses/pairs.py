"""Losses on pairs and triplets of embeddings, one granularity each: `lift.nested` makes them MRL.

All take `mask_b` [B], 1 for examples that count and 0 for padding, which may hold anything; all
count where not given, and a batch of padding alone has loss 0. Cosines are taken of the vectors
as given, whatever their length. Results are float32, or float64 if the embeddings are.
"""

import jax
import jax.numpy as jnp

from mrl_jax.losses.lift import unit_length


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
    valid_b = _valid("scores_b", scores_b, mask_b, a_bd, b_bd)
    return _in_order(scale * _cosines(*_without_padding(valid_b, a_bd, b_bd)), scores_b, valid_b)


def angle(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *,
    scores_b: jax.Array,
    scale: float = 20.0,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """As `cosent`, of how little two vectors are turned against each other in complex space.

    The first half of a vector (of a prefix, where lifted) are real parts, the second half
    imaginary ones; of an odd number of dims the last imaginary part is 0. With both vectors at
    length 1, their complex product <a, b> is cos + i sin: the cosine, and a sum of what each
    complex coordinate is turned by. Compared is |cos + sin|, as the source's code does. Its
    gradient does not fade where cosines are near 1 or -1.

    Source: AnglE, arXiv 2309.12871, section 3.3.
    """
    _check_positive("scale", scale)
    valid_b = _valid("scores_b", scores_b, mask_b, a_bd, b_bd)
    a_bd, b_bd = map(unit_length, _without_padding(valid_b, a_bd, b_bd))
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
    valid_b = _valid("scores_b", scores_b, mask_b, a_bd, b_bd)
    cosines_b = _cosines(*_without_padding(valid_b, a_bd, b_bd))
    return _mean(jnp.square(cosines_b - jnp.where(valid_b, scores_b, 0)), valid_b)


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
    cosine to lead by margin / 2. The paper takes 0.2; above 4 no embedding can ever satisfy it,
    and long before that the loss only pushes vectors apart.

    Source: FaceNet, arXiv 1503.03832, eq. 3.
    """
    _check_positive("margin", margin)
    valid_b = _valid(None, None, mask_b, anchor_bd, positive_bd, negative_bd)
    a_bd, p_bd, n_bd = _without_padding(valid_b, anchor_bd, positive_bd, negative_bd)
    lead_b = jnp.square(a_bd - n_bd).sum(-1) - jnp.square(a_bd - p_bd).sum(-1)
    return _mean(jax.nn.relu(margin - lead_b), valid_b)


def contrastive(
    a_bd: jax.Array,
    b_bd: jax.Array,
    *,
    labels_b: jax.Array,
    margin: float = 1.0,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean of d^2 / 2 for matching pairs and of max(0, margin - d)^2 / 2 for the others.

    `labels_b` [B] is 1 where a and b match and 0 where not; d is the Euclidean distance. On unit
    vectors d is at most 2, and sqrt(2) for orthogonal ones; a margin of 1 is a cosine of 0.5.

    Source: Hadsell, Chopra and LeCun 2006, "Dimensionality reduction by learning an invariant
    mapping", eq. 4 (whose Y is 1 - label).
    """
    _check_positive("margin", margin)
    valid_b = _valid("labels_b", labels_b, mask_b, a_bd, b_bd)
    a_bd, b_bd = _without_padding(valid_b, a_bd, b_bd)
    squares_b = jnp.square(a_bd - b_bd).sum(-1)
    apart_b = squares_b > 0
    # The root has no gradient at 0, where a pair has no direction to move apart in.
    distance_b = jnp.where(apart_b, jnp.sqrt(jnp.where(apart_b, squares_b, 1)), 0)
    too_near_b = jnp.square(jax.nn.relu(margin - distance_b))
    return _mean(jnp.where(labels_b > 0, squares_b, too_near_b) / 2, valid_b)


def distill_vectors(
    student_bd: jax.Array,
    teacher_bd: jax.Array,
    *,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean squared distance of the student's and the teacher's vectors, both at length 1.

    Both are positional: lifted, the teacher is cut where the student is and scaled to length 1
    again, so that its own prefix teaches each prefix, and a student equal to it has loss 0 at
    every one. It gets no gradient. A teacher of another width: `distill_similarity`.
    """
    valid_b = _valid(None, None, mask_b, student_bd, teacher_bd)
    student_bd, teacher_bd = map(unit_length, _without_padding(valid_b, student_bd, teacher_bd))
    squares_b = jnp.square(student_bd - jax.lax.stop_gradient(teacher_bd)).sum(-1)
    return _mean(squares_b, valid_b)


def distill_similarity(
    student_bd: jax.Array,
    *,
    teacher_bd: jax.Array,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean squared difference of the student's and the teacher's cosines, over pairs of rows.

    Cosines within the batch can be compared at any width, so every prefix is taught by the whole
    teacher [B, any], which gets no gradient. A row's cosine with itself is 1 on both sides and is
    left out. 0 where the student's cosines are the teacher's.

    Source: similarity-preserving distillation, arXiv 1907.09682, with cosines.
    """
    valid_b = _valid(None, None, mask_b, student_bd)
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

    As `distill_similarity`, but what counts is whom a row is near to. Not scaled by T^2.

    Source: CompRess, arXiv 2010.14713, section 3, with the batch as anchor points.
    """
    _check_positive("temperature", temperature)
    valid_b = _valid(None, None, mask_b, student_bd)
    student_bb, teacher_bb, others_bb = _similarities(valid_b, student_bd, teacher_bd)
    # A large number, not infinity: probabilities come out as exact zeros and logs stay finite.
    student_bb = jax.nn.log_softmax(jnp.where(others_bb, student_bb / temperature, -1e30))
    teacher_bb = jax.nn.log_softmax(jnp.where(others_bb, teacher_bb / temperature, -1e30))
    divergence_b = jnp.where(others_bb, jnp.exp(teacher_bb) * (teacher_bb - student_bb), 0).sum(-1)
    return _mean(divergence_b, valid_b)


def _similarities(valid_b, student_bd, teacher_bd):
    """Cosines of all pairs of rows of both, and which pairs count: a valid row and another."""
    if teacher_bd.ndim != 2 or teacher_bd.shape[0] != valid_b.size:
        raise ValueError(f"teacher_bd must be [{valid_b.size}, any], got {teacher_bd.shape}")

    def cosines_bb(x_bd):
        (x_bd,) = _without_padding(valid_b, x_bd)
        unit_bd = unit_length(x_bd)
        return unit_bd @ unit_bd.T

    others_bb = valid_b[:, None] & valid_b[None] & ~jnp.eye(valid_b.size, dtype=bool)
    return cosines_bb(student_bd), jax.lax.stop_gradient(cosines_bb(teacher_bd)), others_bb


def _cosines(a_bd, b_bd):
    return (unit_length(a_bd) * unit_length(b_bd)).sum(-1)


def _without_padding(valid_b, *embeddings):
    """The embeddings with zeros in padded rows, float32 or wider."""
    # where, not a product: a padded row may hold anything, also NaN.
    return [
        jnp.where(valid_b[:, None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in embeddings
    ]


def _mean(values_b, valid_b):
    return jnp.where(valid_b, values_b, 0).sum() / jnp.maximum(valid_b.sum(), 1)


def _check_positive(name: str, value) -> None:
    # A learned temperature is a tracer: its value is not known here.
    if not isinstance(value, jax.core.Tracer) and not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")


def _valid(name, values_b, mask_b, *embeddings) -> jax.Array:
    """The rows that count, [B] bool, once all arguments are known to fit together."""
    shapes = [x.shape for x in embeddings]
    if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"embeddings must all be [B, D], got {', '.join(map(str, shapes))}")
    batch = shapes[0][0]
    for what, x_b in ((name, values_b), ("mask_b", mask_b)):
        if x_b is not None and x_b.shape != (batch,):
            raise ValueError(f"{what} must be [{batch}], got {x_b.shape}")
    return jnp.ones(batch, bool) if mask_b is None else mask_b > 0
