"""bench.step without its clock: what is measured when, what is kept, what the tables say."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import small_clip

from bench import cpu_memory, loader, step_samples
from bench import step as bench
from bench.memory import allocated_peak, held_bytes
from bench.step_contenders import (
    CHECKED_CLASSES,
    COMPARED,
    GRAPHS,
    MAIN,
    NO_RECONSTRUCTION,
    VIEWS,
    Contenders,
    check,
)
from bench.step_methods import Subject
from bench.step_report import TARGETS, Times, as_table, heading, targets
from rmadapter import InputError
from rmadapter.clip.backbone import Backbone
from rmadapter.config.arguments import parse_arguments
from rmadapter.data import Preprocessing

LINES = {"plain": (2.0, 0.16), "all": (1.5, 0.016), "all, views": (1.0, 0.016), NO_RECONSTRUCTION: (1.5, 0.0159)}


def seconds(name: str, precision: str, classes: int) -> float:
    """A machine whose steps lie on straight lines."""
    begin, slope = LINES[name]
    return (begin + slope * classes) / {"fp32": 1, "autocast": 1.25, "bf16": 4}[precision]


@pytest.fixture
def machine(monkeypatch):
    """Stands for the models and the clock; the calls that were made, and of which others disturb so many."""
    calls, disturbed = [], {}

    class FakeContenders:
        def __init__(self, batch, backbone, adapted, classes, precision, subject, text_bytes):
            self.classes, self.precision, self.warm, self.plans = classes, precision, set(), {}

        def applies(self, name):
            return True

        def call(self, name):
            counted = 16e9 if (name, self.classes) == ("plain", 1000) else 1e9
            self.plans[name] = SimpleNamespace(cost=SimpleNamespace(bytes=counted))

    def sample(contenders, name, case):
        key = (name, contenders.precision, contenders.classes)
        calls.append(key)
        case["held_bytes"] = 3_000_000_000 + (15_000_000 if name == "all" else 0)
        case["allocated_bytes"] = 1_000_000_000 + (5_000_000 if name == "all" else 0)
        case["flop"], case["plain_flop"] = 1e9 * LINES[name][1], 1e9 * LINES["plain"][1]
        taken = seconds(*key)
        if disturbed.get(key, 0) > 0:
            disturbed[key] -= 1
            case["disturbed"].append([taken * 2, 0.5])
        else:
            case["seconds"].append(taken)

    monkeypatch.setattr(bench, "Contenders", FakeContenders)
    monkeypatch.setattr(bench, "_sample", sample)
    monkeypatch.setattr(bench, "_backbone", lambda options, device, precision: precision)
    adapted = SimpleNamespace(remove=lambda: None)
    monkeypatch.setattr(bench, "_adapted", lambda options, subject, backbone, classes: (adapted, "cpu"))
    monkeypatch.setattr(bench, "free_bytes", lambda device: 10**12)
    monkeypatch.setattr(step_samples, "commit", lambda: "0123abc")  # one made while the tests run refuses the samples
    monkeypatch.setattr(bench, "check", lambda *arguments, **more: None)
    monkeypatch.setattr(bench, "resolve_precision", lambda name, device: "bf16")
    return calls, disturbed


def options(tmp_path, **changes) -> bench.Options:
    values = {"classes": "10,50,100,397,1000", "precision": "fp32,autocast,default", "out": str(tmp_path / "step.json")}
    return bench.Options(**{**values, **changes})


def test_what_the_targets_need_comes_first_and_long_steps_again_last(machine, tmp_path):
    calls, _ = machine
    bench.run(options(tmp_path))
    order = list(dict.fromkeys((precision, classes) for _, precision, classes in calls))
    targeted = [(p, c) for p in ("fp32", "bf16") for c in TARGETS]
    assert order[:7] == [*targeted, ("autocast", 100)]
    assert set(order) == {(p, c) for p in ("fp32", "bf16", "autocast") for c in (10, 50, 100, 397, 1000)}
    counts = {key: calls.count(key) for key in calls}
    assert set(counts.values()) == {3}
    assert {name for name, precision, _ in calls if precision == "autocast"} == {"plain"}
    # A plain step of 162 s: one sample when its turn comes, the others when all else is there.
    assert [i for i, key in enumerate(calls) if key == ("plain", "fp32", 1000)][1] > calls.index(("all", "fp32", 50))


def test_it_goes_on_where_it_stopped_and_loses_no_sample(machine, tmp_path, monkeypatch):
    calls, disturbed = machine
    disturbed["all", "fp32", 100] = 2
    clock = iter(range(10**6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    runs, before = 0, -1
    while len(calls) > before:
        before = len(calls)
        bench.run(options(tmp_path, classes="10,100", precision="fp32", seconds=5))
        runs += 1
        kept = json.loads((tmp_path / "step.json").read_text())["cases"].values()
        assert sum(len(case["seconds"]) + len(case["disturbed"]) for case in kept) == len(calls)
    assert runs > 3
    assert calls.count(("all", "fp32", 100)) == 5
    assert {len(case["seconds"]) for case in kept} == {3}


def test_what_is_always_disturbed_is_given_up_and_marked(machine, tmp_path):
    calls, disturbed = machine
    disturbed["all", "fp32", 100] = 10**6
    bench.run(options(tmp_path, classes="100", precision="fp32"))
    assert calls.count(("all", "fp32", 100)) == 12
    text = (tmp_path / "step.md").read_text()
    assert "6.20*" in text
    assert "others used the machine" in text


def test_targets_stand_beside_what_was_measured(machine, tmp_path):
    bench.run(options(tmp_path))
    text = (tmp_path / "step.md").read_text()
    assert (tmp_path / "step.png").stat().st_size > 1000
    plain, fast = (seconds(name, "fp32", 1000) for name in ("plain", "all"))
    assert f"| 1000 classes, all, fp32 | 6.0 | {plain / fast:.2f} | yes |" in text
    assert f"| 1000 classes, all, fp32: share of the 10.00 expected | 85% | {plain / fast / 10:.0%} | yes |" in text
    against = seconds("plain", "autocast", 100) / seconds("all", "bf16", 100)
    assert (
        f"| 100 classes, all, bf16, against the faster plain of fp32 and autocast | 6.0 | {against:.2f} | yes |" in text
    )
    assert "| 100 classes, all, fp32 | 2.2 | 5.81 | yes |" in text
    assert "| 100 classes, all, fp32: share of the 10.00 expected | 85% | 58% | no |" in text
    assert "| seconds a class, fp32, plain / all | 10 | 10.0 | yes |" in text
    assert "1000 classes, fp32: time of the reconstruction branch | +2% | +0.6% | yes |" in text
    assert "1000 classes, fp32: memory of the reconstruction branch | +1% | +0.5% | yes |" in text
    assert "| 1000 | fp32 | all, no reconstruction | 17.40 | 0.9 | 3.00 | 1.00 | 0 |" in text


def test_allocations_are_counted_one_by_one():
    def call():
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        return second.relu() + 1

    assert allocated_peak(torch.device("cpu"), call) == pytest.approx(12_000_000, abs=1000)


def test_what_a_call_holds_is_counted_once():
    """Through closures, attributes and containers, with gradients; another call's tensors are not among it."""
    weight = torch.nn.Linear(100, 50)  # 20,200 bytes
    kept = {"views": [(torch.zeros(1000), SimpleNamespace(again=weight.weight[:10]))]}
    other = torch.zeros(10**6)

    def call():
        return weight, kept

    assert held_bytes(call) == 20_200 + 4_000
    weight(torch.ones(1, 100)).sum().backward()
    assert held_bytes(call) == 2 * 20_200 + 4_000
    assert held_bytes(lambda: other) == 4_000_000


