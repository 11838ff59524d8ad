"""What is free: the machine's memory, and what the control groups of a batch system or a container leave of it."""

from __future__ import annotations

import pytest
import torch

from rmadapter.config import TrainConfig
from rmadapter.step import plan
from rmadapter.step.memory import UNKNOWN, free_bytes, host_free_bytes, host_total_bytes, total_bytes
from rmadapter.step.plan import text_budget

GIB = 2**30


def test_free_memory_is_a_number_of_bytes():
    assert 10**6 < free_bytes(torch.device("cpu")) < 10**14


def test_on_a_gpu_what_its_allocator_keeps_unused_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    assert free_bytes(torch.device("cuda")) == 12 * GIB


@pytest.fixture
def machine(tmp_path):
    """Writes files of a machine with 32 GiB, 20 of them available, finds what is free to one in ``groups``."""

    def free(groups: str, files: dict[str, str], find=host_free_bytes) -> int:
        found = {
            "proc/meminfo": f"MemTotal: {32 * 2**20} kB\nMemAvailable: {20 * 2**20} kB\n",
            "proc/self/cgroup": groups,
        }
        for name, text in {**found, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return find(tmp_path / "proc", tmp_path / "cgroup")

    return free


def group(limit: object, taken: int, cache: int, version: int = 2) -> dict[str, str]:
    """The files of one control group."""
    if version == 2:
        return {"memory.max": f"{limit}\n", "memory.current": f"{taken}\n", "memory.stat": f"inactive_file {cache}\n"}
    stat = f"inactive_file 1\ntotal_inactive_file {cache}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{taken}\n", "memory.stat": stat}


def under(folder: str, files: dict[str, str]) -> dict[str, str]:
    """The same files in a folder."""
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_without_a_limit_all_that_is_available_is_free(machine):
    assert machine("0::/\n", {}) == 20 * GIB
    assert machine("0::/user/job\n", under("user/job", group("max", GIB, 0))) == 20 * GIB
    assert machine("4:memory:/job\n", under("memory/job", group(2**63 - 4096, GIB, 0, version=1))) == 20 * GIB


def test_a_group_s_limit_bounds_it_and_its_cache_of_files_is_free(machine):
    files = under("user/job", group(4 * GIB, 3 * GIB, GIB))
    assert machine("0::/user/job\n", files) == 2 * GIB


def test_the_first_version_lies_in_a_folder_of_its_own(machine):
    files = under("memory/user/job", group(4 * GIB, 3 * GIB, GIB, version=1))
    assert machine("7:cpu,cpuacct:/other\n4:memory:/user/job\n0::/\n", files) == 2 * GIB


def test_a_group_above_may_leave_less_than_its_own(machine):
    files = {**under("user/job", group(8 * GIB, GIB, 0)), **under("user", group(6 * GIB, 5 * GIB, 0))}
    assert machine("0::/user/job\n", files) == GIB


def test_a_container_that_sees_its_group_as_the_top(machine):
    assert machine("0::/kubepods/pod/container\n", group(2 * GIB, GIB // 2, 0)) == 3 * GIB // 2
    assert machine("0::/../..\n", group(2 * GIB, GIB, 0)) == GIB


def test_more_taken_than_the_limit_leaves_nothing(machine):
    assert machine("0::/job\n", under("job", group(GIB, 2 * GIB, 0))) == 0


def test_a_system_that_says_nothing(tmp_path):
    assert host_free_bytes(tmp_path, tmp_path) == host_total_bytes(tmp_path, tmp_path) == UNKNOWN


def test_all_memory_is_what_the_machine_or_its_group_has_whatever_is_taken(machine):
    for taken in (0, 3 * GIB):
        files = under("user/job", group(4 * GIB, taken, 0))
        assert machine("0::/user/job\n", files, host_total_bytes) == 4 * GIB
    assert machine("0::/\n", {}, host_total_bytes) == 32 * GIB
    assert machine("0::/user/job\n", under("user/job", group("max", GIB, 0)), host_total_bytes) == 32 * GIB
    assert free_bytes(torch.device("cpu")) <= total_bytes(torch.device("cpu"))


def test_the_prompts_have_a_quarter_of_all_memory_whatever_is_free(monkeypatch):
    """So that two runs on one machine have the same chunks of classes; what is said where too little is free."""
    config, device = TrainConfig(data="x"), torch.device("cpu")
    monkeypatch.setattr(plan, "total_bytes", lambda _: 32 * GIB)
    for free in (32 * GIB, 16 * GIB):
        monkeypatch.setattr(plan, "free_bytes", lambda _, free=free: free)
        assert text_budget(config, device) == (8 * GIB, "a quarter of the 34.4 GB that this machine has")
    monkeypatch.setattr(plan, "free_bytes", lambda _: 10 * GIB)
    found, said = text_budget(config, device)
    assert found == 5 * GIB
    assert said.startswith("half of the 10.7 GB that are free on this machine: a run while more of its 34.4 GB is free")
    monkeypatch.setattr(plan, "free_bytes", lambda _: 32 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert text_budget(config, device)[0] == 4 * GIB
    assert text_budget(TrainConfig(data="x", text_memory="2GB"), device) == (2 * GIB, "as --text-memory says")
