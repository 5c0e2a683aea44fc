import numpy as np
from evaluators.subjects import DIMS, clusters, subject_of

from mrl_jax.evaluators import classification


def test_logits_of_both_sides_are_averaged():
    z_nd, label_n = clusters(40, 8, seed=2)
    mirrored_nd, _ = clusters(40, 8, seed=3)
    subject = subject_of({"val": (z_nd, label_n)}, mirrored={"val": (mirrored_nd, label_n)})
    found = classification.mirrored(subject, "val")
    head = {name: np.asarray(p, np.float64) for name, p in subject.params["head"].items()}
    expected = []
    for k in (1, 5):
        for m in DIMS:
            both_nd = z_nd[:, :m] + mirrored_nd[:, :m]
            logits_nc = both_nd @ head["kernel"][:m] / 2 + head["bias"]
            order_nc = np.argsort(-logits_nc, axis=1)
            right = (order_nc[:, :k] == label_n[:, None]).any(1).mean()
            expected.append((f"val/top{k}_flip", m, right))
    assert [(r.name, r.dim, r.value) for r in found.results] == expected
    assert set(found.examples) == {"val/top1_flip", "val/top5_flip"}
    plain = classification.measure(subject, "val").results
    assert [r.value for r in plain] != [r.value for r in found.results]
