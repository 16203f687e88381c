"""Long work in units: shared among processes, kept on disk, and gone on with where it stopped.

Every long part of an evaluation (likelihood, samples, judge, tasks), and every batch of texts that
are written, is a list of units, each a function of its number alone, such as one batch of rows.
What a unit gives is written down at once, with a checksum. A command that was interrupted and is
given again does only what is missing or damaged, and N processes (``torchrun``) do the same units
as one, so that they find the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sddlm.errors import ConfigError
from sddlm.files import append, sha256
from sddlm.progress import bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that work together.

    Attributes:
        rank: which one this is.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """The processes that ``torchrun`` started, or this one alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), world)

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: its own GPU where ``name`` is cuda."""
        alone = self.world == 1 or name != "cuda"
        return name if alone else f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"

    def from_first(self, value: Any) -> Any:
        """The value that the first process has; it must be made of plain Python objects."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """The results of all processes."""
        if self.world == 1:
            return mine
        boxes: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(boxes, mine)
        return {number: result for box in boxes for number, result in box.items()}

    def leave(self) -> None:
        """Part from the others."""
        if self.world > 1:
            torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class ResumableJob:
    """Does units and remembers them.

    Attributes:
        folder: where results are kept until `finish`; None keeps nothing.
        facts: what all results depend on, such as the model's and the text's hashes; JSON.
        team: the processes that share the units.
        show: whether to show a bar (on a terminal only).
    """

    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    team: ProcessGroup = field(default_factory=ProcessGroup)
    show: bool = False

    def about(self, **facts: Any) -> ResumableJob:
        """The same, of results that depend on more facts."""
        return replace(self, facts={**self.facts, **facts})

    def run(
        self,
        name: str,
        count: int,
        unit: Callable[[int], Any],
        facts: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Results of ``unit(0)`` to ``unit(count - 1)``, in order.

        Args:
            name: of the work, for the bar and the file.
            count: how many units there are.
            unit: does one; its result must survive JSON (floats do, exactly; tuples do not).
            facts: what these results depend on beside `ResumableJob.facts`, JSON.

        Raises:
            ConfigError: results cannot be written down.
        """
        path = self._path(name, {**self.facts, **(facts or {}), "count": count})
        # the others may have begun to write already, so the first one reads for all
        known = self.team.from_first(_read(path) if path and self.team.first else {})
        missing = [number for number in range(count) if number not in known]
        mine: dict[int, Any] = {}
        show = self.show and self.team.first
        with bar(name, total=count, show=show) as advance:
            advance(count - len(missing))
            for number in missing[self.team.rank :: self.team.world]:
                mine[number] = unit(number)
                if path:
                    begin = "" if len(mine) > 1 else "\n"  # a kill may have left half a line
                    line = _line(number, json.dumps(mine[number]))
                    _note(path, self.team.rank, begin + line)
                advance(self.team.world)
        found = known | self.team.gather(mine)
        return [found[number] for number in range(count)]

    def _path(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        """The notes of this work, without the ending that says by which process."""
        if self.folder is None:
            return None
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.folder / f"{name.replace(' ', '-').replace('/', '-')}-{key}"

    def finish(self) -> None:
        """Forget the units, when what they were for is written."""
        if self.folder is not None and self.team.first:
            shutil.rmtree(self.folder, ignore_errors=True)


def _note(path: Path, rank: int, line: str) -> None:
    """Add a finished unit to the process's file, which is made when there is one.

    Raises:
        ConfigError: nothing can be kept there.
        OSError: the disk is full; the error has the file's name.
    """
    file = path.with_name(f"{path.name}.{rank}.jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot keep results in {path.parent}: {error.strerror}; choose another place with "
            "`out`"
        ) from error
    append(file, line)


def _line(number: int, result: str) -> str:
    """A finished unit in a line: its number, its result, and a checksum of both."""
    return f'[{number}, {result}, "{digest(number, result)}"]\n'


def _read(path: Path) -> dict[int, Any]:
    """Finished units of any process; what a kill left half written, or is damaged, is none."""
    found, damaged = {}, 0
    for file in sorted(path.parent.glob(f"{path.name}.*.jsonl")) if path.parent.is_dir() else []:
        for line in filter(None, file.read_text(errors="replace").split("\n")):
            try:
                number, result, _ = json.loads(line)
                whole = line + "\n" == _line(number, json.dumps(result))
            except (ValueError, TypeError, RecursionError):
                whole = False
            if whole:
                found[number] = result
            damaged += not whole
    if damaged:
        logger.warning("%d damaged results in %s are computed again", damaged, path.parent)
    return found


def digest(*parts: Any) -> str:
    """A short hash of tensors, texts, bytes and files, for `ResumableJob.facts`."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        elif isinstance(part, Path):
            part = bytes.fromhex(sha256(part))
        elif not isinstance(part, bytes):
            part = json.dumps(part, ensure_ascii=False).encode()
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:16]
