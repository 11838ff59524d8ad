"""Training: from a checked configuration to an adapter, its metrics and its accuracy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from rmadapter.clip.backbone import Backbone, check_source, load_backbone
from rmadapter.clip.storage import store_backbone
from rmadapter.config import TrainConfig
from rmadapter.config.sizes import parse_bytes
from rmadapter.data import DecodedImages, ImageData, Read, SampleFindings, load_data, steps_an_epoch
from rmadapter.data.catalog import template_for
from rmadapter.data.sentences import read_sentences
from rmadapter.data.templates import target_templates
from rmadapter.errors import InputError
from rmadapter.evaluation.accuracy import evaluate_parts, tested_parts
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.results_file import describe, results_of, trained_on, write_results
from rmadapter.files import cache_folder, write_json
from rmadapter.methods.naming import folder_of, method_name
from rmadapter.runtime import DTYPES, environment, residual_dtype, resolve_precision
from rmadapter.step import distributed
from rmadapter.step.batches import WorkerLostError, lost_workers_said
from rmadapter.step.distributed import PeerLostError, Ranks
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.plan import Plan, make_step, text_budget, wanted_shortcuts, with_graphs_settled
from rmadapter.training.before_training import check_test_images, check_test_prompts
from rmadapter.training.choosing import choose
from rmadapter.training.few_shot import few_shot
from rmadapter.training.filling import fill
from rmadapter.training.loop import TrainingLoop
from rmadapter.training.recipe import epochs_of, warmup_note
from rmadapter.training.run_folder import RunFolder, finished_run, not_tested, settings_of
from rmadapter.training.validation import validation_of
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter.tuners.encoders import Encoders
from rmadapter.tuners.injection import inject
from rmadapter.tuners.weight_draws import run_seed


def train(config: TrainConfig, *, data: ImageData | None = None) -> dict[str, Any]:
    """Run ``config`` from start, or from where its folder stopped, to the end; returns what results.json holds.

    ``data`` is taken in place of the data set that the configuration names. With ``explain``
    it prints how the step is planned, trains nothing and returns nothing.

    Raises:
        InputError: anything in the configuration, the data or the folder that cannot work, before training.
        DivergedError: the loss or its gradient was not finite at more than ``max_bad_steps`` steps.
        StoppedError: the adapter is saved, but cannot be tested; the folder was deleted meanwhile.
        WorkerLostError: a process that decodes images has ended.
        PeerLostError: under torchrun, another process has ended.

    Under torchrun every process runs this; the main one alone writes, prints and evaluates, and has results to return.
    """
    ranks = distributed.start(config.device)
    output = contextlib.nullcontext() if ranks.main else contextlib.redirect_stdout(None)
    try:
        with output, lost_workers_said():
            results = _train(config, ranks, data)
    except RuntimeError as error:
        if ranks.world > 1 and distributed.is_lost_peer(error):
            raise PeerLostError(
                f"process {ranks.rank} of {ranks.world} stops, since another one of this run has ended; its own "
                "message says why. --resume goes on from the last saved state, with any number of processes"
            ) from error
        raise
    # Not after an error: leaving takes all processes, and the others are still at work. They see this one end.
    distributed.stop(ranks)
    return results


def _train(config: TrainConfig, ranks: Ranks, data: ImageData | None) -> dict[str, Any]:
    folder = RunFolder(folder_of(config))
    data = data or load_data(config.data, config.data_root, config.style)
    if config.explain:
        return _make(config, ranks, folder, data)
    if (done := finished_run(folder, config, data)) is not None:
        return done
    with folder.held() if ranks.main else contextlib.nullcontext():
        # Another process may have had it until now.
        done = finished_run(folder, config, data) if ranks.main else None
        return _make(config, ranks, folder, data) if done is None else done


def _make(config: TrainConfig, ranks: Ranks, folder: RunFolder, data: ImageData) -> dict[str, Any]:
    """The run in its folder, which is this process's; with ``explain`` its plan alone."""
    check_source(config.model, config.pretrained)
    device = ranks.device
    precision = resolve_precision(config.precision, device)
    for note in data.notes:
        print(note)
    parts = own_parts(config, data) if config.evaluate else ()
    check_test_images(data, parts)
    read = _reader(config, data, ranks)
    sample, items, names, findings = few_shot(config, data, read)
    backbone = store_backbone(load_backbone(config.model, config.pretrained, device), DTYPES[precision])
    template = template_for(config.template, data.name)
    check_test_prompts(backbone, data, parts, template)
    model, backend = _make_model(config, backbone, data, names, len(items), precision)
    state = folder.load_state() if config.resume and not config.explain else None
    asked, config = config, with_graphs_settled(config, ranks)
    text_bytes, whence = text_budget(config, device)
    if state is not None and config.text_memory is None:
        # The chunks of classes depend on it, and the last bits on the chunks: what the run began with.
        text_bytes, whence = state.values["text_bytes"], "as this run began with"
    step, sentence = make_step(model, config, precision, text_bytes, ranks)
    print(sentence)
    print(f"text memory {text_bytes / 1e9:.2f} GB, {whence}")
    if config.explain:
        epochs = epochs_of(config, steps_an_epoch(len(items), config.batch_size, config.drop_last))
        print(Plan.of(step, ranks.most(config.batch_size), config.views, epochs))
        return {}
    chosen_by = validation_of(config, model, data, sample, backbone.preprocessing)
    run = TrainingLoop(
        config, model, step, items, data, read, backbone, device, precision, text_bytes, ranks, chosen_by,
        graphs_needed=asked.cuda_graphs is not None,
    )  # fmt: skip
    if run.epochs and (warmup := warmup_note(config, run.epochs)) is not None:
        print(warmup)
    if state is not None:
        run.restore(state)
        print(f"resuming at epoch {run.epoch + 1}, step {run.step_in_epoch} of {run.steps_per_epoch}")
    elif config.resume:
        print(f"nothing to resume in {folder.path}, starting")

    ranks.barrier()  # every process has looked into the folder before one writes to it
    if ranks.main:
        folder.prepare(asked, data.hashes)
        folder.check_room(run.bytes_written)
        said = {"backend": backend, "precision": precision, "text_memory": text_bytes}
        said |= {"cuda_graphs": config.cuda_graphs}
        write_json(folder.environment_file, {**environment(device), **said})
        sample.save(folder.sample_file)
    if state is None:
        fill(run)
    run.fit(folder)
    distributed.stop(ranks)  # the others need not wait while the main one evaluates
    if not ranks.main:
        return {}
    chosen = {"selection": choose(run, chosen_by)} if chosen_by is not None else {}
    training = {
        "method": method_name(config),
        "data": data.name,
        "style": data.style,
        "data_hash": data.content_hash,
        "classes": config.classes,
        "shots": config.shots,
        "seed": config.seed,
        # None: without encoders it went through open_clip's own forward passes.
        "residual": None if model.encoders is None else config.residual,
        "settings": settings_of(config),
        **chosen,
    }
    folder.check_held()
    model.adapted.save_adapter(folder.adapter, class_names=names, template=template, training=training)
    try:
        with lost_workers_said():
            found = _evaluate(config, run, parts) if parts else None
    except (InputError, WorkerLostError) as error:
        raise not_tested(folder, config, error) from error
    source = trained_on(training, read_info(folder.adapter).weights_sha256)
    results = {**_results(config, run, backend, findings, found, source, sample.hash), **chosen}
    folder.check_held()
    write_results(folder.results_file, results)
    folder.remove_state()
    if config.evaluate:
        print(describe(results))
    print(f"adapter: {folder.adapter}\nresults: {folder.results_file}")
    return results


