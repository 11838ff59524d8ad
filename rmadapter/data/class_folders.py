"""One folder of images for each class: which folders are classes, which images are theirs, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmadapter.data.class_names import some
from rmadapter.data.image_files import (
    Listing,
    describe_left_out,
    folders_in,
    is_folder,
    is_image_name,
    list_images,
    no_images,
    scan,
)
from rmadapter.errors import InputError


@dataclass(frozen=True)
class ClassFolders:
    """The classes in a folder.

    Attributes:
        images: class folder -> its images' paths from the folder that the classes are in, both sorted as text.
        notes: sentences for the user on what was left out.
    """

    images: dict[str, list[str]]
    notes: tuple[str, ...]


def find_classes(root: Path) -> ClassFolders:
    """The class folders in ``root`` and all images in each, in its sub-folders too.

    What the commands of this package have written is no class. Neither are hidden folders, folders that an operating
    system or network storage puts beside others, and folders that are called like an image.

    Raises:
        InputError: fewer than two classes, a class without images, folders that hold folders of images alone, a folder
            that cannot be read or whose name is not UTF-8.
    """
    listings = {name: list_images(root, name) for name in folders_in(root)}
    outputs = [name for name, found in listings.items() if found.outputs and not found.images]
    found = {name: listing for name, listing in listings.items() if name not in outputs}
    called_images = [entry for entry in scan(root) if is_image_name(entry.name)]
    loose = [entry.name for entry in called_images if not is_folder(entry)]
    for name in found:
        check_text("class folder", root / name)
    if found and not any(listing.own for listing in found.values()):
        _refuse_nested(root, found)
    if len(found) < 2:
        where = f"; {len(loose)} images lie in it directly" if loose else ""
        raise InputError(
            f"{root} has {len(found)} class folders{where}; valid: two or more, with the images of a class in each"
        )
    for name, listing in found.items():
        if not listing.images:
            raise no_images(root / name, listing.left_out)
    left_out = [path for listing in found.values() for path in listing.left_out]
    left_out += [f"{entry.name}/" for entry in called_images if is_folder(entry)]
    notes = [describe_left_out(root, left_out)] if left_out else []
    if loose:
        notes.append(f"{root}: left out {len(loose)} images that lie in no class folder, such as {loose[0]}")
    if outputs:
        notes.append(f"{root}: left out {some(outputs)}, which rmadapter has written")
    return ClassFolders({name: listing.images for name, listing in found.items()}, tuple(notes))


def check_text(what: str, folder: Path) -> None:
    """Raise InputError where the name of ``folder``, which results and reports will show, is no text."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name of {what} {str(folder)!r} is not UTF-8; valid: another name") from error


def _refuse_nested(root: Path, found: dict[str, Listing]) -> None:
    """Raise InputError where no image lies directly in one of the folders, but some lie in their folders."""
    inside = [listing.images[0].rpartition("/")[0] for listing in found.values() if listing.images]
    if not inside:
        return
    raise InputError(
        f"{root} has no class folders: of its {len(found)} folders none has images directly in it, they lie in "
        f"folders of these ({some(inside)}); valid: the folder that the class folders are in, such as --data "
        f"{root / next(iter(found))}, or parts of a data set called train/ and test/"
    )
