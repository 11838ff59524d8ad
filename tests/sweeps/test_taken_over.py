"""Training that a sweep takes over from another one."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_images
from small_sweeps import kept_of, results_of, sweep

from rmadapter.sweeps import one_run


@pytest.fixture
def cross(sweep_words, tmp_path):
    """A finished sweep ``cross`` from animals to plants, in fp32."""
    assert sweep(*sweep_words("cross", out="cross", source=str(tmp_path / "animals"), precision="fp32")) == 0
    return tmp_path / "cross"


def _domain(sweep_words, tmp_path, out, data="animals,stones", *more, **options):
    if not (tmp_path / "stones").exists():
        write_images(tmp_path / "stones", ["ant", "bee", "cat", "dog"], 8, 7)
    return sweep(*sweep_words("domain", out=out, data=data, source=str(tmp_path / "animals"), **options), *more)


def test_a_domain_sweep_takes_what_a_cross_sweep_has_trained(cross, sweep_words, tmp_path, monkeypatch, capsys):
    assert _domain(sweep_words, tmp_path, "alone", precision="fp32") == 0
    trained, real = [], one_run.train_method
    monkeypatch.setattr(one_run, "train_method", lambda *a, **k: trained.append(a[1].data) or real(*a, **k))
    capsys.readouterr()
    words = ("--trained-in", str(cross))
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words, "--dry-run") == 0
    listed = capsys.readouterr().out
    assert f"single/animals/seed1: 0 steps, 8 test images, trained in {cross}" in listed
    assert "left: 0 steps" in listed
    assert not (tmp_path / "d").exists()
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words) == 0
    assert trained == [str(tmp_path / "stones")]  # zero-shot on the target, which trains nothing
    assert results_of(tmp_path / "d") == results_of(tmp_path / "alone")
    assert "and taken over from there" in (tmp_path / "d/runs/single/animals/seed1/log.txt").read_text()


def test_a_run_that_the_other_does_not_have_is_trained(cross, sweep_words, tmp_path):
    assert _domain(sweep_words, tmp_path, "alone", seeds="1,2", precision="fp32") == 0
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", "--trained-in", str(cross), seeds="1,2") == 0
    assert results_of(tmp_path / "d") == results_of(tmp_path / "alone")


def test_a_run_without_its_adapter_is_trained_and_one_begun_goes_on(cross, sweep_words, tmp_path, monkeypatch):
    shutil.rmtree(cross / "runs/single/animals/seed1/run/adapter")
    trained, real = [], one_run.train_method
    monkeypatch.setattr(one_run, "train_method", lambda *a, **k: trained.append(a[1].data) or real(*a, **k))
    words = ("--trained-in", str(cross), "--keep", "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_run, "run_eval", lambda *a: 1 / 0)  # what is trained stays, its target fails
        assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words, methods="single") == 1
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words, methods="single") == 0
    assert len(trained) == 1
    run = "runs/single/animals/seed1"
    assert set(kept_of(tmp_path / "d")) == {f"{run}/run/results.json", f"{run}/on/stones/results.json"}


def test_what_a_killed_copy_left_is_not_taken_for_a_run(cross, sweep_words, tmp_path):
    left = tmp_path / "d/runs/single/animals/seed1/.taken-over"
    words = ("--trained-in", str(cross))
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words, methods="zeroshot") == 0
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("half")
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words) == 0
    assert not left.exists()
    assert (tmp_path / "d/runs/single/animals/seed1/run/config.yaml").read_text() != "half"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained-in": "nowhere"}, "where no sweep.json is; valid: the folder of a sweep"),
        ({"trained-in": "d"}, "the sweep itself"),
        ({"shots": "1"}, "shots is 1, but the sweep in"),
        ({"precision": "bf16"}, "precision is 'bf16', but the sweep in"),
    ],
)
def test_mistakes(change, message, cross, sweep_words, tmp_path, capsys):
    assert _domain(sweep_words, tmp_path, "d", methods="zeroshot", precision="fp32") == 0
    capsys.readouterr()
    other = tmp_path / change.pop("trained-in", "cross")
    out = "e" if change else "d"
    assert _domain(sweep_words, tmp_path, out, "animals,stones", "--trained-in", str(other), **change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_another_protocol_precision_or_data_are_refused(cross, sweep_words, tmp_path, capsys):
    words = ("--trained-in", str(cross))
    assert sweep(*sweep_words("base2new", out="b"), *words) == 2
    said = capsys.readouterr().err
    assert "a sweep cross, which trains otherwise than base2new; valid: one of base2new, ablation" in said
    manifest = json.loads((cross / "sweep.json").read_text())
    assert _domain(sweep_words, tmp_path, "d", methods="zeroshot", precision="fp32") == 0
    ours = manifest["settings"]["precision"]
    manifest["settings"]["precision"] = "fp16"
    (cross / "sweep.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert _domain(sweep_words, tmp_path, "d", "animals,stones", *words) == 2
    assert f"precision is {ours!r} in {tmp_path / 'd'}, but the sweep in {cross} has 'fp16'" in capsys.readouterr().err
    manifest["settings"]["precision"] = ours
    manifest["data_hashes"]["animals"] = "0" * 64
    (cross / "sweep.json").write_text(json.dumps(manifest))
    assert _domain(sweep_words, tmp_path, "e", "animals,stones", *words) == 2
    assert f"the sweep in {cross} took it up" in capsys.readouterr().err
