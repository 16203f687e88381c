"""The model card: what a model is, what it was trained on, its figures, and how to use it.

Only what is recorded is stated: in the model itself, and in the files of the run that it was loaded
from, if it still has the weights of that run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sddlm.errors import ConfigError
from sddlm.io import read_json, read_yaml
from sddlm.models.config import DiTConfig
from sddlm.spec import to_spec

if TYPE_CHECKING:
    from sddlm.lm import LanguageModel

#: kinds of diffusion by the class of their process
_KINDS = {"UniformProcess": "uniform-state diffusion", "MaskedProcess": "masked diffusion"}
_CARD = """---
library_name: sddlm
pipeline_tag: text-generation
tags:
{tags}
---

# {name}

{article} {kind} language model of {parameters:,} parameters, made with `sddlm`.{unknown}

{facts}
{figures}
## Use

With `sddlm` installed:

```python
import sddlm

lm = sddlm.load("{repo_id}")
print(lm.generate(n=1)[0].text)
```

```bash
hf download {repo_id} --local-dir {name}
sddlm sample {name}
```

With `transformers` as well, through the code in this repository, which calls `sddlm`:

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
ids = torch.tensor(model.lm.tokenizer.encode_batch(["Once upon a time"]))  # [B, L]
logits = model(ids).logits  # [B, L, V]
```

## Limits

It imitates its training text; what it writes may be wrong or harmful, and nothing here filters it.
"""
_UNKNOWN = " What it was trained on, and how, is not recorded."
_FIGURES = """
## Figures

Lower is better.

{rows}
"""


def card(lm: LanguageModel, repo_id: str) -> str:
    """The model's page in Markdown.

    Args:
        lm: the model.
        repo_id: ``owner/name``.
    """
    diffusion = lm.estimate.diffusion
    kind = _KINDS.get(type(lm.process).__name__, "diffusion") if diffusion else "autoregressive"
    run = _run_of(lm)
    figures = [] if run is None else [*_validation(lm, run), *_evaluation(lm, run)]
    rows = _table(("figure", "value", "convention"), *figures)
    return _CARD.format(
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        article="A" if diffusion else "An",
        kind=kind,
        tags="\n".join(f"- {word}" for word in kind.split()),
        parameters=sum(p.numel() for p in lm.network.parameters()),
        unknown="" if lm.objective else _UNKNOWN,
        facts=_table(("", ""), *(fact for fact in _facts(lm, run) if fact[1])),
        figures=_FIGURES.format(rows=rows) if figures else "",
    )


def _facts(lm: LanguageModel, run: Path | None) -> Iterator[tuple[str, str]]:
    """What is recorded of the model; an empty value is not."""
    from sddlm.eval.perplexity import READINGS

    config, data, options = lm.network.config, lm.data, _options(run)
    yield "training text", str(data.get("source") or "")
    for name, split in (("trained on", "train"), ("held out", "validation")):
        counts = data.get("splits", {}).get(split, {})
        named = ("tokens", "documents", "characters")
        yield name, ", ".join(f"{counts[each]:,} {each}" for each in named if each in counts)
    if took := data.get("training"):
        yield "training", "{steps:,} steps of {batch:,} rows, {tokens:,} tokens".format(**took)
    yield "continued from", str(options.get("start") or "")
    tokenizer = options.get("data", {}).get("tokenizer")
    size = f"{lm.tokenizer.vocab_size:,} tokens"
    yield "tokenizer", f"{tokenizer}, {size}" if tokenizer else size
    kind = str(config.architecture)  # a network of transformers has sizes of its own
    if isinstance(config, DiTConfig):
        kind += f", {config.blocks} blocks, width {config.width}, {config.heads} heads"
    yield "network", f"{kind}, rows of {config.length} tokens"
    yield "objective", _call(lm.objective) if lm.objective else ""
    yield "process", _call(to_spec(lm.process)) if lm.estimate.diffusion else ""
    yield "read as", READINGS[lm.estimate]


def _validation(lm: LanguageModel, run: Path) -> Iterator[tuple[str, str, str]]:
    """The last validation up to the step that the weights are of."""
    from sddlm.eval.perplexity import exp
    from sddlm.training.monitor import read_metrics

    below, kind = _bound(lm)
    steps = lm.data.get("training", {}).get("steps")
    rows = [row for row in read_metrics(run) if "val_bpc" in row]
    rows = [row for row in rows if steps is None or row["step"] <= steps]
    for row in rows[-1:]:
        how = f"{kind} on held-out rows, after step {row['step']:,} of the training"
        yield "bits per character", f"{below}{row['val_bpc']:.3f}", how
        yield "perplexity per token", f"{below}{exp(row['val_nelbo']):.4g}", how


def _evaluation(lm: LanguageModel, run: Path) -> list[tuple[str, str, str]]:
    """The likelihood that ``sddlm eval`` measured for these weights."""
    from sddlm.eval.evaluation import fingerprint
    from sddlm.eval.result import plus_minus

    below, kind = _bound(lm)
    try:
        found = read_json(run / "evaluation.json")
        own = found["likelihood"]
        if found["model_fingerprint"] != fingerprint(lm):
            return []
        how = f"{kind} on {own['rows']:,} rows of {found['text']}"
        if lm.estimate.diffusion:
            how += f", {own['draws']} noise levels a row, without the prior term"
        errors = (own["bpc_stderr"], own["stderr"] and own["stderr"] * own["ppl"])
        bits, ppl = (plus_minus(error) for error in errors)
        return [
            ("bits per character", f"{below}{own['bpc']:.3f}{bits}", how),
            ("perplexity per token", f"{below}{own['ppl']:.4g}{ppl}", how),
        ]
    except (ConfigError, LookupError, TypeError, ValueError):
        return []  # none, one without a likelihood, or a damaged one


def _bound(lm: LanguageModel) -> tuple[str, str]:
    """The sign in front of a likelihood, and what it is."""
    return ("≤ ", "upper bound") if lm.estimate.diffusion else ("", "exact")


def _run_of(lm: LanguageModel) -> Path | None:
    """The directory of the run that a model was loaded from, if it still has those weights."""
    from sddlm.eval.evaluation import fingerprint

    if lm.path is None or not (lm.path.parent / "metrics.csv").is_file():
        return None
    try:
        same = fingerprint(type(lm).load(lm.path)) == fingerprint(lm)
    except ConfigError:
        return None
    return lm.path.parent if same else None


def _options(run: Path | None) -> dict[str, Any]:
    """Options of a run; empty if they cannot be read."""
    try:
        return {} if run is None else dict(read_yaml(run / "config.yaml"))
    except (ConfigError, TypeError, ValueError):
        return {}


def _call(spec: Any) -> str:
    """A spec as a call of its class; a process in an objective has a line of its own."""
    if isinstance(spec, list):
        return f"[{', '.join(map(_call, spec))}]"
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return str(spec)
    given = spec.get("init_args", {}).items()
    options = ", ".join(f"{name}={_call(value)}" for name, value in given if name != "process")
    return f"{spec['class_path'].rpartition('.')[2]}({options})"


def _table(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    head, *rest = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])
