"""All images below a folder, however deep they lie."""

import pathlib

from mrl_jax.data.folder import File, FolderRecords, image_file, listing
from mrl_jax.data.images import LEGAL
from mrl_jax.data.remarks import Remarks, entries
from mrl_jax.errors import DataError


def open_tree(root: pathlib.Path, remarks: Remarks | None = None) -> FolderRecords:
    """The image files in a folder and in the folders in it, in the order of their names.

    Names are paths below the root, labels are 0. No image is opened; `remarks` collects what is not
    read.

    Raises:
      DataError: there is no image, an image is of a format that is not read or is not named like
        one, a folder contains itself through a link, a link is broken, a name is not a single line
        of Unicode, or a folder cannot be listed.
    """
    remarks = remarks or Remarks()
    found: list[tuple[str, File, int]] = []

    def visit(folder: pathlib.Path, above: tuple) -> None:
        about = folder.stat()
        place = (about.st_dev, about.st_ino)
        if place in above:
            raise DataError(f"{folder} is a link to a folder that it lies in")
        for entry in entries(folder, remarks):
            path = pathlib.Path(entry.path)
            if entry.is_dir():
                visit(path, (*above, place))
            elif file := image_file(entry, remarks):
                found.append((_name(path, root), file, 0))

    with listing():
        visit(root, ())
    if not found:
        raise DataError(f"{root} has no images ({LEGAL})")
    return FolderRecords.of(root, sorted(found, key=lambda item: item[0]))


def _name(path: pathlib.Path, root: pathlib.Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the name of {name!r} in {root} is not UTF-8") from None
    if name.splitlines() != [name]:
        raise DataError(f"the name of {name!r} in {root} has more than one line")
    return name
