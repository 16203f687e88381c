"""What an evaluation leaves behind: one table for people, one file for programs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.table import Table

from sddlm.eval.equal_entropy import frontier_rows
from sddlm.files import write_keeping

logger = logging.getLogger(__name__)

#: what differs between two evaluations that find the same
_VOLATILE = ("seconds", "command", "sddlm_version", "model")
#: what a single row, a cut text or an undamaged one has none of
_MAY_BE_NONE = ("stderr", "nats_per_character", "restored", "damaged")


def write_results(
    path: Path, result: dict[str, Any], draw: Callable[[dict[str, Any], Path], None] | None = None
) -> None:
    """Write ``result`` whole or not at all, and its picture; what is no number becomes null.

    A former result that is another one is kept, with its picture: ``evaluation-1.json``.

    Args:
        path: the JSON file.
        result: what was found.
        draw: makes the picture, which stands beside the file.
    """
    text = json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"
    if missing := list(_not_finite(result)):
        logger.warning("null stands in %s for what is no number: %s", path, ", ".join(missing))
    write_keeping(path, text, _facts, beside=".png" if draw else None)
    if draw:
        draw(result, path.with_suffix(".png"))


def _facts(text: bytes) -> Any:
    """What a file of results says, without what no two runs share; a damaged one is its bytes."""
    try:
        return _steady(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in _VOLATILE}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None, in turn."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of figures that are no numbers and should be."""
    wrong = isinstance(value, float) and not math.isfinite(value)
    if wrong and not name.endswith(_MAY_BE_NONE):
        yield name
    items = value.items() if isinstance(value, dict) else ()
    for key, item in items or enumerate(value if isinstance(value, (list, tuple)) else ()):
        yield from _not_finite(item, f"{name}.{key}".lstrip("."))


def table(result: dict[str, Any]) -> Table:
    """The figures of `sddlm.eval.run.evaluate`, each with what to read it beside."""
    on = f" on {result['text']}" if "text" in result else ""
    out = Table(
        title=f"{result['model']}{on}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for name, justify in _COLUMNS:
        out.add_column(name, justify=justify)
    out.caption = "\n".join(_ROWS[result["question"]](out, result))
    return out


_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("figure", "left"),
    ("model", "right"),
    ("beside", "left"),
)


def _report(out: Table, result: dict[str, Any]) -> list[str]:
    facts = []
    if "likelihood" in result:
        facts += _likelihood_rows(out, result)
    elif "baselines" in result:
        out.add_row("bits per character", "", _baselines(result))
    if "samples" in result:
        facts.append(_sample_rows(out, result["samples"]))
    if "copying" in result:
        facts.append(_copying_rows(out, result["copying"]))
    if "generative" in result:
        facts.append(_generative_rows(out, result["generative"]))
    if "real_text" in result:
        facts.append(_real_text(result))
    if "mauve" in result:
        own = result["mauve"]
        out.add_row("MAUVE", f"{own['mauve']:.3f}", f"real {own['real']:.3f}")
    return facts


def _zero_shot(out: Table, result: dict[str, Any]) -> list[str]:
    for name, own in result["zero_shot"].items():
        if "error" in own:
            out.add_row(name, "-", own["error"])
            continue
        out.add_row(name, _perplexity(own), f"{own['bpc']:.3f} bits per character")
    return ["perplexity per token; no end of text between documents (the field's convention)"]


def _tasks(out: Table, result: dict[str, Any]) -> list[str]:
    for name, own in result["tasks"].items():
        for metric, value in own["metrics"].items():
            error = own["stderr"].get(metric)
            shown = f"{value:.4g}{_error(error)}"
            out.add_row(f"{name}: {metric}", shown, f"{own['documents']} questions")
    return []


def _frontier(out: Table, result: dict[str, Any]) -> list[str]:
    for row in frontier_rows(result):
        out.add_row(*row)
    convention = result["convention"]["name"]
    judge = f"judge {result['judge']}, convention {convention}; intervals of 95%"
    return [judge, _real_text(result)]


def _correction(out: Table, result: dict[str, Any]) -> list[str]:
    own = result["correction"]
    for share in own["shares"]:
        wrong = share["wrong"] / share["tokens"]
        out.add_row(f"{share['share']:.3g} replaced", "restored", f"{wrong:.2%} are wrong")
        named = [(f"  t auto, mean {share['auto']['t']:.3f}", share["auto"])]
        named += [(f"  t {point['t']:g}", point) for point in share["points"]]
        for name, point in named:
            after = f"damaged {_percent(point, 'damaged')}, wrong {point['wrong_after']:.2%}"
            out.add_row(name, _percent(point, "restored"), after)
        bits = f"{share['base_bits']:.3f} by their share alone"
        out.add_row("  bits to say which", f"{share['confidence_bits']:.3f}", bits)
    how = own["sampler"]
    return [f"{own['rows']} rows; steps {how['steps']}, tail {how['tail']}; t is the noise level"]


