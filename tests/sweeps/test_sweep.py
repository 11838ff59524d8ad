"""Sweeps: all runs of a table, extended, planned, with their options, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import write_images
from small_sweeps import results_of, sweep

from rmadapter.cli import main
from rmadapter.errors import InputError
from rmadapter.evaluation import accuracy as accuracies
from rmadapter.evaluation import loaded_model
from rmadapter.evaluation.answers import Encoded, PartAnswers
from rmadapter.reports.sweep.outcomes import read_sweep
from rmadapter.sweeps import one_run
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.one_run import make_run
from rmadapter.sweeps.protocols import plan
from rmadapter.sweeps.settings import parse_sweep
from rmadapter.training import zeroshot_run

FOOD = ["emoji_food", "emoji_food@noto"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def test_base_to_new_writes_every_run_once(sweep_words, tmp_path, capsys):
    assert sweep(*sweep_words(seeds="1,2")) == 0
    out = capsys.readouterr().out
    assert "6 runs in" in out
    assert "6 done, 0 failed, 0 running, 0 open" in out
    assert out.count("single/animals/seed1: base") == 1
    folder = tmp_path / "s"
    assert set(results_of(folder)) == {
        f"runs/{run}/run/results.json"
        for run in (
            "zeroshot/animals",
            "zeroshot/plants",
            *(f"single/{name}/seed{n}" for name in ("animals", "plants") for n in (1, 2)),
        )
    }
    assert "adapters: backend" in (folder / "runs" / "single" / "plants" / "seed2" / "log.txt").read_text()
    written = {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("results.json")}
    assert sweep(*sweep_words(seeds="1,2")) == 0
    assert "[1/6]" not in capsys.readouterr().out
    assert written == {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("results.json")}


def test_it_is_extended_by_seeds_and_methods(sweep_words, tmp_path, capsys):
    assert sweep(*sweep_words(data="animals")) == 0
    assert sweep(*sweep_words(data="plants", methods="mma", seeds="2")) == 0
    manifest = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [name.rpartition("/")[2] for name in manifest["data"]] == ["animals", "plants"]
    assert (manifest["methods"], manifest["seeds"]) == (["zeroshot", "single", "mma"], [1, 2])
    assert "mma/plants/seed2: base" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["cross", "domain"])
def test_trained_on_one_and_tested_on_the_others(sweep_words, tmp_path, protocol):
    assert sweep(*sweep_words(protocol, source="plants".join((str(tmp_path) + "/", "")))) == 0
    folder = tmp_path / "s" / "runs"
    assert not (folder / "single" / "animals").exists()
    for run in ("single/plants/seed1", "zeroshot/plants"):
        values = json.loads((folder / run / "on" / "animals" / "results.json").read_text())
        assert (values["data"], values["classes"]) == ("animals", "all")
        source = values["trained_on"] and values["trained_on"]["data"]
        assert source == (None if run.startswith("zeroshot") else "plants")
        assert set(values["accuracy"]) == {"all"}
        at_home = json.loads((folder / run / "run" / "results.json").read_text())
        assert (at_home["data"], set(at_home["accuracy"])) == ("plants", {"all"})


@pytest.mark.parametrize(
    ("protocol", "first", "later", "sources"),
    [
        ("cross", [], ["--source", "dtd"], ["imagenet", "dtd"]),
        ("cross", ["--source", "dtd"], [], ["dtd", "imagenet"]),
        ("cross", ["--data", "dtd,eurosat"], ["--data", "dtd,eurosat,imagenet"], ["dtd", "imagenet"]),
        ("cross", ["--data", "dtd,eurosat"], ["--data", "eurosat,dtd"], ["dtd", "eurosat"]),
        ("domain", [], ["--source", "imagenet"], ["imagenet"]),
        ("domain", ["--data", ",".join(FOOD)], ["--data", ",".join(FOOD[::-1])], FOOD),
    ],
)
def test_what_it_is_extended_by_takes_no_source_out_of_the_table(protocol, first, later, sources, tmp_path):
    """The default source depends on the data sets, of which a later command may have others."""
    runs = {}
    for words in (first, later):
        argv = [protocol, *words, "--methods", "mma", "--pretrained", "openai", "--out", str(tmp_path / "s")]
        _, planned = parse_sweep(argv)
        enter(planned, {})
        runs |= dict.fromkeys(run.key for run in planned.runs())
    manifest = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert manifest["sources"] == sources
    listed = plan(protocol, *(manifest[name] for name in ("data", "methods", "seeds", "sources")))
    assert {run.key for run in listed} == set(runs)


@pytest.mark.parametrize("later", ["emoji_food", "emoji_food,dtd", "dtd,emoji_food"])
@pytest.mark.parametrize("first", ["emoji_food", "dtd"])
def test_bundled_and_other_data_sets_are_added_in_any_order(first, later, tmp_path):
    """The test bed has defaults of its own; that is no other setting of the sweep, and one that is given is."""
    argv = ["base2new", "--methods", "mma", "--out", str(tmp_path / "s"), "--model", "ViT-B-16"]
    argv += ["--pretrained", "openai"]
    settings = []
    for data in (first, later):
        enter(parse_sweep([*argv, "--data", data])[1], {})
        settings.append(json.loads((tmp_path / "s" / "sweep.json").read_text())["settings"])
    assert settings[0] == settings[1]
    with pytest.raises(InputError, match=r"lr is 1\.0, but the sweep in"):
        enter(parse_sweep([*argv, "--data", later, "--lr", "1"])[1], {})


def test_a_sweep_has_one_model(tmp_path, capsys):
    """Not the test bed's on the one data set and another on the next, in one command or in two."""
    words = ["base2new", "--methods", "mma", "--pretrained", "openai", "--out", str(tmp_path / "s")]
    assert sweep(*words, "--data", "emoji_food,dtd") == 2
    assert "model is 'emoji-clip' on emoji_food and 'ViT-B-16' on dtd, by default; valid: --model" in (
        capsys.readouterr().err
    )
    enter(parse_sweep([*words, "--data", "emoji_food"])[1], {})
    with pytest.raises(InputError, match=r"model is 'ViT-B-16', but the sweep in .* has 'emoji-clip'"):
        enter(parse_sweep([*words, "--data", "dtd"])[1], {})