def _reader(config: TrainConfig, data: ImageData, ranks: Ranks) -> Read:
    """What gives the training images: ``data`` itself, or with --image-cache the decoded ones that are kept."""
    if not config.image_cache:
        return data.read
    if data.reader is not None:
        print(f"image_cache: the images of {data.name} are no files, nothing of them is kept")
        return data.read
    folder, limit = cache_folder(config.cache_dir, "images"), parse_bytes("cache_limit", config.cache_limit)
    read = DecodedImages(data.read, data.root, folder, limit)
    read.keeps = ranks.main and not config.explain
    return read


def _make_model(
    config: TrainConfig, backbone: Backbone, data: ImageData, names: list[str], images: int, precision: str
) -> tuple[RMAdapterCLIP, str]:
    """The model with fresh weights from the seed and the data set, and the name of the adapters' backend."""
    template = template_for(config.template, data.name)
    adapted = inject(
        backbone.clip,
        config.tuned,
        source=backbone.source,
        weights_hash=backbone.weights_hash,
        seed=run_seed(config.seed, data.name, data.style),
        tokenizer=backbone.tokenizer,
        template=template,
        class_names=names,
        cached_images=images,
    )
    print(adapted.summary())
    backend, sentence = choose_backend(adapted, config.fused, config.backend)
    print(sentence)
    if config.grad_checkpointing:
        backbone.clip.set_grad_checkpointing(True)
    shortcuts = wanted_shortcuts(config)
    model = RMAdapterCLIP(
        adapted,
        backbone.tokenizer,
        names,
        template,
        loss=config.loss,
        trim=shortcuts.trim,
        keep_targets=shortcuts.frozen_targets,
        target_templates=target_templates(config.loss, data.name),
        sentences=None if config.loss.sentences is None else read_sentences(config.loss.sentences),
    )
    if shortcuts.any:
        stream = residual_dtype(config.residual, precision)
        settings = {"by_token": shortcuts.last_token, "packed": shortcuts.packed_weights}
        # For evaluation alone: the step has its own.
        model.encoders = Encoders.of(adapted, stream=stream, inference=True, **settings)
    return model.train(), backend


