"""Two processes and gloo against one process: gradients, whole runs, resumption, and a process that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import small_clip
from safetensors.torch import load_file

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.step import distributed
from rmadapter.step.distributed import Ranks
from rmadapter.step.train_step import TrainStep
from rmadapter.training.means import Means

# An odd number of classes and of images, of unlike lengths, so that nothing divides.
NAMES = ["cat", "a rather long name of a bird", "dog", "guinea pig", "cow", "hen", "a small grey mouse"]
IMAGES = 5


# By name: weights of the loss, further settings of the adapters.
KINDS = {
    "all terms": ((2, 3, 4, 5), {}),
    "no image reconstruction": ((0, 3, 4, 5), {}),
    "no text reconstruction": ((2, 0, 4, 5), {}),
    "no reconstruction, frozen stream": ((0, 0, 4, 5), {"rec_stream": "frozen"}),
    "frozen stream": ((2, 3, 4, 5), {"rec_stream": "frozen"}),
    "frozen stream, images alone": ((2, 0, 0, 0), {"rec_stream": "frozen"}),
}


def make_step(ranks: Ranks | None = None, kind: str = "all terms") -> tuple[TrainStep, RMAdapterCLIP]:
    import open_clip

    torch.manual_seed(0)
    clip = small_clip()
    weights, settings = KINDS[kind]
    config = RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5, **settings)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    model = RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=LossConfig(*weights)).train()
    return TrainStep(model, ranks=ranks), model


def gradients_of(module, model, images, labels, share) -> dict[str, torch.Tensor | None]:
    """Loss and gradients of a second step, since it is the second that what the first has left undone stops."""
    for _ in range(2):
        model.zero_grad()
        losses = module(images, labels, None, share).losses
        losses["total"].backward()
    return {"loss": losses["total"].detach()} | {n: p.grad for n, p in model.adapted.adapter_tensors().items()}


def _process(rank: int, world: int, port: int, count: int, folder: str) -> None:
    """One process's part of a batch of ``count``, its gradients saved."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    images, labels = batch(count)
    start, stop = ranks.part(count)
    own = slice(start, stop) if stop > start else slice(0, 1)
    for kind in KINDS:
        step, model = make_step(ranks, kind)
        module = distributed.parallel(step, model.config, model.loss)
        found = gradients_of(module, model, images[own], labels[own], (stop - start) * world / count)
        found["loss"] = ranks.mean(found["loss"])
        torch.save(found, Path(folder) / f"{kind} {rank}.pt")
    means = Means()
    means.add({"total": torch.tensor(float(rank))}, torch.eye(3), torch.tensor([0, 1, 0]), 3 - rank)
    assert means.values(ranks) == {"loss": (world - 1) / 2, "accuracy": pytest.approx(100 * 4 / 5)}
    torch.distributed.destroy_process_group()


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % len(NAMES)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("count", [IMAGES, 1], ids=["uneven", "a process without images"])
def test_two_processes_have_the_gradients_of_one(tmp_path, count):
    """Whatever terms the loss has: a reconstruction branch may get no gradient, or one from the frozen stream."""
    mp.spawn(_process, (2, free_port(), count, str(tmp_path)), nprocs=2)
    for kind in KINDS:
        step, model = make_step(kind=kind)
        expected = gradients_of(step, model, *batch(count), 1.0)
        assert (None in expected.values()) == (0 in KINDS[kind][0][:2])
        for rank in range(2):
            found = torch.load(tmp_path / f"{kind} {rank}.pt")
            for name, value in expected.items():
                where = f"{kind}: {name}"
                if value is None:
                    assert found[name] is None, where  # else weight decay would shrink it
                else:
                    torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5, msg=where)


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


@pytest.fixture
def command(images, clip_folder, tmp_path):
    """A training command on ``processes`` processes, into the folder ``out``."""

    def make(out: str, *more: str, processes: int = 1, epochs: int = 3) -> list[str]:
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
            "--out": tmp_path / out,
        }
        words = [str(word) for option in options.items() for word in option]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--master-port", str(free_port()), "-m"]
        return [*(launcher if processes > 1 else [sys.executable, "-m"]), "rmadapter.train", *words, *more]

    return make


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=True)


def adapter_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter.safetensors")


def test_a_run_of_two_processes_equals_one(command, tmp_path):
    """Losses, weights and results; then stopped, and gone on with by one process alone."""
    run(command("one", "--no-evaluate"))
    done = run(command("two", "--views", "2", "--cache-dir", str(tmp_path / "cache"), processes=2))
    assert done.stdout.count("epoch 3 of 3") == 1
    assert "views: 2 an image" in done.stdout
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][:3]
        for name in ("one", "two")
    ]
    for one, other in zip(*lines, strict=True):
        for key in set(one) - {"kind", "images_per_second"}:
            assert other[key] == pytest.approx(one[key], rel=1e-3), key
    run(command("three", "--no-evaluate", processes=2))
    expected = adapter_in(tmp_path / "one")
    for name, tensor in adapter_in(tmp_path / "three").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def ranks_without_launcher(words: list[str], count: int) -> list[subprocess.Popen]:
    """The processes that torchrun would start, without torchrun: it ends those that are left and says so itself."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(words, env={**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes)
        for rank in range(count)
    ]


def test_a_killed_process_ends_the_others_and_one_or_more_go_on(command, tmp_path):
    run(command("whole", "--no-evaluate", epochs=6))
    left, killed = ranks_without_launcher(command("run", "--no-evaluate", epochs=6), 2)
    with left, killed:
        try:
            state = tmp_path / "run" / "state.safetensors"
            deadline = time.monotonic() + 120
            while not state.exists() and left.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            killed.kill()
            output, _ = left.communicate(timeout=120)
        finally:
            left.kill()
            killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert left.returncode == 1
    assert "process 0 of 2 stops, since another one of this run has ended" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "adapter").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "more")
    expected = adapter_in(tmp_path / "whole")
    for folder, processes in (("run", 1), ("more", 3)):
        again = run(command(folder, "--no-evaluate", "--resume", processes=processes, epochs=6))
        assert "resuming at epoch" in again.stdout
        for name, tensor in adapter_in(tmp_path / folder).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)
