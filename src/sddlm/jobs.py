"""Resumable jobs: shards of work that are distributed over processes and cached on disk.

Every long part of an evaluation (likelihood, samples, judge, tasks) and every batch of generated
texts is a list of shards, each a function of its number alone, such as one batch of rows. A shard's
result is stored at once, with a checksum. A repeated command computes only missing or damaged
results. N processes (``torchrun``) compute the same shards as one, so results are bit-identical.
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
from sddlm.io import append, sha256
from sddlm.progress import bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessGroup:
    """A group of processes.

    Attributes:
        rank: rank of this process.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """Join the processes that ``torchrun`` started, or form a group of one."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), world)

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Device of this process: its own GPU if ``name`` is cuda."""
        alone = self.world == 1 or name != "cuda"
        return name if alone else f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"

    def from_first(self, value: Any) -> Any:
        """Broadcast a value of plain Python objects from the first process."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """Gather the results of all processes."""
        if self.world == 1:
            return mine
        boxes: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(boxes, mine)
        return {number: result for box in boxes for number, result in box.items()}

    def leave(self) -> None:
        """Leave the group."""
        if self.world > 1:
            torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class ResumableJob:
    """Computes shards of work and caches their results.

    Attributes:
        folder: folder of the cached results until `finish`; None caches nothing.
        cache_key: everything that all results depend on, such as hashes of the model and the text;
            JSON.
        team: processes that share the work.
        show: whether to show a progress bar (on a terminal only).
    """

    folder: Path | None = None
    cache_key: Mapping[str, Any] = field(default_factory=dict)
    team: ProcessGroup = field(default_factory=ProcessGroup)
    show: bool = False

    def about(self, **more: Any) -> ResumableJob:
        """A job with more in its cache key."""
        return replace(self, cache_key={**self.cache_key, **more})

    def run(
        self,
        name: str,
        count: int,
        shard: Callable[[int], Any],
        cache_key: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Compute ``shard(0)`` to ``shard(count - 1)``; return the results in order.

        Args:
            name: name for the bar and the file.
            count: number of shards.
            shard: computes one; its result must survive JSON (floats do, exactly; tuples do not).
            cache_key: more for the key of these shards, JSON.

        Raises:
            ConfigError: results cannot be stored.
        """
        path = self._path(name, {**self.cache_key, **(cache_key or {}), "count": count})
        # other processes may be writing already, so the first one reads for all
        known = self.team.from_first(_read(path) if path and self.team.first else {})
        missing = [number for number in range(count) if number not in known]
        mine: dict[int, Any] = {}
        show = self.show and self.team.first
        with bar(name, total=count, show=show) as advance:
            advance(count - len(missing))
            for number in missing[self.team.rank :: self.team.world]:
                mine[number] = shard(number)
                if path:
                    begin = "" if len(mine) > 1 else "\n"  # a kill may have left half a line
                    line = _line(number, json.dumps(mine[number]))
                    _note(path, self.team.rank, begin + line)
                advance(self.team.world)
        found = known | self.team.gather(mine)
        return [found[number] for number in range(count)]

    def _path(self, name: str, cache_key: Mapping[str, Any]) -> Path | None:
        """Path of the cached results, without the suffix of the process."""
        if self.folder is None:
            return None
        text = json.dumps(cache_key, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.folder / f"{name.replace(' ', '-').replace('/', '-')}-{key}"

    def finish(self) -> None:
        """Delete the cached results, once the final result is written."""
        if self.folder is not None and self.team.first:
            shutil.rmtree(self.folder, ignore_errors=True)


def _note(path: Path, rank: int, line: str) -> None:
    """Append a finished shard to the file of this process.

    Raises:
        ConfigError: the folder cannot be made.
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
    """Format a finished shard as a line: its number, its result, and a checksum of both."""
    return f'[{number}, {result}, "{digest(number, result)}"]\n'


def _read(path: Path) -> dict[int, Any]:
    """Read the finished shards of all processes, skipping incomplete and damaged lines."""
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
    """Short hash of tensors, texts, bytes and files, for `ResumableJob.cache_key`."""
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
