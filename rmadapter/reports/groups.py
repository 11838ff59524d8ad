"""What tells the rows of a report apart: runs of one row are tested on the same and trained on the same.

A data set is what it holds, not its name: where a report has several of one name, the first digits of their hashes
stand beside it. A run that does not record a hash counts to the one data set of its name, if there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.clip.names import RANDOM, brings_weights
from rmadapter.methods.naming import is_made_by
from rmadapter.reports.finished_runs import DIGITS, DataId, FinishedRun, TrainedOn

UNKNOWN = "not recorded"
# The order of rows and bars, simplest first; what else a method is called comes after these, by name.
METHOD_ORDER = ("zeroshot", "single", "single+consistency", "mma", "mma+consistency", "rmadapter")


class Group(NamedTuple):
    """What runs of one row share, as words of the report.

    Attributes:
        data: the data set tested on, with the first digits of its hash where the name does not tell it.
        classes: all, base or new: what was trained on, of zero-shot what it stands beside.
        tested: the parts of the classes tested on.
        trained_on: where that is not what ``data`` and ``tested`` say; else empty.
        settings: the settings in which rows of one method differ; else empty.
        data_hash: of ``data``, None where it is not recorded.
        model_label: the model's name as people say it, which tells it from the report's others.
    """

    data: str
    model: str
    pretrained: str | None
    split: str
    classes: str
    method: str
    shots: int | None
    style: str | None = None
    tested: str = ""
    trained_on: str = ""
    settings: str = ""
    data_hash: str | None = None
    model_label: str = ""


@dataclass(frozen=True)
class Member:
    """A run, and the row that it belongs to."""

    run: FinishedRun
    group: Group


class DataNames:
    """What the data sets of ``runs`` are called in a report of them."""

    def __init__(self, runs: Iterable[FinishedRun]):
        self._hashes: dict[tuple[str, str | None], set[str]] = {}
        for run in runs:
            trained = run.trained_on.data if run.trained_on else None
            for data in (run.data, trained):
                if data is not None:
                    known = self._hashes.setdefault(data[:2], set())
                    if data.sha256 is not None:
                        known.add(data.sha256)

    def resolved(self, data: DataId) -> DataId:
        """``data``, with the hash of the one data set of its name where it records none."""
        known = self._hashes[data[:2]]
        return data._replace(sha256=next(iter(known))) if data.sha256 is None and len(known) == 1 else data

    def name(self, data: DataId) -> str:
        """The name of ``data``, which tells it from all others of its style."""
        if len(self._hashes[data[:2]]) < 2:
            return data.name
        return f"{data.name} ({data.sha256[:DIGITS] if data.sha256 else UNKNOWN})"

    def ambiguous(self) -> dict[tuple[str, str | None], set[str]]:
        """The hashes of names and styles that stand for several data sets."""
        return {key: hashes for key, hashes in self._hashes.items() if len(hashes) > 1}

    def trained_on(self, trained: TrainedOn | None, tested: DataId, parts: Sequence[str]) -> str:
        """What was trained on, in words; empty where that is the data and the classes tested on, or nothing."""
        if trained is None:
            return ""
        if trained.data is None:
            return UNKNOWN
        halves = {"all": {"all"}, None: set()}.get(trained.classes, {"base", "new"})
        if self.resolved(trained.data) == self.resolved(tested) and halves and halves >= set(parts):
            return ""
        style = f"@{trained.data.style}" if trained.data.style else ""
        return f"{self.name(trained.data)}{style}, {trained.classes or 'unknown'} classes"


def grouped(runs: Sequence[FinishedRun], *, by_settings: bool) -> list[Member]:
    """Each of ``runs`` with its group.

    ``by_settings`` keeps runs apart that differ in a setting; otherwise ``differing_settings`` has to say it.
    """
    names, models = DataNames(runs), _model_labels(runs)
    members = [Member(run, _group(run, names, models[run.model, run.pretrained])) for run in runs]
    if not by_settings:
        return members
    differing: dict[Group, dict[str, None]] = {}
    for group, group_members in by_group(members).items():
        found = differing.setdefault(_method_of(group), {})
        found |= dict.fromkeys(name for name, values in _values(group_members).items() if len(values) > 1)
    return [
        Member(member.run, member.group._replace(settings=_text(member.run.settings, differing[_method_of(group)])))
        for member in members
        for group in [member.group]
    ]


def by_group(members: Iterable[Member]) -> dict[Group, list[Member]]:
    """``members`` by their groups."""
    groups: dict[Group, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    return groups


def _group(run: FinishedRun, names: DataNames, model_label: str) -> Group:
    return Group(
        data=names.name(run.data),
        model=run.model,
        pretrained=run.pretrained,
        split=run.split,
        classes=run.classes or UNKNOWN,
        method=run.method,
        shots=run.shots,
        style=run.data.style,
        tested=" ".join(run.tested),
        trained_on=names.trained_on(run.trained_on, run.data, run.tested),
        data_hash=names.resolved(run.data).sha256,
        model_label=model_label,
    )


def _model_labels(runs: Iterable[FinishedRun]) -> dict[tuple[str, str | None], str]:
    """What each model and its weights are called: ``model_label``, in full where several would be called the same."""
    models = dict.fromkeys((run.model, run.pretrained) for run in runs)
    labels = {key: model_label(*key) for key in models}
    times = Counter(labels.values())
    return {
        (model, weights): label if times[label] == 1 else f"{model}, {weights}" if weights else model
        for (model, weights), label in labels.items()
    }


def over_data(group: Group) -> Group:
    """``group`` without what is one data set's own: what its means over several data sets are of."""
    return group._replace(data="", data_hash=None, tested="")


