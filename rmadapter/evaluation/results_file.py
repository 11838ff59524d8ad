"""``results.json``: what a training run or an evaluation has found. Everything that writes one goes through here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmadapter.data import ImageData
from rmadapter.files import write_json
from rmadapter.runtime import git_revision

FORMAT = 1


def harmonic_mean(base: float, new: float) -> float:
    """``2 base new / (base + new)``, 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def trained_on(training: Mapping[str, Any], adapter_sha256: str) -> dict[str, Any]:
    """What an adapter was trained on, for results.json; None where its file does not say it.

    Args:
        training: its file's record of that name.
        adapter_sha256: of its weights' file.
    """
    names = ("data", "style", "data_hash", "classes", "shots", "seed")
    return {**{name: training.get(name) for name in names}, "adapter_sha256": adapter_sha256}


def results_of(
    *,
    method: str,
    data: ImageData,
    trained_on: dict[str, Any] | None,
    model: str,
    pretrained: str | None,
    base_hash: str,
    shots: int | None,
    seed: int | None,
    classes: str | None,
    split: str,
    found: dict[str, Any],
    trained_parameters: int,
    seconds: dict[str, float | None],
    precision: str,
    device: str,
    **others: Any,
) -> dict[str, Any]:
    """What results.json holds; ``commit`` is the code's that finds it, see ``runtime.git_revision``.

    Args:
        method: its name in tables.
        data: the data set that was tested on.
        trained_on: as ``trained_on`` makes it, None where nothing was trained.
        model, pretrained: open_clip's name and tag of the base model; base_hash: ``identity.base_hash`` of it.
        shots, seed: of the few-shot sample; None where nothing was trained or it is not known.
        classes: what was trained on: all, base or new, None where it is not known; where nothing was trained, what it
            stands beside: base for both halves.
        split: test, val or train.
        found: ``accuracy`` in percent, ``images`` and ``metrics`` by part, ``skipped`` images and, where there are
            several ways to answer, ``inference`` by part, as ``accuracy.evaluate_parts`` gives; results of earlier
            versions have no ``metrics``.
        trained_parameters: how many numbers training changed.
        seconds: by ``train`` and ``eval``, as far as they are known.
        precision: bf16, fp16 or fp32; device: as torch writes it.
        others: what a kind of run has beside it, by the names in the file.
    """
    return {
        "format": FORMAT,
        "commit": git_revision(),
        "method": method,
        "data": data.name,
        "style": data.style,
        "split_file": data.split_id,
        "data_hash": data.content_hash,
        "trained_on": trained_on,
        "model": model,
        "pretrained": pretrained,
        "base_hash": base_hash,
        "shots": shots,
        "seed": seed,
        "classes": classes,
        "split": split,
        **found,
        "trained_parameters": trained_parameters,
        "seconds": seconds,
        "precision": precision,
        "device": device,
        **others,
    }


def write_results(file: Path, results: dict[str, Any]) -> None:
    """``results`` as results.json in ``file``, atomically; where it is, a run is finished."""
    write_json(file, results)


def _further(values: Mapping[str, Any]) -> str:
    area = "" if values["auroc"] is None else f", AUROC {values['auroc']:.3f}"
    return f"top-5 {values['top5']:.2f} %, ECE {values['ece']:.3f}, NLL {values['nll']:.3f}{area}"


def describe(found: dict[str, Any]) -> str:
    """Lines on each part: accuracy, number of images, further metrics; and on open-world accuracy."""
    metrics, lines = found["metrics"], []
    for name, percent in found["accuracy"].items():
        part = name
        count = found["images"].get(part)
        what = f"({count} images)" if count else "harmonic mean"
        if part.startswith("retained_"):
            part, what = (
                part.removeprefix("retained_"),
                f"retention: the same classes drawn by {found['retention_style']}",
            )
        if inference := found.get("inference", {}).get(name):
            what += f", by {inference}"
        lines.append(f"{part:>5}  {percent:6.2f} %  {what}")
        if name in metrics:
            lines.append(f"{'':>16}{_further(metrics[name])}")
    if "open" in metrics:
        values = metrics["open"]
        halves = f"base images {values['base']:.2f} %, new images {values['new']:.2f} %, both"
        lines.append(f" open  {values['hm']:6.2f} %  harmonic mean among all classes: {halves} {values['top1']:.2f} %")
    if found["skipped"]:
        lines.append(f"{found['skipped']} unreadable images left out")
    return "\n".join(lines)
