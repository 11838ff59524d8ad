"""``rmadapter search``: learning rate, scale, layers and lambdas, chosen on base classes alone.

A trial trains on half of the base classes and is judged by its accuracy on these and on the other half, as pseudo-new
classes, over validation images: by their harmonic mean, with the objective ``kept`` among the trials that keep what
zero-shot knows (``rmadapter.sweeps.keeping``). Needs optuna (pip install 'rmadapter[search]').
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rmadapter.config import TrainConfig
from rmadapter.config.arguments import dotted_values, parse_arguments, split_options
from rmadapter.config.paths import PathText
from rmadapter.config.seeds import seed_list
from rmadapter.data import ImageData
from rmadapter.data.emoji import TRAIN_CONFIG
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.files import check_folder_name, write_csv, write_text
from rmadapter.methods.naming import folder_of
from rmadapter.sweeps.keeping import gained, shortfall
from rmadapter.sweeps.protocols import FIXED_OPTIONS, is_bundled, load_planned, short_name
from rmadapter.sweeps.search_folder import SearchFolder
from rmadapter.sweeps.search_trials import (
    GAIN,
    KEPT,
    NOTHING,
    OBJECTIVES,
    STOPPED,
    VALUES,
    best_of,
    constrain,
    described,
    judge,
    place_of,
    queue_stopped,
    standard,
    table,
)
from rmadapter.sweeps.settings import FREE, RESERVED

FORMAT = 3
# With the number of trials added it stays one that optuna takes.
LARGEST_SAMPLER_SEED = 2**31 - 1
PARAMETERS = ("lr", "scale", "layers", "lambdas")
# Log grids around what the first trials saw: reconstruction does nothing at 1 and a little at 10, 1000 diverges;
# consistency at 100 and more freezes the adapter. The fourth lambda is 2.5 times the third, as PromptSRC's.
LAMBDA_RECONSTRUCTION = (0.0, 1.0, 10.0, 30.0, 100.0)
LAMBDA_IMAGE = (0.0, 1.0, 3.0, 10.0, 30.0)
TEXT_TO_IMAGE = 2.5
# For pretrained CLIP and for the test bed's small one (True), whose best lie where the others' diverge.
RANGES = {
    False: {"lr_range": "0.0002,0.02", "scale_range": "0.0001,0.1"},
    True: {"lr_range": "0.005,0.5", "scale_range": "0.003,0.3"},
}


@dataclass
class SearchConfig:
    """Learning rate, scale, layers and lambdas on base classes alone; other options go to every trial's training.

    Args:
        data: folder of images or its name in data_root, or a bundled data set (emoji_food, emoji_food@openmoji)
        data_root: folder that holds the data sets
        parameters: what is searched, separated by commas: lr, scale, layers, lambdas
        objective: what makes a trial the best: kept (of those that keep what zero-shot knows, the highest harmonic
            mean) or hm (the highest harmonic mean)
        trials: how many settings are tried; the first is that of the options
        seeds: seeds of each trial, separated by commas; the mean over them counts
        lr_range: lowest and highest learning rate; default: 0.0002,0.02, on bundled data sets 0.005,0.5
        scale_range: lowest and highest adapter.scale; default: 0.0001,0.1, on bundled data sets 0.003,0.3
        images_a_class: at most so many training and validation images of a class
        sampler_seed: of the search itself
        out: folder of the search
    """

    data: PathText = ""
    data_root: PathText | None = None
    parameters: str = "lr,scale,layers,lambdas"
    objective: str = KEPT
    trials: int = 40
    seeds: str = "1"
    lr_range: str | None = None
    scale_range: str | None = None
    images_a_class: int = 64
    sampler_seed: int = 0
    out: PathText = "search"

    def __post_init__(self) -> None:
        self.options: list[str] = []  # of the trials' training; no option itself
        if not self.data:
            raise InputError(
                "data is missing; valid: --data FOLDER, --data NAME --data-root DIR, or a bundled one such as "
                "--data emoji_food"
            )
        for name, value in RANGES[self.bundled].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not self.wanted:
            raise InputError(f"parameters is {self.parameters!r}; valid: {', '.join(PARAMETERS)}, separated by commas")
        for name in self.wanted:
            check_choice("parameters", name, PARAMETERS)
        check_choice("objective", self.objective, OBJECTIVES)
        check_range("trials", self.trials, 1)
        check_range("images_a_class", self.images_a_class, 1)
        check_range("sampler_seed", self.sampler_seed, 0, LARGEST_SAMPLER_SEED)
        seed_list(self.seeds)
        self.range("lr_range")
        self.range("scale_range")

    @property
    def bundled(self) -> bool:
        """Whether the data set is one of the test bed's."""
        return is_bundled(self.data)

    @property
    def wanted(self) -> list[str]:
        """What is searched."""
        return [name.strip() for name in self.parameters.split(",") if name.strip()]

    def range(self, name: str) -> tuple[float, float]:
        """Low and high of a range option; InputError where they are none."""
        text = getattr(self, name)
        try:
            low, high = (float(part) for part in text.split(","))
        except ValueError:
            low, high = 0.0, 0.0
        if not 0 < low < high:
            raise InputError(f"{name} is {text!r}; valid: low,high with 0 < low < high, such as 0.0002,0.02")
        return low, high


