"""What a user names by import path: an own loss, backbone, measure or task."""

import hashlib
import importlib
import operator
import pathlib
import sys
from typing import Any

from mrl_jax.errors import UsageError, cut, shown

LONGEST = 300  # characters of an error that a user's module raises
_named: set[str] = set()  # modules that were imported here


def by_path(path: str, what: str) -> Any:
    """The object at `path`, "package.module:name", or the module itself, "package.module".

    Args:
      path: as on the command line; modules are found as Python finds them, see PYTHONPATH.
      what: names the place for error messages, such as "config.pairs.loss".

    Raises:
      UsageError: no such module or name, or a module whose import fails; one line.
    """
    module_name, colon, name = path.partition(":")
    names = [*module_name.split("."), *(name.split(".") if colon else ())]
    if not all(part.isidentifier() for part in names):
        raise UsageError(f'{what} must be an import path such as "my_lab.code:name", got {path!r}')
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UsageError(
                f"{what} {path}: there is no module {missing}; its folder must be on PYTHONPATH"
            ) from None
        reason = cut(f"{type(error).__name__}: {error}", LONGEST)
        raise UsageError(f"{what} {path}: importing {module_name} fails with {reason}") from error
    _named.add(module_name)
    if not colon:
        return module
    try:
        return operator.attrgetter(name)(module)
    except AttributeError:
        raise UsageError(f"{what} {path}: {module_name} has no {shown(name)}") from None


def code() -> dict[str, str]:
    """Digests of the modules that `by_path` has imported, as `runtime.agreement` compares them."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _named}
    return {
        f"code of {name} (digest)": hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:12]
        for name, file in sorted(files.items())
        if file
    }
