"""Atomic writing: whole files or none, also when the disk is full."""

from __future__ import annotations

import csv
import errno
import os
import time

import pytest

from rmadapter.errors import InputError
from rmadapter.files import (
    LEFT_AFTER_SECONDS,
    check_file_name,
    check_folder_name,
    check_may_write,
    clear_temporaries,
    is_temporary,
    read_bytes,
    read_json,
    read_object,
    read_text,
    write_atomic,
    write_csv,
    write_json,
    write_text,
)


def test_writes_into_new_folders_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "a" / "b" / "values.json"
    write_json(path, {"name": "Märchen"})
    assert read_json(path, "file") == {"name": "Märchen"}
    assert [p.name for p in path.parent.iterdir()] == ["values.json"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    for folder, said in {
        "afile": "onnx is 'afile', which is a file; valid: a folder",
        "afile/x/y": "onnx is 'afile/x/y', but 'afile' is a file; valid: a folder",
    }.items():
        with pytest.raises(InputError, match=said):
            check_folder_name("onnx", folder)
    with pytest.raises(InputError, match="the folder of logits is 'afile', which is a file; valid: a folder"):
        check_file_name("logits", "afile/x.npz")
    with pytest.raises(InputError, match=r"logits is '.*', which is a folder; valid: a file"):
        check_file_name("logits", tmp_path)
    for path in ("/dev/stdout", "/dev/null"):  # whatever standard output is: root would replace the link, or the device
        with pytest.raises(InputError, match=f"csv is '{path}', which is no regular file; valid: a file"):
            check_file_name("csv", path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="which is no regular file"):
        check_file_name("csv", tmp_path / "pipe")
    for path in ("afile", "new/x.npz", "x.npz", str(tmp_path / "new" / "x.npz")):
        check_file_name("logits", path)
    for path in ("new/folder", ".", str(tmp_path)):
        check_folder_name("out", path)


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    check_may_write("out", tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    # Root may write there, whatever its mode.
    monkeypatch.setattr(os, "access", lambda path, mode, **_: path != tmp_path)
    check_may_write("out", tmp_path.parent / "new")
    for folder, said in {tmp_path: "which", tmp_path / "new" / "x": f"but '{tmp_path}'"}.items():
        with pytest.raises(InputError, match=f"out is '{folder}', {said} may not be written; valid: a folder that can"):
            check_may_write("out", folder)


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


def test_temporary_names_are_unique_and_as_long_for_any_file(tmp_path, monkeypatch):
    """Two processes in containers have the same number often; a long name leaves no room for what is added to it."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    names = []
    for name in ("a", "b" * 255, "a"):
        write_atomic(tmp_path / name, lambda temporary: (names.append(temporary.name), temporary.write_text("x")))
    assert len(set(names)) == 3
    assert all(map(is_temporary, names))
    assert {len(name) for name in names} == {len(names[0])}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b" * 255]


def test_what_killed_processes_left_is_cleared_after_a_day(tmp_path):
    def killed(temporary):
        temporary.write_text("half")
        left.append(tmp_path / "copy" / temporary.name)
        os.link(temporary, left[-1])

    (tmp_path / "copy").mkdir()
    left = []
    for name in ("a", "b"):
        write_atomic(tmp_path / name, killed)
    others = [tmp_path / "copy" / name for name in (".config.tmp", "state.tmp", ".rmadapter-notes.tmp")]
    for other in others:
        other.write_text("a user's")
    before = time.time() - LEFT_AFTER_SECONDS - 60
    for path in (left[0], *others):
        os.utime(path, (before, before))
    clear_temporaries(tmp_path / "copy")
    assert sorted(path for path in (tmp_path / "copy").iterdir()) == sorted([left[1], *others])
    clear_temporaries(tmp_path / "not there")


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


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, '{"a": NaN}', "[-Infinity]", "9" * 5000, "\udcff"])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"sample .*a\.json cannot be read: "):
        read_json(tmp_path / "a.json", "sample")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_editors_write_it(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"a":\r\n "猫 😀"}\r', encoding=encoding, newline="")
    assert read_text(tmp_path / "a.json", "names") == '{"a":\n "猫 😀"}\n'
    assert read_json(tmp_path / "a.json", "names") == {"a": "猫 😀"}


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("Grün", encoding="latin-1")
    with pytest.raises(InputError, match=r"names .*names\.txt cannot be read: .*valid: text in UTF-8"):
        read_text(tmp_path / "names.txt", "names")


def test_a_file_of_any_size_takes_no_more_memory_than_its_limit(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # without place on the disk
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(InputError, match=r"sample .*a\.json is larger than 1 MB"):
            read(tmp_path / "a.json", "sample", limit=1 << 20)


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json])
def test_a_folder_is_no_file(tmp_path, read):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path, "sample")


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    values = {"accuracy": {"base": 80.0, "new": [1, (float("nan"), 2)]}}
    with pytest.raises(InputError, match=r"a\.json cannot be written: accuracy\.new\[1\]\[0\] is nan; valid: a finite"):
        write_json(tmp_path / "a.json", values)
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_utf_8_come_back(tmp_path):
    name = os.fsdecode(b"b\xffr.png")
    write_json(tmp_path / "a.json", {name: [name, "猫"]})
    assert read_json(tmp_path / "a.json", "sample") == {name: [name, "猫"]}
    assert "猫" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "holds no JSON object"), ('{"a": []}', r"is damaged: a is \[\]"), ("{}", "is damaged: a is None")],
)
def test_an_object_has_fields_of_their_types(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_object(tmp_path / "file.json", "some file", {"a": dict})
    (tmp_path / "file.json").write_text('{"a": {}, "b": 1}')
    assert read_object(tmp_path / "file.json", "some file", {"a": dict}) == {"a": {}, "b": 1}