def test_resident_memory_is_refused_where_there_is_no_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_memory, "PROC", tmp_path)
    with pytest.raises(SystemExit, match="Linux's alone"):
        cpu_memory.main()


def test_a_step_that_does_not_fit_into_memory_is_left_out(machine, tmp_path, monkeypatch, capsys):
    calls, _ = machine
    monkeypatch.setattr(bench, "free_bytes", lambda device: 20 * 10**9)
    bench.run(options(tmp_path, precision="fp32"))
    assert ("plain", "fp32", 1000) not in calls
    assert ("all", "fp32", 1000) in calls
    shown = capsys.readouterr().out
    assert shown.count("plain, fp32, 1000 classes: left out, takes about 30 GB of memory; free: 20 GB") == 1
    assert "(extrapolated)" in shown


def test_a_plain_step_that_was_not_measured_is_marked_as_extrapolated():
    cases = {}
    for name in COMPARED:
        for classes in (100, 397, 1000):
            facts = {"contender": name, "precision": "fp32", "classes": classes, "disturbed": []}
            costs = {"flop": 1e9, "plain_flop": 8e9}
            measured = [] if name == "plain" and classes == 1000 else [seconds(name, "fp32", classes)]
            cases[f"{name} {classes}"] = {**facts, **costs, "seconds": measured}
    times = Times(cases)
    assert times.measured("plain", "fp32", 1000) is None
    found = times.of("plain", "fp32", 1000)
    assert found.seconds == pytest.approx(162)
    kept = {"cases": cases, "default": "bf16", "group": {"batch": 16}}
    assert "9.26 (extrapolated)" in as_table(kept)
    assert "| 1000 classes, all, fp32 | 6.0 | 9.26 (extrapolated) | yes |" in targets(kept)


