"""How each method is trained: options, parameters, learning rates, what data sets and protocols change."""

from __future__ import annotations

import open_clip
import pytest
import torch

from rmadapter.data.catalog import PHOTO
from rmadapter.data.templates import EIGHT_TEMPLATES, target_templates
from rmadapter.errors import InputError
from rmadapter.methods import ABLATION_TABLE, METHODS
from rmadapter.methods.naming import method_name
from rmadapter.methods.options import configure, own_words
from rmadapter.training.recipe import EpochMean, make_optimizer, make_schedule, steps_of
from rmadapter.tuners.injection import inject

TRAINED = [name for name in METHODS if name not in ("zeroshot", "linear-probe")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_s_options_make_the_method_of_that_name(name):
    config = configure(name, ["--data", "x"])
    # One that differs in a weight alone has its name as a label.
    assert (method_name(config), config.label) == (name, name if name == "rmadapter-consistency1" else None)
    # What the user says of the loss does not turn it into another one.
    assert method_name(configure(name, ["--data", "x", "--loss.lambda1", "7"])) == name


def test_the_ablation_table():
    assert len(ABLATION_TABLE) == len(set(ABLATION_TABLE)) == 15
    assert {"zeroshot", "single", "mma", "rmadapter", "rmadapter-lambda0"} < set(ABLATION_TABLE) < set(METHODS)


def test_trained_parameters_on_vit_b_16_are_as_published(tokenizer):
    published = {
        "mma": 674_560,
        "coop": 2_048,
        "kgcoop": 2_048,
        "prograd": 8_192,
        "vpt": 12 * 8 * 768,
        "cocoop": 35_360,
        "maple": 3_555_072,
        "ivlp": 30_720,
        "promptsrc": 46_080,
        "coprompt": 3_555_072 + 262_144,  # those of MaPLe and two adapters
        "clip-adapter": 131_072,
        "taskres": 512 * 10,
        "clip-lora": 184_320,
        "mmrl": 4_992_256,
        "tip-adapter": 0,
        "tip-adapter-f": 512 * 16 * 10,
    }
    clip = open_clip.create_model("ViT-B-16")
    settings = {"tokenizer": tokenizer, "class_names": [str(number) for number in range(10)], "cached_images": 160}
    for name, count in published.items():
        config = configure(name, ["--data", "x"])
        model = inject(
            clip, config.tuned, template=config.template.replace("published", "a photo of a {}."), **settings
        )
        assert sum(p.numel() for p in model.trained().values()) == count, name
        model.remove()
    for data, count in {"imagenet": 5_014_528, "dtd": 5_002_240, "fgvc_aircraft": 3_826_432}.items():
        model = inject(clip, configure("coprompt", ["--data", "x"], data=data).tuned, template=PHOTO, **settings)
        assert sum(p.numel() for p in model.trained().values()) == count, data
        model.remove()
    few_shot = configure("coop", ["--data", "x"], few_shot=16)
    model = inject(clip, few_shot.tuned, template=few_shot.template, **settings)
    assert sum(p.numel() for p in model.trained().values()) == 8_192
    model.remove()
    transfer = configure("maple", ["--data", "x"], data="imagenet", transfer=True)
    model = inject(clip, transfer.tuned, template=transfer.template, **settings)
    assert sum(p.numel() for p in model.trained().values()) == 1_185_024


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("maple", [], [1e-5, 0.0035, 0.003166, 0.002291, 0.001209]),
        ("cocoop", [], [1e-5, 0.002, 0.001951, 0.001809, 0.001588, 0.001309, 0.001, 0.000691, 0.000412, 0.000191]),
        ("mma", [], [0.0015, 0.001357, 0.000982, 0.000518, 0.000143]),
        ("maple", ["transfer"], [1e-5, 0.0026]),
        (
            "mmrl",
            [],
            [1e-5, 0.001, 0.000976, 0.000905, 0.000794, 0.000655, 0.0005, 0.000345, 0.000206, 0.0000955],
        ),
        ("mmrl", ["transfer"], [0.001]),
        ("coprompt", [], [1e-5, 0.0035, 0.003367, 0.002987, 0.00242, 0.00175, 0.00108, 0.000513]),
    ],
)
def test_learning_rates_by_epoch(name, options, expected):
    """As the field's code has them: the cosine begins anew after the warm-up, and with it does not end."""
    config = configure(name, ["--data", "x"], data="imagenet" if options else None, transfer=bool(options))
    assert rates_of(config, config.epochs) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("promptsrc", [2.39e-4, 1.36e-4, 6.1e-5]), ("coop", [4.9e-7]), ("clip-adapter", [4.9e-7])],
)
def test_the_last_learning_rates(name, expected):
    config = configure(name, ["--data", "x"])
    assert rates_of(config, config.epochs)[-len(expected) :] == pytest.approx(expected, rel=1e-2)


