"""Tables, plots and the page of a sweep, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess

import pytest
from fake_sweeps import accuracy, cells, fake, results, write
from PIL import Image

from rmadapter.cli import main
from rmadapter.data.catalog import FIELD, VARIANTS
from rmadapter.errors import InputError
from rmadapter.methods import ABLATION_TABLE
from rmadapter.reports.sweep import figures
from rmadapter.reports.sweep.outcomes import read_sweep
from rmadapter.reports.sweep.page import sweep_report
from rmadapter.sweeps.manifest import FORMAT

# The 97.5 % points of Student's t with one and two degrees of freedom, from a table.
POINTS = {2: 12.7062, 3: 4.3027}


def estimate(mean, error, higher, units):
    """A cell of paired differences."""
    half = POINTS[units] * error
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}] ({higher}/{units})"


def test_csv_has_full_precision(tmp_path):
    folder = fake(tmp_path / "s", "base2new", FIELD, ["zeroshot", "rmadapter"])
    sweep_report(folder, tmp_path / "out")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    (line,) = [li for li in lines if (li["method"], li["data"], li["part"]) == ("rmadapter", "eurosat", "new")]
    values = [accuracy("rmadapter", "eurosat", seed)[1] for seed in (1, 2, 3)]
    assert (float(line["mean"]), float(line["sd"])) == pytest.approx(
        (statistics.fmean(values), statistics.stdev(values))
    )
    assert {li["part"] for li in lines if li["data"] == "mean of 11"} == {
        "base",
        "new",
        "hm_of_means",
        "mean_of_hms",
        "hm_per_seed",
    }


def test_paired_differences_of_data_sets(tmp_path):
    """dtd and eurosat are units: differences of means over seeds, their standard error over the two."""
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "mma", "rmadapter"])
    for number, name in enumerate(("dtd", "eurosat"), start=1):
        for seed in (1, 2, 3):
            file = folder / "runs" / "rmadapter" / name / f"seed{seed}" / "run" / "results.json"
            values = json.loads(file.read_text())
            base, new = accuracy("mma", name, seed)
            values["accuracy"] = {"base": base - number, "new": new + 4 * number + seed - 2}
            file.write_text(json.dumps(values))
    text = sweep_report(folder, tmp_path / "out")
    row = dict(cells(text, "Paired differences", "rmadapter - mma"))
    assert row["base"] == estimate(-1.5, 0.5, 0, 2)
    assert row["new"] == estimate(6, 2, 2, 2)
    assert (row["data sets"], row["pairs"]) == ("2", "6")
    gains = [
        statistics.fmean(
            accuracy("mma", name, seed)[0] - number - accuracy("zeroshot", name, None)[0] for seed in (1, 2, 3)
        )
        for number, name in enumerate(("dtd", "eurosat"), start=1)
    ]
    expected = estimate(statistics.fmean(gains), statistics.stdev(gains) / 2**0.5, 2, 2)
    assert dict(cells(text, "Paired differences", "rmadapter - zeroshot"))["base"] == expected
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "differences.csv").read_text())))
    (line,) = [li for li in lines if (li["minus"], li["part"]) == ("mma", "new")]
    assert (line["method"], line["pairs"], line["data_sets"], line["higher_in"]) == ("rmadapter", "6", "2", "2")
    assert (float(line["mean"]), float(line["standard_error"])) == pytest.approx((6, 2))
    assert (float(line["low"]), float(line["high"])) == pytest.approx((6 - 2 * 12.7062, 6 + 2 * 12.7062), abs=1e-3)
    assert line["low_here"] == ""  # nothing is recorded class by class
    assert main(["report", str(folder), "--out", str(tmp_path / "other"), "--compare", "mma"]) == 0
    text = (tmp_path / "other" / "report.md").read_text()
    assert dict(cells(text, "Paired differences", "mma - rmadapter"))["new"] == estimate(-6, 2, 0, 2)


def test_paired_differences_over_the_test_bed_s_styles_and_its_retention(tmp_path):
    data = ["emoji_food", "emoji_food@emojione", "emoji_travel", "emoji_travel@emojione"]
    folder = fake(tmp_path / "s", "base2new", [], ["single", "rmadapter"])
    manifest = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**manifest, "data": data, "seeds": [1]}))
    gains = dict(zip(data, (1.0, 3.0, 4.0, 8.0), strict=True))  # food 2, travel 6
    for method in ("single", "rmadapter"):
        for name in data:
            group, _, style = name.partition("@")
            gain = gains[name] if method == "rmadapter" else 0.0
            values = {"base": 80.0, "new": 40.0 + gain, "retained_base": 50.0, "retained_new": 30.0 - gain}
            found = {**results(method, group, 1, values, "base"), "style": style or "fluent"}
            write(folder / "runs" / method / f"{group}@{style or 'fluent'}" / "seed1" / "run" / "results.json", found)
    text = sweep_report(folder, tmp_path / "out")
    row = dict(cells(text, "Paired differences", "rmadapter - single"))
    assert row["new"] == estimate(4, 2, 2, 2)
    assert row["retained base"] == estimate(0, 0, 0, 2)
    assert row["retained new"] == estimate(-4, 2, 0, 2)
    assert (row["data sets"], row["pairs"]) == ("2", "4")
    row = dict(cells(text, "Paired differences, drawn by emojione", "rmadapter - single"))
    assert row["new"] == estimate(5.5, 2.5, 2, 2)
    assert dict(cells(text, "emoji_food@emojione", "rmadapter"))["retained new"] == "27.00"
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    found = {(li["method"], li["data"]): float(li["mean"]) for li in lines if li["part"] == "retained_new"}
    assert found["rmadapter", "emoji_travel@emojione"] == 22
    assert found["rmadapter", "mean of 2@fluent"] == 27.5
    assert "<td class='number'>27.00</td>" in (tmp_path / "out" / "report.html").read_text()


def test_differences_on_these_data_sets_alone(tmp_path):
    """Classes and draws are counted, and what the images of a class say in common is no number of observations."""
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "single", "rmadapter"])
    for file in (folder / "runs").rglob("results.json"):
        values = json.loads(file.read_text())
        gain, seed = {"zeroshot": 0, "single": 6}.get(values["method"], 10), values["seed"] or 0
        # The third new class, of dtd alone, is in the results of RMAdapter alone.
        more = values["method"] == "rmadapter" and values["data"] == "dtd"
        new = {"c": 40 + gain / 2, "d": 60 - gain, **({"e": 100} if more else {})}
        per_class = {"base": {"a": 50 + gain + seed, "b": 70 + gain - seed}, "new": new}
        values["metrics"] = {part: {"per_class": found} for part, found in per_class.items()}
        file.write_text(json.dumps(values))
    text = sweep_report(folder, tmp_path / "out")
    row = dict(cells(text, "Paired differences on these data sets alone", "rmadapter - single"))
    assert (row["classes"], row["draws"]) == ("8", "6")
    assert row["base"] == "+4.00 [+4.00, +4.00]"
    assert row["new"] == "-1.00 [-4.00, +2.00]"  # of c and d
    assert row["HM"].startswith("+0.68 [")  # of 70 and 47.5, less that of 66 and 48.5
    assert (
        dict(cells(text, "Paired differences on these data sets alone", "rmadapter - zeroshot"))["base"][:6] == "+10.00"
    )
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "differences.csv").read_text())))
    (line,) = [li for li in lines if (li["minus"], li["part"]) == ("single", "new")]
    assert (line["classes"], line["draws"], float(line["mean_of_classes"])) == ("4", "6", -1)
    assert (float(line["low_here"]), float(line["high_here"])) == (-4, 2)


def test_paired_differences_of_data_with_and_without_styles_stand_there_once(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["single", "rmadapter"])
    manifest = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**manifest, "data": ["dtd", "emoji_food"]}))
    for method in ("single", "rmadapter"):
        for seed in (1, 2, 3):
            found = {**results(method, "emoji_food", seed, {"base": 80.0, "new": 40.0}, "base"), "style": "fluent"}
            write(folder / "runs" / method / "emoji_food@fluent" / f"seed{seed}" / "run" / "results.json", found)
    text = sweep_report(folder, tmp_path / "out")
    assert text.count("| rmadapter - single ") == 2  # over all, and drawn by fluent


@pytest.mark.parametrize("protocol", ["cross", "domain"])
def test_with_several_sources_they_are_the_unit(tmp_path, protocol):
    data = {
        "cross": ["emoji_food@fluent", "emoji_travel@fluent", "emoji_people@fluent"],
        "domain": [
            f"emoji_{group}@{style}" for group in ("food", "travel") for style in ("fluent", "noto", "openmoji")
        ],
    }[protocol]
    sources = data if protocol == "cross" else data[::3]
    folder = fake(tmp_path / "s", protocol, data, [], source="unused")
    manifest = json.loads((folder / "sweep.json").read_text())
    lists = {"methods": ["single", "rmadapter"], "seeds": [1, 2], "sources": sources}
    (folder / "sweep.json").write_text(json.dumps({**manifest, **lists}))
    for number, source in enumerate(sources):
        for seed in (1, 2):
            for method in ("single", "rmadapter"):
                run = folder / "runs" / method / source / f"seed{seed}"
                gain = (method == "rmadapter") * (1.0 + number)
                write(run / "run" / "results.json", results(method, source, seed, {"all": 70 - gain + seed}, "all"))
                for target in data:
                    if target != source and (protocol == "cross" or target.split("@")[0] == source.split("@")[0]):
                        value = {"all": 50 + gain + (target.endswith("noto") * gain)}
                        write(run / "on" / target / "results.json", results(method, target, seed, value, "all"))
    text = sweep_report(folder, tmp_path / "out")
    row = dict(cells(text, "Paired differences", "rmadapter - single"))
    means = dict(cells(text, "Mean over the data sets trained on", "rmadapter"))
    if protocol == "cross":
        assert row["trained on"] == estimate(-2, 3**-0.5, 0, 3)
        assert row["mean of the others"] == estimate(2, 3**-0.5, 3, 3)
        assert means["mean of the others"] == "52.00 ± 0.00"
    else:
        assert row["noto"] == estimate(3, 1, 2, 2)
        assert row["openmoji"] == estimate(1.5, 0.5, 2, 2)
        assert row["mean of the others"] == estimate(2.25, 0.75, 2, 2)
        assert means["noto"] == "53.00 ± 0.00"
    assert means["trained on"] == f"{71.5 - (2 if protocol == 'cross' else 1.5):.2f} ± 0.71"
    assert f"## Trained on {sources[1]}" in text


def test_means_over_sources_of_which_runs_are_missing(tmp_path):
    """Every seed counts, as in the other protocols; what all sources have is shown, and that some have others."""
    data, values = ["dtd", "eurosat", "food101"], {}
    folder = fake(tmp_path / "s", "cross", data, [], source="unused")
    manifest = json.loads((folder / "sweep.json").read_text())
    lists = {"methods": ["zeroshot", "mma", "rmadapter"], "seeds": [1, 2], "sources": data}
    (folder / "sweep.json").write_text(json.dumps({**manifest, **lists}))
    missing = {("mma", "dtd", 2), ("mma", "eurosat", 1), ("rmadapter", "food101", 1), ("rmadapter", "food101", 2)}
    for method, source, seed in [(m, s, n) for m in lists["methods"] for s in data for n in (None, 1, 2)]:
        if (seed is None) == (method == "zeroshot") and (method, source, seed) not in missing:
            values[method, source, seed] = value = 60.0 + 3 * data.index(source) + 4 * (seed or 0)
            run = folder / "runs" / method / source / (f"seed{seed}" if seed else "")
            write(run / "run" / "results.json", results(method, source, seed, {"all": value}, "all"))
            for target in data:
                if target != source and (method, source, target) != ("zeroshot", "dtd", "food101"):
                    write(run / "on" / target / "results.json", results(method, target, seed, {"all": value}, "all"))
    text = sweep_report(folder)
    rows = {m: dict(cells(text, "Mean over the data sets trained on", m)) for m in lists["methods"]}
    mean = statistics.fmean([values["mma", "dtd", 1], values["mma", "eurosat", 2], values["mma", "food101", 1] + 2])
    assert (rows["mma"]["trained on"], rows["mma"]["seeds"]) == (f"{mean:.2f}", "0")
    assert (rows["zeroshot"]["trained on"], rows["zeroshot"]["mean of the others"]) == ("63.00", "")
    assert (rows["rmadapter"]["data sets"], rows["rmadapter"]["seeds"], rows["zeroshot"]["seeds"]) == ("2", "2", "")
    assert rows["rmadapter"]["mean of the others"] == "67.50 ± 2.83"
    assert "Methods are not all trained on the same data sets: their means do not compare." in text
    assert dict(cells(text, "Trained on dtd", "mma"))["seeds"] == "1"


def test_with_one_source_the_targets_are_the_unit(tmp_path):
    data = ["imagenet", "dtd", "eurosat"]
    text = sweep_report(fake(tmp_path / "s", "cross", data, ["zeroshot", "rmadapter"], source="imagenet"))
    row = dict(cells(text, "Paired differences", "rmadapter - zeroshot"))
    gains = [
        statistics.fmean(accuracy("rmadapter", name, seed)[1] for seed in (1, 2, 3))
        - accuracy("zeroshot", name, None)[1]
        for name in data[1:]
    ]
    error = statistics.stdev(gains) / 2**0.5
    assert row["mean of the others"] == estimate(statistics.fmean(gains), error, 2, 2)
    assert "[" not in row["trained on"]


CASES = {
    "base2new": (FIELD, ["zeroshot", "mma", "rmadapter"], None),
    "ablation": (["dtd", "eurosat"], ABLATION_TABLE, None),
    "cross": (["imagenet", "dtd", "eurosat"], ["zeroshot", "mma", "rmadapter"], "imagenet"),
    "domain": (["imagenet", *VARIANTS], ["zeroshot", "rmadapter"], "imagenet"),
}
PLOTS = {
    "base2new": {"base_new.png", "data_sets.png", "cost.png"},
    "ablation": {"base_new.png", "data_sets.png", "ablation.png", "cost.png"},
    "cross": {"data_sets.png", "cost.png"},
    "domain": {"data_sets.png", "cost.png"},
}


@pytest.mark.drawn
@pytest.mark.parametrize("protocol", CASES)
def test_files(tmp_path, protocol, capsys):
    data, methods, source = CASES[protocol]
    folder = fake(tmp_path / "s", protocol, data, methods, source=source)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.md", "report.csv", "differences.csv", "report.html"} | PLOTS[protocol]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PLOTS[protocol])
    assert not re.search(r"(src|href)=(?!'data:)|url\(|<script", page)
    for name in PLOTS[protocol]:
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 200
    assert "written:" in capsys.readouterr().out


def base_alone(folder, method):
    """Leave of every run of ``method`` the accuracy on base classes, which is all that a linear probe has."""
    for file in (folder / "runs" / method).rglob("results.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "accuracy": {"base": values["accuracy"]["base"]}}))


def test_a_method_without_new_classes(tmp_path):
    """It has its mean on base classes, and no bar among harmonic means."""
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "linear-probe"])
    base_alone(folder, "linear-probe")
    text = sweep_report(folder, tmp_path / "out")
    row = dict(cells(text, "Mean over the data sets", "linear-probe"))
    base = [statistics.fmean(accuracy("linear-probe", name, s)[0] for name in ("dtd", "eurosat")) for s in (1, 2, 3)]
    assert row["base"] == f"{statistics.fmean(base):.2f} ± {statistics.stdev(base):.2f}"
    assert (row["seeds"], row["new"], row["HM of means"], row["HM per seed"]) == ("3", "", "", "")
    title, bars = figures._bars_of(read_sweep(folder))
    assert title == "harmonic mean of base and new"
    assert {bar.method for bar in bars} == {"zeroshot"}
    base_alone(folder, "zeroshot")
    found = read_sweep(folder)
    title, bars = figures._bars_of(found)
    assert title == "accuracy on base classes"
    assert len(bars) == 4
    assert len(figures.draw(found, tmp_path / "out")) == 2


def test_a_sweep_has_its_report_in_its_folder(tmp_path, monkeypatch):
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot"])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a sweep with a report in it is still one
        assert main(["report", "s"]) == 0
        assert (folder / "report" / "report.html").is_file()
    assert main(["report", "s/runs"]) == 0
    assert (tmp_path / "report" / "report.md").is_file()


def test_unfinished_and_failed_runs_are_said(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "mma"])
    shutil.rmtree(folder / "runs" / "mma" / "dtd" / "seed1" / "run")
    (folder / "runs" / "mma" / "dtd" / "seed1" / "failed.json").write_text('{"error": "the loss is <not> finite"}')
    shutil.rmtree(folder / "runs" / "mma" / "eurosat" / "seed3" / "run")
    (folder / "runs" / "mma" / "eurosat" / "seed2" / "run" / "results.json").write_text("{")
    (folder / "runs" / "mma" / "eurosat" / "seed3" / "failed.json").write_text('{"err')
    text = sweep_report(folder, tmp_path / "out")
    assert "5 of 8 runs done" in text  # one has results that cannot be read
    assert "- Failed: mma/dtd/seed1: the loss is &lt;not> finite" in text
    assert "- Failed: mma/eurosat/seed3: failure file" in text  # a damaged one stops nothing
    assert "- 1 of 8 runs are not done" in text
    assert dict(cells(text, "eurosat", "mma"))["seeds"] == "1"
    assert "the loss is &lt;not&gt; finite" in (tmp_path / "out" / "report.html").read_text()


def test_runs_of_one_row_with_several_settings_are_said(tmp_path):
    """As a sweep leaves that went on after a method's default had changed; older results record no settings."""
    folder = fake(tmp_path / "s", "base2new", ["dtd", "eurosat"], ["zeroshot", "mma"])
    assert "The runs of mma" not in sweep_report(folder)

    def change(seed, **values):
        file = folder / "runs" / "mma" / "dtd" / f"seed{seed}" / "run" / "results.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    same = {"lr": 0.15, "adapter": {"layers": [11, 12], "vision": {"scale": None}}}
    change(1, settings=same, precision="fp32")
    change(3, settings=same, precision="fp32")
    assert "The runs of mma" not in sweep_report(folder)
    change(2, settings={**same, "lr": 0.05, "new": 1}, precision="fp32")
    change(3, settings={**same, "adapter": {"layers": [12]}}, precision="bf16")
    text = sweep_report(folder)
    assert "- The runs of mma on dtd differ in lr: 0.15 (seed 1, seed 3); 0.05 (seed 2).\n" in text
    assert "- The runs of mma on dtd differ in adapter.layers: [11, 12] (seed 1, seed 2); [12] (seed 3).\n" in text
    assert "- The runs of mma on dtd differ in precision: fp32 (seed 1, seed 2); bf16 (seed 3).\n" in text
    assert text.count("The runs of ") == 3
    change(1, settings=[])
    assert "settings is []" in sweep_report(folder)


