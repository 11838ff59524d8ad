"""Folders of finished sweeps with made-up numbers, and the tables of their reports, for tests."""

from __future__ import annotations

import json
import math
import re

from rmadapter.data.catalog import CATALOG
from rmadapter.data.items import OWN_LISTS
from rmadapter.sweeps.manifest import FORMAT

SETTINGS = {"model": "ViT-B-16", "pretrained": "openai", "shots": 16}


def accuracy(method, data, seed):
    """(base, new) that no two runs share."""
    gain = {"zeroshot": 0.0, "mma": 9.0, "rmadapter": 10.0}.get(method, 8.0)
    place = len(data) % 7
    return 70.0 + gain + place + 0.5 * (seed or 0), 72.0 + gain / 3 - place + 0.25 * (seed or 0)


def as_published(data, parts):
    """Split and test images of one of the field's data sets as published; nothing for any other."""
    record = CATALOG.get(data)
    if record is None:
        return {}
    base, new = record.base_new_test or (record.test // 2, record.test - record.test // 2)
    images = {part: count for part, count in {"all": record.test, "base": base, "new": new}.items() if part in parts}
    split = f"{record.split_file}, SHA-256 0123456789ab" if record.split_file else OWN_LISTS
    return {"split_file": split, "images": images}


def results(method, data, seed, values, classes, trained_on=None, shots=16):
    zeroshot = method == "zeroshot"
    return {
        "format": 1,
        "method": method,
        "data": data,
        "model": "ViT-B-16",
        "pretrained": "openai",
        "shots": None if zeroshot else shots,
        "seed": seed,
        "classes": classes,
        "split": "test",
        **as_published(data, values),
        "accuracy": values,
        "trained_parameters": {"zeroshot": 0, "mma": 674560}.get(method, 1020928),
        "seconds": {"eval": 3.0} if zeroshot else {"train": 60.0, "eval": 3.0},
        **({"trained_on": trained_on} if trained_on else {}),
    }


def write(path, values):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(values))


def fake(folder, protocol, data, methods, seeds=(1, 2, 3), source=None, **settings):
    """The folder of a finished sweep, its numbers from ``accuracy``."""
    folder.mkdir()
    sources = [source] if source else []
    lists = {"data": list(data), "methods": list(methods), "seeds": list(seeds), "sources": sources}
    manifest = {"format": FORMAT, "protocol": protocol, "settings": {**SETTINGS, **settings}, **lists}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    for method in methods:
        for seed in [None] if method == "zeroshot" else seeds:
            for name in sources or data:
                run = folder / "runs" / method / name / ("" if seed is None else f"seed{seed}")
                base, new = accuracy(method, name, seed)
                if source is None:
                    write(run / "run" / "results.json", results(method, name, seed, {"base": base, "new": new}, "base"))
                    continue
                write(run / "run" / "results.json", results(method, name, seed, {"all": base}, "all"))
                for target in data:
                    if target != source:
                        values = {"all": accuracy(method, target, seed)[1]}
                        found = results(method, target, seed, values, "all", source)
                        write(run / "on" / target / "results.json", found)
    return folder


def shots_accuracy(method, data, seed, shots):
    """On all classes, which no two runs share; ``shots`` and ``seed`` are None without training."""
    return accuracy(method, data, seed)[0] - 20 + math.log2(shots or 0.25) * 3


def fake_few_shot(folder, data, methods, shots=(1, 4, 16), seeds=(1, 2, 3), **settings):
    """The folder of a finished sweep of the few-shot protocol, its numbers from ``shots_accuracy``."""
    folder.mkdir()
    lists = {"data": list(data), "methods": list(methods), "seeds": list(seeds), "sources": [], "shots": list(shots)}
    own = {name: value for name, value in SETTINGS.items() if name != "shots"} | settings
    manifest = {"format": FORMAT, "protocol": "fewshot", "settings": own, **lists}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    for method in methods:
        for name in data:
            for number, seed in [(None, None)] if method == "zeroshot" else [(n, s) for n in shots for s in seeds]:
                place = folder / "runs" / method / name
                place = place if seed is None else place / f"shots{number}" / f"seed{seed}"
                values = {"all": shots_accuracy(method, name, seed, number)}
                write(place / "run" / "results.json", results(method, name, seed, values, "all", shots=number))
    return folder


def cells(text, title, method):
    """The cells of the row of ``method`` in the table under ``title``, by heading."""
    table = re.search(rf"^## {re.escape(title)}\n\n(.*?)(\n\n|\Z)", text, re.DOTALL | re.MULTILINE).group(1)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (row,) = [row for row in rows if row[0] == method]
    return list(zip(head, row, strict=True))
