"""Decoded images that are kept: the same bits, never those of another file, never more than the limit."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from rmadapter.data import DecodedImages, cache_room, check_images, read_image
from rmadapter.data.decoded import HEADER
from rmadapter.data.items import Item
from rmadapter.errors import InputError

COUNT, SHAPE = 4, (20, 30, 3)
ONE = int(np.prod(SHAPE)) + HEADER  # bytes of one in the cache


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        pixels = random.integers(0, 256, SHAPE, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def decoded(root, tmp_path):
    """A cache over ``root`` in the same folder each time; the paths that were decoded are in ``decoded.paths``."""
    paths = []

    def decode(path):
        paths.append(path)
        return read_image(root / path)

    def make(limit=10**9):
        return DecodedImages(decode, root, tmp_path / "cache", limit)

    make.paths = paths
    return make


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_it_is_what_decoding_gives_and_is_decoded_once(decoded, root):
    for _ in range(2):
        cache = decoded()
        for _ in range(2):
            assert same(cache("0.jpg"), read_image(root / "0.jpg"))
        assert cache.kept == 1
        assert cache.bytes == ONE
    assert decoded.paths == ["0.jpg"]


def test_a_worker_reads_and_does_not_write(decoded, root, tmp_path):
    cache = decoded()
    cache("0.jpg")
    # A process of its own would get this.
    state = cache.__getstate__()
    worker = DecodedImages.__new__(DecodedImages)
    worker.__dict__.update(state)
    assert not worker.keeps
    assert same(worker("0.jpg"), read_image(root / "0.jpg"))
    worker("1.jpg")
    assert decoded.paths == ["0.jpg", "1.jpg"]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    pickle.dumps(DecodedImages(read_image, root, tmp_path / "cache", 10**9))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
def test_a_forked_worker_does_not_write(decoded, tmp_path):
    cache = decoded()
    cache("0.jpg")
    worker = multiprocessing.get_context("fork").Process(target=cache, args=("1.jpg",))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert cache.keeps
    cache.keeps = False
    cache("2.jpg")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_file_is_decoded_anew(decoded, root, change):
    cache = decoded()
    before = cache("0.jpg")
    if change == "content":
        Image.new("RGB", (10, 10), (1, 2, 3)).save(root / "0.jpg")
    else:
        os.utime(root / "0.jpg", ns=(1, 1))
    again = cache("0.jpg")
    assert same(again, read_image(root / "0.jpg"))
    assert same(again, before) == (change == "time")
    assert decoded.paths == ["0.jpg", "0.jpg"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-10],
        lambda b: b[:20],
        lambda b: b"",
        lambda b: b"x" * len(b),
        lambda b: b.replace(b"}", b"{"),  # numpy takes the header apart with Python's tokenizer
        lambda b: b"PK\3\4" + b[4:],  # what zip files begin with
    ],
)
def test_a_torn_file_is_made_again(decoded, root, tmp_path, damage):
    decoded()("0.jpg")
    (kept,) = (tmp_path / "cache").glob("*.npy")
    kept.write_bytes(damage(kept.read_bytes()))
    cache = decoded()
    assert same(cache("0.jpg"), read_image(root / "0.jpg"))
    assert same(decoded()("0.jpg"), read_image(root / "0.jpg"))
    assert decoded.paths == ["0.jpg", "0.jpg"]
    assert cache.bytes == ONE


def test_the_limit_holds_and_the_longest_unused_makes_room(decoded, tmp_path):
    limit = 2 * ONE + 100
    first = decoded(limit)
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        first(name)
    assert first.full
    assert size(tmp_path / "cache") == 2 * ONE == first.bytes
    for age, path in enumerate(sorted((tmp_path / "cache").glob("*.npy"), key=lambda p: p == first._file("0.jpg"))):
        os.utime(path, (1000 - age, 1000 - age))  # 0.jpg the longer unused
    second = decoded(limit)
    second("2.jpg")
    assert not second.full
    assert not first._file("0.jpg").exists()
    assert first._file("1.jpg").exists()
    second("1.jpg")
    second("0.jpg")  # the two that this run has read stay
    assert second.full
    assert first._file("1.jpg").exists()
    assert first._file("2.jpg").exists()
    assert size(tmp_path / "cache") == 2 * ONE == second.bytes


def test_checking_images_in_threads_fills_it(decoded):
    cache = decoded()
    items = [Item(f"{number}.jpg", 0, "name") for number in range(COUNT)]
    check_images(cache, items)
    assert cache.kept == COUNT
    assert cache.bytes == COUNT * ONE
    check_images(decoded(), items)
    assert len(decoded.paths) == COUNT


def test_what_cannot_be_read_or_kept_is_said(decoded, root, tmp_path):
    (root / "bad.jpg").write_bytes(b"no image")
    for name in ("bad.jpg", "missing.jpg"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            decoded()(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache_dir: images cannot be kept in .*valid: a folder"):
        DecodedImages(read_image, root, tmp_path / "file", 10**9)


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".npy", ".tmp"))


def test_several_processes_together_hold_the_limit(decoded, root, tmp_path):
    """Two that begin at once, and a third while the first is writing."""
    one, two = decoded(2 * ONE), decoded(2 * ONE)
    one("0.jpg")
    two("1.jpg")
    two("2.jpg")
    one("3.jpg")
    assert one.full
    assert two.full
    assert size(tmp_path / "cache") == 2 * ONE

    def decode(path):
        return read_image(root / path)

    def begin(path):
        later = DecodedImages(decode, root, tmp_path / "other", 2 * ONE)
        later(path)
        return later

    begun, real = [], np.save

    def save(file, pixels, **options):
        if not begun:
            begun.append(None)  # now, with the first file there, of its size and with nothing in it
            begun[0] = begin("1.jpg")
            begun[0]("2.jpg")
        real(file, pixels, **options)

    first = DecodedImages(decode, root, tmp_path / "other", 2 * ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "save", save)
        first("0.jpg")
    assert (first.kept, begun[0].kept, begun[0].full) == (1, 1, True)
    assert size(tmp_path / "other") == 2 * ONE


def test_what_another_process_has_begun_to_use_is_not_deleted(decoded):
    before = decoded(2 * ONE)
    for name in ("0.jpg", "1.jpg"):
        before(name)
        os.utime(before._file(name), (1000, 1000))
    one, other = decoded(2 * ONE), decoded(2 * ONE)
    other("0.jpg")
    one("2.jpg")
    one("3.jpg")
    assert before._file("0.jpg").exists()
    assert not before._file("1.jpg").exists()
    assert one.full


def test_an_image_that_two_processes_decode_at_once_is_counted_once(decoded, root, tmp_path):
    other = decoded()

    def decode(path):
        if path == "0.jpg":
            other(path)
        return read_image(root / path)

    first = DecodedImages(decode, root, tmp_path / "cache", 10**9)
    first("0.jpg")
    first("1.jpg")
    assert first.bytes == size(tmp_path / "cache") == 2 * ONE
    assert (first.kept, other.kept) == (2, 1)


def test_what_killed_processes_left_is_cleared_and_counted_until_then(decoded, tmp_path):
    decoded()("0.jpg")
    temporary = tmp_path / "cache" / f".rmadapter-{'0' * 32}.tmp"
    temporary.write_bytes(bytes(ONE))
    (tmp_path / "cache" / ".bytes").write_text("torn")
    assert decoded().bytes == 2 * ONE
    os.utime(temporary, (1000, 1000))
    assert decoded().bytes == ONE
    assert not temporary.exists()


@pytest.mark.parametrize("where", ["save", "truncate", "lock"])
def test_a_full_disk_costs_the_cache_and_no_image(decoded, root, monkeypatch, where):
    cache = decoded()
    cache("0.jpg")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "lock":
        monkeypatch.setattr(cache_room.CacheRoom, "_write_bytes", full)
    else:
        monkeypatch.setattr(*((np, "save") if where == "save" else (cache_room.os, "truncate")), full)
    items = [Item(f"{number}.jpg", 0, "name") for number in range(COUNT)]
    with pytest.warns(
        UserWarning, match="image cache: what is decoded is not kept any more: .*No space left"
    ) as caught:
        assert check_images(cache, items)[1] == []
    assert 1 <= len(caught) <= 8  # one, or one of each thread that was writing
    assert not cache.keeps
    assert same(cache("3.jpg"), read_image(root / "3.jpg"))
    monkeypatch.undo()
    assert decoded().bytes == ONE


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_a_file_of_another_kind_is_made_again(decoded, root, pixels):
    cache = decoded()
    np.save(cache._file("0.jpg"), pixels)
    assert same(cache("0.jpg"), read_image(root / "0.jpg"))
    assert same(decoded()("0.jpg"), read_image(root / "0.jpg"))
    assert decoded.paths == ["0.jpg"]