def test_several_methods_stand_in_one_table_with_what_is_asked_of_each(machine, tmp_path):
    calls, _ = machine
    bench.run(options(tmp_path, method="coop,cocoop,maple", classes="100", precision="fp32", batch=4))
    assert {calls.count(key) for key in calls} == {9}  # three samples of each of three methods
    text = (tmp_path / "step.md").read_text()
    assert text.startswith("ViT-B-16, batch 4, ")
    assert "| method | batch | classes | precision | step |" in text
    plain, fast = seconds("plain", "fp32", 100), seconds("all", "fp32", 100)
    assert f"| coop | 4 | 100 | fp32 | all | {fast:.2f} | {4 / fast:.1f} | 3.02 | 1.00 |" in text
    assert f"| maple, batch 4, 100 classes, all, fp32 | 3.0 | {plain / fast:.2f} | yes |" in text
    share = "| coop, batch 4, 100 classes, all, fp32: share of the 10.00 expected | 85% | 58% | no |"
    assert share in text
    assert "| coop, batch 4, 100 classes, all, fp32 |" not in text  # of batches of 32 something is asked
    assert "| 100 classes, all, fp32 |" not in text  # nor is what is asked of RMAdapter


def test_each_method_has_the_batch_of_its_recipe_where_none_is_given(machine, tmp_path):
    wanted = options(tmp_path, method="coop,cocoop", classes="1000", precision="fp32", text_memory="2GB")
    assert [subject.batch for subject in wanted.subjects] == [32, 1]
    assert wanted.text_bytes == 2 * 2**30
    bench.run(wanted)
    text = (tmp_path / "step.md").read_text()
    assert text.startswith("ViT-B-16, each method's own batch, text memory 2GB, ")
    assert "| coop, batch 32, 1000 classes, all, fp32 | 9.0 | 9.26 | yes |" in text
    assert "| coop, batch 32, 1000 classes, all, fp32: GB | 4.0 | 4.02 | no |" in text
    with pytest.raises(InputError, match="text_memory is None, there '2GB'"):
        bench.run(options(tmp_path, method="coop,cocoop", classes="1000", precision="fp32"))
    (tmp_path / "step.json").unlink()
    bench.run(
        options(tmp_path, method="mmrl", classes="100", precision="fp32", options="--space.tokens=3 --lora.rank 4")
    )
    assert (
        (tmp_path / "step.md").read_text().startswith("ViT-B-16, mmrl, batch 4, options --space.tokens=3 --lora.rank 4")
    )


