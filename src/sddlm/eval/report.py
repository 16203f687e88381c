"""What an evaluation leaves behind: one table for people, one file for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.table import Table

from sddlm.files import atomic_write


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write ``result`` whole or not at all; what is no number becomes null."""
    text = json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text)


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None, in turn."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def table(result: dict[str, Any]) -> Table:
    """The figures of `sddlm.eval.run.evaluate`, each with what to read it beside."""
    out = Table(
        title=f"{result['model']} on {result['text']}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for name, justify in _COLUMNS:
        out.add_column(name, justify=justify)
    facts = []
    if "likelihood" in result:
        facts.append(_likelihood_rows(out, result))
    elif "baselines" in result:
        out.add_row("bits per character", "", _baselines(result))
    if "samples" in result:
        facts.append(_sample_rows(out, result["samples"]))
    if "generative" in result:
        own, real = result["generative"]["samples"], result["generative"]["real"]
        out.add_row("generative perplexity", f"{own['ppl']:.4g}", f"real {real['ppl']:.4g}")
        facts.append(
            f"judge {own['judge']}: {own['samples']} texts, {own['tokens']} tokens, context "
            f"{own['context']}"
        )
    out.caption = "\n".join(facts)
    return out


_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("figure", "left"),
    ("model", "right"),
    ("beside", "left"),
)


def _baselines(result: dict[str, Any]) -> str:
    bpc = result.get("baselines", {}).get("bpc", {})
    return ", ".join(f"{name} {value:.3f}" for name, value in bpc.items())


def _likelihood_rows(out: Table, result: dict[str, Any]) -> str:
    own = result["likelihood"]
    below = "≤ " if own["bound"] else ""
    error = own["stderr"] * own["ppl"]
    out.add_row("perplexity per token", f"{below}{own['ppl']:.4g} ± {error:.2g}", "")
    if own["bound"]:
        out.add_row("  with the prior term", f"≤ {own['complete_ppl']:.4g}", "")
    bits = f"{below}{own['bpc']:.3f} ± {own['bpc_stderr']:.2g}"
    out.add_row("bits per character", bits, _baselines(result))
    return f"likelihood: {own['rows']} rows, {own['tokens']} tokens, noise levels a row: " + str(
        own["draws"]
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
