"""Training that a sweep takes over from another one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import write_images
from small_sweeps import kept_of, results_of, sweep

from rmadapter.runtime import resolve_precision
from rmadapter.sweeps import one_run, taken_over
from rmadapter.sweeps.manifest import enter
from rmadapter.sweeps.one_run import make_run
from rmadapter.sweeps.settings import parse_sweep

# Another than auto would be here.
PRECISION = "fp32" if resolve_precision("auto", torch.device("cpu")) == "bf16" else "bf16"
RUN = "runs/single/animals/seed1"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the one sweep is made that ``cross`` copies."""
    return tmp_path_factory.mktemp("kept") / "cross"


@pytest.fixture
def cross(sweep_words, tmp_path, kept):
    """A finished sweep ``cross`` from animals to plants."""
    if not kept.exists():
        assert sweep(*sweep_words("cross", out=kept, source=str(tmp_path / "animals"), precision=PRECISION)) == 0
    write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    return shutil.copytree(kept, tmp_path / "cross")


@pytest.fixture
def domain(sweep_words, tmp_path):
    """Makes the words of a sweep ``domain`` from animals to stones."""

    def make(*more, out="d", **options):
        words = sweep_words("domain", out=out, data="animals,stones", source=str(tmp_path / "animals"), **options)
        return [*words, *map(str, more)]

    return make


@pytest.fixture
def trained(monkeypatch):
    """What is trained, or tested as zero-shot CLIP, from here on."""
    found, real = [], one_run.train_method
    monkeypatch.setattr(one_run, "train_method", lambda *a, **k: found.append(a[0].name) or real(*a, **k))
    return found


def test_a_domain_sweep_takes_what_a_cross_sweep_has_trained(cross, domain, trained, tmp_path, capsys):
    assert sweep(*domain(out="alone", precision=PRECISION)) == 0
    trained.clear()
    words = domain("--trained-in", cross)
    capsys.readouterr()
    assert sweep(*words, "--dry-run") == 0
    listed = capsys.readouterr().out
    assert f"single/animals/seed1: 0 steps, 8 test images, trained in {cross}" in listed
    assert not (tmp_path / "d").exists()
    assert sweep(*words) == 0
    assert set(trained) == {"zeroshot"}
    assert results_of(tmp_path / "d") == results_of(tmp_path / "alone")
    assert "where it was trained" in (tmp_path / "d" / RUN / "log.txt").read_text()
    assert json.loads((tmp_path / "d/sweep.json").read_text())["settings"]["precision"] == PRECISION


def test_a_run_that_the_other_does_not_have_is_trained(cross, domain, trained, tmp_path):
    assert sweep(*domain("--trained-in", cross, seeds="1,2", methods="single")) == 0
    assert trained == ["single"]
    assert sweep(*domain(out="alone", seeds="1,2", methods="single", precision=PRECISION)) == 0
    assert results_of(tmp_path / "d") == results_of(tmp_path / "alone")


def test_ablation_takes_from_base_to_new(sweep_words, tmp_path, trained):
    assert sweep(*sweep_words(out="b", methods="single")) == 0
    trained.clear()
    assert sweep(*sweep_words("ablation", methods="single"), "--trained-in", str(tmp_path / "b")) == 0
    assert trained == []
    assert results_of(tmp_path / "s") == results_of(tmp_path / "b")


def _without_weights(cross):
    (cross / RUN / "run/adapter/adapter.safetensors").unlink()


def _in_its_table(cross):
    line = {"format": 1, "run": "single/animals/seed1", "on": None, "commit": None}
    line |= json.loads((cross / RUN / "run/results.json").read_text())
    (cross / "results.jsonl").write_text(json.dumps(line) + "\n")


def _of_another_rate(cross):
    file = cross / RUN / "run/config.yaml"
    lines = file.read_text().splitlines()
    assert any(line.startswith("lr: ") for line in lines)
    file.write_text("\n".join("lr: 0.5" if line.startswith("lr: ") else line for line in lines))