def test_the_rows_of_an_earlier_default_source_stay_in_the_report(sweep_words, tmp_path):
    write_images(tmp_path / "stones", ["ore", "tin", "zinc"], 8, 7)
    assert sweep(*sweep_words("cross", data="plants,animals", methods="zeroshot")) == 0
    assert sweep(*sweep_words("cross", data="stones,plants", methods="zeroshot")) == 0
    assert [row.source for row in read_sweep(tmp_path / "s").transfers] == ["plants", "stones"]


def test_the_targets_of_a_run_are_tested_with_one_model(sweep_words, tmp_path, monkeypatch):
    """It is loaded once for them, and finds what it finds when it is loaded for each by ``rmadapter eval``."""
    write_images(tmp_path / "stones", ["ore", "tin", "zinc"], 8, 7)
    calls, real = [], loaded_model.load_backbone
    argv = sweep_words("cross", data="animals,plants,stones", methods="single", source="animals")
    with monkeypatch.context() as patch:
        patch.setattr(loaded_model, "load_backbone", lambda *a: calls.append(a) or real(*a))
        assert sweep(*argv) == 0
    assert len(calls) == 1
    run = tmp_path / "s" / "runs" / "single" / "animals" / "seed1"
    for target in ("plants", "stones"):
        found = json.loads((run / "on" / target / "results.json").read_text())
        options = ["--data", str(tmp_path / target), "--classes", "all", "--workers", "0", "--out", str(tmp_path / "e")]
        assert main(["eval", "--adapter", str(run / "run" / "adapter"), *options]) == 0
        alone = json.loads((tmp_path / "e" / "results.json").read_text())
        del found["seconds"], alone["seconds"]
        assert found == alone


