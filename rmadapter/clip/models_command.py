"""``rmadapter models``: which of open_clip's models can be adapted, with which shortcuts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from rmadapter.clip.model_table import ModelRow, model_rows

COLUMNS = ("model", "image tower", "text tower", "blocks", "trim", "shared start", "last token")


@dataclass
class ModelsConfig:
    """open_clip's models: which can be adapted, with which shortcuts of the fast step, and why not.

    Args:
        names: models; default: all that open_clip has
        json: one object a model, with the reasons
        markdown: the table of the documentation
    """

    names: list[str] = field(default_factory=list)
    json: bool = False
    markdown: bool = False


def run_models(config: ModelsConfig) -> None:
    """Print the table, or a line of JSON a model as it is looked at.

    Raises:
        InputError: a name that open_clip does not know.
    """
    if config.json:
        for row in model_rows(config.names):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        return
    rows = list(model_rows(config.names))
    working = [row for row in rows if row.refused is None]
    print("\n".join(_table([COLUMNS, *map(_cells, working)], config.markdown)))
    for reason, names in _reasons(working).items():
        print(f"{'- ' if config.markdown else ''}{reason}: {names}")
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row.refused is not None:
            refused.setdefault(row.refused, []).append(row.name)
    print(f"\n{len(working)} of {len(rows)} can be adapted" + ("; not these:\n" if refused else ""))
    for reason, models in refused.items():
        print(f"{'- ' if config.markdown else ''}{', '.join(models)}: {reason}")


def _reasons(rows: Sequence[ModelRow]) -> dict[str, str]:
    """ "No SHORTCUT because REASON" -> how many models, and the first of them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in (row.shortcuts or {}).items():
            if value != "yes":
                found.setdefault(f"no {name} where {value}", []).append(row.name)
    return {reason: f"{len(names)} models, such as {names[0]}" for reason, names in found.items()}


def _cells(row: ModelRow) -> tuple[str, ...]:
    has = row.shortcuts or {}
    last = " and ".join(tower for tower in ("vision", "text") if has[f"last_token, {tower}"] == "yes")
    trim, shared = ("yes" if has[name] == "yes" else "no" for name in ("trim", "shared_start"))
    blocks = f"{row.blocks[0]}, {row.blocks[1]}"
    return row.name, row.vision, row.text, blocks, trim, shared, last or "no"


def _table(rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    if markdown:
        rendered = ["| " + " | ".join(cells) + " |" for cells in rows]
        return [rendered[0], "|---" * len(rows[0]) + "|", *rendered[1:], ""]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in lines]