def own_parts(config: TrainConfig, data: ImageData) -> tuple[str, ...]:
    """The parts of the classes that a run is tested on: base and new after training on base, else that trained on.

    What is bound to its classes knows no others.
    """
    if config.tuned.bound:
        return (config.classes,)
    return tested_parts("base_new" if config.classes == "base" else config.classes, data.class_names)


def _evaluate(config: TrainConfig, run: TrainingLoop, parts: Sequence[str]) -> dict[str, Any]:
    """Accuracy on the test images of ``parts``."""
    loading = Loading(
        run.backbone.preprocessing, config.eval_batch_size, config.workers, skip_bad=config.skip_bad_images
    )
    began = time.perf_counter()
    found = evaluate_parts(run.model, run.data, parts, loading)
    return {**found, "seconds": time.perf_counter() - began}


def _results(
    config: TrainConfig,
    run: TrainingLoop,
    backend: str,
    findings: SampleFindings,
    found: dict[str, Any] | None,
    source: dict[str, Any],
    few_shot_hash: str,
) -> dict[str, Any]:
    found = found or {"accuracy": {}, "images": {}, "skipped": 0, "metrics": {}, "seconds": None}
    return results_of(
        method=method_name(config),
        data=run.data,
        trained_on=source,
        model=config.model,
        pretrained=config.pretrained,
        base_hash=run.base_hash,
        shots=config.shots,
        seed=config.seed,
        classes=config.classes,
        split="test",
        found={
            name: found[name] for name in ("accuracy", "images", "skipped", "metrics", "inference") if name in found
        },
        trained_parameters=sum(p.numel() for p in run.parameters.values()),
        seconds={"train": run.seconds, "eval": found["seconds"]},
        precision=run.precision,
        device=str(run.device),
        settings=settings_of(config),
        text_memory=run.text_bound,
        retention_style=run.data.retention.style if run.data.retention else None,
        bad_steps=run.bad_steps,
        data_findings=findings.to_dict(),
        backend=backend,
        sentences_hash=run.sentences_hash,
        few_shot_hash=few_shot_hash,
    )