@pytest.mark.parametrize(("protocol", "source"), [("base2new", None), ("cross", "imagenet")])
def test_a_sweep_s_legends_say_what_deviations_divide_by(tmp_path, protocol, source):
    text = sweep_report(fake(tmp_path / "s", protocol, ["imagenet", "dtd"], ["zeroshot", "mma"], source=source))
    lines = [line for line in text.splitlines() if "standard deviation over seeds" in line]
    assert lines
    assert all("(n - 1)" in line for line in lines)
    assert "the field's tables divide by n" in text


def test_runs_without_accuracies_have_a_report(tmp_path):
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot", "mma"])
    for file in folder.rglob("results.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "accuracy": {}}))
    assert "4 of 4 runs done" in sweep_report(folder, tmp_path / "out")


def test_mistakes(tmp_path, capsys):
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot"])
    assert main(["report", str(folder), str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "of which the first is a sweep" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(tmp_path / "out"), "--compare", "mmma"]) == 2
    assert "compare is 'mmma'; valid: 'zeroshot'" in capsys.readouterr().err
    assert main(["report", str(folder / "runs"), "--out", str(tmp_path / "out"), "--compare", "mma"]) == 2
    assert "compare is 'mma'; valid: with one sweep, not with run folders" in capsys.readouterr().err
    shutil.rmtree(folder / "runs")
    with pytest.raises(InputError, match=r"no run of the sweep in .* has a result yet; 1 of 1 runs are not done"):
        sweep_report(folder)
    manifest = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**manifest, "format": 7}))
    with pytest.raises(InputError, match="made by another version"):
        read_sweep(folder)
    (folder / "sweep.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(InputError, match="protocol is None"):
        read_sweep(folder)


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("protocol", CASES)
def test_the_page_in_a_browser(tmp_path, protocol):
    """Every picture is drawn, nothing is fetched, and the page is no wider than the window, on desk and telephone."""
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    data, methods, source = CASES[protocol]
    sweep_report(fake(tmp_path / "s", protocol, data, methods, source=source), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    probe = """<script>window.onload = () => { document.title = "found " + JSON.stringify({
        images: [...document.images].map(image => image.naturalWidth),
        tables: document.querySelectorAll("table").length,
        empty: [...document.querySelectorAll("table")].filter(table => !table.rows.length).length,
        wide: document.documentElement.scrollWidth - window.innerWidth,
        fetched: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
    }); };</script></body>"""
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe))
    for window in ("1280,900", "420,800"):
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={window}",
                "--virtual-time-budget=5000",
                "--dump-dom",
                (tmp_path / "probe.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = json.loads(re.search(r"<title>found (.*?)</title>", done.stdout).group(1))
        assert len(found["images"]) == len(PLOTS[protocol])
        assert min(found["images"]) > 200
        assert found["tables"] >= 2
        assert (found["empty"], found["fetched"]) == (0, 0)
        assert found["wide"] <= 0
