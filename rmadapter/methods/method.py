"""What the harness knows of a method."""

from __future__ import annotations

from dataclasses import dataclass

# How a method is trained and stored: adapters in both towers, a linear classifier on image features, or not at all.
ADAPTERS, PROBE, UNTRAINED = "adapters", "probe", "untrained"


@dataclass(frozen=True)
class Method:
    """A method of adapting CLIP, as data; ``training.by_method`` and ``evaluation.stored`` have what each kind does.

    Attributes:
        name: in commands, tables and results.json.
        summary: what it is, for people.
        options: of ``rmadapter train``; they win over the user's, since they are what the method is.
        testbed: options that are its defaults on the bundled data sets, where it needs others than RMAdapter.
        kind: ADAPTERS, PROBE or UNTRAINED.
        seeded: whether a seed changes anything; otherwise it is run once a data set.
        open_vocabulary: whether it classifies classes that it was not trained on.
    """

    name: str
    summary: str
    options: tuple[str, ...] = ()
    testbed: tuple[str, ...] = ()
    kind: str = ADAPTERS
    seeded: bool = True
    open_vocabulary: bool = True