SMALL = ["--prompt.text_depth=2", "--prompt.vision_depth=2", "--space.layers=2-3", "--adapter.layers=2-3"]
WITHOUT_VIEWS = {"maple", "clip-lora"}


@pytest.mark.parametrize(
    "name",
    [
        "cocoop",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "mmrl",
                *("clip-adapter", "clip-lora", "coop", "coprompt", "maple", "mma", "prograd", "promptsrc", "taskres"),
                "tip-adapter-f",
            )
        ),
    ],
)
def test_the_steps_of_any_method_agree_and_run(tokenizer, name, monkeypatch):
    monkeypatch.setattr(bench, "SAMPLE", 0.0)
    words = [word for word in SMALL if "depth" not in word or name in ("maple", "promptsrc", "coprompt")]
    subject = Subject.of(name, words, batch=3)
    clip = small_clip().requires_grad_(False)
    backbone = Backbone(clip, tokenizer, Preprocessing.of(clip), None)
    adapted = subject.certain().put_in(backbone, CHECKED_CLASSES)
    check(3, backbone, adapted, subject=subject.certain())
    adapted.remove()
    contenders = Contenders(3, backbone, subject.put_in(backbone, 4), 4, "fp32", subject)
    have = [contender for contender in MAIN if contenders.applies(contender)]
    assert have == list(COMPARED[:2] if name in WITHOUT_VIEWS else COMPARED)
    expected = {}
    for contender in have:
        case = {"precision": "fp32", "classes": 4, "seconds": [], "disturbed": []}
        bench._sample(contenders, contender, case)
        expected[contender] = case["plain_flop"] / case["flop"]
    assert expected["plain"] == 1
    assert expected["all"] > 1.2
    assert expected.get(VIEWS, 100) > expected["all"]


def test_a_method_that_trains_nothing_has_no_step(tokenizer):
    clip = small_clip().requires_grad_(False)
    with pytest.raises(InputError, match="method has 'tip-adapter', which trains nothing"):
        Subject.of("tip-adapter").put_in(Backbone(clip, tokenizer, Preprocessing.of(clip), None), 4)


