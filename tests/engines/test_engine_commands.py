"""What the commands of all engines have in common."""

import numpy as np
import pytest

from mrl_jax import errors
from mrl_jax.engines import __main__ as command


@pytest.mark.parametrize(
    "place",
    [
        ["postgres", "query", "--table", "t", "--dsn", "postgresql//bob:S3CRET@h/db"],
        ["postgres", "query", "--table", "t", "--dsn", "postgresql://bob:S3CRET%zz@h/db"],
        ["postgres", "query", "--table", "t", "--dsn", "postgresql://bob:S3CRET@[h/db"],
        ["milvus", "query", "--collection", "c", "--uri", "bob:S3CRET@h:19530"],
        ["milvus", "query", "--collection", "c", "--uri", "http://bob:S3CRET@h:port"],
    ],
)
def test_passwords_are_not_printed(tmp_path, place):
    np.save(tmp_path / "q.npy", np.ones((2, 16), np.float32))
    files = ["--queries", f"{tmp_path}/q.npy", "--out", f"{tmp_path}/f.npz"]
    with pytest.raises(errors.UsageError, match="legal is") as error:
        command.main([*place, *files, "--schedule", "8:5 > 16"])
    assert "S3CRET" not in str(error.value)
