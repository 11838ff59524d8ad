"""Data sets into the field's layout: torchvision's download where it has one, exact steps for the rest."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from http.client import HTTPException
from pathlib import Path

from rmadapter.data.catalog import CATALOG, DataSet
from rmadapter.data.named import has_layout
from rmadapter.data.published_counts import is_published
from rmadapter.data.sources import SOURCES, RemoteFile, Source
from rmadapter.data.splits import check_lists
from rmadapter.errors import InputError
from rmadapter.files import read_json, read_text

ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
GIGABYTE = 1e9


def download(name: str, data_root: Path) -> list[str]:
    """Get data set ``name`` into ``data_root`` as far as that is possible; returns the steps left to the user.

    What is there already is kept. An archive that has arrived whole is not fetched again after a stop. Split files
    lie on Google Drive, which needs gdown (pip install 'rmadapter[download]'); without it they are steps.

    Raises:
        InputError: the download failed or its archive is damaged (with the steps to do it by hand), not enough room.
    """
    record, source = CATALOG[name], SOURCES[name]
    data_root.mkdir(parents=True, exist_ok=True)
    if source.torchvision and not has_layout(data_root, record):
        _check_room(data_root, name, source)
        _with_torchvision(record, source, data_root)
    left = [file for file in source.files if not _is_there(data_root, record, file)]
    if has_layout(data_root, record):
        left = [file for file in left if not _from_drive(file, record, data_root)]
    return steps(name, left)


def steps(name: str, files: list[RemoteFile] | None = None) -> list[str]:
    """What to do by hand for data set ``name``: of ``files``, or of all that torchvision would fetch and all others;
    paths are below the data root.
    """
    source = SOURCES[name]
    files = [*source.archives, *source.files] if files is None else files
    return [*(file.step() for file in files), *(source.remarks if files else ())]


def numbered(name: str, data_root: Path, left: list[str]) -> str:
    """``steps`` as lines for people."""
    lines = (f"  {number}. {step}" for number, step in enumerate(left, start=1))
    return "\n".join([f"{name}, by hand, in {data_root}:", *lines])


def _check_room(data_root: Path, name: str, source: Source) -> None:
    needed, free = 2 * source.gigabytes, shutil.disk_usage(data_root).free / GIGABYTE
    if free < needed:
        raise InputError(
            f"data_root {data_root} has {free:.1f} GB free; {name} needs about {needed:.1f} GB, archive and images"
        )


def _with_torchvision(record: DataSet, source: Source, data_root: Path) -> None:
    """Let torchvision download into a scratch folder and move what it unpacked to where the field has it."""
    import torchvision

    scratch = data_root / f".download-{record.name}"
    scratch.mkdir(exist_ok=True)
    _keep_archives(scratch)
    by_hand = f"\n{numbered(record.name, data_root, steps(record.name))}"
    assert source.torchvision is not None  # the caller has looked
    try:
        getattr(torchvision.datasets, source.torchvision)(root=str(scratch), download=True, **source.arguments)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        shutil.rmtree(scratch)
        raise InputError(
            f"the archive of {record.name} is damaged ({error}) and has been deleted; the same command fetches it anew"
            f"{by_hand}"
        ) from error
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"{record.name} could not be downloaded by torchvision.datasets.{source.torchvision}: {error}; the same "
            f"command tries again, what has arrived is kept in {scratch}{by_hand}"
        ) from error
    unpacked = next((path for path in sorted(scratch.rglob(record.layout_marker)) if path.is_dir()), None)
    if unpacked is None:
        raise InputError(
            f"torchvision.datasets.{source.torchvision} left no folder {record.layout_marker} in {scratch}; its layout "
            f"has changed{by_hand}"
        )
    target = data_root / record.folder
    target.mkdir(exist_ok=True)
    for path in sorted(unpacked.parent.iterdir(), key=lambda path: path == unpacked):
        # The images last: they are what tells that the data set is there.
        if path.suffix not in ARCHIVES and not (target / path.name).exists():
            shutil.move(path, target / path.name)
    shutil.rmtree(scratch)


def _keep_archives(scratch: Path) -> None:
    """Delete what an earlier call unpacked: torchvision takes a folder that is there for whole, however it was left."""
    for path in sorted(scratch.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif not path.name.endswith(ARCHIVES):
            path.unlink()


def _is_there(data_root: Path, record: DataSet, file: RemoteFile) -> bool:
    if file.unpack is not None:
        return (data_root / file.unpacked).is_dir()
    return (data_root / record.folder / file.name).is_file()


def _from_drive(file: RemoteFile, record: DataSet, data_root: Path) -> bool:
    """Fetch ``file`` from Google Drive where gdown is installed and it is no archive; whether it is there now."""
    if file.drive is None or file.folder is None:
        return False
    try:
        import gdown
    except ImportError:
        return False
    target = data_root / file.folder / file.name
    temporary = target.with_name(f".{file.name}.part")
    try:
        gdown.download(id=file.drive, output=str(temporary), quiet=True)
        _check_fetched(temporary, record)
        temporary.replace(target)
    except Exception as error:  # gdown has exceptions of its own for each of Google's refusals
        print(f"{file.name} could not be fetched from Google Drive: {error}")
        temporary.unlink(missing_ok=True)
        return False
    return True


def _check_fetched(file: Path, record: DataSet) -> None:
    """Raise InputError where what came for a text file is another thing, such as a page that says to come again later.

    A split file has the hash that is published for it, where that is known; where not, this is said.
    """
    name = file.name.removeprefix(".").removesuffix(".part")
    if name == record.split_file:
        split = read_json(file, "split file")
        check_lists("what came", split)
        verified = is_published(file, record)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if verified is False:
            raise InputError(f"what came has SHA-256 {digest}, and the published file {record.split_sha256}")
        if verified is None:
            print(f"{name} is not verified: the published file's hash is not known here; this one has SHA-256 {digest}")
    elif name.endswith(".json"):
        read_json(file, name)
    elif read_text(file, name).lstrip().startswith("<"):
        raise InputError("a web page came in its place")
