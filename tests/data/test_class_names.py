"""``classnames.txt``: its one format, as editors on any system write it, and what is refused instead of guessed."""

from __future__ import annotations

import codecs
import json

import pytest
from PIL import Image

from rmadapter.data import load_data
from rmadapter.errors import InputError
from rmadapter.evaluation.predict import PredictConfig, wanted_class_names

TEXT = "n02 tabby cat\nn01\tgreat white shark\n"
NAMES = ["great white shark", "tabby cat"]


def classes(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4)).save(root / folder / f"{number}.png")
    return root


def names_of(root, text):
    file = root / "classnames.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    (root / "split_rmadapter.json").unlink(missing_ok=True)
    return load_data(str(root)).class_names


@pytest.mark.parametrize(
    "written",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r").encode(),
        f"# animals\n#\n\n  {TEXT}\t \n".replace("\n", " \r\n").encode(),
    ],
)
def test_it_is_read_as_editors_write_it(tmp_path, written):
    assert names_of(classes(tmp_path, "n01", "n02"), written) == NAMES


def test_one_name_a_line_stands_below_a_line_that_says_so(tmp_path):
    classes(tmp_path, "n01", "n02")
    assert names_of(tmp_path, "# one name a line\nshark\ntabby cat\n\n") == ["shark", "tabby cat"]
    assert names_of(tmp_path, codecs.BOM_UTF8 + b"\r\n#  One name a line\r\ncrane\r\ncrane") == ["crane", "crane"]


def test_digits_that_are_no_decimal_numbers_are_letters(tmp_path):
    assert names_of(classes(tmp_path, "①", "②"), "# one name a line\none\ntwo\n") == ["one", "two"]


def test_folders_with_blanks_and_accents_and_numbers(tmp_path):
    classes(tmp_path, "blue bird", "caf\u0065\u0301", "10", "2")
    text = "2 two\n10 ten\nblue bird\tBlue_Bird\ncaf\u00e9 coffee house\n"
    assert names_of(tmp_path, text) == ["ten", "two", "Blue_Bird", "coffee house"]
    assert load_data(str(tmp_path)).class_names == ["ten", "two", "Blue_Bird", "coffee house"]  # from the split


@pytest.mark.parametrize(
    ("folders", "text", "message"),
    [
        # As many lines as folders: each was taken for a name.
        ("n01 n02", "n01 shark\nn02\n", r"line 2: 'n02' has no class name; valid: 'folder name<TAB>class name' a line"),
        ("n01 n02", "shark\ncat", r"line 1: 'shark' has no class name; .*'# one name a line' as the first line"),
        ("n01 n02", "n01 shark\nn03 cat", r"line 2: there is no class folder 'n03'; did you mean 'n0[12]'\?"),
        ("n01 n02", "n01 shark", "has no line for 1 class folders: 'n02'"),
        ("n01 n02", "n01 shark\nn02 cat\nn01 whale", "names class folder 'n01' twice, in lines 1 and 3"),
        ("n01 n02", "# nothing\n", "names no class; valid"),
        ("n01 n02", "# one name a line\na\nb\nc\n", "has 3 names for 2 class folders"),
        ("1 2 10", "# one name a line\none\ntwo\nten", r"are numbers, whose order as text is another \(1, 10, 2, "),
        ("1 2 10 11 3", "1 one", "has no line for 4 class folders: '2', '3', '10', '11'"),
        (
            "n01 n02",
            "n01 ha\xefr\nn02 cat".encode("latin-1"),
            r"byte 0xef in line 1 is not UTF-8; .*Latin-1.*; valid: .*UTF-8",
        ),
        (
            "n01 n02",
            "n01 hair\nn02 cat\xe9\n".encode("latin-1"),
            r"classnames\.txt cannot be read: byte 0xe9 in line 2",
        ),
        ("n01 n02", TEXT.encode("utf-16-le"), "NUL bytes, as no text does but UTF-16 without a byte order mark"),
        ("n01 n02", codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], r"byte 0x0a in line 2 is not UTF-16"),
    ],
)
def test_what_is_refused(tmp_path, folders, text, message):
    with pytest.raises(InputError, match=message):
        names_of(classes(tmp_path, *folders.split()), text)
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_with_a_blank_needs_a_tab(tmp_path):
    with pytest.raises(InputError, match="no class folder 'blue'; a TAB must stand behind 'blue bird'"):
        names_of(classes(tmp_path, "ant", "blue bird"), "ant ant\nblue bird Blue Bird\n")


@pytest.mark.parametrize("change", ["new", "gone", "changed"])
def test_it_may_not_change_after_the_split_was_made(tmp_path, change):
    classes(tmp_path, "n01", "n02")
    file = tmp_path / "classnames.txt"
    if change != "new":
        file.write_text(TEXT)
    before = load_data(str(tmp_path))
    if change == "gone":
        file.unlink()
    else:
        file.write_text(TEXT.replace("shark", "whale"))
    with pytest.raises(
        InputError, match=r"the names of [12] classes .* have changed since .*'n01' from .*; delete .*json"
    ):
        load_data(str(tmp_path))
    (tmp_path / "split_rmadapter.json").unlink()
    after = load_data(str(tmp_path))
    assert [item.path for item in after.train] == [item.path for item in before.train]
    assert after.class_names != before.class_names


def test_beside_a_public_split_file_it_is_said_to_be_unused(tmp_path):
    data = load_data(str(classes(tmp_path, "n01", "n02")))
    (tmp_path / "split_rmadapter.json").rename(tmp_path / "split_public.json")
    (tmp_path / "classnames.txt").write_text(TEXT)
    again = load_data(str(tmp_path))
    assert again.class_names == data.class_names
    assert "classnames.txt is not used: the names of the classes are those of split_public.json" in again.notes[0]


@pytest.mark.parametrize(("name", "message"), [(" ", "is ' '; valid: a text that"), ("\ud83d", "is not UTF-8")])
def test_a_name_that_no_prompt_can_hold(tmp_path, name, message):
    load_data(str(classes(tmp_path, "n01", "n02")))
    file = tmp_path / "split_rmadapter.json"
    file.write_text(file.read_text().replace('"n02"', json.dumps(name)))
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path))


def test_of_the_names_that_are_asked_for_each_counts_once(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("kiwi\napple\nkiwi\n")
    for given in ({"classes": "kiwi,apple, kiwi"}, {"classes_file": str(file)}):
        assert wanted_class_names(PredictConfig(images=["x.png"], **given), None) == ["kiwi", "apple"]
    with pytest.raises(InputError, match=r"classes are \['a'\]; valid: at least two different names"):
        wanted_class_names(PredictConfig(images=["x.png"], classes="a,a"), None)
    # An adapter's classes are told apart by their labels.
    assert wanted_class_names(PredictConfig(images=["x.png"]), ["crane", "crane"]) == ["crane", "crane"]


def test_predict_takes_its_list_of_classes_as_editors_write_it(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("# one name a line\r\nant\r\n\r\ngr\u00fcner K\u00e4fer\r\n".encode("utf-16"))
    config = PredictConfig(images=["x.png"], classes_file=str(file))
    assert wanted_class_names(config, None) == ["ant", "gr\u00fcner K\u00e4fer"]
    file.write_bytes("ant\ngr\u00fcner K\u00e4fer".encode("latin-1"))
    with pytest.raises(InputError, match=r"classes_file .*names\.txt cannot be read: byte 0xfc in line 2 is not UTF-8"):
        wanted_class_names(config, None)
