"""What a sweep's report holds against published numbers, and what it does not."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest
from fake_sweeps import accuracy, cells, fake

from rmadapter.data.catalog import FIELD, VARIANTS
from rmadapter.evaluation.results_file import harmonic_mean
from rmadapter.methods import METHODS
from rmadapter.reports import published
from rmadapter.reports.sweep.page import sweep_report


def test_base_to_new_beside_the_published_means(tmp_path):
    folder = fake(tmp_path / "s", "base2new", FIELD, ["zeroshot", "mma", "rmadapter"])
    text = sweep_report(folder)
    found = cells(text, "Mean over the data sets", "rmadapter")
    bases = [statistics.fmean(accuracy("rmadapter", name, seed)[0] for seed in (1, 2, 3)) for name in FIELD]
    news = [statistics.fmean(accuracy("rmadapter", name, seed)[1] for seed in (1, 2, 3)) for name in FIELD]
    base, new = statistics.fmean(bases), statistics.fmean(news)
    per_seed = [
        harmonic_mean(*(statistics.fmean(accuracy("rmadapter", name, seed)[part] for name in FIELD) for part in (0, 1)))
        for seed in (1, 2, 3)
    ]
    spreads = [
        statistics.stdev(
            statistics.fmean(accuracy("rmadapter", name, seed)[part] for name in FIELD) for seed in (1, 2, 3)
        )
        for part in (0, 1)
    ]
    expected = {
        "data sets": "11",
        "seeds": "3",
        "base": f"{base:.2f} ± {spreads[0]:.2f}",
        "new": f"{new:.2f} ± {spreads[1]:.2f}",
        "HM of means": f"{harmonic_mean(base, new):.2f}",
        "mean of HMs": f"{statistics.fmean(map(harmonic_mean, bases, news)):.2f}",
        "HM per seed": f"{statistics.fmean(per_seed):.2f} ± {statistics.stdev(per_seed):.2f}",
        "published base / new / HM": "84.52 / 77.36 / 80.62",
        "base - published": f"{base - 84.52:+.2f}",
        "new - published": f"{new - 77.36:+.2f}",
        "HM of means - published": "",  # RMAdapter's is a mean of HMs
        "mean of HMs - published": f"{statistics.fmean(map(harmonic_mean, bases, news)) - 80.62:+.2f}",
    }
    assert dict(found) == {"method": "rmadapter", **expected}
    mma = dict(cells(text, "Mean over the data sets", "mma"))
    assert mma["HM of means - published"] == f"{float(mma['HM of means']) - 79.87:+.2f}"
    assert mma["mean of HMs - published"] == ""
    assert dict(cells(text, "Mean over the data sets", "zeroshot"))["base"].count("±") == 0
    assert len({expected[name] for name in ("HM of means", "mean of HMs")}) == 2
    zeroshot = dict(cells(text, "dtd", "zeroshot"))
    assert zeroshot["published base / new"] == "53.24 / 59.90"
    assert zeroshot["base - published"] == f"{accuracy('zeroshot', 'dtd', None)[0] - 53.24:+.2f}"
    rmadapter = dict(cells(text, "dtd", "rmadapter"))
    base, new = zip(*(accuracy("rmadapter", "dtd", seed) for seed in (1, 2, 3)), strict=True)
    assert rmadapter["base"] == f"{statistics.fmean(base):.2f} ± {statistics.stdev(base):.2f}"
    hms = [harmonic_mean(*pair) for pair in zip(base, new, strict=True)]
    assert rmadapter["HM"] == f"{statistics.fmean(hms):.2f} ± {statistics.stdev(hms):.2f}"
    assert rmadapter["published base / new"] == ""
    assert dict(cells(text, "Published: mean over the eleven data sets", "CoOp"))["HM of means"] == "71.66"
    assert dict(cells(text, "Published: mean over the eleven data sets", "RMAdapter"))["mean of HMs"] == "80.62"
    assert "Not held against" not in text
    assert "77 of 77 runs done" in text
    assert "not of the method alone" not in text


def test_other_data_sets_and_models_are_not_held_against_published_numbers(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["birds", "trees"], ["zeroshot", "mma"], model="local-dir:/x/tiny")
    text = sweep_report(folder)
    assert "HM of means - published" not in text
    assert "This sweep is of tiny (openai) with 16 shots; published numbers are of CLIP ViT-B/16" in text


@pytest.mark.parametrize(
    ("protocol", "targets", "published_mean"), [("cross", FIELD, 67.56), ("domain", VARIANTS, 60.71)]
)
def test_transfer(tmp_path, protocol, targets, published_mean):
    data = ["imagenet", *(name for name in targets if name != "imagenet")]
    folder = fake(tmp_path / "s", protocol, data, ["zeroshot", "rmadapter"], source="imagenet")
    text = sweep_report(folder)
    row = dict(cells(text, "Trained on imagenet", "rmadapter"))
    home = [accuracy("rmadapter", "imagenet", seed)[0] for seed in (1, 2, 3)]
    assert row["imagenet (trained on)"] == f"{statistics.fmean(home):.2f} ± {statistics.stdev(home):.2f}"
    means = [statistics.fmean(accuracy("rmadapter", name, seed)[1] for name in data[1:]) for seed in (1, 2, 3)]
    assert row["mean of the others"] == f"{statistics.fmean(means):.2f} ± {statistics.stdev(means):.2f}"
    assert row["published"] == f"{published_mean:.2f}"
    assert row["mean - published"] == f"{statistics.fmean(means) - published_mean:+.2f}"
    assert set(data[1:]) <= row.keys()


def edit(folder, data, **changes):
    """Change every results.json of the sweep that is of ``data``."""
    for file in folder.rglob("results.json"):
        values = json.loads(file.read_text())
        if values["data"] == data:
            file.write_text(json.dumps({**values, **changes}))


OWN = {"split_file": "split_rmadapter.json, SHA-256 0123456789ab"}
FEWER = {"images": {"base": 864, "new": 827}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (OWN, "dtd (split_rmadapter.json in place of split_zhou_DescribableTextures.json)"),
        ({"split_file": None}, "dtd (no split file in place of split_zhou_DescribableTextures.json)"),
        (FEWER, "dtd (827 test images of new classes in place of 828)"),
    ],
)
def test_other_splits_are_not_held_against_published_numbers(tmp_path, changes, why):
    folder = fake(tmp_path / "s", "base2new", FIELD, ["zeroshot", "rmadapter"])
    edit(folder, "dtd", **changes)
    text = sweep_report(folder, tmp_path / "out")
    assert f"- Not held against published numbers: {why}.\n" in text
    assert "published base / new" not in dict(cells(text, "dtd", "zeroshot"))
    assert dict(cells(text, "eurosat", "zeroshot"))["published base / new"] == "56.48 / 64.05"
    mean = dict(cells(text, "Mean over the data sets", "rmadapter"))
    assert not [heading for heading in mean if "published" in heading]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    known = {li["data"] for li in lines if li["published"]}
    assert known == set(FIELD) - {"dtd"}


def test_the_whole_test_set_counts_where_the_halves_are_not_known(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["food101"], ["zeroshot"])
    assert "Not held" not in sweep_report(folder)
    edit(folder, "food101", images={"base": 15150, "new": 15149})
    assert "food101 (30,299 test images of base and new classes in place of 30,300)" in sweep_report(folder)


@pytest.mark.parametrize("data", ["imagenet", "dtd"])
def test_a_transfer_from_or_to_another_split_is_not_held_against_published_numbers(tmp_path, data):
    names = ["imagenet", *(name for name in FIELD if name != "imagenet")]
    folder = fake(tmp_path / "s", "cross", names, ["zeroshot", "rmadapter"], source="imagenet")
    edit(folder, data, **OWN)
    text = sweep_report(folder, tmp_path / "out")
    assert f"- Not held against published numbers: {data} (split_rmadapter.json in place of" in text
    assert "mean - published" not in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    assert not [li for li in lines if li["published"]]


def test_runs_of_one_data_set_on_several_splits_are_said(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat", "birds"], ["mma"])
    file = folder / "runs" / "mma" / "dtd" / "seed2" / "run" / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **OWN}))
    note = "- The runs on dtd are of several splits and do not compare: split_zhou_DescribableTextures.json, SHA-256"
    assert note in (text := sweep_report(folder))
    assert text.count("several splits") == 1


def test_the_csv_has_the_published_number_beside_its_kind_of_harmonic_mean(tmp_path):
    sweep_report(fake(tmp_path / "s", "base2new", FIELD, ["zeroshot", "mma", "rmadapter"]), tmp_path / "out")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    found = {(li["method"], li["part"]): li for li in lines if li["data"] == "mean of 11"}
    kinds = ("hm_of_means", "mean_of_hms", "hm_per_seed")
    assert [found["mma", kind]["published"] for kind in kinds] == ["79.87", "", ""]
    assert [found["rmadapter", kind]["published"] for kind in kinds] == ["", "80.62", ""]
    assert {found["rmadapter", part]["seeds"] for part in ("base", "new", *kinds)} == {"3"}
    assert {li["seeds"] for li in lines if li["method"] == "zeroshot"} == {""}
    means = [statistics.fmean(accuracy("mma", name, seed)[0] for name in FIELD) for seed in (1, 2, 3)]
    assert float(found["mma", "base"]["sd"]) == pytest.approx(statistics.stdev(means))


@pytest.mark.parametrize(
    ("pretrained", "name"), [(None, "ViT-B-16 (random weights)"), ("laion400m_e32", "ViT-B-16 (laion400m_e32)")]
)
def test_the_weights_are_said(tmp_path, pretrained, name):
    text = sweep_report(fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["mma"], pretrained=pretrained))
    assert f"\n{name}, 16 shots; 6 of 6 runs done\n" in text
    assert f"This sweep is of {name} with 16 shots; published numbers are of CLIP ViT-B/16" in text


def test_published_numbers_agree_with_each_other():
    """Single data sets have the printed means, and the methods the harmonic means that they print."""
    assert len(published.BASE_NEW) == 9
    for name, values in published.BASE_NEW.items():
        assert tuple(values) == FIELD
        base, new = (statistics.fmean(numbers) for numbers in zip(*values.values(), strict=True))
        assert (base, new) == pytest.approx(published.BASE_NEW_MEAN[name][:2], abs=0.011), name
    for name, values in published.BASE_NEW_MEAN.items():
        of_means = harmonic_mean(values.base, values.new)
        if values.hm_is == published.HM_OF_MEANS:
            assert of_means == pytest.approx(values.hm, abs=0.012), name
        else:  # lower than that of the means
            assert of_means - 0.2 < values.hm < of_means - 0.1, name
    for protocol, transfers in published.TRANSFER.items():
        for name, paper in transfers.items():
            if paper.targets:
                assert len(paper.targets) == len(published.TRANSFER_TARGETS[protocol])
                assert statistics.fmean(paper.targets) == pytest.approx(paper.mean, abs=0.011), name
    for values in published.FEW_SHOT_MEAN.values():
        assert tuple(values) == (1, 2, 4, 8, 16)
        assert sorted(values.values()) == list(values.values())
    assert set(published.NAMES) <= set(METHODS)
    held = {*published.BASE_NEW_MEAN, *published.FEW_SHOT_MEAN}.union(*published.TRANSFER.values())
    assert set(published.NAMES.values()) == held


def test_single_numbers_as_the_tables_have_them():
    assert published.base_new("coop", "dtd") == (79.44, 41.18)
    assert published.base_new("kgcoop", "eurosat") == (85.64, 64.34)
    assert published.base_new("prograd", "imagenet") == (77.02, 66.66)
    assert published.base_new("coprompt", "ucf101") == (86.90, 79.57)
    assert published.base_new("clip-adapter", "sun397") == (78.20, 77.10)
    assert published.base_new("rmadapter", "dtd") is published.base_new("coop", "birds") is None
    assert published.base_new_mean("mmrl", frozenset(FIELD)) == (85.68, 77.16, 81.20, published.HM_OF_MEANS)
    targets = frozenset(FIELD) - {"imagenet"}
    assert published.transfer_mean("cross", "promptsrc", "imagenet", targets) == 65.81
    assert published.transfer_mean("cross", "promptsrc", "dtd", targets) is None
    assert published.transfer_mean("domain", "maple", "imagenet", frozenset(VARIANTS)) == 60.27
    assert published.TRANSFER["cross"]["MaPLe"].targets[published.TRANSFER_TARGETS["cross"].index("dtd")] == 46.49
    assert published.TRANSFER["domain"]["CoOp"].targets == (64.20, 47.99, 49.71, 75.21)
    assert published.few_shot_mean("maple", frozenset(FIELD))[4] == 75.37
    assert published.few_shot_mean("maple", targets) == published.few_shot_mean("mma", frozenset(FIELD)) == {}
