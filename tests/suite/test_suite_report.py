"""The report of a suite: its figures computed anew from small files, its pages safe and whole."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from sddlm.cli import main
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.suite.chart import Series, chart
from sddlm.suite.config import Suite
from sddlm.suite.interval import Mean, paired, t_quantile
from sddlm.suite.report import _scaling, thinned
from sddlm.suite.results import Results

BPC = {"sddlm": [1.5, 1.75, 1.625], "v1": [2.25, 2.5, 2.25], "slow": [1.5, 1.625]}
ENTROPY = {"sddlm": [3.5, 3.75, 3.25], "v1": [3.0, 3.0, 3.5], "slow": [3.5, 3.75]}
NETWORK = DiTConfig(vocab_size=100, length=8, width=32, blocks=1, heads=2)
TEXT = "</pre><script>alert('a & b')</script>\n```\n# not | a heading\x1b[2J"


def test_quantiles_are_those_of_students_t() -> None:
    for freedom in (1, 2, 3, 4, 5, 9, 30, 101):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)
    assert t_quantile(4, 0.5) == pytest.approx(stats.t.ppf(0.75, 4), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_intervals_and_paired_differences(count: int) -> None:
    a, b = np.random.default_rng(count).normal(size=(2, count))
    mean = Mean.of(a.tolist())
    assert mean is not None
    low, high = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert mean.half is not None
    assert (mean.value - mean.half, mean.value + mean.half) == pytest.approx((low, high))
    found = paired(dict(enumerate(a)), dict(enumerate(b)) | {99: 5.0})
    assert found is not None
    assert found.half is not None
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))
    assert found.is_not_zero == (low * high > 0)
    assert paired({1: 2.0}, {2: 3.0}) is None
    assert paired({1: 2.0}, {1: 3.0}) == Mean(-1.0, None, 1)


@pytest.mark.parametrize(
    ("mean", "shown"),
    [
        (Mean(1.23456, None, 1), "1.235"),
        (Mean(1.23456, 0.0123, 3), "1.235 ± 0.012"),
        (Mean(123.456, 12.3, 3), "123 ± 12"),
        (Mean(123.456, 1.23, 3), "123.5 ± 1.2"),
        (Mean(0.5, 0.0, 3), "0.5"),
        (Mean(4.0, 1234.5, 3), "4 ± 1234"),
    ],
)
def test_two_digits_of_the_interval_decide(mean: Mean, shown: str) -> None:
    assert str(mean) == shown


def point(entropy: float, ppl: float, **setting: Any) -> dict[str, Any]:
    values = {"entropy": {"value": entropy}, "gen_ppl": {"value": ppl}}
    return {**setting, **values, "nfe": setting.get("steps", 64)}


def frontier(name: str, seed: int) -> dict[str, Any]:
    """Of a run: two settings of temperature, one of them without a finite perplexity."""
    entropy = ENTROPY[name][seed]
    neutral = point(entropy, 64.0 + seed, temperature=1.0)
    along = [point(entropy - 1, 32.0 + seed, temperature=0.8), neutral]
    if name == "v1":
        along.append({**point(5.0, 1.0, temperature=1.5), "gen_ppl": {"value": None}})
    crossing = {"best": {"ppl": {"value": 48.0 + seed}}, "temperature": {"ppl": {"value": None}}}
    own = {"neutral": neutral, "curves": {"temperature": along}, "ppl_at_real_entropy": crossing}
    return {"real": point(3.4, 20.0), "models": {f"{name}-{seed}": own}, "differences": []}


def points(seed: int) -> list[dict[str, Any]]:
    """Of a retention: two numbers of steps, without a judge."""
    tail = {"retained": 0.5, "restored": 0.25 + seed, "revised": 3.0, "ppl": None}
    tails = {"leave_one_out": tail, "denoiser": {**tail, "retained": 1.0}}
    return [{"steps": n, "revised": 9.0 / n, "tails": tails} for n in (4, 8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite of three variants, one of which lacks its last seed."""
    folder = tmp_path / "runs of <mine>"
    train = {"verb": "train", "train": {"steps": 4}}
    evaluation = {"only": list(BPC)}
    suite = {
        "title": "What <b> does", "seeds": [0, 1, 2], "baseline": "sddlm",
        "variants": dict.fromkeys(BPC, train), "auxiliary": {"judge": train},
        "evaluations": {
            "report": {"verb": "eval report", **evaluation},
            "frontier": {"verb": "eval frontier", "only": ["sddlm", "v1"]},
            "texts": {"verb": "sample", "only": ["v1"]},
            "retention": {"verb": "eval retention", "only": ["v1"]},
        },
    }  # fmt: skip
    folder.mkdir()
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    for name, values in BPC.items():
        for seed, bpc in enumerate(values):
            run = folder / "runs" / f"{name}-{seed}"
            (run / "model").mkdir(parents=True)
            (run / "model" / "config.json").write_text(json.dumps({"format": 1, **vars(NETWORK)}))
            rows = [f"2,{bpc + 1},9.0,10,8", f"4,{bpc},{seed + 1},20,16"]
            header = "step,val_bpc,gradient_norm,seconds,cpu_seconds"
            (run / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
            noise = [{"low": 0, "high": 0.25, "nats": 1.0}, {"low": 0.25, "high": 1, "nats": 1.5}]
            figures = {
                "likelihood": {"bpc": bpc, "stderr": None, "bound": True, "by_noise": noise},
                "samples": {
                    "generated": {"entropy": ENTROPY[name][seed]},
                    "real": {"entropy": 3.4},
                },
            }
            control = {"distance": {"distance": 0.5 + 0.1 * seed}}
            if name == "slow":  # other tokens
                control["distance"]["distance"] += 0.25
            figures["controls"] = {"bigram": control}
            (run / "report.json").write_text(json.dumps(figures))
            (run / "retention.json").write_text(json.dumps({"points": points(seed)}))
            if name != "slow":
                (run / "frontier.json").write_text(json.dumps(frontier(name, seed)))
    line = json.dumps({"text": TEXT, "tokens": [1]}) + "\n"
    (folder / "runs" / "v1-0" / "texts.jsonl").write_text(line * 5)
    return folder


def tables(page: str) -> dict[str, list[dict[str, str]]]:
    """Tables of a Markdown page by the heading before them and their first column."""
    found: dict[str, list[dict[str, str]]] = {}
    heading, names = "", []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| --- |"):
            continue
        elif line.startswith("| "):
            if not names:
                names = cells
            else:
                cells += [""] * (len(names) - len(cells))
                rows = found.setdefault(f"{heading}: {names[0]}", [])
                rows.append(dict(zip(names, cells, strict=True)))
        else:
            names = []
    return found


def interval(values: Any) -> str:
    """Mean and half width by scipy, in the form of the report."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return str(Mean(float(np.mean(values)), float(high - low) / 2, len(values)))


def test_figures_are_those_of_the_files(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.md").read_text()
    found = tables(page)
    for heading in ("Training", "Evaluation: report"):
        rows, less = found[f"{heading}: variant"], found[f"{heading}: less sddlm"]
        assert [row["variant"] for row in rows][:3] == list(BPC)
        assert [row["bits per character"] for row in rows][:3] == list(map(interval, BPC.values()))
        assert [row["less sddlm"] for row in less] == ["v1", "slow"]
        v1, slow = (np.subtract(BPC[v], BPC["sddlm"][: len(BPC[v])]) for v in ("v1", "slow"))
        assert less[0]["bits per character"] == f"**{interval(v1)}**"  # clearly above 0
        assert less[1]["bits per character"] == interval(slow)
    training = found["Training: variant"][0]
    assert [training[n] for n in ("steps", "seconds", "CPU seconds")] == ["4", "20", "16"]
    assert float(training["million parameters"]) == pytest.approx(
        sum(p.numel() for p in DiT(NETWORK).parameters()) / 1e6, rel=1e-3
    )
    assert training["gradient norm, later half"] == interval([1, 2, 3])
    rows = found["Evaluation: report: variant"]
    assert rows[1]["entropy of samples (nats)"] == interval(ENTROPY["v1"])
    assert rows[1]["entropy of real text (nats)"] == "3.4"
    assert "entropy of real text (nats)" not in found["Evaluation: report: less sddlm"][0]
    assert [(row["variant"], row["energy distance"]) for row in rows[3:]] == [
        ("bigram (control of slow)", interval([0.75, 0.85])),
        ("bigram (control)", interval([0.5, 0.6, 0.7])),  # once for two variants
    ]
    rows = found["Evaluation: frontier: variant"]
    assert rows[0]["perplexity at real entropy, best"] == interval([48, 49, 50])
    assert "perplexity at real entropy, temperature" not in rows[0]
    assert "Not finished (5): judge-0, v1-1 texts, v1-2 texts, slow-2, slow-2 report." in page


def test_retention_is_a_row_for_each_number_of_steps(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    rows = tables((folder / "report.md").read_text())["Evaluation: retention: model"]
    assert [(row["model"], row["steps"]) for row in rows] == [("v1", "4"), ("v1", "8")]
    assert rows[1]["tokens revised in a step"] == "1.125"
    assert rows[0]["clean tokens retained: leave-one-out tail"] == "0.5"
    assert rows[0]["clean tokens retained: denoiser tail"] == "1"
    assert rows[0]["corrupted tokens restored: denoiser tail"] == interval([0.25, 1.25, 2.25])
    assert rows[0]["generative perplexity: denoiser tail"] == ""


def test_the_exponent_is_that_of_a_power_law() -> None:
    options = {"verb": "train", "objective": {"class_path": "SDDLM"}}
    names = {"small": 1e12, "middle": 1e13, "large": 1e14}
    other = {"verb": "train", "objective": {"class_path": "NELBO"}}
    suite = Suite(variants={**dict.fromkeys(names, options), "other": other}, seeds=2)
    flops = {**names, "other": 1e12}

    def rows(last: float, seed: int) -> list[dict[str, float]]:
        bound = 9 * last ** -(0.05 + 0.02 * seed)
        return [{"step": 2, "val_nelbo": 7.0}, {"step": 3}, {"step": 4, "val_nelbo": bound}]

    metrics = {name: {seed: rows(each, seed) for seed in (0, 1)} for name, each in flops.items()}
    picture, table = _scaling(Results(suite, metrics=metrics, flops=flops))
    assert table.rows == [["small, middle, large", interval([-0.05, -0.07])]]
    assert len(re.findall("<circle", picture.svg)) == 4 * 2


def test_a_frontier_is_a_row_for_each_setting_and_a_line_for_each_model(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    rows = tables((folder / "report.md").read_text())["Evaluation: frontier: model"]
    assert [(row["model"], row["setting"]) for row in rows] == [
        ("sddlm", "temperature 0.8"), ("sddlm", "temperature 1.0"), ("v1", "temperature 0.8"),
        ("v1", "temperature 1.0"), ("v1", "temperature 1.5"),
    ]  # fmt: skip
    assert rows[2]["entropy (nats)"] == interval(np.subtract(ENTROPY["v1"], 1))
    assert rows[2]["generative perplexity"] == interval([32, 33, 34])
    picture = (folder / "report" / "evaluation-frontier-frontier.svg").read_text()
    assert len(re.findall("<circle", picture)) == 2 + 2 + 1  # of two models and real text


def test_the_parts_of_a_bound_are_heights_over_the_noise_level(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    picture = (folder / "report" / "evaluation-report-noise.svg").read_text()
    places = [
        tuple(map(float, p)) for p in re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', picture)
    ]
    assert len(places) == 6
    assert len({*places}) == 2  # nats 1 over .25, and 1.5 over .75
    (left, top), (right, bottom) = sorted({*places})
    assert right > left
    assert bottom > top


def test_the_page_stands_alone_and_shows_texts_verbatim(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#x27;a &amp; b&#x27;)&lt;/script&gt;" in page
    assert "<h1>What &lt;b&gt; does</h1>" in page
    assert not re.search(r"(?:src|href|url)\s*[=(]", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    files = sorted((folder / "report").iterdir())
    assert len(pictures) == len(files) == 4
    for picture in (*pictures, *(path.read_text() for path in files)):
        ET.fromstring(picture)
    markdown = (folder / "report.md").read_text()
    assert markdown.count("    </pre><script>alert('a & b')</script>\n    ```\n    # not") == 3
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (folder / name).is_file()
    assert len(re.findall(r"!\[", markdown)) == 4


def test_damaged_results_are_missing_and_no_suite_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "runs" / "v1-0" / "report.json").write_text("{")
    (folder / "runs" / "v1-0" / "texts.jsonl").write_text('{"txt": 1}\n')
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.md").read_text()
    assert "Not finished (7)" in page
    assert "v1-0 report" in page
    assert "## Samples" not in page
    capsys.readouterr()
    assert main(["report", str(folder / "runs")]) == 2
    assert capsys.readouterr().err.endswith("is no directory of a suite: it has no suite.yaml\n")


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    found = thinned(points)
    assert len(found) == 200
    assert found[0] == pytest.approx((2.0, 0.4))
    assert thinned(points[:200]) == points[:200]
    assert thinned([]) == []


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_places_values_between_round_ones(log: bool) -> None:
    line = Series("a & b", [(0, 1.0), (10, 1000.0)], "#000", dots=True)
    root = ET.fromstring(chart("<t>", [line], "x", "y", log=log))
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{space}text")]
    assert {"<t>", "a & b", "x", "y"} <= {*texts}
    (left, bottom), (right, top) = (
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{space}circle")
    )
    ticks = {t.text: float(t.attrib["y"]) for t in root.iter(f"{space}text") if "dy" in t.attrib}
    for value in ("10", "100") if log else ("500", "1000"):
        share = np.log10(float(value)) / 3 if log else (float(value) - 1) / 999
        assert ticks[value] == pytest.approx(bottom + share * (top - bottom), abs=0.2)
    assert right > left
    assert bottom > top


def test_one_point_and_equal_values_have_a_place() -> None:
    for points in ([(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)]):
        root = ET.fromstring(chart("t", [Series("a", points, "#000", dots=True)], "x", "y"))
        circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
        assert len(circles) == len(points)
        assert all(0 < float(c.attrib[k]) < 600 for c in circles for k in ("cx", "cy"))
