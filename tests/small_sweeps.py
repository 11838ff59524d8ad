"""What the tests of sweeps share: the command, and the results in a sweep's folder and in its table."""

from __future__ import annotations

import json

from rmadapter.cli import main


def sweep(*argv):
    return main(["sweep", *argv])


def results_of(folder):
    files = sorted((folder / "runs").rglob("results.json"))
    return {str(file.relative_to(folder)): _compared(json.loads(file.read_text())) for file in files}


def kept_of(folder):
    """What is in the table, under the names that ``results_of`` gives the files that it took the place of."""
    found = {}
    for text in (folder / "results.jsonl").read_text().splitlines():
        line = json.loads(text)
        place = "run" if line["on"] is None else f"on/{line['on']}"
        found[f"runs/{line['run']}/{place}/results.json"] = _compared(line)
    return found


def _compared(values):
    return values["accuracy"], values["images"], values.get("few_shot_hash")
