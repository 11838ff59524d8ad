"""Run folders as ``rmadapter train`` leaves them, for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path


def write_run(folder: Path, accuracy: dict[str, float], **changes) -> Path:
    values = {
        "format": 1,
        "method": "rmadapter",
        "data": "digits",
        "model": "local-dir:models/tiny",
        "pretrained": None,
        "shots": 16,
        "seed": 1,
        "classes": "base",
        "split": "test",
        "accuracy": accuracy,
        "images": {"base": 450, "new": 449},
        "trained_parameters": 123456,
        "seconds": {"train": 12.0, "eval": 1.5},
        "backend": "eager",
        "precision": "fp32",
        "device": "cpu",
        "few_shot_hash": "0" * 64,
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(values | changes))
    return folder


def write_metrics(folder: Path, *extra: str) -> None:
    lines = [
        {
            "kind": "step",
            "epoch": 1,
            "step": step,
            "lr": 0.001,
            "loss": 2 / step,
            "cross_entropy": 1 / step,
            "reconstruction_vision": 0.5 / step,
            "reconstruction_text": 0.25 / step,
            "consistency_image": 0.0,
            "consistency_text": 0.0,
            "accuracy": 50.0 + step,
            "images_per_second": 50.0,
        }
        for step in (10, 20, 30)
    ]
    texts = [*map(json.dumps, lines), json.dumps({"kind": "epoch", "epoch": 1, "loss": 1.0}), *extra]
    (folder / "metrics.jsonl").write_text("\n".join(texts) + "\n")


def three_methods(root: Path) -> Path:
    """Two seeds of rmadapter, one of single, zero-shot; as training writes them, one level apart."""
    write_run(root / "a" / "seed1", {"base": 90.0, "new": 60.0, "hm": 72.0}, seed=1)
    write_run(root / "a" / "seed2", {"base": 92.0, "new": 66.0, "hm": 76.9}, seed=2, seconds={"train": 14.0})
    write_run(root / "b", {"base": 95.0, "new": 50.0}, method="single")
    zeroshot = {"method": "zeroshot", "shots": None, "seed": None, "trained_parameters": 0, "seconds": {"eval": 1.5}}
    write_run(root / "z", {"base": 75.0, "new": 62.0}, **zeroshot)
    return root
