"""The linear probe: what it knows, its file, and its fit against scikit-learn's."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import write_images
from method_runs import TRAINING
from torch.nn import functional as F

from rmadapter.cli import main
from rmadapter.data import base_new_names
from rmadapter.training.probe_fit import DEFAULT_C, choose, fit
from rmadapter.tuners.probe import LinearProbe


class TestLinearProbe:
    def test_it_learns(self, trained):
        results = json.loads((trained("linear-probe") / "results.json").read_text())
        assert results["accuracy"]["base"] >= 90
        assert results["trained_parameters"] == 2 * 33

    def test_it_knows_only_what_it_was_trained_on(self, trained, animals, tmp_path, capsys):
        adapter = ["--adapter", str(trained("linear-probe") / "adapter")]
        image = str(animals / "ant" / "00.png")
        others = str(write_images(tmp_path / "others", ["cow", "dog"], 4))
        for argv, message in {
            ("eval", "--classes", "new"): "classes is 'new', but the linear probe knows one half alone; valid: base",
            ("eval", "--classes", "all"): "classes is 'all', but the linear probe knows one half alone; valid: base",
            ("eval", "--data", others): "was not trained on class 'cow'",
            ("eval", "--classes", "base_new"): "knows one half alone",
            ("eval", "--method", "zeroshot"): "holds a linear probe; valid: without --adapter",
            ("eval", "--template", "a {}"): "template is 'a {}', but a linear probe has no prompts",
            ("predict", image, "--template", "a {}"): "template is 'a {}', but a linear probe has no prompts",
            ("predict", image, "--classes", "ant,cow"): "some of them; in eval and predict also --unknown zeroshot",
        }.items():
            data = ["--data", str(animals), "--workers", "0"] if argv[0] == "eval" else []
            assert main([argv[0], *adapter, *data, *argv[1:]]) == 2
            assert message in capsys.readouterr().err

    def test_it_is_trained_on_the_images_of_the_others_where_some_cannot_be_read(self, clip_folder, images, tmp_path):
        options = ["--data", str(images), "--model", f"local-dir:{clip_folder}", "--workers", "0"]
        for number in (1, 4, 6):
            (images / "ant" / f"{number:02}.png").write_bytes(b"no image")
        hashes = set()
        for name in ("linear-probe", "single"):
            out = tmp_path / name
            assert main(["train", "--method", name, *options, *TRAINING, "--skip-bad-images", "--out", str(out)]) == 0
            hashes.add(json.loads((out / "results.json").read_text())["few_shot_hash"])
        assert len(hashes) == 1

    def test_classes_of_one_name_are_kept_apart(self, clip, tokenizer):
        """The two cranes lie in different halves."""
        weight, bias = torch.randn(5, 32), torch.zeros(5)
        names = ["ant", "crane", "heron", "crane", "digger"]
        probe = LinearProbe(clip, tokenizer, names, "{}", weight, bias)
        for part, rows in {"all": [0, 1, 2, 3, 4], "base": [0, 1, 2], "new": [3, 4]}.items():
            probe.set_classes(base_new_names(names, part), "{}")
            assert torch.equal(probe.text_features(), weight[rows])
        probe.set_classes(["heron", "ant"], "{}")
        assert torch.equal(probe.text_features(), weight[[2, 0]])

    def test_evaluation_needs_a_data_set(self, copied, monkeypatch, capsys):
        monkeypatch.chdir(copied("linear-probe").parent)
        assert main(["eval", "--adapter", "run/adapter", "--classes", "base"]) == 2
        assert "data is missing, and the adapter was trained on 'animals'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "linear_probe.safetensors").write_bytes(b"x"), "is damaged"),
            (lambda f: (f / "linear_probe.safetensors").unlink(), "is damaged"),
            (lambda f: edit(f, format=9), "format 9, newer than 2"),
            (lambda f: edit(f, format=1), "format 1, which does not say all that 2 does"),
            (lambda f: edit(f, class_names=["a"]), "weight has shape [2, 32], and there are 1 class names"),
            (lambda f: edit(f, weights_sha256="0"), "is not the file that"),
            (lambda f: edit(f, without="training"), "linear probe lacks field 'training'"),
            (lambda f: edit(f, source=3), "linear probe.source is 3; valid: an object or null"),
            (lambda f: edit(f, template=None), "linear probe.template is None; valid: text"),
        ],
    )
    def test_damaged_files(self, copied, animals, capsys, spoil, message):
        folder = copied("linear-probe") / "adapter"
        spoil(folder)
        adapter = ["--adapter", str(folder)]
        assert main(["eval", *adapter, "--data", str(animals), "--classes", "base", "--workers", "0"]) == 2
        assert message in capsys.readouterr().err

    def test_the_fit_is_scikit_learn_s(self):
        from sklearn.linear_model import LogisticRegression

        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(60) % 3
        features = F.normalize(torch.randn(60, 8, generator=generator) + 2 * F.one_hot(labels, 8), dim=-1)
        theirs = LogisticRegression(C=30.0, tol=1e-8, max_iter=1000).fit(features.numpy(), labels.numpy())
        ours = fit(features, labels, 3, 30.0).float()
        # The classes' common shift is free in both: compare what is left without it.
        bias = ours[:, -1] - ours[:, -1].mean()
        assert torch.allclose(ours[:, :-1], torch.from_numpy(theirs.coef_), atol=2e-3)
        assert torch.allclose(bias, torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean()), atol=2e-3)

    def test_the_penalty_is_chosen_on_validation_images(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40) % 2
        features = F.normalize(torch.randn(40, 8, generator=generator) + F.one_hot(labels, 8), dim=-1)
        assert choose((features, labels), None, 2)[1] == DEFAULT_C
        held_out = F.normalize(torch.randn(40, 8, generator=generator) + F.one_hot(labels, 8), dim=-1)
        solution, inverse_penalty = choose((features, labels), (held_out, labels), 2)
        accuracy = ((held_out.double() @ solution[:, :-1].T + solution[:, -1]).argmax(-1) == labels).sum()
        for other in (0.1, 1e5):
            weights = fit(features, labels, 2, other)
            assert accuracy >= ((held_out.double() @ weights[:, :-1].T + weights[:, -1]).argmax(-1) == labels).sum()
        assert inverse_penalty <= 1e5


def edit(folder, without=None, **values):
    path = folder / "linear_probe.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != without}
    path.write_text(json.dumps({**kept, **values}))
