"""Two processes and gloo against one process: gradients, whole runs, resumption, and a process that is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise, product
from pathlib import Path

import forked_ranks
import pytest
import torch
from conftest import small_clip, write_images
from filelock import FileLock
from forked_ranks import meet, one_group_at_a_time
from safetensors.torch import load_file
from small_runs import metrics_of

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.cli import main
from rmadapter.config import PromptConfig, TunerConfig
from rmadapter.step import distributed
from rmadapter.step.distributed import Ranks
from rmadapter.step.train_step import TrainStep
from rmadapter.training.means import Means

# An odd number of classes and of images, of unlike lengths, so that nothing divides.
NAMES = ["cat", "a rather long name of a bird", "dog", "guinea pig", "cow", "hen", "a small grey mouse"]
# Images of a batch.
COUNTS = {5: "uneven", 1: "a process without images"}


# By name: weights of the loss, further settings of the adapters; and of the loss.
KINDS = {
    "all terms": ((2, 3, 4, 5), {}),
    "no image reconstruction": ((0, 3, 4, 5), {}),
    "no text reconstruction": ((2, 0, 4, 5), {}),
    "no reconstruction, frozen stream": ((0, 0, 4, 5), {"rec_stream": "frozen"}),
    "frozen stream": ((2, 3, 4, 5), {"rec_stream": "frozen"}),
    "frozen stream, images alone": ((2, 0, 0, 0), {"rec_stream": "frozen"}),
    "another view and sentences": ((2, 3, 4, 5), {}),
    "learned tokens": ((2, 3, 4, 5), {}),
}
OF_LOSS = {"another view and sentences": {"target": "sentences", "second_view": True, "distillation": 2}}
SENTENCES = {name: [f"a {name}", f"{name}, an animal"] for name in NAMES}


def make_step(ranks: Ranks | None = None, kind: str = "all terms") -> tuple[TrainStep, RMAdapterCLIP]:
    import open_clip

    torch.manual_seed(0)
    clip = small_clip()
    weights, settings = KINDS[kind]
    config = TunerConfig(RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5, **settings))
    if kind == "learned tokens":
        config.prompt = PromptConfig(4, text_depth=2, vision_tokens=2)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    loss = LossConfig(*weights, **OF_LOSS.get(kind, {}))
    sentences = SENTENCES if loss.target == "sentences" else None
    model = RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=loss, sentences=sentences).train()
    return TrainStep(model, ranks=ranks), model


def gradients_of(module, model, images, labels, share) -> dict[str, torch.Tensor | None]:
    """Loss and gradients of a second step, since it is the second that what the first has left undone stops."""
    drawn = torch.tensor(1)
    if model.loss.reads_two_views:
        images = torch.stack([images, 0.5 * images.flip(-1)], 1)
    for _ in range(2):
        model.zero_grad()
        losses = module(images, labels, None, share, drawn).losses
        losses["total"].backward()
    return {"loss": losses["total"].detach()} | {n: p.grad for n, p in model.adapted.adapter_tensors().items()}


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % len(NAMES)


def two_processes(rank: int, world: int, folder: Path, train: list[str], cache: Path) -> None:
    """All that this module has two processes do to its end, so that they are started once."""
    meet(rank, world, folder / "gradients")
    ranks = Ranks(rank, world)
    for count, kind in product(COUNTS, KINDS):
        images, labels = batch(count)
        start, stop = ranks.part(count)
        own = slice(start, stop) if stop > start else slice(0, 1)
        step, model = make_step(ranks, kind)
        module = distributed.parallel(step, model.config, model.loss)
        found = gradients_of(module, model, images[own], labels[own], (stop - start) * world / count)
        found["loss"] = ranks.mean(found["loss"])
        torch.save(found, folder / f"{kind} {count} {rank}.pt")
    means = Means()
    means.add({"total": torch.tensor(float(rank))}, torch.eye(3), torch.tensor([0, 1, 0]), 3 - rank)
    assert means.values(ranks) == {"loss": (world - 1) / 2, "accuracy": pytest.approx(100 * 4 / 5)}
    torch.distributed.destroy_process_group()
    kept = ["--views", "2", "--cache-dir", str(cache)]
    runs = {"plain": [*train, "--no-evaluate"], "views": [*train, *kept], "images": with_a_cache(train)}
    for name, run in runs.items():
        meet(rank, world, folder / f"{name} meets")
        main([*run, "--out", str(folder / name)])


def with_a_cache(train: list[str]) -> list[str]:
    """The run of ``train`` as one that caches its images (Tip-Adapter-F); of its last batch one process has none."""
    options = train[1 : train.index("--adapter.layers")]
    return ["train", "--method", "tip-adapter-f", *options, "--batch-size", "19", "--head.cache_views", "2"]


@pytest.fixture(scope="module")
def lock(tmp_path_factory) -> FileLock:
    return one_group_at_a_time(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="module")
def words(tmp_path_factory, clip_folder):
    """The options of a training run of some epochs, but for its folder."""
    images = write_images(tmp_path_factory.mktemp("animals") / "animals", ["ant", "bee", "cat", "dog"], 10)

    def make(epochs: int = 3) -> list[str]:
        options = {
            "--data": images,
            "--model": f"local-dir:{clip_folder}",
            "--precision": "fp32",
            "--shots": 5,
            "--batch-size": 3,
            "--epochs": epochs,
            "--workers": 0,
            "--checkpoint-every": 2,
            "--adapter.layers": "2-3",
            "--adapter.scale": 0.1,
            "--grad-norm-every": 3,
        }
        return ["train", *(str(word) for option in options.items() for word in option)]

    return make


@pytest.fixture(scope="module")
def of_two(tmp_path_factory, words, lock) -> tuple[Path, list[str]]:
    """What two processes have left, and what they have said."""
    folder = tmp_path_factory.mktemp("two")
    with lock:
        return folder, forked_ranks.run(2, folder, two_processes, words(), folder / "cache")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", COUNTS.keys(), ids=COUNTS.values())
def test_two_processes_have_the_gradients_of_one(of_two, count, kind):
    """Whatever terms the loss has: a reconstruction branch may get no gradient, or one from the frozen stream."""
    step, model = make_step(kind=kind)
    expected = gradients_of(step, model, *batch(count), 1.0)
    assert (None in expected.values()) == (0 in KINDS[kind][0][:2])
    for rank in range(2):
        found = torch.load(of_two[0] / f"{kind} {count} {rank}.pt")
        for name, value in expected.items():
            if value is None:
                assert found[name] is None, name  # else weight decay would shrink it
            else:
                torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5, msg=name)


def test_parts_are_all_there_is():
    for world in (1, 2, 3, 5):
        for count in (1, 5, 7):
            parts = [Ranks(rank, world).part(count) for rank in range(world)]
            assert parts[0][0] == 0
            assert parts[-1][1] == count
            assert all(one[1] == other[0] for one, other in pairwise(parts))


def test_exchanges_are_on_the_own_device(monkeypatch):
    """NCCL takes tensors on its GPU alone ("meta" stands for that), also the means of no step, which are numbers."""
    ranks = Ranks(0, 2, torch.device("meta"))
    seen = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: seen.append(tensor.device))
    for tensor in (torch.ones(2), torch.ones(2, device="meta")):
        assert ranks.mean(tensor).device == ranks.device
    with pytest.raises(NotImplementedError, match="meta"):  # what is exchanged there has no values to come back with
        Means().plain(ranks)
    assert seen == [ranks.device] * 3


UNDER_TORCHRUN = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (2, "cuda", r"process 4 on this machine, which has 2 GPUs; valid: --nproc-per-node 2 at most"),
        (0, "cuda", r"device is 'cuda:3', but 0 CUDA devices are there"),
        (0, "gpu", r"device is 'gpu'; valid: auto, cpu, cuda"),
    ],
)
def test_a_process_without_a_device(monkeypatch, gpus, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in UNDER_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        distributed.start(device)


def test_a_launcher_that_sets_the_world_s_size_alone_is_no_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.start("cpu") == Ranks()


def test_more_processes_than_classes():
    with pytest.raises(InputError, match="9 processes share 7 classes"):
        make_step(Ranks(0, 9))


def adapter_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter.safetensors")


def trained(words: list[str], out: Path, *more: str) -> Path:
    """A run in this process alone, without evaluation."""
    assert main([*words, "--no-evaluate", "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, words) -> Path:
    """The run that those of several processes are compared with."""
    return trained(words(), tmp_path_factory.mktemp("one") / "run")


def assert_same_weights(one: Path, other: Path) -> None:
    expected = adapter_in(one)
    for name, tensor in adapter_in(other).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_a_run_of_two_processes_equals_one(of_two, of_one):
    """Losses, weights and results; once more with views kept."""
    folder, (said, silent) = of_two
    assert said.count("epoch 3 of 3") == 3
    assert "views: 2 an image" in said
    assert "epoch" not in silent
    assert (folder / "views" / "results.json").exists()
    # The third epoch begins the views anew.
    lines = [metrics_of(run)[:3] for run in (of_one, folder / "views")]
    for mine, theirs in zip(*lines, strict=True):
        for key in set(mine) - {"kind", "images_per_second"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3), key
    assert_same_weights(of_one, folder / "plain")


def test_a_cache_filled_and_trained_by_two_processes_equals_one(of_two, words, tmp_path):
    trained(with_a_cache(words()), tmp_path / "one")
    assert_same_weights(tmp_path / "one", of_two[0] / "images")
    assert len(adapter_in(tmp_path / "one")["cache.keys"]) == 20
    selections = [
        json.loads((run / "results.json").read_text())["selection"] for run in (tmp_path / "one", of_two[0] / "images")
    ]
    assert selections[0] == selections[1]


@pytest.mark.slow  # torchrun and its two processes each import PyTorch: 22 s
def test_a_run_started_by_torchrun_equals_one(of_one, words, tmp_path, lock):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "rmadapter.train", *words()[1:], "--no-evaluate", "--out", str(tmp_path / "two")]
    with lock:
        subprocess.run(command, capture_output=True, timeout=180, check=True)
    assert_same_weights(of_one, tmp_path / "two")


def one_of_several(rank: int, world: int, folder: Path, train: list[str]) -> None:
    meet(rank, world, folder / "met")
    sys.exit(main([*train, "--no-evaluate"]))


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_one_or_more_go_on(words, tmp_path, lock, capsys):
    whole = trained(words(6), tmp_path / "whole")
    run, more = tmp_path / "run", tmp_path / "more"
    with lock:
        left, killed = forked_ranks.start(2, tmp_path / "two", one_of_several, [*words(6), "--out", str(run)])
        try:
            state = run / "state.safetensors"
            deadline = time.monotonic() + 120
            while not state.exists() and left.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            killed.kill()
            left.join(120)
        finally:
            left.kill()
            killed.kill()
        killed.join(10)
        assert killed.exitcode == -signal.SIGKILL
        assert left.exitcode == 1
        output = (tmp_path / "two" / "0.log").read_text()
        assert "process 0 of 2 stops, since another one of this run has ended" in output
        assert "Traceback" not in output
        assert not (run / "adapter").exists()
        shutil.copytree(run, more)
        again = [*words(6), "--resume", "--out", str(more)]
        said, *_ = forked_ranks.run(3, tmp_path / "three", one_of_several, again)
    assert "resuming at epoch" in said
    capsys.readouterr()
    trained(words(6), run, "--resume")
    assert "resuming at epoch" in capsys.readouterr().out
    expected = adapter_in(whole)
    for folder in (run, more):
        for name, tensor in adapter_in(folder).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)
