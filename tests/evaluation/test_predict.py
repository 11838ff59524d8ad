"""``rmadapter predict`` on many images: what it reads and writes, how it goes on, what stands for a class."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_clip
from PIL import Image
from safetensors import safe_open
from small_runs import FullDisk, Killed
from torch.nn import functional as F

from rmadapter import InputError
from rmadapter.cli import main
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import Preprocessing, eval_transform, read_image
from rmadapter.evaluation import ranking
from rmadapter.evaluation.calibration import Calibration
from rmadapter.evaluation.class_texts import AT_A_TIME, ClassTexts, read_templates
from rmadapter.evaluation.image_paths import named_images
from rmadapter.evaluation.journal import Journal
from rmadapter.evaluation.prediction_results import Destinations, Results
from rmadapter.evaluation.ranking import decoding_workers

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def predict(clip_folder, monkeypatch):
    """``rmadapter predict`` among the four names, in this process; returns its status."""

    def run(*words):
        argv = ["predict", "--model", f"local-dir:{clip_folder}", *map(str, words)]
        argv += ["--workers", "0"] if "--workers" not in words else []
        argv += ["--classes", ",".join(NAMES)] if not {"--classes-file", "--descriptions"} & set(words) else []
        return main(argv)

    return run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_of_equal_classes_the_first_is_the_answer_and_in_the_set():
    """Names that read alike have one number to the last bit; eval takes the first of them, and so does a set."""
    names = [f"class {number}" for number in range(20)]
    model = SimpleNamespace(image_features=lambda images: images, classify_features=lambda features, text: features)
    scores = {"aps": [0.0, 0.0, 0.0], "lac": [0.5, 0.5, 0.5]}
    facts = {"weights_sha256": "", "template": "{}", "strength": 1.0, "data": "", "data_hash": "", "classes": "all"}
    fit = {"whence": "", "images": 3, "temperature": 2.0, "before": {}, "after": {}, "score": "aps", "scores": scores}
    calibration = Calibration(class_names=names, **facts, **fit)
    ranker = ranking.Ranker(model, torch.zeros(1), names, 3, calibration=calibration, coverage=0.5)
    logits = torch.zeros(1, 20)
    logits[0, [2, 9, 15, 17]] = 5.0
    (record,) = ranker(logits)
    assert (record["answer"], record["set"]) == ("class 2", ["class 2"])
    assert [found["index"] for found in record["predictions"]] == [2, 9, 15]


@pytest.fixture
def read_paths(monkeypatch):
    """The images that have been read, in order."""
    found, read = [], ranking.read_image
    monkeypatch.setattr(ranking, "read_image", lambda path: (found.append(str(path)), read(path))[1])
    return found


class TestImages:
    def test_files_folders_and_patterns_in_their_order_and_once(self, images):
        (images / "ant" / "more").mkdir()
        Image.new("RGB", (8, 8)).save(images / "ant" / "more" / "00.PNG")
        (images / "bee" / "notes.txt").touch()
        odd = images / "odd"
        odd.touch()
        first, folder = str(images / "ant" / "03.png"), str(images / "ant")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = named_images([first, folder, str(odd), f"{images}/b*/0[12].png", f"{images}/**/more"])
        assert found[0] == first
        assert found[1:11] == [f"{folder}/{n:02}.png" for n in range(10) if n != 3] + [f"{folder}/more/00.PNG"]
        assert found[11:] == [str(odd), f"{images}/bee/01.png", f"{images}/bee/02.png"]
        with pytest.warns(UserWarning, match="left out what is no image by its name: 1 .txt"):
            assert len(named_images([str(images / "bee")])) == 10

    def test_the_split_file_that_training_put_beside_the_images_is_not_spoken_of(self, images):
        (images / "split_rmadapter.json").touch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert named_images([str(images)])

    def test_one_image_in_several_spellings_is_one(self, images, monkeypatch):
        monkeypatch.chdir(images)
        (images / "link").symlink_to(images / "bee")
        first = ["ant/00.png", "./bee/00.png"]
        again = ["ant//00.png", f"{images}/ant/00.png", "../animals/bee/00.png", "link/../ant/00.png"]
        assert named_images([*first, *again]) == first
        (images / "ant" / "link").symlink_to(images / "bee")
        (images / "00.png").touch()
        two = ["ant/link/../00.png", "ant/00.png"]  # alike by their texts, but ".." leads out of what is linked
        assert named_images(two) == two

    def test_a_file_called_like_a_pattern_is_that_file(self, tmp_path):
        for name in ("[a].png", "a.png"):
            (tmp_path / name).touch()
        assert named_images([str(tmp_path / "[a].png")]) == [str(tmp_path / "[a].png")]

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"a b.png\r\n\r\nc.png\n a.png", ["a b.png", "c.png", " a.png"]),
            (b"\xef\xbb\xbf# one.png\n\xff.png\n", ["# one.png", os.fsdecode(b"\xff.png")]),
            ("ä.png\n".encode("utf-16"), ["ä.png"]),
            (b"a\nb.png\0c.png\0", ["a\nb.png", "c.png"]),
        ],
    )
    def test_a_list_from_a_file_or_standard_input(self, tmp_path, monkeypatch, content, found):
        (tmp_path / "list.txt").write_bytes(content)
        assert named_images([], str(tmp_path / "list.txt")) == found
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert named_images([found[0]] if os.path.exists(found[0]) else [], "-") == found

    def test_what_names_no_image(self, tmp_path, capsys, predict):
        (tmp_path / "notes.txt").touch()
        (tmp_path / "list.txt").write_text("\n")
        for words, message in {
            (str(tmp_path),): "has no images; valid: an image, a folder",
            (f"{tmp_path}/*.jpg",): "finds nothing; valid",
            (f"{tmp_path}/*.txt",): "finds 2 files and folders, but no images; valid",
            (str(tmp_path / "gone.png"),): "gone.png cannot be read: there is no such file; valid",
            (os.devnull,): "null cannot be read: it is no regular file; valid",
            ("--images-from", str(tmp_path / "list.txt")): "list.txt names no image; valid: one path a line",
            ("--images-from", str(tmp_path / "gone.txt")): "gone.txt is missing",
        }.items():
            assert predict(*words) == 2
            assert message in capsys.readouterr().err


class TestFormats:
    def test_all_say_the_same(self, predict, animals, tmp_path, capsys):
        files = {name: tmp_path / "made" / f"x.{name}" for name in ("csv", "jsonl")}
        assert predict(animals, "--csv", files["csv"], "--jsonl", files["jsonl"], "--top", "2") == 0
        out, err = capsys.readouterr()
        assert out == f"csv: {files['csv']}\njsonl: {files['jsonl']}\n"
        assert re.fullmatch(r"40 images in \d+\.\d s, \d+\.\d images/s", err.splitlines()[-1])
        records = [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
        assert predict(animals, "--json", "--top", "2") == 0
        assert json.loads(capsys.readouterr().out) == records
        rows = rows_of(files["csv"].read_text())
        assert [row["image"] for row in rows] == [f"{animals}/{name}/{n:02}.png" for name in NAMES for n in range(10)]
        for row, record in zip(rows, records, strict=True):
            first, second = record["predictions"]
            assert (row["answer"], row["class_1"], row["class_2"]) == (first["class"], first["class"], second["class"])
            assert record["answer"] == first["class"] == NAMES[first["index"]]
            assert float(row["probability_2"]) == second["probability"]
            assert row["error"] == ""
        for name in ("csv", "jsonl"):
            assert predict(animals, f"--{name}", "-", "--top", "2") == 0
            assert capsys.readouterr().out == files[name].read_text()
        assert predict(animals, "--top", "2") == 0
        heading, first, second, *_ = capsys.readouterr().out.splitlines()
        assert heading.split() == ["image", "class", "probability"]
        assert first.split()[:2] == [rows[0]["image"], rows[0]["class_1"]]
        assert second.split() == [rows[0]["class_2"], f"{100 * float(rows[0]['probability_2']):.2f}", "%"]
        assert first.index(rows[0]["class_1"]) == second.index(rows[0]["class_2"]) == heading.index("class")
        assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["x.csv", "x.jsonl"]

    def test_none_of_these(self, predict, animals, capsys):
        def answers(*words):
            assert predict(animals, "--csv", "-", *words) == 0
            return [(row["answer"], float(row["probability_1"])) for row in rows_of(capsys.readouterr().out)]

        taken = answers()
        limit = sorted(probability for _, probability in taken)[20]
        expected = [(name if p >= limit else "none of these", p) for name, p in taken]
        assert answers("--threshold", limit) == expected
        assert sum(name == "none of these" for name, _ in expected) > 5
        assert predict(animals / "ant" / "00.png", "--threshold", "1", "--json") == 0
        assert json.loads(capsys.readouterr().out)[0]["answer"] is None
        assert predict(animals / "ant" / "00.png", "--threshold", "1") == 0
        assert capsys.readouterr().out.splitlines()[1].endswith("  none of these")
        assert predict(animals / "ant" / "00.png", "--threshold", "2") == 2
        assert "threshold is 2.0; valid: a number >= 0 and <= 1" in capsys.readouterr().err

    def test_unreadable_images_are_named_and_counted(self, predict, images, tmp_path, capsys):
        (images / "bee" / "00.png").write_bytes(b"no image")
        for number in range(12):
            (images / "cat" / f"bad{number:02}.png").write_bytes(b"")
        paths = tmp_path / "list.txt"
        paths.write_text(f"{images}/ant/00.png\n{tmp_path}/gone.png\n")
        assert predict(images, "--images-from", paths, "--csv", tmp_path / "x.csv", "--batch-size", "7") == 0
        err = capsys.readouterr().err
        assert f"warning: 14 of 53 images cannot be read: image {images}/bee/00.png cannot be read: it is no im" in err
        assert err.count("it is no image") == 10
        assert "; and 4 more\n" in err
        assert "; 14 could not be read\n" in err
        rows = rows_of((tmp_path / "x.csv").read_text())
        assert len(rows) == 53
        bad = [row for row in rows if row["error"]]
        assert len(bad) == 14
        assert all(row["answer"] == row["class_1"] == "" for row in bad)
        assert bad[-1]["error"] == f"image {tmp_path}/gone.png cannot be read: No such file or directory"
        assert predict(images / "bee" / "00.png", images / "cat" / "bad00.png", "--csv", tmp_path / "y.csv") == 2
        assert "none of 2 images could be read" in capsys.readouterr().err
        assert [path.name for path in tmp_path.glob("y*")] == []
        assert predict(images / "bee" / "00.png", images / "ant" / "00.png", "--top", "1") == 0
        assert capsys.readouterr().out.splitlines()[1] == f"{images}/bee/00.png  cannot be read"

    def test_what_cannot_be_written_is_refused(self, predict, animals, tmp_path, capsys):
        for words, message in {
            ("--csv", "-", "--json"): "csv and json both go to standard output; valid: one of them",
            ("--csv", "x", "--jsonl", "x"): "csv and jsonl both go to x; valid: one of them",
            ("--embeddings", "x.txt"): "embeddings is 'x.txt'; valid: a name that ends in .npz or .safetensors",
            ("--csv", tmp_path, "--overwrite"): f"csv is {str(tmp_path)!r}, which is a folder; valid: a file",
        }.items():
            assert predict(animals, *words) == 2
            assert message in capsys.readouterr().err

    @pytest.mark.parametrize("ending", ["npz", "safetensors"])
    def test_embeddings(self, predict, images, tmp_path, ending, capsys):
        (images / "ant" / "05.png").write_bytes(b"")
        os.rename(images / "bee", os.fsencode(images) + b"/\xff")
        file = tmp_path / f"x.{ending}"
        assert predict(images, "--embeddings", file, "--precision", "fp32", "--batch-size", "9", "--top", "1") == 0
        assert len(capsys.readouterr().out.splitlines()) == 41  # the table is printed beside it
        if ending == "npz":
            stored = np.load(file, allow_pickle=False)
            paths, embeddings = stored["images"].tolist(), torch.from_numpy(stored["embeddings"])
        else:
            with safe_open(file, "pt") as stored:
                paths, embeddings = json.loads(stored.metadata()["images"]), stored.get_tensor("embeddings")
        assert len(paths) == 39
        assert f"{images}/\udcff/03.png" in paths
        assert f"{images}/ant/05.png" not in paths
        clip = small_clip()
        transform = eval_transform(Preprocessing.of(clip))
        batch = torch.stack([transform(read_image(images.__class__(path))) for path in paths])
        with torch.no_grad():
            torch.testing.assert_close(embeddings, F.normalize(clip.encode_image(batch), dim=-1))


class TestGoingOn:
    def stopped(self, monkeypatch, predict, words, batches, stop=Killed):
        """A run that ends before it keeps a batch of that number."""
        add, seen = Results.add, []

        def adding(self, records):
            if len(seen) == batches:
                raise stop
            seen.append(records)
            add(self, records)

        with monkeypatch.context() as patch:
            patch.setattr(Results, "add", adding)
            return predict(*words)

    def test_a_stopped_run_repeats_no_image(self, predict, images, tmp_path, monkeypatch, read_paths, capsys):
        (images / "ant" / "01.png").write_bytes(b"")
        given = [images, "--precision", "fp32", "--batch-size", "4"]
        whole, parted = tmp_path / "whole", tmp_path / "parted"

        def words(folder):
            return [*given, "--csv", folder / "x.csv", "--jsonl", folder / "x.jsonl", "--embeddings", folder / "x.npz"]

        assert predict(*words(whole)) == 0
        read_paths.clear()
        for batches in (3, 2):
            with pytest.raises(Killed):
                self.stopped(monkeypatch, predict, words(parted), batches)
        journal = parted / "x.csv.unfinished" / "records.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-30])  # as a kill in the middle of a write leaves it
        Image.new("RGB", (9, 9)).save(images / "ant" / "01.png")
        Image.new("RGB", (9, 9)).save(images / "aaa.png")  # which was not there before, and is first now
        read_paths.clear()
        capsys.readouterr()
        assert predict(*words(parted)) == 0
        torn = json.loads(lines[-1])["image"]
        kept = {json.loads(line)["image"] for line in lines[:-1]} - {f"{images}/ant/01.png"}
        assert f"{len(kept)} were done before" in capsys.readouterr().err
        everything = named_images([str(images)])
        assert torn not in kept
        assert len(kept) == 4 * 3 + 4 * 2 - 2 - 1  # without the unreadable one, which the second run read again
        assert read_paths == [path for path in everything if path not in kept]
        assert sorted(path.name for path in parted.iterdir()) == ["x.csv", "x.jsonl", "x.npz"]
        before = {row["image"]: row for row in rows_of((whole / "x.csv").read_text())}
        rows = rows_of((parted / "x.csv").read_text())
        assert [row["image"] for row in rows] == everything
        changed = [row["image"] for row in rows if before.get(row["image"], {}).get("answer") != row["answer"]]
        assert changed == [f"{images}/aaa.png", f"{images}/ant/01.png"]
        stored = np.load(parted / "x.npz", allow_pickle=False)
        assert stored["images"].tolist() == everything
        assert len((parted / "x.jsonl").read_text().splitlines()) == 41
        one, other = dict(np.load(whole / "x.npz")), dict(stored)
        assert one["images"][-1] == other["images"][-1]
        np.testing.assert_allclose(one["embeddings"][-38:], other["embeddings"][-38:], atol=1e-6)

    def test_what_was_printed_before_is_printed_again(self, predict, animals, tmp_path, monkeypatch, capsys):
        words = [animals, "--csv", "-", "--embeddings", tmp_path / "x.npz", "--batch-size", "16"]
        with pytest.raises(Killed):
            self.stopped(monkeypatch, predict, words, 1)
        capsys.readouterr()
        assert predict(*words) == 0
        assert len(rows_of(capsys.readouterr().out)) == 40

    def test_another_run_does_not_go_on_with_it(self, predict, animals, tmp_path, monkeypatch, read_paths, capsys):
        out = ["--csv", tmp_path / "x.csv"]
        assert self.stopped(monkeypatch, predict, [animals, *out, "--batch-size", "16"], 2, KeyboardInterrupt) == 130
        assert "stopped; where it writes to files, the same command goes on" in capsys.readouterr().err
        for words, message in {
            ("--top", "1"): "x.csv.unfinished holds an unfinished run with another top (4 there, 1 here); valid",
            ("--template", "a {}"): "with another classes or prompts (",
            ("--precision", "fp32", "--threshold", "0.5"): "with another ",
        }.items():
            assert predict(animals, *out, *words) == 2
            assert message in capsys.readouterr().err
        read_paths.clear()
        assert predict(animals, *out, "--top", "1", "--overwrite") == 0
        assert len(read_paths) == 40
        read_paths.clear()
        assert predict(animals, *out) == 2
        assert "csv " in (said := capsys.readouterr().err)
        assert "x.csv is there already; valid: another name, or --overwrite to replace it" in said
        assert read_paths == []

    def test_a_file_that_was_there_before_the_stopped_run_is_not_its_own(self, tmp_path):
        files = [tmp_path / "x.csv", tmp_path / "x.jsonl"]
        where = Destinations(*map(str, files))
        files[1].write_text("another run's")
        os.utime(files[1], ns=(1, 1))
        kept = Journal(files[0])
        with kept.held():
            kept.begin({"top": 1})
        files[0].write_text("this run's, which was stopped before the other file")
        with pytest.raises(InputError, match=r"jsonl .*x.jsonl is there already; valid: another name, or --overwrite"):
            where.check(overwrite=False)
        where.check(overwrite=True)
        files[1].unlink()
        where.check(overwrite=False)

    def test_a_line_that_was_cut_off_is_cut_away(self, tmp_path):
        journal = tmp_path / "x.csv.unfinished" / "records.jsonl"
        added = []
        for number in range(3):
            kept = Journal(tmp_path / "x.csv")
            with kept.held():
                kept.begin({"top": 1})
                assert list(kept.records(["0", "1", "2", "3"])) == added
                kept.add([{"image": str(number)}, {"image": "3"}])
                added.append({"image": str(number)})
            journal.write_bytes(journal.read_bytes()[:-3])

    def test_a_disk_that_fills_up_is_said_with_the_file(self, tmp_path):
        kept = Journal(tmp_path / "x.csv")

        def fill():
            with kept.held():
                kept.begin({"top": 1})
                kept._file = io.BufferedWriter(FullDisk(kept._file))
                kept.add([{"image": "0"}])

        with pytest.raises(InputError, match=r"records\.jsonl cannot be written: No space left"):
            fill()

    def test_one_process_at_a_time(self, predict, animals, tmp_path, capsys):
        with Journal(tmp_path / "x.csv").held():
            assert predict(animals, "--csv", tmp_path / "x.csv") == 2
        assert f"x.csv.unfinished is in use: process {os.getpid()} on" in capsys.readouterr().err
        assert list(tmp_path.glob("x*")) == []


class TestDecoding:
    def test_by_several_processes(self, predict, animals, tmp_path):
        for workers in ("0", "2"):
            words = ["--workers", workers, "--batch-size", "8", "--precision", "fp32"]
            assert predict(animals, "--csv", tmp_path / f"{workers}.csv", *words) == 0
        assert (tmp_path / "0.csv").read_text() == (tmp_path / "2.csv").read_text()

    def test_as_many_processes_as_processors(self, monkeypatch):
        monkeypatch.setattr(ranking, "usable_processors", lambda: 8)
        assert decoding_workers(None, 100_000, 32) == 8
        assert decoding_workers(None, 65, 32) == 3
        assert decoding_workers(None, 32, 32) == 0
        assert decoding_workers(2, 1, 32) == 2

    def test_progress_is_shown_with_the_time_left(self, predict, animals, monkeypatch, capsys):
        monkeypatch.setattr(ranking, "SECONDS_BETWEEN_LINES", 0)
        assert predict(animals, "--json", "--batch-size", "8") == 0
        shown = capsys.readouterr().err
        assert "predict: " in shown
        assert "| 32/40 [" in shown.replace("\r", "\n")
        assert "image/s]" in shown


class TestTexts:
    def test_the_text_tower_runs_once(self, predict, animals, monkeypatch, capsys):
        calls, text_features = [], CLIPClassifier.text_features
        monkeypatch.setattr(CLIPClassifier, "text_features", lambda self: (calls.append(1), text_features(self))[1])
        assert predict(animals, "--batch-size", "4") == 0
        assert calls == [1]
        assert predict(animals, "--template", "a {}", "--template", "the {}", "--batch-size", "4") == 0
        assert calls == [1] * 3

    @pytest.fixture
    def model(self, clip, tokenizer):
        return CLIPClassifier(clip, tokenizer, NAMES, "a {}")

    @staticmethod
    def mean(model, texts):
        """The field's rule, spelt out for one class."""
        tokens = model.tokenizer(texts)
        with torch.no_grad():
            features = F.normalize(model.clip.encode_text(tokens), dim=-1)
        return F.normalize(features.mean(0), dim=-1)

    def test_several_prompts_are_averaged(self, model):
        templates = ("a photo of a {}.", "art of the {}.", "a {} in a video game")
        found = ClassTexts(NAMES, templates).features(model)
        expected = [self.mean(model, [template.format(name) for template in templates]) for name in NAMES]
        torch.testing.assert_close(found, torch.stack(expected))

    def test_descriptions_of_each_class_are_averaged(self, model):
        count = {"ant": 1, "bee": 3, "cat": AT_A_TIME, "dog": 2}
        described = {name: [f"{name} number {n}, {{}} and all" for n in range(count[name])] for name in NAMES}
        found = ClassTexts(NAMES[::-1], descriptions=described).features(model)
        expected = [self.mean(model, described[name]) for name in NAMES[::-1]]
        torch.testing.assert_close(found, torch.stack(expected))
        assert model.class_names == NAMES[::-1]
        assert len(model.prompts.tokens) == 4

    def test_the_command_takes_them_from_files(self, predict, animals, tmp_path, capsys):
        image, precise = animals / "ant" / "00.png", ["--precision", "fp32", "--json"]

        def found(*words):
            assert predict(image, *words, *precise) == 0
            return {p["class"]: p["probability"] for p in json.loads(capsys.readouterr().out)[0]["predictions"]}

        (tmp_path / "templates.txt").write_text("a {}\n\n# three\nart of the {}\n")
        repeated = found("--template", "a {}", "--template", "art of the {}")
        assert found("--templates", tmp_path / "templates.txt") == pytest.approx(repeated, rel=1e-5)
        assert repeated != pytest.approx(found("--template", "a {}"), rel=1e-3)
        said = {name: [f"a {name}", f"art of the {name}"] for name in [*NAMES, "eel"]}
        (tmp_path / "said.json").write_text(json.dumps(said))
        described = ["--descriptions", tmp_path / "said.json"]
        assert set(found(*described)) == set(said)
        assert found(*described, "--classes", ",".join(NAMES)) == pytest.approx(repeated, rel=1e-5)
        for words, message in {
            (*described, "--classes", "ant,eal"): "descriptions has none for class 'eal'; did you mean 'eel'",
            (*described, "--template", "a {}"): "template and descriptions are both given; valid: one of them",
            ("--template", "a"): "template is 'a'; valid: a text with one {}",
            ("--descriptions", image): f"descriptions {image} cannot be read",
        }.items():
            assert predict(image, *words) == 2
            assert message in capsys.readouterr().err

    def test_a_line_that_is_no_prompt_is_named(self, tmp_path):
        file = tmp_path / "t.txt"
        file.write_text("a {}\nan ant\n")
        with pytest.raises(InputError, match=r"t\.txt, line 2: template is 'an ant'; valid"):
            read_templates(file)
        file.write_text("# none\n")
        with pytest.raises(InputError, match="has no prompt; valid: one a line"):
            read_templates(file)

    def test_they_are_refused_where_others_are_learned(self, model, monkeypatch):
        monkeypatch.setattr(CLIPClassifier, "takes_texts", False)
        with pytest.raises(InputError, match="2 templates, but the adapter has learned what stands for a class"):
            ClassTexts(NAMES, ("a {}", "the {}")).features(model)
        ClassTexts(NAMES, ("a {}",)).features(model)