def parse_search(argv: list[str]) -> SearchConfig:
    """The search of the command line, its trials' options checked."""
    own, options = split_options(argv, SearchConfig, TrainConfig, reserved=RESERVED)
    config = parse_arguments(SearchConfig, own, prog="rmadapter search", of_runs=True)
    config.options = options
    trial_config(config, Path("any"), 1, {})
    return config


def trial_config(
    config: SearchConfig, data: Path, seed: int, values: dict[str, Any], out: Path | None = None
) -> TrainConfig:
    """The training configuration of a trial with ``values`` (dotted option -> value)."""
    # The trials' data are a folder, which has no style; but the test bed's other defaults hold where they come from it.
    words = ["--config", str(TRAIN_CONFIG)] if config.bundled else []
    words += [*config.options, "--data", str(data), "--classes", "base", "--seed", str(seed), *FIXED_OPTIONS]
    words += [f"--{name}={value}" for name, value in values.items()]
    if out is not None:
        words += ["--out", str(out)]
    return dataclasses.replace(parse_arguments(TrainConfig, words, prog="rmadapter search"), style=None)


def run_search(argv: list[str]) -> dict[str, Any]:
    """``rmadapter search``; returns the best trial's options. A stopped search goes on with the same command.

    Raises:
        InputError: optuna is missing, a data set that is too small, a folder with another search, or one where the
            search is going on.
    """
    config = parse_search(argv)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("a search needs optuna, which is missing; pip install 'rmadapter[search]'") from None
    from rmadapter.sweeps.search_images import searchable, searchable_unseen, write_search_data

    check_folder_name("out", config.out)
    data = load_planned(config.data, config.data_root)
    for note in data.notes:
        print(note)
    folder, settings = SearchFolder(Path(config.out)), _settings(config, data)
    train, val = searchable(data, config.images_a_class)  # before the folder is taken for this search
    unseen = searchable_unseen(data, config.images_a_class)
    folder.check(settings, data)
    with folder.alone():
        folder.enter(settings, data)
        with folder.storage_said():
            return _search(config, write_search_data(data, train, val, folder.path, unseen), folder)


def _search(config: SearchConfig, images: ImageData, folder: SearchFolder) -> dict[str, Any]:
    """Every trial that is left, over ``images``; returns the best one's options."""
    import optuna

    from rmadapter.training.run_errors import DivergedError

    base = trial_config(config, images.root, 1, {})
    depth = _depth(base) if "layers" in config.wanted else 0
    zeroshot = _zeroshot(trial_config(config, images.root, 1, {}, folder.zeroshot), images)
    print(standard(zeroshot), flush=True)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _study(folder)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if not study.get_trials(states=(*finished, optuna.trial.TrialState.WAITING)):
        study.enqueue_trial(_start(config, base, depth))

    def objective(trial: Any) -> float:
        values = _suggest(trial, config, depth)
        trial.set_user_attr(VALUES, values)
        found = []
        for seed in seed_list(config.seeds):
            place = folder.trials / place_of(trial) / f"seed{seed}"
            try:
                found.append(_train(trial_config(config, images.root, seed, values, place), images))
            except DivergedError as error:
                constrain(trial, gained(NOTHING, zeroshot), config.objective)
                raise optuna.TrialPruned(str(error)) from error
            except KeyboardInterrupt:  # after which optuna calls it failed, as after an error
                trial.set_user_attr(STOPPED, True)
                raise
            trial.set_user_attr(f"seed{seed}", found[-1])
        return judge(trial, found, zeroshot, config.objective)

    def said(study: Any, trial: Any) -> None:
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.params.items()
        )
        print(f"[{len(study.get_trials(states=finished))}/{config.trials}] {described(trial)}: {shown}", flush=True)

    while len(study.get_trials(states=finished)) < config.trials:
        # By how many were drawn, those that failed too: a sampler does not know what it drew before, and a search that
        # was stopped is to try what it would have tried.
        drawn = len({place_of(trial) for trial in study.get_trials() if trial.params})
        study.sampler = optuna.samplers.TPESampler(seed=config.sampler_seed + drawn)
        study.optimize(objective, n_trials=1, callbacks=[said])
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise InputError(f"every trial in {folder.path} diverged; valid: a lower --lr-range, with another --out")
    write_csv(folder.path / "trials.csv", *table(trials))
    best = best_of(complete, config.objective)
    if config.objective == KEPT and shortfall(best.user_attrs[GAIN]):
        print("no trial keeps what zero-shot knows; the best is the one that falls short least")
    return _finish(best, folder.path)