def _method_of(group: Group) -> Group:
    """The rows that one choice of settings is written for: those of a method, wherever it is tested."""
    return over_data(group)._replace(style=None, split="", trained_on="")


def _values(members: Iterable[Member]) -> dict[str, dict[Any, list[int | None]]]:
    """The seeds by the value, for each setting that is recorded."""
    found: dict[str, dict[Any, list[int | None]]] = {}
    for member in members:
        for name, value in member.run.settings.items():
            found.setdefault(name, {}).setdefault(value, []).append(member.run.seed)
    return found


def _text(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name}={settings.get(name, UNKNOWN)}" for name in names)


def differing_settings(members: Iterable[Member]) -> list[str]:
    """A sentence for each setting in which runs of one row differ, so that their mean is of several settings.

    Runs that do not record a setting are not compared in it.
    """
    sentences = []
    for group, group_members in by_group(members).items():
        data = group.data + (f"@{group.style}" if group.style else "")
        for name, seeds in _values(group_members).items():
            if len(seeds) > 1:
                listed = "; ".join(
                    str(value)
                    + (f" ({', '.join(named)})" if (named := [f"seed {one}" for one in of if one is not None]) else "")
                    for value, of in seeds.items()
                )
                sentences.append(f"The runs of {group.method} on {data} differ in {name}: {listed}.")
    return sentences


def misnamed(members: Iterable[Member]) -> list[str]:
    """A sentence for each registered method's name that was given to runs whose options make something else."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for member in members:
        run = member.run
        if run.made is not None and not is_made_by(run.method, run.made):
            found.setdefault((run.method, run.made), {})[member.group.data] = None
    return [
        f"The runs that are called {method} on {', '.join(data)} are by their options: {made}."
        for (method, made), data in found.items()
    ]


def several_contents(runs: Iterable[FinishedRun]) -> list[str]:
    """A sentence for each name that stands for several data sets, which are shown apart."""
    names = DataNames(runs)
    return [
        f"{name}{f'@{style}' if style else ''} stands for {len(hashes)} data sets that hold different images, labels "
        f"or splits: {', '.join(sorted(one[:DIGITS] for one in hashes))}, the first digits of their hashes."
        for (name, style), hashes in names.ambiguous().items()
    ]


def one_a_seed(members: Iterable[Member]) -> tuple[list[Member], list[str]]:
    """The newest run of each group and seed, as one counted twice would narrow the deviation; the others' places."""
    newest: dict[tuple[Group, int | None], Member] = {}
    repeated = []
    for member in sorted(members, key=lambda member: member.run.written):
        key = (member.group, member.run.seed)
        if key in newest:
            repeated.append(newest[key].run.place)
        newest[key] = member
    return list(newest.values()), sorted(repeated)


def context(group: Group) -> str:
    """What rows that are drawn together share, as a title."""
    data = group.data + (f" drawn by {group.style}" if group.style else "")
    return f"{data}, {group.model_label}" + ("" if group.split == "test" else f", {group.split} images")


def method_order(method: str) -> tuple[int, str]:
    """A sort key: the order of ``METHOD_ORDER``, then by name."""
    return (METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), method)


def model_label(model: str, pretrained: str | None) -> str:
    """The last folder of a path, the weights' tag in brackets; a name that stands for no weights has random ones."""
    name = Path(model.removeprefix("local-dir:")).name
    if pretrained is not None and pretrained != RANDOM:
        return f"{name} ({Path(pretrained).name})"
    return name if brings_weights(model) else f"{name} (random weights)"