def test_bad_options():
    for changes, message in (
        ({"method": "cop"}, "method is 'cop'.*did you mean 'coop'"),
        ({"method": "coop,zeroshot"}, "method has 'zeroshot', which has no training step; valid: coop, "),
        ({"method": "coop", "options": "--prompt.text_depth=0"}, "prompt.text_depth is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"text_memory": "much"}, "text_memory is 'much'"),
        ({"classes": "ten"}, "classes is 'ten'"),
        ({"contenders": "al"}, "contenders is 'al'.*did you mean 'all'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"contenders": "all, cuda graphs", "device": "cpu"}, "needs a CUDA device"),
    ):
        with pytest.raises(InputError, match=message):
            bench.Options(**changes)


def test_what_follows_from_the_options_is_no_option_itself():
    assert bench.Options(classes="3,7").numbers == [3, 7]
    with pytest.raises(InputError, match="unknown option '--numbers'"):
        parse_arguments(bench.Options, ["--classes", "3", "--numbers", "[7]"], prog="bench.step")


def test_the_loader_is_compared_with_the_step(machine, tmp_path):
    bench.run(options(tmp_path, classes="100"))
    small = {"images": 6, "width": 40, "height": 30, "batch": 4, "workers": 0, "epochs": 2}
    table = loader.run(loader.Options(**small, step=str(tmp_path / "step.json")))
    rate = 16 / seconds("all", "bf16", 100)
    assert f"the step at 100 classes in bf16 consumes {rate:.1f} images/s" in table
    assert table.count("(1.5 asked for)") == 2
    assert "python -m bench.step first" in loader.run(loader.Options(**small, step=str(tmp_path / "none.json")))
    with pytest.raises(InputError, match="epochs is 1"):
        loader.Options(epochs=1)


def test_workers_that_are_spawned_get_the_loader_s_reading(tmp_path):
    (item,) = loader.make_images(tmp_path, loader.Options(images=1, width=8, height=6))
    decode = pickle.loads(pickle.dumps(loader.Decode(tmp_path)))
    assert decode(item.path).size == (8, 6)


def test_only_samples_of_one_kind_go_into_a_file(machine, tmp_path, monkeypatch):
    """Another model, batch, thread count or commit: refused with what differs, or with --overwrite measured anew."""
    calls, _ = machine
    few = {"classes": "100", "precision": "fp32"}
    bench.run(options(tmp_path, **few))
    file = tmp_path / "step.json"
    before, taken = file.read_bytes(), len(calls)
    for changes, message in (
        ({"model": "ViT-B-32"}, "model is 'ViT-B-32', there 'ViT-B-16'; valid: another --out, or --overwrite"),
        ({"batch": 4}, "batch is 4, there 16; valid"),
        ({"backend": "eager"}, "backend is 'eager', there 'auto'; valid"),
    ):
        with pytest.raises(InputError, match=message):
            bench.run(options(tmp_path, **few, **changes))
    for name, value in (("commit", "abc1234"), ("processor", "another one")):
        with monkeypatch.context() as patch:
            patch.setattr(step_samples, name, lambda value=value: value)
            with pytest.raises(InputError, match=f"(commit|device) is '{value}', there '"):
                bench.run(options(tmp_path, **few))
    assert file.read_bytes() == before
    bench.run(options(tmp_path, **few, overwrite=True))  # the same kind goes on
    assert len(calls) == taken
    bench.run(options(tmp_path, **few, overwrite=True, batch=4))
    assert len(calls) == 2 * taken
    assert (tmp_path / "step.md").read_text().startswith("ViT-B-16, batch 4, ")
    file.write_text('{"cases": {}, "machine": {}}')
    with pytest.raises(InputError, match="model is 'ViT-B-16', there None"):
        bench.run(options(tmp_path, **few))


def test_the_commit_is_that_of_what_is_measured(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    assert step_samples.commit(tmp_path) == "unknown"
    git("init", "--quiet")
    for folder, name in (("rmadapter", "step.py"), ("docs", "step.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("one")
        git("add", ".")
        git("commit", "--quiet", "-m", folder)
    first = git("rev-parse", "--short", "HEAD~1").strip()
    assert step_samples.commit(tmp_path) == first
    found = set()
    for text in ("two", "three"):
        (tmp_path / "docs" / "step.md").write_text(text)
        (tmp_path / "rmadapter" / "step.py").write_text(text)
        found.add(step_samples.commit(tmp_path))
    assert len(found) == 2
    assert all(re.fullmatch(f"{first} with changes [0-9a-f]{{8}}", one) for one in found)


def test_the_committed_samples_are_read():
    file = step_samples.ROOT / "bench" / "results" / "step.json"
    kept = json.loads(file.read_text())
    text = "\n".join([heading(kept), as_table(kept), targets(kept)])
    assert text == file.with_suffix(".md").read_text()
    assert f"commit {kept['group']['commit']}" in text


def test_the_steps_are_compared_once_in_every_process_that_measures(machine, tmp_path, monkeypatch):
    """In fp32 whatever is timed, with the recorded step where it is timed, and anew when the same command goes on."""
    made = []
    monkeypatch.setattr(
        bench, "check", lambda batch, precision, _, graphs, **of: made.append((batch, precision, graphs))
    )
    for repeats in (1, 2, 2):
        bench.run(options(tmp_path, classes="10,100", precision="bf16", repeats=repeats))
    assert made == [(16, "fp32", False)] * 2
    given = options(tmp_path, classes="10")
    given.contenders = GRAPHS
    bench._check(given, torch.device("cuda"))
    assert made[2:] == [(16, "fp32", True)]