@pytest.mark.parametrize(("source", "other"), [("plants", "emoji_food"), ("emoji_food@noto", "plants")])
def test_bundled_and_other_data_sets_are_each_looked_for_where_they_are(
    source, other, sweep_words, tmp_path, monkeypatch
):
    """As targets, of a source whose training is there; a bundled one is drawn in the style that names its folder."""
    asked = {}

    def run_eval(config, *_, data=None):
        asked[config.method, config.data] = (config.data_root, config.style)
        return {"accuracy": {}, "data_hash": ""}

    monkeypatch.setattr(one_run, "load_model", lambda _: "loaded")
    for module in (one_run, zeroshot_run):
        monkeypatch.setattr(module, "run_eval", run_eval)
    argv = sweep_words("cross", source=source)
    argv[argv.index("--data") + 1] = f"{source},{other},emoji_travel"
    _, planned = parse_sweep([*argv, "--data-root", str(tmp_path)])
    enter(planned)
    for run in planned.runs():
        if run.seed is not None:
            (planned.folder(run) / "run" / "adapter").mkdir(parents=True)
            (planned.folder(run) / "run" / "results.json").write_text("{}")
        make_run(planned, run)
    places = {"plants": (str(tmp_path), None), "emoji_food": (None, "fluent"), "emoji_travel": (None, "fluent")}
    for target in (other, "emoji_travel"):
        assert asked["adapter", target] == asked["zeroshot", target] == places[target]


