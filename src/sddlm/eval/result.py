"""Results of an evaluation: each prints itself as a table, and writes itself as a file."""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sddlm.io import write_keeping

logger = logging.getLogger(__name__)

#: what differs between two evaluations with the same figures
_VOLATILE = ("seconds", "command", "sddlm_version", "model")
#: undefined for a single row, a text that was cut, or one without noise
_MAY_BE_NONE = ("stderr", "nats_per_character", "restored", "damaged")


@dataclass(frozen=True)
class Provenance:
    """How a result was made.

    Attributes:
        model: directory of the model, or ``a loaded model``.
        question: name of the evaluation.
        command: ``sys.argv``.
        model_fingerprint: hash of the weights, the process and the estimate.
        estimate: what the network's output means.
        seed: of all randomness.
        device: where the model was.
        sddlm_version: of this package.
        seconds: wall-clock time.
    """

    model: str
    question: str
    command: list[str]
    model_fingerprint: str
    estimate: str
    seed: int
    device: str
    sddlm_version: str
    seconds: float


@dataclass(frozen=True)
class SeenByJudge:
    """Whether the judge was trained on the real text that it reads.

    Attributes:
        seen_by_judge: no, yes, maybe or unknown.
        reason: how that is known.
    """

    seen_by_judge: str
    reason: str

    def __str__(self) -> str:
        return f"real text seen by the judge: {self.seen_by_judge} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """Base of all results: ``print`` shows the table.

    Attributes:
        provenance: how it was made; results are equal if their figures are.
        text: source of the text that was scored.
    """

    provenance: Provenance | None = field(default=None, compare=False)
    text: str | None = None

    @abstractmethod
    def fill(self, table: Table) -> list[str]:
        """Add a row (figure, model, reference) for each figure; returns lines for the caption."""

    def as_dict(self) -> dict[str, Any]:
        """Figures by name, for JSON; parts that were not measured are left out."""
        made = plain(self.provenance) if self.provenance else {}
        names = [each.name for each in fields(self) if each.name != "provenance"]
        own = {name: getattr(self, name) for name in names}
        return made | {name: plain(value) for name, value in own.items() if value is not None}

    def table(self) -> Table:
        """The figures, each beside its reference."""
        on = f" on {self.text}" if self.text else ""
        out = Table(
            title=f"{self.provenance.model if self.provenance else ''}{on}".strip(),
            title_justify="left",
            title_style="bold",
            caption_justify="left",
            box=SIMPLE,
        )
        out.add_column("figure")
        out.add_column("model", justify="right", style="bold cyan")
        out.add_column("reference", style="dim")
        out.caption = "\n".join(self.fill(out))
        return out

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(file=StringIO(), markup=False, emoji=False, highlight=False)
        with console.capture() as shown:
            console.print(self.table())
        return shown.get()

    def save(self, path: Path) -> None:
        """Write a JSON file whole or not at all, and the picture, if there is one, beside it.

        NaN becomes null. A former file with other figures is kept, with its picture, as
        ``NAME-1.json``.
        """
        found = self.as_dict()
        text = json.dumps(_finite(found), indent=2, allow_nan=False) + "\n"
        if missing := list(_not_finite(found)):
            logger.warning("null stands in %s for undefined figures: %s", path, ", ".join(missing))
        plotted = isinstance(self, Plotted)
        write_keeping(path, text, _figures, beside=".png" if plotted else None)
        if isinstance(self, Plotted):
            self.plot(path.with_suffix(".png"))


class Plotted(Result):
    """Base of results with a picture."""

    @abstractmethod
    def plot(self, path: Path) -> None:
        """Draw a PNG; nothing is drawn without matplotlib (``pip install 'sddlm[plots]'``)."""


def plain(value: Any) -> Any:
    """A value for JSON: dataclasses as mappings, by their own ``as_dict`` where they have one."""
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def plus_minus(value: float | None) -> str:
    """A standard error behind its figure; nothing where it is undefined, as for a single row."""
    return "" if value is None or math.isnan(value) else f" ± {value:.2g}"


def _figures(text: bytes) -> Any:
    """The figures in a file of results; of a damaged one its bytes."""
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
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of figures that are not finite and should be."""
    wrong = isinstance(value, float) and not math.isfinite(value)
    if wrong and not name.endswith(_MAY_BE_NONE):
        yield name
    items = value.items() if isinstance(value, dict) else ()
    for key, item in items or enumerate(value if isinstance(value, list) else ()):
        yield from _not_finite(item, f"{name}.{key}".lstrip("."))
