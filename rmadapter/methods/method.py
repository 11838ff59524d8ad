"""What the harness knows of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# How a method is trained and stored: by steps through the towers, as a linear classifier on image features, or not.
TUNED, PROBE, UNTRAINED = "tuned", "probe", "untrained"
# Keys of ``Method.overrides`` beside names of data sets: training on ImageNet, and there to test on other data sets.
IMAGENET, TRANSFER = "imagenet", "transfer"

# What a method is without, as options. Adapters beside blocks and their reconstruction:
NO_ADAPTERS = ("--adapter.layers=none", "--no-adapter.reconstruct", "--loss.lambda1=0", "--loss.lambda2=0")
NO_RECONSTRUCTION = ("--no-adapter.reconstruct", "--loss.lambda1=0", "--loss.lambda2=0")
NO_CONSISTENCY = ("--loss.lambda3=0", "--loss.lambda4=0")
# What the field's prompt learners have in common: SGD, one epoch of warm-up, only whole batches.
FIELD_RECIPE = ("--optimizer=sgd", "--momentum=0.9", "--weight_decay=5e-4", "--warmup_epochs=1", "--drop_last")


@dataclass(frozen=True)
class FewShotOptions:
    """Options that are published for the few-shot protocol: training on all classes with several numbers of shots.

    Attributes:
        options: words of ``rmadapter train``.
        shots: they hold from this number of training images a class on.
        data: names of the data sets that they hold for; none for all.
    """

    options: tuple[str, ...]
    shots: int = 1
    data: tuple[str, ...] = ()

    def hold(self, data: str, shots: int) -> bool:
        """Whether they hold for ``shots`` images of each class of ``data``."""
        return shots >= self.shots and (not self.data or data in self.data)


@dataclass(frozen=True)
class Method:
    """A method of adapting CLIP, as data; ``training.by_method`` and ``evaluation.stored`` have what each kind does.

    Options are words of ``rmadapter train``. Of two that disagree the later wins: recipe, overrides, few_shot, the test
    bed's defaults, ``testbed``, the user's, options.

    Attributes:
        name: in commands, tables and results.json.
        summary: what it is, for people.
        options: what the method is.
        groups: of options that it has beside those of a run.
        recipe: how it is trained, as published.
        overrides: what is published to be otherwise, for a data set by its name, and for TRANSFER.
        few_shot: what is published to be otherwise in the few-shot protocol, from the general to the particular.
        testbed: its defaults on the bundled data sets, where it needs others than RMAdapter.
        kind: TUNED, PROBE or UNTRAINED.
        seeded: whether a seed changes anything; otherwise it is run once a data set.
        open_vocabulary: whether it classifies classes that it was not trained on.
    """

    name: str
    summary: str
    options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("adapter",)
    recipe: tuple[str, ...] = ()
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    few_shot: tuple[FewShotOptions, ...] = ()
    testbed: tuple[str, ...] = ()
    kind: str = TUNED
    seeded: bool = True
    open_vocabulary: bool = True

    def overriding(self, data: str, *, transfer: bool = False, few_shot: int | None = None) -> tuple[str, ...]:
        """What is published to be otherwise for a data set of the field, trained on for itself or to test on others.

        ``few_shot`` is the number of shots in the few-shot protocol, None elsewhere.
        """
        found = [*self.overrides.get(data, ())]
        if transfer and data == IMAGENET:
            found += self.overrides.get(TRANSFER, ())
        if few_shot is not None:
            found += [word for each in self.few_shot if each.hold(data, few_shot) for word in each.options]
        return tuple(found)
