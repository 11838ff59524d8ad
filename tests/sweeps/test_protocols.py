"""The protocols as lists of runs, and the configuration of each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.data.catalog import FIELD, VARIANTS
from rmadapter.errors import InputError
from rmadapter.sweeps.protocols import (
    PlannedRun,
    data_and_style,
    default_data,
    default_methods,
    load_planned,
    plan,
    run_config,
    short_name,
)
from rmadapter.sweeps.settings import SEVERAL, groups_of


def test_base_to_new():
    runs = plan("base2new", ["dtd", "x/pets"], ["zeroshot", "mma"], [1, 2])
    assert [run.key for run in runs] == [
        "zeroshot/dtd",
        "mma/dtd/seed1",
        "zeroshot/pets",
        "mma/pets/seed1",
        "mma/dtd/seed2",
        "mma/pets/seed2",
    ]
    assert all(run.targets == () for run in runs)


@pytest.mark.parametrize("protocol", ["cross", "domain"])
def test_one_source_and_all_others(protocol):
    runs = plan(protocol, ["dtd", "imagenet", "eurosat"], ["rmadapter"], [1])
    assert runs == [PlannedRun("rmadapter", "imagenet", 1, ("dtd", "eurosat"))]
    assert plan(protocol, ["a", "b"], ["mma"], [3])[0] == PlannedRun("mma", "a", 3, ("b",))
    every = plan(protocol, ["a", "b"], ["mma"], [3], ["a", "b"])
    assert [(run.data, run.targets) for run in every] == [("a", ("b",)), ("b", ("a",))]


def test_domain_tests_a_bundled_data_set_in_its_other_styles():
    data = ["emoji_food@noto", "emoji_travel@noto", "emoji_travel", "emoji_food@openmoji"]
    assert plan("domain", data, ["mma"], [1]) == [
        PlannedRun("mma", "emoji_food@noto", 1, ("emoji_food@openmoji",)),
        PlannedRun("mma", "emoji_travel@noto", 1, ("emoji_travel",)),
    ]
    (run,) = plan("domain", data, ["mma"], [1], ["emoji_travel@fluent"])  # as it is called in tables
    assert (run.data, run.targets, run.key) == ("emoji_travel", ("emoji_travel@noto",), "mma/emoji_travel@fluent/seed1")
    (run,) = plan("cross", data, ["mma"], [1])
    assert run.targets == tuple(data[1:])


def test_the_published_tables():
    assert default_data("base2new") == default_data("cross") == FIELD
    assert default_data("domain") == ("imagenet", *VARIANTS)
    compared = ("coop", "cocoop", "kgcoop", "maple", "promptsrc", "coprompt", "clip-adapter", "mma")
    for protocol in ("base2new", "cross", "domain"):
        assert default_methods(protocol) == ("zeroshot", *compared, "rmadapter")
    assert {"single", "rmadapter-rec3", "rmadapter"} <= set(default_methods("ablation"))
    assert len(plan("base2new", FIELD, default_methods("base2new"), [1, 2, 3])) == 11 + 9 * 11 * 3


def test_the_configuration_of_a_run():
    options = ["--shots", "4", "--batch_size", "8", "--loss.lambda1", "3"]
    config = run_config("base2new", PlannedRun("single", "dtd", 2), options, "root", Path("out"))
    assert (config.data, config.data_root, config.classes, config.seed) == ("dtd", "root", "base", 2)
    assert (config.shots, config.batch_size, config.out, config.resume) == (4, 8, "out", True)
    assert config.loss.lambda1 == 0  # what makes it the single branch wins
    config = run_config("cross", PlannedRun("rmadapter", "imagenet", 1, ("dtd",)), [], None, Path("out"))
    assert (config.classes, config.epochs, config.batch_size, config.adapter.layers) == ("all", 1, 128, "last:4")
    config = run_config("cross", PlannedRun("rmadapter", "imagenet", 1, ("dtd",)), options, None, Path("out"))
    assert (config.batch_size, config.epochs) == (8, 1)
    assert run_config("base2new", PlannedRun("mma", "imagenet", 1), [], None, Path("o")).batch_size == 128
    assert run_config("base2new", PlannedRun("mma", "dtd", 1), [], None, Path("o")).batch_size == 16


def test_the_field_s_data_sets_by_their_folders():
    data = ["/data/dtd", "/data/imagenet", "/data/imagenet-adversarial"]
    (run,) = plan("cross", data, ["mma"], [1])
    assert (run.data, run.targets, run.key) == ("/data/imagenet", (data[0], data[2]), "mma/imagenet/seed1")
    assert [short_name(name) for name in data] == ["dtd", "imagenet", "imagenet_a"]
    config = run_config("cross", run, [], None, Path("out"))
    assert (config.data, config.batch_size, config.epochs) == ("/data/imagenet", 128, 1)
    assert config.adapter.layers == "last:4"
    (run,) = plan("domain", ["emoji_food", "/data/imagenet"], ["mma"], [1])
    assert run.data == "/data/imagenet"
    assert short_name("/data/my-imagenet") == "my-imagenet"


def test_a_bundled_data_set_with_its_style_and_the_test_bed_s_defaults():
    config = run_config("domain", PlannedRun("single", "emoji_food@noto", 1), ["--shots", "4"], "root", Path("o"))
    assert (config.data, config.style, config.data_root, config.model) == ("emoji_food", "noto", None, "emoji-clip")
    assert (config.classes, config.shots, config.loss.lambda1) == ("all", 4, 0)
    assert data_and_style("emoji_food") == ("emoji_food", None)
    assert data_and_style("some@folder") == ("some@folder", None)
    assert load_planned("emoji_food@openmoji", "root").style == "openmoji"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base2knew", ["a"], ["mma"], [1]), "did you mean 'base2new'"),
        (("base2new", ["a"], ["mmaa"], [1]), "methods is 'mmaa'; valid: .*did you mean 'mma'"),
        (("base2new", [], ["mma"], [1]), "data is empty"),
        (("base2new", ["a"], [], [1]), "methods is empty"),
        (("base2new", ["a", "x/a"], ["mma"], [1]), "data has 'a' twice"),
        (("base2new", ["a"], ["mma", "mma"], [1]), "methods has 'mma' twice"),
        (("base2new", ["a"], ["mma"], [1, 1]), "seeds has 1 twice"),
        (("base2new", ["a"], ["mma"], [1], ["a"]), "source is 'a', but base2new has none; valid"),
        (("base2new", ["imagenet_a"], ["mma"], [1]), "'imagenet_a', which is for testing only"),
        (("base2new", ["/x/imagenet-rendition"], ["mma"], [1]), "imagenet-rendition', which is for testing only"),
        (("base2new", ["food101", "/x/food-101"], ["mma"], [1]), "data has 'food101' twice"),
        (("cross", ["a"], ["mma"], [1]), "data has 'a' alone"),
        (("domain", ["emoji_food", "emoji_travel@noto"], ["mma"], [1]), "data has 'emoji_food' alone"),
        (("base2new", ["emoji_food", "emoji_food@fluent"], ["mma"], [1]), "data has 'emoji_food@fluent' twice"),
        (("cross", ["a", "b"], ["mma"], [1], ["c"]), "source is 'c'; valid: 'a', 'b'"),
        (("domain", ["a", "b"], ["linear-probe"], [1]), "methods has 'linear-probe', which cannot classify"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InputError, match=message):
        plan(*arguments)


def test_several_drawings_are_tested_in_styles_that_are_not_trained_on():
    """@fluent is trained on Noto v1 and EmojiOne, @emojione on Fluent's two looks and Noto v1."""
    assert groups_of(SEVERAL, "domain", None)[:5] == tuple(
        f"drawings_animals@{style}" for style in ("fluent", "noto", "twemoji", "openmoji", "fluent-color")
    )
    assert groups_of(SEVERAL, "domain", "emojione")[:4] == tuple(
        f"drawings_animals@{style}" for style in ("emojione", "noto", "twemoji", "openmoji")
    )
    assert groups_of(SEVERAL, "cross", None)[0] == "drawings_animals"
    runs = plan("domain", groups_of(SEVERAL, "domain", None), ["rmadapter"], [1])
    assert len(runs) == 6
    assert all(len(run.targets) == 4 and run.data.endswith("@fluent") for run in runs)