def rates_of(config, epochs):
    """The learning rate of each epoch."""
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps_per_epoch=7)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_two_learning_rates_of_kgcoop():
    """Plain, and with the factor squared, as its author's log has it: 1.217e-10 behind the last of 100 epochs.

    The cosine's angles at epochs 1, 26, 51, 76 are 0, pi/4, pi/2 and 3 pi/4, its factors 1, (2 + 2^0.5) / 4, 1/2 and
    (2 - 2^0.5) / 4.
    """
    plain = rates_of(configure("kgcoop", ["--data", "x"]), 101)
    squared = rates_of(configure("kgcoop", ["--data", "x", "--decay-power", "2"]), 101)
    assert [plain[epoch] for epoch in (0, 1, 26, 51, 76)] == pytest.approx([1e-5, 2e-3, 1.707107e-3, 1e-3, 2.92893e-4])
    assert [squared[epoch] for epoch in (0, 1, 26, 51, 76)] == pytest.approx(
        [1e-5, 2e-3, 1.457107e-3, 5e-4, 4.28932e-5]
    )
    assert (plain[100], squared[100]) == pytest.approx((4.934e-7, 1.217e-10), rel=1e-3)


def test_a_power_of_the_cosine_ends_at_the_final_rate_too():
    words = ["--data", "x", "--lr", "0.1", "--final-lr", "0.02", "--epochs", "4", "--decay-power", "2"]
    # Of 4 epochs: factors 1, (2 + 2^0.5) / 4, 1/2, (2 - 2^0.5) / 4 and 0, squared, on what lies above the final rate.
    expected = [0.1, 0.02 + 0.08 * 0.728553, 0.02 + 0.08 * 0.25, 0.02 + 0.08 * 0.021447, 0.02]
    assert rates_of(configure("single", words), 5) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="decay_power is 0; valid: a number >= 1"):
        configure("kgcoop", ["--data", "x", "--decay-power", "0"])


@pytest.mark.parametrize(
    ("data", "transfer", "weight", "changes"),
    [
        ("any", False, 1, {"batch_size": 4, "epochs": 10, "warmup_epochs": 1, "min_crop": 0.5, "drop_last": True}),
        ("stanford_cars", False, 7, {"batch_size": 4}),
        ("eurosat", False, 0.01, {"epochs": 10, "optimizer": "adamw", "weight_decay": 5e-4}),
        ("imagenet", False, 0.5, {"batch_size": 32, "epochs": 5, "warmup_epochs": 1}),
        ("imagenet", True, 0.2, {"batch_size": 32, "epochs": 1, "warmup_epochs": 0}),
    ],
)
def test_mmrl_by_data_set_and_protocol(data, transfer, weight, changes):
    config = configure("mmrl", ["--data", "x"], data=data, transfer=transfer)
    assert (config.loss.lambda3, config.loss.lambda4, config.loss.distance) == (weight, weight, "cosine")
    assert {name: getattr(config, name) for name in changes} == changes
    assert (config.template, config.space.tokens) == ("published", 5)
    assert config.space.width == (2048 if data == "eurosat" else 512)


