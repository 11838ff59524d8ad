"""What the trials of a search came to: how each is judged, the line and the table that say it, and the best of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rmadapter.sweeps.keeping import MARGINS, gained, lacks, place, shortfall

KEPT, HM = OBJECTIVES = ("kept", "hm")
# What a run that diverged has left of the frozen model's knowledge.
NOTHING = dict.fromkeys(("base", "new", "retained_base", "retained_new"), 0.0)
GAIN = "gain"  # the attribute of a trial that holds what ``keeping.gained`` makes of it
VALUES = "options"  # what it is made with, option -> value; there before its first run begins
STOPPED = "stopped"  # it was ended from outside: Ctrl-C, SIGTERM
PLACE = "place"  # of one that goes on with a stopped trial: the name of that one's folder


def place_of(trial: Any) -> str:
    """The name of the folder with the runs of an optuna trial: its number, or that of the one that it goes on with."""
    return str(trial.user_attrs.get(PLACE, trial.number))


def queue_stopped(study: Any) -> None:
    """Queue each trial of an optuna study that was stopped in its runs, killed or from outside, to be gone on with.

    optuna has no way back to a trial that has ended: another one takes its options and its folder, in which its
    finished runs and the state of the one that was going on lie. A kill in here leaves nothing out and nothing twice.
    """
    from optuna.trial import TrialState

    running = study.get_trials(states=(TrialState.RUNNING,))
    for folder, last in {place_of(trial): trial for trial in study.get_trials()}.items():
        stopped = last.state == TrialState.RUNNING or (last.state == TrialState.FAIL and STOPPED in last.user_attrs)
        if stopped and VALUES in last.user_attrs:
            study.enqueue_trial(last.params, user_attrs={PLACE: folder})
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)


def judge(trial: Any, found: Sequence[Mapping[str, float]], zeroshot: Mapping[str, float], objective: str) -> float:
    """The harmonic mean of an optuna trial whose seeds found these accuracies, in percent; notes what it gains.

    By the objective ``kept`` what it falls short is a constraint of it, which optuna's sampler takes into account.
    """
    means = {part: statistics.fmean(accuracy[part] for accuracy in found) for part in found[0]}
    gain = gained(means, zeroshot)
    trial.set_user_attr(GAIN, gain)
    constrain(trial, gain, objective)
    return means["hm"]


def constrain(trial: Any, gain: Mapping[str, float], objective: str) -> None:
    """Note, by the objective ``kept``, what an optuna trial lacks; above 0 such a constraint is violated."""
    if objective == KEPT:
        for part, lack in lacks(gain).items():
            trial.set_constraint(part, lack)


def best_of(trials: Iterable[Any], objective: str) -> Any:
    """Of finished optuna trials that have a value the best, the first of equal ones."""

    def key(trial: Any) -> tuple[float, ...]:
        return place(trial.user_attrs[GAIN], trial.value) if objective == KEPT else (-trial.value,)

    return min(trials, key=key)


def described(trial: Any) -> str:
    """Accuracy and gain of a finished optuna trial, for people."""
    if trial.value is None:
        return "diverged"
    gain = trial.user_attrs[GAIN]
    gains = ", ".join(f"{part} {gain[part]:+.2f}" for part in MARGINS if part in gain)
    lack = shortfall(gain)
    return f"HM {trial.value:.2f}, {gains} on zero-shot, {f'{lack:.2f} short' if lack else 'keeps it'}"


def standard(zeroshot: Mapping[str, float]) -> str:
    """What zero-shot has, in percent, and what a trial needs to keep it, for people."""
    had = {part: -gain for part, gain in gained(NOTHING, zeroshot).items()}
    needed = " and ".join(f"{part} {had[part] - margin:.2f}" for part, margin in MARGINS.items() if part in had)
    listed = ", ".join(f"{part} {value:.2f}" for part, value in had.items())
    return f"zero-shot has {listed}; a trial keeps it with {needed} or more"


def table(trials: Sequence[Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows of trials.csv: every optuna trial, unfinished ones and those that diverged too."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = []
    for trial in trials:
        gain = trial.user_attrs.get(GAIN, {})
        keeps = "" if not gain else "no" if shortfall(gain) else "yes"
        accuracies = {name: value for name, value in trial.user_attrs.items() if name.startswith("seed")}
        rows.append(
            (
                trial.number,
                place_of(trial),
                trial.state.name.lower(),
                trial.value,
                *(gain.get(part) for part in MARGINS),
                keeps,
                *(trial.params.get(name, "") for name in names),
                json.dumps(accuracies),
            )
        )
    gains = (f"{part} - zero-shot" for part in MARGINS)
    return ("trial", "folder", "state", "hm", *gains, "keeps", *names, "accuracies"), rows
