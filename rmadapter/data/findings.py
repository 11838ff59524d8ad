"""What is odd about the images that a run trains on, where it changes what its accuracy means."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rmadapter.data.items import ImageData, Item
from rmadapter.errors import InputError


@dataclass(frozen=True)
class SampleFindings:
    """Counts over the training images of a few-shot sample; images are the same where their files' bytes are.

    Attributes:
        small_classes: classes with fewer training images than shots, or none.
        repeated_images: images that are in the sample again.
        images_of_two_classes: different images that stand for more than one class, in the sample or the test images.
        test_images_seen: test images that are in the sample.
        unreadable_images: training images that were drawn and could not be read, for which others were drawn.
    """

    small_classes: int = 0
    repeated_images: int = 0
    images_of_two_classes: int = 0
    test_images_seen: int = 0
    unreadable_images: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain values for results.json."""
        return asdict(self)


def examine(
    data: ImageData,
    train: Sequence[Item],
    shots: int,
    *,
    class_names: Mapping[int, str] | None = None,
    unreadable: Collection[str] = (),
    allow_test_overlap: bool = False,
) -> tuple[SampleFindings, list[str]]:
    """What is odd about ``train``, sampled from ``data`` for ``shots`` images a class, and sentences that say it.

    ``class_names`` are those that are trained on by their labels, those of ``train`` by default; ``unreadable`` the
    paths of images that were drawn first.

    The files of ``train`` are compared with each other and with those test images that have as many bytes, so that few
    of the test images are read. Images that are no files are not compared.

    Raises:
        InputError: without ``allow_test_overlap``, a training image is among the test images.
    """
    if class_names is None:
        class_names = {item.label: item.name for item in train}
    counts = Counter(item.label for item in train)
    small = {name: counts[label] for label, name in class_names.items() if counts[label] < shots}
    sentences = []
    if unreadable:
        sentences.append(
            f"{len(unreadable)} training images cannot be read, such as {min(unreadable)}: others were drawn in their "
            "place, so that the sample is not the one of this seed"
        )
    if small:
        name = min(small, key=small.__getitem__)
        sentences.append(
            f"{len(small)} classes have fewer than {shots} training images, such as {name!r} with {small[name]}"
        )
    if data.reader is not None:
        return SampleFindings(len(small), unreadable_images=len(unreadable)), sentences
    trained = _by_content(data.root, train)
    tested = _same_as(data, train, trained)
    repeated = [group for group in trained.values() if len(group) > 1]
    if repeated:
        sentences.append(
            f"{sum(map(len, repeated)) - len(repeated)} training images are there more than once, such as "
            f"{repeated[0][1].path}, which is {repeated[0][0].path}"
        )
    mixed = [pair for content, group in trained.items() if (pair := _two_classes([*group, *tested.get(content, [])]))]
    if mixed:
        one, other = mixed[0]
        sentences.append(
            f"{len(mixed)} images stand for more than one class, such as {one.path} ({one.name}) and {other.path} "
            f"({other.name})"
        )
    seen = [(item, trained[content][0]) for content, group in tested.items() for item in group]
    if seen:
        sentences.append(
            f"{len(seen)} test images of {data.name} are among the training images, such as {seen[0][0].path}, which "
            f"is {seen[0][1].path}"
        )
        if not allow_test_overlap:
            raise InputError(
                f"{sentences[-1]}; valid: parts that share no image, or --allow-test-overlap, which counts them in "
                "results.json"
            )
    repetitions = sum(map(len, repeated)) - len(repeated)
    return SampleFindings(len(small), repetitions, len(mixed), len(seen), len(unreadable)), sentences


def _two_classes(items: Sequence[Item]) -> tuple[Item, Item] | None:
    """The first of ``items`` and the first one of another class, None where there is none."""
    other = next((item for item in items if item.label != items[0].label), None)
    return None if other is None else (items[0], other)


def _by_content(root: Path, items: Iterable[Item]) -> dict[bytes, list[Item]]:
    """Items by the SHA-256 of their files; those that cannot be read are in none."""
    found = defaultdict(list)
    for item in items:
        with contextlib.suppress(OSError):
            found[hashlib.sha256((root / item.path).read_bytes()).digest()].append(item)
    return dict(found)


def _same_as(data: ImageData, train: Iterable[Item], trained: Container[bytes]) -> dict[bytes, list[Item]]:
    """The test images by content whose content is in ``trained``; files of another size than any are not read."""
    sizes = {_size(data.root / item.path) for item in train} - {None}
    alike = _by_content(data.root, (item for item in data.test if _size(data.root / item.path) in sizes))
    return {content: group for content, group in alike.items() if content in trained}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