# Blocks, tokens, weight of the consistency and epochs, as in the original's table of data sets.
COPROMPT = {
    "imagenet": (12, 4, 8, 8),
    "caltech101": (12, 4, 4, 8),
    "oxford_pets": (12, 2, 0.1, 8),
    "stanford_cars": (12, 4, 4, 8),
    "oxford_flowers": (9, 4, 8, 8),
    "food101": (9, 4, 0.5, 5),
    "fgvc_aircraft": (9, 4, 2, 8),
    "sun397": (12, 4, 8, 8),
    "dtd": (12, 2, 8, 8),
    "eurosat": (12, 2, 0.1, 8),
    "ucf101": (12, 4, 2, 8),
    "another": (9, 2, 1, 8),
}


@pytest.mark.parametrize("data", COPROMPT)
def test_coprompt_has_other_sizes_for_each_data_set(data):
    config = configure("coprompt", ["--data", "x"], data=data)
    prompt, head, loss = config.prompt, config.head, config.loss
    blocks, tokens, weight, epochs = COPROMPT[data]
    assert (prompt.text_depth, prompt.vision_depth, config.epochs) == (blocks, blocks, epochs)
    assert (prompt.text_tokens, prompt.vision_tokens, prompt.coupled) == (tokens, tokens, True)
    assert (loss.lambda3, loss.lambda4, loss.distance, loss.target) == (weight, weight, "cosine", "sentences")
    assert (head.image_ratio, head.text_ratio, head.reduction) == (0.1, 0.2, 4)
    assert (loss.second_view, config.augmentation, config.batch_size, config.lr) == (True, "randaugment", 4, 0.0035)
    assert method_name(config) == "coprompt"
    # The original cannot train on ImageNet for other data sets; here that is as on ImageNet alone.
    assert configure("coprompt", ["--data", "x"], data=data, transfer=True) == config


def test_a_rate_that_falls_by_step():
    config = configure("clip-lora", ["--data", "x", "--shots", "4"])
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps_per_epoch=7)
    assert isinstance(optimizer, torch.optim.AdamW)
    for _ in range(1000):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx((2e-4 + 1e-6) / 2, rel=1e-3)


def test_the_mean_of_epochs_is_weighted_by_a_gaussian():
    mean = EpochMean("15,1", 20)
    assert mean.weights[12:17] == pytest.approx([0.054, 0.242, 0.399, 0.242, 0.054], abs=1e-3)
    assert sum(mean.weights) == pytest.approx(1)
    weight = torch.zeros(2)
    for epoch in range(20):
        mean.add(epoch, {"w": torch.full((2,), float(epoch + 1))})
    mean.write({"w": weight})
    assert weight.tolist() == pytest.approx([15, 15], abs=1e-3)


def test_a_gaussian_far_from_all_epochs_weighs_the_nearest():
    assert EpochMean("60,1", 5).weights == pytest.approx([0, 0, 0, 0, 1])


COOP_EPOCHS = {1: 50, 2: 100, 4: 100, 7: 100, 8: 200, 16: 200}


@pytest.mark.parametrize("name", ["coop", "clip-adapter", "prograd"])
@pytest.mark.parametrize("shots", COOP_EPOCHS)
def test_coop_s_epochs_by_shots(name, shots):
    """CLIP-Adapter is trained by CoOp's command, ProGrad by one like it."""
    config = configure(name, ["--data", "x"], data="dtd", few_shot=shots)
    assert (config.epochs, config.lr, config.batch_size, config.warmup_epochs) == (COOP_EPOCHS[shots], 0.002, 32, 1)
    assert configure(name, ["--data", "x"], data="imagenet", few_shot=shots).epochs == 50
    assert configure(name, ["--data", "x"], data="dtd").epochs == (100 if name == "prograd" else 200)
    assert configure(name, ["--data", "x"], data="imagenet").epochs == 50
    if name == "coop":
        assert (config.prompt.text_tokens, config.prompt.init) == (16, "random")
        b2n = configure(name, ["--data", "x"], data="dtd").prompt
        assert (b2n.text_tokens, b2n.init) == (4, "words")


