"""Classes of a sweep as units: what is drawn together with what."""

from __future__ import annotations

import numpy as np
import pytest

from rmadapter.reports.crossed import crossed
from rmadapter.reports.sweep.class_cells import HOME, OTHERS, cells, class_values
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow

STYLES = ("fluent", "noto", "emojione")
CLASSES = ("ant", "bee", "cat", "dog")


def results(sources: list[str], method: str, shift: float) -> list[TransferRow]:
    """Each source in three styles, two seeds; what one style gains on a class the other loses."""
    random = np.random.default_rng(5)
    rows = []
    for source in sources:
        group = source.partition("@")[0]
        per_class = {}
        for seed in (1, 2):
            gain = dict(zip(CLASSES, random.normal(0, 10, len(CLASSES)), strict=True))
            signs = {"fluent": 0, "noto": shift, "emojione": -shift}
            per_class[seed] = {
                f"{group}@{style}": {name: 50 + signs[style] * gain[name] for name in CLASSES} for style in STYLES
            }
        targets = tuple(f"{group}@{style}" for style in STYLES[1:])
        rows.append(TransferRow(method, source, {}, per_class, targets, None, None, None))
    return rows


@pytest.mark.parametrize("sources", [["emoji_food@fluent"], ["emoji_food@fluent", "emoji_animals@fluent"]])
def test_a_class_in_several_styles_is_one_unit(sources):
    rows = [*results(sources, "ours", 1), *results(sources, "other", 0)]
    values = class_values(SweepResults("domain", {}, (), (), tuple(rows), len(rows), len(rows), {}, ()))
    compared = crossed(cells(values["ours"][OTHERS], values["other"][OTHERS], None))
    assert compared.classes == len(sources) * len(CLASSES)
    assert compared.interval == pytest.approx((0, 0))
    home = crossed(cells(values["ours"][HOME], values["other"][HOME], None))
    assert home.classes == len(sources) * len(CLASSES)