def test_dry_run(sweep_words, tmp_path, capsys):
    argv = sweep_words(methods="zeroshot,single,linear-probe")
    assert sweep(*argv, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   open  single/plants/seed1: 1 steps, 8 test images" in out
    assert "   open  zeroshot/plants: 0 steps, 8 test images" in out
    assert "   open  linear-probe/plants/seed1: 0 steps, 4 test images" in out  # of the classes it is trained on
    assert "6 runs, 0 done; left: 2 steps, 40 test images" in out
    assert not (tmp_path / "s").exists()
    assert sweep(*sweep_words(data="animals")) == 0
    capsys.readouterr()
    assert sweep(*argv, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   done  single/animals/seed1" in out
    assert "6 runs, 2 done" in out
    assert "on one worker" in out
    assert "2 runs of methods without a finished one" in out


def test_a_dry_run_counts_what_is_left_of_a_run(sweep_words, tmp_path, capsys):
    """A new target is tested with the adapter that is there; without one it is trained and tested everywhere again."""
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    assert sweep(*sweep_words("cross", source="animals")) == 0
    more = sweep_words("cross", source="animals", data="animals,plants,stones")
    capsys.readouterr()
    assert sweep(*more, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   open  single/animals/seed1: 0 steps, 8 test images, 2 of 3 results are there\n" in out
    assert "2 runs, 0 done; left: 0 steps, 16 test images" in out
    assert sweep(*sweep_words("cross", source="animals"), "--keep", "results") == 0
    capsys.readouterr()
    assert sweep(*more, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "   open  single/animals/seed1: 1 steps, 24 test images\n" in out
    assert "2 runs, 0 done; left: 1 steps, 32 test images" in out


@pytest.mark.parametrize(
    ("protocol", "methods"),
    [
        pytest.param("base2new", "zeroshot,linear-probe,single", marks=pytest.mark.slow),
        ("cross", "zeroshot,single"),
    ],
)
def test_a_dry_run_counts_the_images_that_are_tested(protocol, methods, few_emoji, tmp_path, monkeypatch, capsys):
    """On the test bed, of whose test images those in the unseen style measure retention."""
    tested = []

    def encode(model, read, items, *_, **__):
        tested.append(len(items))
        return Encoded([], items, read, 0)

    def answers_of(model, encoded, text):
        logits = torch.zeros(len(encoded.items), len(model.class_names))
        return PartAnswers(logits, encoded.labels, model.class_names, encoded.items, encoded.read)

    monkeypatch.setattr(accuracies, "encode", encode)
    monkeypatch.setattr(accuracies, "answers_of", answers_of)
    argv = [protocol, "--data", "emoji_travel,emoji_objects", "--methods", methods, "--seeds", "1", "--shots", "1"]
    argv += ["--epochs", "1", "--out", str(tmp_path / "s")]
    assert sweep(*argv, "--dry-run") == 0
    out = capsys.readouterr().out
    assert sweep(*argv) == 0
    assert f"{sum(tested):,} test images\n" in out


def test_a_dry_run_refuses_what_the_sweep_would_and_writes_nothing(sweep_words, tmp_path, capsys):
    _, planned = parse_sweep(sweep_words(data="animals"))
    enter(planned)
    (tmp_path / "taken").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    before = files_of(tmp_path)
    cases = {
        "shots is 4, but the sweep in": sweep_words(data="plants", shots=4),
        "where a sweep base2new is": sweep_words("cross"),
        "a folder with other files in it (thesis.txt)": sweep_words(out="other"),
        "which is a file": sweep_words(out="taken"),
    }
    for message, argv in cases.items():
        for dry in (["--dry-run"], []):
            assert sweep(*argv, *dry) == 2
            assert message in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_where_a_run_is_computed_is_not_what_it_computes(sweep_words, tmp_path, capsys):
    _, planned = parse_sweep(sweep_words(data="animals", device="cuda:0"))
    enter(planned)
    others = {"device": "cuda:1", "cache_dir": str(tmp_path / "c"), "max_bad_steps": 1}
    _, planned = parse_sweep([*sweep_words(data="animals", **others), "--image_cache"])
    enter(planned)
    manifest = tmp_path / "s" / "sweep.json"
    values = json.loads(manifest.read_text())
    assert "device" not in values["settings"]
    assert "cache_limit" in values["settings"]  # where views are kept, their number depends on it
    # It may have been otherwise when the sweep began.
    manifest.write_text(json.dumps({**values, "settings": {**values["settings"], "device": "cuda:0"}}))
    enter(planned)


@pytest.mark.parametrize(
    ("protocol", "data", "line", "runs"),
    [
        slow("base2new", "testbed", "open  rmadapter/emoji_food@fluent/seed1: ", 18),
        ("base2new", "testbed,testbed@emojione", "open  rmadapter/emoji_food@emojione/seed1: ", 36),
        ("cross", "testbed@openmoji", "open  rmadapter/emoji_animals@openmoji/seed1: ", 3),
        slow("domain", "testbed", "open  rmadapter/emoji_animals@fluent/seed1: ", 18),
        ("domain", "testbed@noto", "open  rmadapter/emoji_travel@noto/seed1: ", 18),
        slow("ablation", "testbed-drawings@noto-v1", "open  rmadapter/drawings_food@noto-v1/seed1: ", 18),
        slow("domain", "testbed-drawings", "open  rmadapter/drawings_animals@fluent/seed1: ", 18),
    ],
)
def test_the_test_bed_has_a_name(protocol, data, line, runs, few_emoji, tmp_path, capsys):
    words = ["--data", data, "--methods", "zeroshot,mma,rmadapter", "--seeds", "1", "--out", str(tmp_path / "s")]
    assert sweep(protocol, *words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert line in out
    assert f"{runs} runs, 0 done" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        ("base2new", "drawings_activities"),
        ("cross", "drawings_activities@emojione,drawings_food"),
        ("domain", "drawings_activities@fluent,drawings_activities@twemoji"),
    ],
)
def test_protocols_on_several_drawings(protocol, data, tmp_path, capsys):
    """Trained for a moment and reported, class by class."""
    argv = ["--data", data, "--methods", "zeroshot,single,rmadapter", "--seeds", "1", "--shots", "2", "--epochs", "1"]
    assert sweep(protocol, *argv, "--keep", "results", "--out", str(tmp_path / "s")) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "s")]) == 0
    text = (tmp_path / "s" / "report" / "report.md").read_text()
    assert "rmadapter - single" in text
    assert "## Paired differences on these data sets alone" in text
    differences = (tmp_path / "s" / "report" / "differences.csv").read_text().splitlines()
    found = [dict(zip(differences[0].split(","), line.split(","), strict=True)) for line in differences[1:]]
    assert all(
        abs(float(line["mean"]) - float(line["mean_of_classes"])) < 1e-4 for line in found if line["part"] != "hm"
    )


