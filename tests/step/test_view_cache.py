"""The cache of views: what is kept, what is never read, and what happens when a run is cut off or the disk is full."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import SMALL_CONFIG, small_clip
from tuned_cases import make_tuned

from rmadapter import InputError, RMAdapterCLIP, RMAdapterConfig
from rmadapter.clip.identity import base_hash
from rmadapter.clip.storage import store_weights
from rmadapter.step.train_step import TrainStep, Views
from rmadapter.step.view_cache import Record, ViewCache, cache_key
from rmadapter.tuners.encoder import Entry

IMAGES = 6
KEY = {"base": "abc", "transform": "crop"}


def views_of(*images: int, dtype=torch.float32, target=True) -> Views:
    """What the frozen model might have made of some images: numbers that tell them apart."""
    rows = torch.tensor(images, dtype=torch.float32)[:, None, None]
    entry = Entry((rows + torch.arange(8.0)).expand(-1, 3, 8).to(dtype), (rows * 2).expand(-1, 3, 8).contiguous())
    return Views(entry, rows[:, 0].expand(-1, 4).to(dtype) if target else None)


def cache_in(folder, key=KEY, views=2, limit=10**9, **kind) -> ViewCache:
    return ViewCache(folder, key, Record.of(views_of(0, **kind)), IMAGES, views, limit)


def assert_equal(one: Views, other: Views):
    for a, b in zip(one.entry, other.entry, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert (one.target is None) == (other.target is None)
    assert one.target is None or torch.equal(one.target, other.target)


@pytest.mark.parametrize("kind", [{}, {"dtype": torch.bfloat16}, {"target": False}])
def test_what_was_written_is_read_by_this_run_and_the_next(tmp_path, kind):
    cache = cache_in(tmp_path, **kind)
    assert cache.read(0, [1, 4]) is None
    cache.write(0, [4, 1], views_of(4, 1, **kind))
    for found in (cache, cache_in(tmp_path, **kind), pickle.loads(pickle.dumps(cache))):
        assert_equal(found.read(0, [1, 4]), views_of(1, 4, **kind))
        assert found.read(1, [1, 4]) is None
        assert found.read(0, [1, 2]) is None


@pytest.mark.parametrize("case", ["deep image tokens", "space", "words", "adapters and tokens"])
def test_the_views_of_a_step_in_16_bits_with_an_fp32_stream_are_read_as_they_were(tokenizer, tmp_path, case):
    model = make_tuned(tokenizer, case)
    store_weights(model.clip, torch.bfloat16)
    step = TrainStep(model, stream=torch.float32)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    views = step.views(pixels)
    cache = ViewCache(tmp_path, KEY, Record.of(views), IMAGES, 1, 10**9)
    cache.write(0, [4, 1], views)
    assert_equal(cache.read(0, [4, 1]), views)


@pytest.mark.parametrize(
    "other", [{"quick_gelu": True}, {"vision_cfg": {**SMALL_CONFIG["vision_cfg"], "head_width": 32}}], ids=str
)
def test_the_key_tells_models_apart_that_have_the_same_weights(tokenizer, other):
    """Of one set of weights another activation or number of heads makes other activations."""

    def key(overrides):
        clip = small_clip(**overrides)
        model = RMAdapterCLIP(clip, tokenizer, ["cat", "dog"], config=RMAdapterConfig(layers="2-3"))
        return cache_key(TrainStep(model), base_hash(model.clip), "crop", [b"image"], 1)

    assert key({}) != key(other)
    assert key({}) == key({})


def test_every_fact_of_the_key_makes_a_folder_of_its_own(tokenizer, tmp_path):
    """The pixels among them: of as many images of another data set nothing is read."""
    model = RMAdapterCLIP(small_clip(), tokenizer, ["cat", "dog"], config=RMAdapterConfig(layers="2-3"))

    def key(contents=(b"image", b"other"), seed=1, transform="crop"):
        return cache_key(TrainStep(model), "abc", transform, contents, seed)

    first = key()
    keys = [first, key((b"image", b"another")), key(seed=2), key(transform="flip")]
    keys += [{**first, name: "something else"} for name in first]
    folders = {cache_in(tmp_path, one).folder for one in keys}
    assert len(folders) == len(keys)
    assert cache_in(tmp_path, first).folder in folders


def test_a_fact_of_the_key_cannot_be_hidden_by_the_cache_s_own(tmp_path):
    with pytest.raises(AssertionError, match="one fact would hide another"):
        cache_in(tmp_path, {**KEY, "count": "of something"})


@pytest.mark.parametrize("changed", [{"base": "def"}, {"transform": "crop_flip"}, {"first": 3}])
def test_another_key_never_reads_it(tmp_path, changed):
    cache_in(tmp_path).write(0, [0], views_of(0))
    assert cache_in(tmp_path, {**KEY, **changed}).read(0, [0]) is None
    assert cache_in(tmp_path).read(0, [0]) is not None


def test_a_torn_record_is_found_and_made_again(tmp_path):
    cache = cache_in(tmp_path)
    cache.write(0, [0, 1], views_of(0, 1))
    path = cache.folder / "view-000.records"
    data = bytearray(path.read_bytes())
    data[cache.record.bytes + 5] ^= 1
    path.write_bytes(data)
    again = cache_in(tmp_path)
    assert again.read(0, [0]) is not None
    assert again.read(0, [0, 1]) is None
    again.write(0, [1], views_of(1))
    assert_equal(again.read(0, [0, 1]), views_of(0, 1))


def test_killed_between_record_and_index(tmp_path, monkeypatch):
    cache = cache_in(tmp_path)
    cache.write(0, [0], views_of(0))
    records, index = cache._open(0)
    before = index.copy()
    cache.write(0, [0, 1], views_of(5, 1))
    index[:] = before  # as if the process had ended before it wrote the numbers
    assert cache_in(tmp_path).read(0, [0]) is None
    assert cache_in(tmp_path).read(0, [1]) is None
    assert np.asarray(records).any()


def test_a_file_that_was_cut_off_is_made_anew(tmp_path):
    cache = cache_in(tmp_path)
    cache.write(0, [0], views_of(0))
    path = cache.folder / "view-000.records"
    path.write_bytes(path.read_bytes()[:-7])
    again = cache_in(tmp_path)
    assert path.stat().st_size == IMAGES * cache.record.bytes
    assert again.read(0, [0]) is None


def test_the_limit_leaves_fewer_views(tmp_path):
    size = IMAGES * (Record.of(views_of(0)).bytes + 8)
    assert cache_in(tmp_path, views=5, limit=3 * size + 1).views == 3
    assert cache_in(tmp_path, views=5, limit=size - 1).views == 0
    total = sum(file.stat().st_size for file in tmp_path.rglob("view-*"))
    assert total <= 3 * size


def test_old_caches_that_nobody_uses_make_room(tmp_path):
    size = 2 * IMAGES * (Record.of(views_of(0)).bytes + 8)
    old, used = cache_in(tmp_path, {"a": 1}), cache_in(tmp_path, {"a": 2})
    os.utime(old.folder, (1, 1))
    os.utime(used.folder, (2, 2))
    old._lock.close()
    new = cache_in(tmp_path, {"a": 3}, limit=2 * size + 1000)
    assert not old.folder.exists()
    assert used.folder.exists()
    assert new.views == 2


def test_what_other_runs_have_open_counts(tmp_path):
    size = 2 * IMAGES * (Record.of(views_of(0)).bytes + 8)
    used = cache_in(tmp_path, {"a": 1})
    with pytest.raises(InputError, match=r"cache_limit is .* KB, but other runs have .* KB of views open"):
        cache_in(tmp_path, {"a": 2}, limit=2 * size - 1)
    assert sum(file.stat().st_size for file in tmp_path.rglob("view-*")) == size
    used._lock.close()
    assert cache_in(tmp_path, {"a": 2}, limit=2 * size - 1).views == 2


def files_in(folder):
    return sum(file.stat().st_size for file in folder.rglob("view-*"))


def test_views_that_a_run_with_a_larger_limit_has_left_count_too(tmp_path):
    """Of the same key: they go where nobody has them open, and stand in the way of the limit where a run has."""
    size = IMAGES * (Record.of(views_of(0)).bytes + 8)
    large = cache_in(tmp_path, views=4)
    with pytest.raises(InputError, match=r"cache_limit is .* KB, but other runs have .* KB of views open"):
        cache_in(tmp_path, views=4, limit=3 * size)
    assert cache_in(tmp_path, views=2).views == 2
    assert files_in(tmp_path) == 4 * size
    large._lock.close()
    assert cache_in(tmp_path, views=4, limit=3 * size).views == 3
    assert files_in(tmp_path) == 3 * size


def test_a_folder_is_opened_while_no_other_run_deletes(tmp_path, monkeypatch):
    """Else it may go between its making and the lock in it, or be locked when its name is gone."""
    held = []
    real = ViewCache._open_folder

    def open_folder(self, *arguments):
        with (tmp_path / "lock").open("a") as gate, pytest.raises(BlockingIOError):
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(self.folder.exists())
        return real(self, *arguments)

    monkeypatch.setattr(ViewCache, "_open_folder", open_folder)
    cache_in(tmp_path)
    assert held == [False]


def test_temporaries_that_a_killed_run_has_left_are_cleared(tmp_path):
    cache = cache_in(tmp_path)
    left = cache.folder / f".rmadapter-{'0' * 32}.tmp"
    left.write_text("")
    os.utime(left, (1, 1))
    cache_in(tmp_path)
    assert not left.exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"on a file system without locks, .*; valid: --cache-dir with a folder on"):
        cache_in(tmp_path)


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache_dir .*file cannot hold .* KB of views.*--cache-dir"):
        cache_in(tmp_path / "file")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache_in(tmp_path, views=1).write(0, [0], views_of(0))
    place = iter([os.posix_fallocate, full])
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: next(place)(*arguments))
    with pytest.raises(InputError, match="No space left on device; valid: a folder on a disk with room"):
        cache_in(tmp_path, views=2)
    # What it took is given back; what was there before stays.
    assert cache_in(tmp_path, views=1).read(0, [0]) is not None
    assert not list(tmp_path.rglob("view-001.*"))


def test_the_key_is_written_down(tmp_path):
    cache = cache_in(tmp_path)
    assert json.loads((cache.folder / "key.json").read_text())["base"] == "abc"