@pytest.mark.parametrize("change", [_without_weights, _in_its_table, _of_another_rate])
def test_one_that_is_not_whole_or_another_is_trained(change, cross, domain, trained, tmp_path, capsys):
    change(cross)
    words = domain("--trained-in", cross, "--keep", "results", methods="single")
    assert sweep(*words, "--dry-run") == 0
    assert "trained in" not in capsys.readouterr().out
    assert sweep(*words) == 0
    assert trained == ["single"]
    assert set(kept_of(tmp_path / "d")) == {f"{RUN}/run/results.json", f"{RUN}/on/stones/results.json"}


def test_one_that_is_deleted_while_it_is_copied_is_trained(cross, domain, trained, monkeypatch):
    real = shutil.copytree

    def cut_short(source, target, *more):
        (cross / RUN / "run/adapter/adapter.safetensors").unlink(missing_ok=True)
        real(source, target, *more)

    monkeypatch.setattr(taken_over.shutil, "copytree", cut_short)
    assert sweep(*domain("--trained-in", cross, methods="single")) == 0
    assert trained == ["single"]


def test_what_a_killed_copy_left_is_not_taken_for_a_run(cross, domain, tmp_path):
    left = tmp_path / "d" / RUN / ".taken-over"
    words = domain("--trained-in", cross)
    assert sweep(*domain("--trained-in", cross, methods="zeroshot")) == 0
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("half")
    assert sweep(*words) == 0
    assert not left.exists()
    assert (tmp_path / "d" / RUN / "run/config.yaml").read_text() != "half"


def test_what_was_begun_here_is_gone_on_with(cross, domain, trained, tmp_path, monkeypatch, capsys):
    words = domain("--trained-in", cross, methods="single")
    with monkeypatch.context() as patch:
        patch.setattr(taken_over, "is_taken", lambda *a: False)
        patch.setattr(one_run, "train_method", lambda *a, **k: (tmp_path / "d" / RUN / "run").mkdir() or 1 / 0)
        assert sweep(*words) == 1
    capsys.readouterr()
    assert sweep(*words, "--dry-run") == 0
    assert "trained in" not in capsys.readouterr().out
    assert sweep(*words) == 0
    assert trained == ["single"]


def test_an_entered_sweep_of_precision_auto_takes_the_other_s(cross, domain, tmp_path):
    enter(parse_sweep(domain(methods="single"))[1])
    assert sweep(*domain("--trained-in", cross, methods="single")) == 0
    for on in ("run", "on/stones"):
        assert json.loads((tmp_path / "d" / RUN / on / "results.json").read_text())["precision"] == PRECISION


def test_a_scheduler_s_task_takes_nothing_of_another_protocol(cross, sweep_words, trained):
    _, planned = parse_sweep([*sweep_words(methods="single", precision=PRECISION), "--trained-in", str(cross)])
    enter(planned)
    results = make_run(planned, planned.runs()[0])
    assert trained == ["single"]
    assert set(results["accuracy"]) == {"base", "new", "hm"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained-in": "nowhere"}, "where no sweep.json is; valid: the folder of a sweep"),
        ({"trained-in": "d"}, "the sweep itself"),
        ({"out": "e", "shots": "1"}, "shots is 1, but the sweep in"),
    ],
)
def test_mistakes(options, message, cross, domain, tmp_path, capsys):
    assert sweep(*domain(methods="zeroshot")) == 0
    capsys.readouterr()
    other = tmp_path / options.pop("trained-in", "cross")
    assert sweep(*domain("--trained-in", other, **options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_another_protocol_precision_or_data_are_refused(cross, sweep_words, domain, tmp_path, capsys):
    assert sweep(*sweep_words("base2new", out="b"), "--trained-in", str(cross)) == 2
    said = capsys.readouterr().err
    assert "a sweep cross, which trains otherwise than base2new; valid: one of base2new, ablation" in said
    assert sweep(*domain(methods="zeroshot")) == 0
    capsys.readouterr()
    assert sweep(*domain("--trained-in", cross)) == 2
    assert f"in {tmp_path / 'd'}, but the sweep in {cross} has {PRECISION!r}" in capsys.readouterr().err
    manifest = json.loads((cross / "sweep.json").read_text())
    manifest["data_hashes"]["animals"] = "0" * 64
    (cross / "sweep.json").write_text(json.dumps(manifest))
    assert sweep(*domain("--trained-in", cross, out="e")) == 2
    assert f"the sweep in {cross} took it up" in capsys.readouterr().err