@pytest.mark.slow
def test_domain_on_the_test_bed(tmp_path, capsys):
    argv = ["--data", "emoji_travel@fluent,emoji_travel@openmoji", "--methods", "zeroshot,single", "--seeds", "1"]
    argv += ["--shots", "1", "--epochs", "1", "--out", str(tmp_path / "s")]
    assert sweep("domain", *argv) == 0
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "## Trained on emoji_travel@fluent" in out
    assert "emoji_travel@openmoji" in out
    folder = tmp_path / "s" / "runs" / "single" / "emoji_travel@fluent" / "seed1"
    found = json.loads((folder / "on" / "emoji_travel@openmoji" / "results.json").read_text())
    assert found["style"] == "openmoji"
    assert (found["trained_on"]["data"], found["trained_on"]["style"]) == ("emoji_travel", "fluent")
    assert sweep("base2new", *argv[:1], "emoji_travel", *argv[2:-1], str(tmp_path / "b")) == 0
    assert main(["report", str(tmp_path / "b"), "--out", str(tmp_path / "report")]) == 0
    assert "## emoji_travel@fluent" in (text := capsys.readouterr().out)
    assert "retained new" in text


def test_what_a_configuration_file_says_of_what_the_sweep_decides_is_passed_over(sweep_words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: x\nstyle: noto\nseed: 7\nout: {tmp_path / 'x'}\nresume: true\nexplain: true\nevaluate: false\n"
    )
    assert sweep(*sweep_words(data="animals", config=file)) == 0
    assert not (tmp_path / "x").exists()
    (single,) = (found for name, found in results_of(tmp_path / "s").items() if "single/animals/seed1" in name)
    assert set(single[0]) == {"base", "new", "hm"}
    file.write_text("overwrite: true\nresume: false\n")
    assert sweep(*sweep_words(data="animals", config=file)) == 0
    file.write_text("style: noto\n")
    _, planned = parse_sweep(["base2new", "--data", "emoji_food", "--config", str(file)])
    assert {planned.config(run).style for run in planned.runs()} == {"fluent"}  # as its folder's name says


def test_mistakes(sweep_words, tmp_path, capsys):
    assert sweep(*sweep_words(data="animals")) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("")
    cases = {
        "protocol is 'base2old'": sweep_words("base2old"),
        "sweep takes one protocol": sweep_words()[1:],
        "methods is 'mmaa'": sweep_words(methods="mmaa"),
        "seeds has 'x'": sweep_words(seeds="1,x"),
        "jobs is 0": sweep_words(jobs=0),
        "unknown option '--shotz'; did you mean '--shots'": [*sweep_words(), "--shotz", "3"],
        "option '--seed' is decided by this command": sweep_words(seed=3),
        "option '--no-evaluate' is decided by this command": [*sweep_words(), "--no-evaluate"],
        "option '--explain' is decided by this command": [*sweep_words(), "--explain"],
        "shots is 0": sweep_words(shots=0),
        "pretrained is None, which is random weights for ViT-B-16; valid: --pretrained one of": sweep_words(
            model="ViT-B-16"
        ),
        "model is 'ViT-B-17', which open_clip does not know; did you mean 'ViT-B-1": sweep_words(model="ViT-B-17"),
        "nowhere": sweep_words(data="nowhere"),
        "style is 'notto'; valid: ": ["base2new", "--data", "testbed@notto"],
        "style is 'noto-v1'; valid: ": ["base2new", "--data", "testbed@noto-v1"],
        "data has 'emoji_food@fluent' twice": ["base2new", "--data", "emoji_food,emoji_food@fluent"],
        "keep is 'all'; valid: ": sweep_words(keep="all"),
        "where a sweep base2new is": sweep_words("cross"),
        "shots is 3, but the sweep in": sweep_words(data="animals", shots=3),
        "lr is 0.5, but the sweep in": sweep_words(data="animals", lr=0.5),
        "a folder with other files in it (thesis.txt)": sweep_words(out="other"),
        "option --shots needs a value": [*sweep_words(), "--shots"],
    }
    for message, argv in cases.items():
        assert sweep(*argv) == 2, argv
        assert message in capsys.readouterr().err
    manifest = tmp_path / "s" / "sweep.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    assert sweep(*sweep_words(data="animals")) == 2
    assert "was made by another version (format 0, this one has 1)" in capsys.readouterr().err


def files_of(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
