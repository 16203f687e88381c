"""The verb ``sddlm report``: tables, curves and samples of a suite, as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import inf, isfinite, log10
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

from sddlm.errors import ConfigError, check_arguments
from sddlm.eval.pictures import COLORS
from sddlm.suite.chart import DASHES, Series, chart
from sddlm.suite.config import SUITE, read_suite
from sddlm.suite.interval import LEVEL, Mean, paired
from sddlm.suite.pages import Part, Picture, Section, Table, Texts, write_pages
from sddlm.suite.results import Found, Results, Seeds, flat, run_name
from sddlm.training.curves import PANELS

#: most points of a curve; further ones are averaged
_POINTS = 200
#: texts of a variant, and characters of a text
_TEXTS, _CHARACTERS = 3, 1200
#: path of a figure of retention, and its name in the table
_RETENTION = {
    "revised": "tokens revised in a step",
    **{
        f"tails.{tail}.{figure}": f"{name}: {tail.replace('_', '-')} tail"
        for figure, name in {
            "retained": "clean tokens retained",
            "restored": "corrupted tokens restored",
            "revised": "tokens revised",
            "ppl": "generative perplexity",
        }.items()
        for tail in ("leave_one_out", "denoiser")
    },
}


@check_arguments
def write_report(folder: str) -> Path:
    """Write the tables, curves and samples of a suite, from its files alone.

    Args:
        folder: directory of a suite (``sddlm suite``), finished or not.

    Returns:
        ``report.html``, which needs no other file; ``report.md`` is beside it, with its pictures in
            ``report/``.

    Raises:
        ConfigError: there is no suite, or the report cannot be written.
    """
    place = Path(folder)
    if not (place / SUITE).is_file():
        raise ConfigError(f"{place} is no directory of a suite: it has no {SUITE}")
    results = Results.read(read_suite(place / SUITE), place)
    try:
        return write_pages(place, results.suite.title or place.resolve().name, sections(results))
    except OSError as error:
        raise ConfigError(f"cannot write the report in {place}: {error.strerror}") from error


def sections(results: Results) -> list[Section]:
    """The parts of a report; those without a figure are left out."""
    suite, missing = results.suite, results.missing
    notes = [
        f"Seeds: {', '.join(map(str, suite.all_seeds))}. Cells are means over seeds ± half the "
        f"width of the {LEVEL:.0%} interval (Student's t). Differences to {suite.baseline} are "
        "paired by seed, and bold where their interval does not contain 0."
    ]
    if missing:
        notes.append(f"Not finished ({len(missing)}): {', '.join(missing)}.")
    found = [
        Section(
            "Training",
            notes,
            [*_tables(results, results.runs), *_scaling(results), *_curves(results)],
        ),
        *(_evaluation(results, name) for name in results.evaluations),
        Section("Samples", [], [*_samples(results)]),
    ]
    return [section for section in found if section.parts]


def _tables(results: Results, figures: Mapping[str, Mapping[str, Seeds]]) -> Iterator[Part]:
    """Means of figures, and the differences of variants to the baseline."""
    there = {v for each in figures.values() for v in each}
    variants = [v for v in results.suite.variants if v in there]
    controls = sorted(there - {*variants})
    rows = [
        [v, *(str(Mean.of([*each.get(v, {}).values()]) or "") for each in figures.values())]
        for v in (*variants, *controls)
    ]
    if not rows:
        return
    yield Table(["variant", *figures], rows)
    base = str(results.suite.baseline)
    others = [v for v in variants if v != base]
    differences = {
        name: [paired(each.get(v, {}), each.get(base, {})) for v in others]
        for name, each in figures.items()
    }
    # a figure that does not depend on the variant, such as one of real text, has none
    differences = {n: row for n, row in differences.items() if any(m and m.value for m in row)}
    if differences:
        cells = zip(*differences.values(), strict=True)
        rows = [[v, *map(_difference, row)] for v, row in zip(others, cells, strict=True)]
        yield Table([f"less {base}", *differences], rows)


def _difference(mean: Mean | None) -> str:
    return "" if mean is None else f"**{mean}**" if mean.is_not_zero else str(mean)


def _evaluation(results: Results, name: str) -> Section:
    """Tables of one evaluation, and what can be drawn of it."""
    found = results.evaluations[name]
    tables = [*_tables(results, results.table(name)), *_retention(found)]
    parts = [*tables, *_noise(results, found), *_frontiers(results, found)]
    return Section(f"Evaluation: {name}", [], parts)


def _style(results: Results, variant: str) -> tuple[str, str]:
    """Colour and dashes of a variant."""
    number = [*results.suite.variants, variant].index(variant)
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def _scaling(results: Results) -> Iterator[Part]:
    """The bound against the FLOPs so far, and power laws of objectives that have three sizes."""
    lines, ends = [], dict[str, dict[str, dict[int, tuple[float, float]]]]()
    for variant, flops in results.flops.items():
        seeds = results.metrics[variant]
        each = flops / max(rows[-1]["step"] for rows in seeds.values())
        runs = {
            seed: [(each * row["step"], row["val_nelbo"]) for row in rows if "val_nelbo" in row]
            for seed, rows in seeds.items()
        }
        points = [(log10(x), y) for x, y in _mean([*runs.values()])]
        lines.append(Series(variant, points, *_style(results, variant), dots=True))
        objective = str(results.suite.variants[variant].get("objective"))
        found = {seed: points[-1] for seed, points in runs.items() if points}
        ends.setdefault(objective, {})[variant] = found
    if any(line.points for line in lines):
        axes = "log10 of training FLOPs", "nats per token"
        yield Picture("flops", chart("held-out bound against compute", lines, *axes, log=True))
    rows = []
    for variants in ends.values():
        if len({results.flops[variant] for variant in variants}) > 2:
            slopes = []
            for seed in results.suite.all_seeds:
                points = [found[seed] for found in variants.values() if seed in found]
                if len(points) == len(variants):
                    x, y = zip(*((log10(x), log10(y)) for x, y in points), strict=True)
                    slopes.append(linear_regression(x, y).slope)
            rows.append([", ".join(variants), str(Mean.of(slopes) or "")])
    if rows:
        yield Table(["variants of one objective", "exponent of FLOPs in the bound"], rows)


def _curves(results: Results) -> Iterator[Part]:
    """A chart for each column of the metrics, with thin lines for seeds and one for their mean."""
    for columns, title in PANELS:
        for column in columns:
            lines: list[Series] = []
            for variant, seeds in results.metrics.items():
                runs = [
                    [(r["step"], r[column]) for r in rows if isfinite(r.get(column, inf))]
                    for rows in seeds.values()
                ]
                style = _style(results, variant)
                thin = [Series("", thinned(run), *style, thin=True) for run in runs if run]
                lines += thin if len(thin) > 1 else []
                lines.append(Series(variant, thinned(_mean(runs)), *style))
            if any(line.points for line in lines):
                name = title if len(columns) == 1 else f"{title}: {column}"
                yield Picture(column, chart(name, lines, "step", column))


def _mean(runs: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over runs, where all have a value."""
    values: dict[float, list[float]] = {}
    for x, y in (point for run in runs for point in run):
        values.setdefault(x, []).append(y)
    return [(x, fmean(ys)) for x, ys in values.items() if len(ys) == len(runs)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points, means of neighbours."""
    size = -(-len(points) // _POINTS) or 1
    groups = (points[k : k + size] for k in range(0, len(points), size))
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _noise(results: Results, found: Mapping[str, Mapping[int, Any]]) -> Iterator[Part]:
    """Where in the range of noise levels a bound comes from."""
    lines = []
    for variant, seeds in found.items():
        parts = [
            each["likelihood"]["by_noise"]
            for each in seeds.values()
            if "by_noise" in each.get("likelihood", {})
        ]
        runs = [
            [((p["low"] + p["high"]) / 2, p["nats"] / (p["high"] - p["low"])) for p in one]
            for one in parts
        ]
        if runs and runs[0]:
            lines.append(Series(variant, _mean(runs), *_style(results, variant), dots=True))
    if lines:
        title = "bound by noise level (the area is the bound)"
        yield Picture(
            "noise", chart(title, lines, "noise level 1 - alpha", "nats per token and level")
        )


def _retention(found: Found) -> Iterator[Part]:
    """Tokens that a sampler and a greedy last step keep, a row for each number of steps."""
    rows = []
    for variant, seeds in found.items():
        of_steps = (each.get("points", []) for each in seeds.values())
        for points in zip(*of_steps, strict=False):
            values = [dict(flat(point)) for point in points]
            means = [Mean.of([v[path] for v in values if path in v]) for path in _RETENTION]
            rows.append([variant, f"{points[0]['steps']}", *(str(mean or "") for mean in means)])
    if rows:
        yield Table(["model", "steps", *_RETENTION.values()], rows)


def _frontiers(results: Results, found: Mapping[str, Mapping[int, Any]]) -> Iterator[Part]:
    """Every setting of a sampler as a row, and the curves along each knob."""
    drawn = [each for seeds in found.values() for each in seeds.values() if "own" in each]
    models: dict[str, dict[str, Any]] = {}
    for run, model in (pair for each in drawn for pair in each["models"].items()):
        models.setdefault(run_name(run), {})[run] = model["curves"]  # it may be in several files
    knobs = {knob: None for each in models.values() for curves in each.values() for knob in curves}
    rows, lines = [], list[Series]()
    for (name, seeds), knob in product(models.items(), knobs):
        along = []
        for points in zip(*(curves.get(knob, []) for curves in seeds.values()), strict=False):
            values = [_place(point) for point in points]
            entropy = Mean.of([x for x, _ in values])
            ppl = Mean.of([y for _, y in values if isfinite(y)])
            calls = Mean.of([point["nfe"] for point in points])
            setting = f"{knob} {points[0].get(knob, 'by default')}"
            rows.append([name, setting, str(ppl or ""), str(entropy), str(calls)])
            along += [(entropy.value, ppl.value)] if entropy and ppl else []
        if not along:
            continue
        style = _style(results, name)[0], DASHES[[*knobs].index(knob) % len(DASHES)]
        lines.append(Series(f"{name}, {knob}", along, *style, dots=True))
    if rows:
        real = [fmean(axis) for axis in zip(*(_place(each["real"]) for each in drawn), strict=True)]
        lines.append(Series("real text", [(real[0], real[1])], "#000"))
        axes = ("entropy within a text (nats)", "generative perplexity")
        yield Picture("frontier", chart("quality and diversity", lines, *axes, log=True))
        yield Table(["model", "setting", "generative perplexity", "entropy (nats)", "calls"], rows)


def _place(point: Mapping[str, Any]) -> tuple[float, float]:
    """Entropy and perplexity of a set of texts; a file has null for an infinite one."""
    ppl = point["gen_ppl"]["value"]
    return point["entropy"]["value"], inf if ppl is None else ppl


def _samples(results: Results) -> Iterator[Part]:
    """The first texts of each variant, of the first seed that has some."""
    for evaluation, found in results.texts.items():
        for variant, seeds in found.items():
            seed, texts = next(iter(seeds.items()))
            label = f"{variant}, seed {seed} ({evaluation})"
            yield Texts(label, [text[:_CHARACTERS] for text in texts[:_TEXTS]])
