"""A linear probe as a run: its features, its fit, its files, its accuracy.

The features are normalised and come from test-time preprocessing, without augmentation. The weight of the penalty is
chosen on the few-shot validation images of the classes that are trained on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.backbone import Backbone, check_source, load_backbone
from rmadapter.clip.finite import check_finite
from rmadapter.config import TrainConfig
from rmadapter.data import ImageData, Item, base_new_split, load_data
from rmadapter.data.catalog import template_for
from rmadapter.errors import InputError
from rmadapter.evaluation.accuracy import evaluate_parts
from rmadapter.evaluation.eval_images import Loading, readable_batches
from rmadapter.evaluation.results_file import describe, results_of, trained_on, write_results
from rmadapter.files import write_json
from rmadapter.methods.linear_probe import LINEAR_PROBE
from rmadapter.methods.naming import folder_of
from rmadapter.runtime import environment, resolve_device
from rmadapter.step.batches import WorkerLostError, lost_workers_said
from rmadapter.training.before_training import check_test_images, check_test_prompts
from rmadapter.training.few_shot import few_shot
from rmadapter.training.probe_fit import DEFAULT_C, GRID, choose
from rmadapter.training.run_folder import SMALL_FILES, RunFolder, finished_run, not_tested
from rmadapter.tuners.probe import LinearProbe, read_probe, save_probe


def train_probe(config: TrainConfig, *, data: ImageData | None = None) -> dict[str, Any]:
    """Fit a probe on the few-shot sample, save it in ``adapter/`` of the run folder, evaluate it.

    ``data`` is taken in place of the data set that the configuration names.

    Raises:
        InputError: as ``adapter_run.train``; an unreadable image.
        StoppedError: the probe is saved, but cannot be tested; the folder was deleted meanwhile.
        WorkerLostError: a process that decodes images has ended.
    """
    folder = RunFolder(folder_of(config), LINEAR_PROBE.kind)
    data = data or load_data(config.data, config.data_root, config.style)
    if (done := finished_run(folder, config, data)) is not None:
        return done
    with folder.held(), lost_workers_said():
        if (done := finished_run(folder, config, data)) is not None:  # another process may have had it until now
            return done
        folder.check_room(SMALL_FILES)
        return _run(config, folder, data)


def _run(config: TrainConfig, folder: RunFolder, data: ImageData) -> dict[str, Any]:
    check_source(config.model, config.pretrained)
    device = resolve_device(config.device)
    for note in data.notes:
        print(note)
    # New classes are unknown to it: of the halves it has the one that it was trained on.
    parts = (config.classes,) if config.evaluate else ()
    check_test_images(data, parts)
    sample, items, names, findings = few_shot(config, data, data.read)
    val_items = base_new_split(sample.val, config.classes, len(data.class_names))
    backbone = load_backbone(config.model, config.pretrained, device)
    template = template_for(config.template, data.name)
    check_test_prompts(backbone, data, parts, template)
    folder.prepare(config, data.hashes)
    write_json(folder.environment_file, environment(device))
    sample.save(folder.sample_file)

    began = time.perf_counter()
    fitted = encode(backbone, data, items, config, device)
    validated = encode(backbone, data, val_items, config, device) if val_items else None
    solution, inverse_penalty = choose(fitted, validated, len(names))
    seconds = time.perf_counter() - began
    print(f"linear probe: C = {inverse_penalty:g}, {len(items)} images of {len(names)} classes, {seconds:.1f} s")
    probe = _probe(backbone, names, template, solution)
    settings = {"C": DEFAULT_C if validated is None else list(GRID)}
    training = {
        "method": LINEAR_PROBE.name,
        "data": data.name,
        "style": data.style,
        "data_hash": data.content_hash,
        "classes": config.classes,
        "shots": config.shots,
        "seed": config.seed,
        "C": inverse_penalty,
        "settings": settings,
    }
    folder.check_held()
    save_probe(folder.adapter, probe, backbone, training)
    weights_sha256 = read_probe(folder.adapter).weights_sha256

    found = {"accuracy": {}, "images": {}, "skipped": 0, "metrics": {}}
    began = time.perf_counter()
    if parts:
        loading = Loading(backbone.preprocessing, config.eval_batch_size, config.workers, config.skip_bad_images)
        try:
            with lost_workers_said():
                found = evaluate_parts(probe, data, parts, loading)
        except (InputError, WorkerLostError) as error:
            raise not_tested(folder, config, error) from error
        print(describe(found))
    results = results_of(
        method=LINEAR_PROBE.name,
        data=data,
        trained_on=trained_on(training, weights_sha256),
        model=config.model,
        pretrained=config.pretrained,
        base_hash=backbone.base_hash,
        shots=config.shots,
        seed=config.seed,
        classes=config.classes,
        split="test",
        found=found,
        trained_parameters=solution.numel(),
        seconds={"train": seconds, "eval": time.perf_counter() - began},
        precision="fp32",
        device=str(device),
        settings=settings,
        data_findings=findings.to_dict(),
        few_shot_hash=sample.hash,
    )
    folder.check_held()
    write_results(folder.results_file, results)
    print(f"adapter: {folder.adapter}\nresults: {folder.results_file}")
    return results


@torch.no_grad()
def encode(
    backbone: Backbone, data: ImageData, items: Sequence[Item], config: TrainConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised image features [n, embed] in fp32 and labels [n] of ``items``, on ``device``."""
    loading = Loading(backbone.preprocessing, config.eval_batch_size, config.workers, config.skip_bad_images)
    features, labels = [], []
    for images, batch_labels in readable_batches(data.read, items, loading):
        found = check_finite("image features", backbone.clip.encode_image(images.to(device)))
        features.append(F.normalize(found.float(), dim=-1))
        labels.append(batch_labels.to(device))
    return torch.cat(features), torch.cat(labels)


def _probe(backbone: Backbone, names: Sequence[str], template: str, solution: Tensor) -> LinearProbe:
    weight, bias = solution[:, :-1].float().contiguous(), solution[:, -1].float().contiguous()
    return LinearProbe(backbone.clip, backbone.tokenizer, names, template, weight, bias)
