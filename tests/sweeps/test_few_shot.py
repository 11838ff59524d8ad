"""The few-shot protocol: its runs, their recipes, a sweep of several numbers of shots, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_sweeps import results_of, sweep

from rmadapter.cli import main
from rmadapter.data.catalog import FIELD
from rmadapter.errors import InputError
from rmadapter.methods import PAPER_TABLE
from rmadapter.sweeps.protocols import PlannedRun, default_data, default_methods, plan, run_config, sources_of
from rmadapter.sweeps.settings import parse_sweep, shots_list


def test_the_runs():
    runs = plan("fewshot", ["dtd", "eurosat"], ["zeroshot", "coop", "taskres"], [1, 2], shots=[1, 4])
    assert len(runs) == 2 + 2 * 2 * 2 * 2
    assert [run.key for run in runs[:6]] == [
        "zeroshot/dtd",
        "coop/dtd/shots1/seed1",
        "taskres/dtd/shots1/seed1",
        "coop/dtd/shots4/seed1",
        "taskres/dtd/shots4/seed1",
        "zeroshot/eurosat",
    ]
    assert {run.targets for run in runs} == {()}
    assert {run.shots for run in plan("fewshot", ["dtd"], ["coop"], [1])} == {1, 2, 4, 8, 16}
    # Elsewhere the number of shots is an option of every run.
    assert {run.shots for run in plan("base2new", ["dtd"], ["coop"], [1])} == {None}


def test_the_published_table():
    assert default_data("fewshot") == FIELD
    assert default_methods("fewshot") == PAPER_TABLE
    assert sources_of("fewshot", FIELD) == ()
    _, made = parse_sweep(["fewshot", "--model", "ViT-B-16", "--pretrained", "openai"])
    assert made.shots == (1, 2, 4, 8, 16)
    assert len(made.runs()) == 11 + 11 * 9 * 5 * 3
    assert "shots" not in made.settings()


def test_the_configuration_of_a_run():
    """The protocol's recipe by data set and shots; the user's options win, but for the number of shots."""
    out = Path("out")
    config = run_config("fewshot", PlannedRun("coop", "dtd", 2, shots=4), [], "root", out)
    assert (config.data, config.data_root, config.classes, config.shots, config.seed) == ("dtd", "root", "all", 4, 2)
    assert (config.epochs, config.prompt.text_tokens, config.prompt.init) == (100, 16, "random")
    config = run_config("fewshot", PlannedRun("coop", "dtd", 2, shots=16), ["--epochs", "7"], None, out)
    assert (config.shots, config.epochs) == (16, 7)
    config = run_config("fewshot", PlannedRun("promptsrc", "/data/eurosat", 1, shots=1), [], None, out)
    assert (config.epochs, config.average, config.prompt.text_depth) == (50, "45,5", 9)
    # Not what is published for ImageNet to test on other data sets.
    config = run_config("fewshot", PlannedRun("rmadapter", "imagenet", 1, shots=1), [], None, out)
    assert (config.epochs, config.batch_size, config.adapter.layers) == (5, 128, "last:2/3")
    config = run_config("base2new", PlannedRun("coop", "dtd", 2), ["--shots", "4"], None, out)
    assert (config.epochs, config.prompt.text_tokens, config.classes) == (200, 4, "base")


def test_a_sweep_its_report_and_more_shots(sweep_words, tmp_path, capsys):
    def words(shots):
        return sweep_words("fewshot", methods="zeroshot,single,taskres,linear-probe", shots=shots)

    assert sweep(*words("1,2"), "--dry-run") == 0
    listed = capsys.readouterr().out
    assert "single/animals/shots1/seed1: 1 steps" in listed
    assert "14 runs, 0 done" in listed
    assert sweep(*words("1,2")) == 0
    found = results_of(tmp_path / "s")
    assert len(found) == 2 + 2 * 2 * 3
    for name, (accuracy, images, _) in found.items():
        assert set(accuracy) == {"all"}, name
        assert images == {"all": 8}
    run = tmp_path / "s" / "runs" / "taskres" / "animals" / "shots2" / "seed1" / "run"
    values = json.loads((run / "results.json").read_text())
    assert (values["shots"], values["classes"], values["method"]) == (2, "all", "taskres")
    assert len(json.loads((run / "few_shot.json").read_text())["train"]) == 2 * 4
    before = {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in found}
    capsys.readouterr()
    assert sweep(*words("4")) == 0
    assert "8 runs in" in capsys.readouterr().out
    assert {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in found} == before
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["shots"] == [1, 2, 4]
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert "1, 2, 4 shots; 20 of 20 runs done" in text
    heading = next(line for line in text.splitlines() if line.startswith("| method"))
    names = ["method", "data sets", "seeds", "zero-shot", "1 shot", "2 shots", "4 shots"]
    assert [cell.strip() for cell in heading.strip("|").split("|")] == names
    assert sweep(*words("4"), "--lr", "0.5") == 2
    assert "lr is 0.5, but the sweep in" in capsys.readouterr().err


def test_results_alone_are_kept(sweep_words, tmp_path, capsys):
    words = sweep_words("fewshot", methods="zeroshot,single", shots="1,2", data="animals")
    assert sweep(*words, "--keep", "results") == 0
    assert not (tmp_path / "s" / "runs").exists()
    lines = [json.loads(line) for line in (tmp_path / "s" / "results.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {
        "zeroshot/animals",
        "single/animals/shots1/seed1",
        "single/animals/shots2/seed1",
    }
    capsys.readouterr()
    assert sweep(*words, "--keep", "results") == 0
    assert "3 done, 0 failed, 0 running, 0 open" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": "1,x"}, "shots has 'x'; valid: numbers from 1, such as 1,2,4,8,16"),
        ({"shots": "0,1"}, "shots is 0; valid: a number >= 1"),
        ({"shots": "-1"}, "shots has '-1'; valid: numbers from 1"),
        ({"shots": ","}, "shots is ','; valid: numbers from 1"),
        ({"shots": "2,1,2"}, "shots has 2 twice; valid: each once"),
        ({"source": "animals"}, "but fewshot has none; valid: with cross and domain"),
    ],
)
def test_mistakes(changes, message, sweep_words, tmp_path, capsys):
    assert sweep(*sweep_words("fewshot", **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_shots_that_no_class_has_are_refused_and_fewer_of_some_are_said(sweep_words, tmp_path, capsys):
    def words(protocol, **options):
        return [*sweep_words(protocol, data="animals", methods="zeroshot,single", **options), "--dry-run"]

    for image in range(10, 14):  # 12 of one class, 8 of the others; half are for training
        shutil.copy(tmp_path / "animals" / "ant" / "00.png", tmp_path / "animals" / "ant" / f"{image}.png")
    assert sweep(*words("fewshot", shots="1,6,7")) == 2
    said = "shots has 7, but no class of animals has more than 6 training images; valid: numbers from 1 to 6"
    assert said in capsys.readouterr().err
    assert sweep(*words("fewshot", shots="4,6")) == 0
    out = capsys.readouterr().out
    assert "single/animals/shots4/seed1: 1 steps, 10 test images\n" in out
    assert "single/animals/shots6/seed1: 2 steps, 10 test images, fewer than 6 images of 3 of 4 classes\n" in out
    assert sweep(*words("base2new", shots="16")) == 0  # an option of the runs, as in train
    assert "fewer than 16 images of 2 of 2 classes\n" in capsys.readouterr().out


def test_several_numbers_of_shots_are_the_few_shot_protocol_s(sweep_words, capsys):
    assert sweep(*sweep_words("base2new", shots="1,2")) == 2
    assert "shots" in capsys.readouterr().err


def test_more_shots_than_a_data_set_has_are_refused_before_any_run(tmp_path, capsys):
    words = ["fewshot", "--data", "emoji_food", "--methods", "zeroshot,single", "--out", str(tmp_path / "s")]
    assert sweep(*words, "--shots", "16,33") == 2
    assert "shots is 33; valid: a number >= 1 and <= 32" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_test_only_data_sets_are_refused():
    with pytest.raises(InputError, match="'imagenet_a', which is for testing only; valid with fewshot"):
        plan("fewshot", ["imagenet_a"], ["coop"], [1])
    assert shots_list(" 1, 16 ") == [1, 16]