def _real_text(result: dict[str, Any]) -> str:
    """Whether the judge was trained on the real text."""
    own = result["real_text"]
    return f"real text seen by the judge: {own['seen_by_judge']} ({own['reason']})"


def _percent(point: dict[str, Any], figure: str) -> str:
    """A share of tokens with its standard error, or a dash."""
    value = point[figure]
    return "-" if math.isnan(value) else f"{value:.2%} ± {point[f'{figure}_stderr']:.2%}"


def _perplexity(own: dict[str, Any]) -> str:
    below = "≤ " if own["bound"] else ""
    return f"{below}{own['ppl']:.4g}{_error(own['stderr'] * own['ppl'])}"


def _error(value: float | None) -> str:
    """A standard error behind its figure; nothing where there is none, as of a single row."""
    return "" if value is None or math.isnan(value) else f" ± {value:.2g}"


def _baselines(result: dict[str, Any]) -> str:
    bpc = result.get("baselines", {}).get("bpc", {})
    return ", ".join(f"{name} {value:.3f}" for name, value in bpc.items())


def _likelihood_rows(out: Table, result: dict[str, Any]) -> list[str]:
    own = result["likelihood"]
    below = "≤ " if own["bound"] else ""
    out.add_row("perplexity per token", _perplexity(own), "")
    if own["bound"]:
        prior = f"prior term {own['prior_kl']:.2g} nats"
        error = _error(own["complete_stderr"] * own["complete_ppl"])
        out.add_row("  complete bound", f"≤ {own['complete_ppl']:.4g}{error}", prior)
    bits = f"{below}{own['bpc']:.3f}{_error(own['bpc_stderr'])}"
    out.add_row("bits per character", bits, _baselines(result))
    rows = "1 row, too few for an error" if own["rows"] == 1 else f"{own['rows']} rows"
    counts = f"likelihood: {rows}, {own['tokens']} tokens"
    if own["bound"]:
        counts += f", noise levels a row: {own['draws']}"
    return [counts, f"read as: {own['reading']}"]


def _copying_rows(out: Table, found: dict[str, Any]) -> str:
    own, real = found["samples"], found["real"]
    shown = ["-" if one["overlap"] is None else f"{one['overlap']:.3f}" for one in (own, real)]
    out.add_row(f"in the training text, {own['n']}-grams", shown[0], f"real {shown[1]}")
    out.add_row("longest copy (tokens)", str(own["longest_max"]), f"real {real['longest_max']}")
    return f"copying: {own['tokens_searched']} training tokens, {own['share_searched']:.0%} of them"


def _generative_rows(out: Table, found: dict[str, Any]) -> str:
    own, real = found["samples"], found["real"]
    shown = [f"{one['ppl']:.4g}{_error(one['ppl_stderr'])}" for one in (own, real)]
    out.add_row("generative perplexity", shown[0], f"real {shown[1]}")
    return (
        f"judge {own['judge']}: convention {own['convention']['name']}, {own['samples']} texts, "
        f"{own['tokens']} tokens, context {own['context']}, samples drawn in {own['precision']}"
    )


_SAMPLE_FIGURES = {
    "entropy": "unigram entropy (nats)",
    "distinct_1": "distinct tokens",
    "distinct_2": "distinct pairs",
    "repeated_4": "repeated 4-grams",
    "known_words": "known words",
    "bpc_5gram": "bits per character, 5-gram",
}


def _sample_rows(out: Table, samples: dict[str, Any]) -> str:
    for key, name in _SAMPLE_FIGURES.items():
        if key in samples["generated"]:
            real = f"real {samples['real'][key]:.3f}"
            out.add_row(name, f"{samples['generated'][key]:.3f}", real)
    facts = ", ".join(f"{key} {value}" for key, value in samples["origin"].items())
    return f"samples: {samples['count']} of {samples['length']} tokens, {facts}"


#: how each question's figures are shown; they return the lines below the table
_ROWS = {
    "evaluation": _report,
    "zero_shot": _zero_shot,
    "tasks": _tasks,
    "frontier": _frontier,
    "correction": _correction,
}