# Method, data set, shots; the options that are published for the few-shot protocol.
FEW_SHOT = [
    ("promptsrc", "caltech101", 1, {"epochs": 50, "average": "30,30", "batch_size": 4, "lr": 0.0025}),
    ("promptsrc", "imagenet", 16, {"epochs": 50, "average": "30,30"}),
    ("promptsrc", "sun397", 8, {"epochs": 50, "average": "30,30"}),
    ("promptsrc", "another", 8, {"epochs": 50, "average": "30,30"}),
    *(
        ("promptsrc", data, 4, {"epochs": 50, "average": "45,5"})
        for data in ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
    ),
    ("maple", "dtd", 2, {"epochs": 50, "lr": 0.0035, "batch_size": 4}),
    ("mmrl", "dtd", 2, {"epochs": 50, "batch_size": 32, "lr": 0.001}),
    ("mmrl", "imagenet", 2, {"epochs": 5, "batch_size": 32}),
    ("taskres", "dtd", 4, {"epochs": 100, "batch_size": 256, "lr": 0.002, "optimizer": "adam"}),
    ("taskres", "dtd", 8, {"epochs": 200}),
    ("taskres", "imagenet", 1, {"epochs": 100, "lr": 0.0002}),
    ("kgcoop", "dtd", 4, {"epochs": 100, "batch_size": 128}),
    ("tip-adapter-f", "eurosat", 4, {"epochs": 100}),
    ("clip-lora", "dtd", 4, {"steps_per_shot": 500, "batch_size": 32}),
    ("cocoop", "dtd", 4, {"epochs": 10, "batch_size": 1}),
    ("rmadapter", "dtd", 4, {"epochs": 5, "batch_size": 16}),
    ("mma", "imagenet", 4, {"epochs": 5, "batch_size": 128}),
]


@pytest.mark.parametrize(("name", "data", "shots", "expected"), FEW_SHOT)
def test_the_few_shot_protocol(name, data, shots, expected):
    config = configure(name, ["--data", "x"], data=data, few_shot=shots)
    assert {field: getattr(config, field) for field in expected} == expected
    assert method_name(config) == name
    # What the user says wins.
    assert configure(name, ["--data", "x", "--epochs", "3"], data=data, few_shot=shots).epochs == 3


def test_mmrl_s_weights_are_the_data_set_s_in_the_few_shot_protocol_too():
    loss = configure("mmrl", ["--data", "x"], data="stanford_cars", few_shot=4).loss
    assert (loss.lambda3, loss.lambda4) == (7, 7)


@pytest.mark.parametrize(
    ("data", "shots", "share"),
    [("dtd", 8, 0.8), ("eurosat", 16, 0.8), ("oxford_flowers", 4, 1), ("food101", 16, 1), ("dtd", None, 1)],
)
def test_prograd_s_share_by_data_set_and_shots(data, shots, share):
    config = configure("prograd", ["--data", "x"], data=data, few_shot=shots)
    assert config.loss.projected == share
    assert method_name(config) == "prograd"
    assert configure("prograd", ["--data", "x", "--loss.projected", "0.5"]).loss.projected == 0.5


