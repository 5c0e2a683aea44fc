"""Libraries that only some uses need; the extras of the package install them."""

import contextlib
from collections.abc import Iterator

from mrl_jax.errors import UsageError


class MissingPackageError(UsageError):
    """A library that one of the package's extras installs is missing."""


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """For a with-block of imports: says which extra installs what cannot be imported.

    Args:
      extra: as in pyproject.toml, such as "search".
      what: needs it, such as "an index".

    Raises:
      MissingPackageError: an import fails; of nested blocks, the outermost names its extra.
    """
    try:
        yield
    except (ImportError, MissingPackageError) as error:
        reason = error.__cause__ if isinstance(error, MissingPackageError) else error
        raise MissingPackageError(
            f'{what} needs more packages: pip install "mrl_jax[{extra}]" ({reason})'
        ) from reason
