"""Atomic writing: whole files or none, also when the disk is full."""

from __future__ import annotations

import csv
import errno

import pytest

from rmadapter.errors import InputError
from rmadapter.files import read_json, write_atomic, write_csv, write_json, write_text


def test_writes_into_new_folders_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "a" / "b" / "values.json"
    write_json(path, {"name": "Märchen"})
    assert read_json(path, "file") == {"name": "Märchen"}
    assert [p.name for p in path.parent.iterdir()] == ["values.json"]


def test_comma_separated_values_read_back_as_they_are(tmp_path):
    write_csv(tmp_path / "rows.csv", ("method", "mean", "sd"), [('a, "b"\nc', 1 / 3, None), ("d", 80.0, 0)])
    assert (tmp_path / "rows.csv").read_bytes().count(b"\r") == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["method"], float(first["mean"]), first["sd"]) == ('a, "b"\nc', 1 / 3, "")
    assert second == {"method": "d", "mean": "80.0", "sd": "0"}


def test_files_have_the_usual_mode_whoever_makes_them(tmp_path):
    def private(temporary):
        temporary.unlink()
        temporary.touch(mode=0o600)

    write_atomic(tmp_path / "weights", private)
    write_text(tmp_path / "text", "")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "text").stat().st_mode


def test_a_full_disk_keeps_what_was_there_and_names_the_file(tmp_path):
    path = tmp_path / "values.txt"
    write_text(path, "before")

    def fill(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"values\.txt cannot be written: No space left"):
        write_atomic(path, fill)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_folder_s_place(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "runs" / "a.txt", "")


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match=r"sample .*a\.json is missing"):
        read_json(tmp_path / "a.json", "sample")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "a.json", "sample")
