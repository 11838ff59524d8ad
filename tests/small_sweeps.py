"""What the tests of sweeps share: the command, and the results in a sweep's folder."""

from __future__ import annotations

import json

from rmadapter.cli import main


def sweep(*argv):
    return main(["sweep", *argv])


def results_of(folder):
    found = {}
    for file in sorted((folder / "runs").rglob("results.json")):
        values = json.loads(file.read_text())
        found[str(file.relative_to(folder))] = (values["accuracy"], values["images"], values.get("few_shot_hash"))
    return found