def _settings(config: SearchConfig, data: ImageData) -> dict[str, Any]:
    """What a search is of, as values however they were written; one that goes on has to have the same.

    Of its trials' options those that may differ when a sweep is continued may differ here too.
    """
    options = dotted_values(dataclasses.asdict(trial_config(config, Path("any"), 1, {})))
    return {
        "format": FORMAT,
        "data": short_name(config.data) if config.bundled else data.name,
        "parameters": ",".join(name for name in PARAMETERS if name in config.wanted),
        "objective": config.objective,
        "seeds": ",".join(map(str, seed_list(config.seeds))),
        **{name: ",".join(map(str, config.range(name))) for name in ("lr_range", "scale_range")},
        "images_a_class": config.images_a_class,
        "sampler_seed": config.sampler_seed,
        **{name: value for name, value in options.items() if name.partition(".")[0] not in FREE},
    }


def _study(folder: SearchFolder) -> Any:
    """The search in ``folder``, begun or gone on with, a trial that was stopped first."""
    import optuna

    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{folder.study_file.resolve()}",
        direction="maximize",
        load_if_exists=True,
    )
    queue_stopped(study)
    return study


def _depth(config: TrainConfig) -> int:
    """Blocks of the shallower tower."""
    from rmadapter.clip.backbone import load_backbone
    from rmadapter.clip.towers import find_towers

    clip = load_backbone(config.model, config.pretrained, "cpu").clip
    return min(tower.depth for tower in find_towers(clip).values())


def _layer_choices(depth: int) -> list[str]:
    """The last sixth, third and two thirds of the blocks, and all of them."""
    counts = dict.fromkeys(max(1, round(share * depth)) for share in (1 / 6, 1 / 3, 2 / 3))
    return [f"last:{count}" for count in counts if count < depth] + ["all"]


def _start(config: SearchConfig, base: TrainConfig, depth: int) -> dict[str, Any]:
    """The first trial: the options' own values, each brought into its range or to the nearest choice."""

    def nearest(value: float, choices: tuple[float, ...]) -> float:
        return min(choices, key=lambda choice: abs(choice - value))

    def within(value: float, name: str) -> float:
        low, high = config.range(name)
        return min(max(value, low), high)

    layers = base.adapter.layers
    choices = _layer_choices(depth)
    start = {
        "lr": within(base.lr, "lr_range"),
        "scale": within(base.adapter.scale, "scale_range"),
        "layers": layers if layers in choices else choices[-2 if len(choices) > 1 else 0],
        "lambda1": nearest(base.loss.lambda1, LAMBDA_RECONSTRUCTION),
        "lambda3": nearest(base.loss.lambda3, LAMBDA_IMAGE),
    }
    searched = [*config.wanted, *(("lambda1", "lambda3") if "lambdas" in config.wanted else ())]
    return {name: value for name, value in start.items() if name in searched}


def _suggest(trial: Any, config: SearchConfig, depth: int) -> dict[str, Any]:
    """The options of ``rmadapter train`` that the trial is made with."""
    values: dict[str, Any] = {}
    if "lr" in config.wanted:
        values["lr"] = trial.suggest_float("lr", *config.range("lr_range"), log=True)
    if "scale" in config.wanted:
        values["adapter.scale"] = trial.suggest_float("scale", *config.range("scale_range"), log=True)
    if "layers" in config.wanted:
        values["adapter.layers"] = trial.suggest_categorical("layers", _layer_choices(depth))
    if "lambdas" in config.wanted:
        reconstruction = trial.suggest_categorical("lambda1", LAMBDA_RECONSTRUCTION)
        image = trial.suggest_categorical("lambda3", LAMBDA_IMAGE)
        values |= {"loss.lambda1": reconstruction, "loss.lambda2": reconstruction}
        values |= {"loss.lambda3": image, "loss.lambda4": TEXT_TO_IMAGE * image}
    return values


def _zeroshot(config: TrainConfig, images: ImageData) -> dict[str, float]:
    """Accuracy of the frozen model on ``images``, in percent, by part; measured once, then read from its folder."""
    from rmadapter.training.zeroshot_run import run_zeroshot

    with _logged(folder_of(config)):
        return run_zeroshot(config, data=images)["accuracy"]


def _train(config: TrainConfig, images: ImageData) -> dict[str, float]:
    """Train and test one trial with one seed on ``images``: its accuracy in percent, by part. Only results are kept."""
    from rmadapter.training.adapter_run import train

    folder = folder_of(config)
    with _logged(folder):
        found = train(config, data=images)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    return found["accuracy"]


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Inside, what is printed goes to log.txt beside the run's ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def _finish(best: Any, out: Path) -> dict[str, Any]:
    """best.yaml, of the best trial; prints that trial and how to use it."""
    options: dict[str, Any] = {}
    for name, value in best.user_attrs[VALUES].items():
        group, _, key = name.rpartition(".")
        (options.setdefault(group, {}) if group else options)[key] = value
    write_text(out / "best.yaml", yaml.safe_dump(options, sort_keys=False))
    print(f"best: trial {best.number}, {described(best)}, on validation images of base and pseudo-new classes")
    print(f"options: rmadapter train --config {out / 'best.yaml'} ...; all trials: {out / 'trials.csv'}")
    return options