@pytest.mark.parametrize(
    ("name", "data", "prompt"),
    [
        ("kgcoop", "dtd", "a photo of a {}, a type of texture."),
        ("kgcoop", "food101", "a photo of {}, a type of food."),
        ("kgcoop", "eurosat", "a centered satellite photo of {}."),
        ("kgcoop", "sun397", "a photo of a {}."),
        ("prograd", "dtd", "a texture of {}."),
        ("prograd", "oxford_pets", "a type of pet, a photo of a {}."),
        ("prograd", "oxford_flowers", "a type of flower, a photo of a {}."),
        ("prograd", "fgvc_aircraft", "a type of aircraft, a photo of a {}."),
        ("prograd", "food101", "a type of food, a photo of {}."),
        ("prograd", "ucf101", "a photo of a person doing {}."),
        ("prograd", "eurosat", "a centered satellite photo of {}."),
        ("coprompt", "dtd", "{} texture."),
    ],
)
def test_whose_features_a_method_stays_near(name, data, prompt):
    config = configure(name, ["--data", "x"], data=data)
    assert target_templates(config.loss, data) == (prompt,)
    assert method_name(config) == name


@pytest.mark.parametrize(
    ("data", "template"),
    [("oxford_pets", "a type of pet, a photo of a {}."), ("dtd", "a texture of {}."), ("eurosat", "published")],
)
def test_prograd_begins_as_the_words_that_it_stays_near(data, template):
    """Its code reads both from one table, CUSTOM_TEMPLATES."""
    config = configure("prograd", ["--data", "x"], data=data)
    assert config.template == template
    assert method_name(config) == "prograd"


def test_a_prompt_to_stay_near():
    own = ["--loss.published", "an image of {}"]
    assert target_templates(configure("kgcoop", ["--data", "x", *own]).loss, "dtd") == ("an image of {}",)
    with pytest.raises(InputError, match=r"loss.published is 'an image'; valid: a text with one \{\}"):
        configure("kgcoop", ["--data", "x", "--loss.published", "an image"])
    with pytest.raises(InputError, match=r"loss.published is 'an image of \{\}', but loss.target is 'templates'"):
        configure("promptsrc", ["--data", "x", *own])
    assert own_words("promptsrc", [*own, "--lr", "1"]) == ["--lr", "1"]
    assert own_words("kgcoop", [*own, "--lr", "1"]) == [*own, "--lr", "1"]


def test_taskres_on_imagenet_has_eight_prompts():
    assert configure("taskres", ["--data", "x"], data="imagenet").head.class_prompts == "eight"
    assert configure("taskres", ["--data", "x"], data="dtd").head.class_prompts == "run"
    assert len(set(EIGHT_TEMPLATES)) == 8
    assert {"itap of a {}.", "a photo of a {}."} < set(EIGHT_TEMPLATES)


def test_what_a_method_keeps_near_weighs_the_same_on_the_test_bed():
    """The test bed's own weights are RMAdapter's."""
    for name, weights in {"promptsrc": (10, 25), "mmrl": (1, 1), "coprompt": (1, 1), "rmadapter": (10, 25)}.items():
        loss = configure(name, ["--data", "emoji_food"]).loss
        assert (loss.lambda3, loss.lambda4) == weights, name
    assert configure("kgcoop", ["--data", "emoji_food"]).loss.lambda4 == 8


def test_a_run_s_steps():
    config = configure("clip-lora", ["--data", "x", "--shots", "4"])
    assert steps_of(config, 7) == 2000
    assert steps_of(configure("coop", ["--data", "x"]), 7) == 200 * 7


def test_the_recipe_of_a_data_set_holds_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "photos").symlink_to(tmp_path / "imagenet")
    (tmp_path / "options.yaml").write_text("data: imagenet\n")
    monkeypatch.chdir(tmp_path / "imagenet")
    names = (["--data", "."], ["--data", "photos", "--data-root", ".."], ["--config", str(tmp_path / "options.yaml")])
    for words in (["--data", "imagenet"], *names):
        assert configure("coprompt", words).prompt.text_depth == 12, words
    assert configure("coprompt", ["--data", "x"]).prompt.text_depth == 9
