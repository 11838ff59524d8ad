"""``rmadapter predict --compile``: when the image tower is compiled, the same answers, what stands in for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import small_clip

from rmadapter import RMAdapterConfig, inject
from rmadapter.cli import main
from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.evaluation import compiled_images as compiled
from rmadapter.evaluation.compiled_images import CompiledImages, compiled_images, pays
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.encoders import Encoders

NAMES = ["ant", "bee", "cat", "dog"]


def classifier(backbone, adapted, encoders=True):
    """Of the small CLIP, or with an adapter whose weights are no zeros."""
    if not adapted:
        return CLIPClassifier(backbone.clip, backbone.tokenizer, NAMES).eval()
    model = inject(backbone.clip, RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10)
    ran_by = Encoders.of(model) if encoders else None
    return AdaptedClassifier(model, backbone.tokenizer, NAMES, encoders=ran_by).eval()


@pytest.fixture
def emoji():
    return load_backbone("emoji-clip")


@pytest.fixture
def graphs(monkeypatch):
    """Graphs run as they were traced, without a compiler; all of them."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(compiled, "compiler_obstacle", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, **{"backend": backend, **options}))
    torch._dynamo.reset()
    return found


@pytest.fixture
def predict(clip_folder, animals, capsys):
    """``rmadapter predict`` on 40 images among the four names; its records and what it says on standard error."""

    def run(*words):
        argv = [
            "predict",
            str(animals),
            "--json",
            "--workers",
            "0",
            "--classes",
            ",".join(NAMES),
            "--precision",
            "fp32",
        ]
        assert main([*argv, "--model", f"local-dir:{clip_folder}", *words]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return run


class TestWhenItPays:
    def test_from_a_number_of_images_on_by_the_size_of_the_model(self, emoji):
        clip = emoji.clip.bfloat16()
        blocks = clip.visual.transformer.resblocks
        first = -(-compiled.BREAK_EVEN // (17 * 12 * blocks[0].ln_1.weight.numel() ** 2))
        assert not pays(clip, first - 1)
        assert pays(clip, first)

    def test_of_vit_b_16_it_is_what_was_measured(self):
        tower = {"image_size": 224, "layers": 1, "width": 768, "head_width": 64, "patch_size": 16}
        clip = small_clip(vision_cfg=tower).bfloat16()
        assert not pays(clip, 1499)
        assert pays(clip, 1500)

    def test_only_where_it_was_measured_and_of_a_tower_with_blocks(self, clip):
        many = 10**9
        assert not pays(clip, many)
        assert pays(clip.bfloat16(), many)
        on_gpu = SimpleNamespace(logit_scale=SimpleNamespace(device=torch.device("cuda", 0)))
        assert not pays(on_gpu, many)
        resnet = small_clip(vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None})
        assert not pays(resnet.bfloat16(), many)

    @pytest.mark.parametrize(
        ("wanted", "images", "expected"),
        [("auto", 39, None), ("auto", 40, 32), ("no", 40, None), ("yes", 5, 5), ("yes", 0, None)],
    )
    def test_what_is_asked_for(self, clip, tokenizer, monkeypatch, wanted, images, expected):
        monkeypatch.setattr(compiled, "pays", lambda clip, images: images >= 40)
        monkeypatch.setattr(compiled, "compiler_obstacle", lambda device: None)
        monkeypatch.setattr(compiled, "CompiledImages", lambda model, rows, size: rows)
        assert compiled_images(wanted, CLIPClassifier(clip, tokenizer, NAMES), images, 32, 32) == expected


class TestAnswers:
    @pytest.mark.parametrize("kind", ["without an adapter", "with one", "with one by hooks"])
    def test_one_graph_for_batches_of_all_sizes(self, emoji, graphs, kind):
        model = classifier(emoji, kind != "without an adapter", encoders=kind == "with one")
        size = emoji.preprocessing.size
        encode = CompiledImages(model, 4, size)
        for count in (4, 1, 3, 4):
            images = torch.randn(count, 3, size, size)
            with torch.no_grad():
                expected = model.image_features(images)
            torch.testing.assert_close(encode(images), expected, rtol=1e-5, atol=1e-5)
        (graph,) = graphs
        operators = [node for node in graph.graph.nodes if "rmadapter" in str(node.target)]
        assert bool(operators) == (kind != "without an adapter")

    @pytest.mark.slow
    @pytest.mark.parametrize("adapted", [False, True])
    def test_compiled_code_gives_the_same(self, emoji, adapted):
        """Inductor with the weights as constants; each takes half a minute."""
        torch._dynamo.reset()
        model, size = classifier(emoji, adapted), emoji.preprocessing.size
        encode = CompiledImages(model, 4, size)
        for count in (4, 3):
            images = torch.randn(count, 3, size, size)
            with torch.no_grad():
                torch.testing.assert_close(encode(images), model.image_features(images), rtol=1e-5, atol=1e-5)

    def test_the_command_says_the_same_and_how_long_it_took(self, predict, graphs):
        expected, said = predict("--compile", "auto")
        assert not graphs
        assert "compiling" not in said
        found, said = predict("--compile", "yes", "--batch-size", "16")
        assert len(graphs) == 1
        assert "images/s, after " in said
        assert " s of compiling" in said
        for one, other in zip(found, expected, strict=True):
            assert (one["image"], one["answer"]) == (other["image"], other["answer"])
            for first, second in zip(one["predictions"], other["predictions"], strict=True):
                assert first["class"] == second["class"]
                assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)


class TestWithoutIt:
    def test_no_compiler(self, predict, monkeypatch):
        monkeypatch.setattr(compiled, "compiler_obstacle", lambda device: "there is no C++ compiler (g++)")
        expected, _ = predict("--compile", "no")
        found, said = predict("--compile", "yes")
        assert "the image tower is not compiled, and takes longer: there is no C++ compiler (g++)" in said
        assert found == expected

    def test_a_compiler_that_fails(self, predict, graphs, monkeypatch):
        def fails(graph, inputs):
            raise RuntimeError("no space\n  left\x1b")

        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=fails, **options))
        found, said = predict("--compile", "yes")
        assert len([line for line in said.splitlines() if "the image tower is not compiled" in line]) == 1
        assert "no space left\\x1b" in said
        assert found == predict("--compile", "no")[0]

    def test_a_tower_that_is_not_one_graph(self, clip, tokenizer, graphs):
        model = CLIPClassifier(clip, tokenizer, NAMES).eval()
        real = model.image_features

        def broken(images):
            torch._dynamo.graph_break()
            return real(images)

        model.image_features = broken
        with pytest.warns(UserWarning, match="the image tower is not compiled, and takes longer: "):
            assert compiled_images("yes", model, 3, 4, 32) is None

    def test_another_choice(self, capsys):
        assert main(["predict", "x.png", "--classes", "a,b", "--compile", "never"]) == 2
        assert "compile is 'never'; valid: 'auto', 'yes', 'no'" in capsys.readouterr().err
