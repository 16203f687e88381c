"""The processes of a training: those of torchrun, or copies that the first process starts.

Ctrl-C goes to the first process alone. The others end with it, also if it is killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sddlm.errors import ConfigError, one_line
from sddlm.training.args import TrainArgs, micro_batch

#: seconds in which a process notices by itself that another one has failed
_GRACE = 60.0


@dataclass(frozen=True)
class Processes:
    """This process among those of a training.

    Attributes:
        rank: number of this process.
        world: number of processes.
        device: its device.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; a collective call."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, value: bool) -> bool:
        """Whether it is true in any process; a collective call."""
        if self.world == 1:
            return value
        return bool(self.sum(torch.tensor(float(value), device=self.device)) > 0)


def on_gpu(args: TrainArgs) -> bool:
    """Whether the training is on GPUs."""
    return torch.cuda.is_available() and args.accelerator != "cpu"


def world_size(args: TrainArgs) -> int:
    """Number of processes: that of the launcher, else ``train.devices``.

    Raises:
        ConfigError: the batch cannot be divided among them, or there are fewer GPUs.
    """
    there = torch.cuda.device_count() if on_gpu(args) else 1
    world = there if args.devices == "auto" else args.devices
    if on_gpu(args) and world > there:
        raise ConfigError(f"`train.devices` is {world}, but torch finds {there} GPUs here")
    world = int(os.environ.get("WORLD_SIZE", world))
    micro_batch(args, world)
    return world


@contextmanager
def joined(args: TrainArgs) -> Iterator[Processes]:
    """Context in which this process can sum with the others.

    Raises:
        ConnectionError: another process has ended.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if on_gpu(args):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(device=device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield Processes(rank, world, device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise ConnectionError(
                f"another process of the training has ended: {one_line(error)[-200:]}"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def others(world: int, function: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Context in which the other processes of a training run, each in one call of a function.

    Nothing is started where a launcher such as torchrun has done so.

    Args:
        world: number of processes.
        function: what they call.
        arguments: its arguments.

    Raises:
        ChildProcessError: one of them has failed; all have ended.
    """
    if world == 1 or "RANK" in os.environ:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(names)
    started = _Started(world, function, arguments)
    try:
        yield
        started.finish()
    except ConnectionError as error:
        raise ChildProcessError(started.failure()) from error
    finally:
        started.end()
        for name in names:
            os.environ.pop(name, None)


class _Started:
    """Processes that this one has started."""

    def __init__(self, world: int, function: Callable[..., Any], arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.reasons, self.write = context.Pipe(duplex=False)  # short messages arrive whole
        self.ending = threading.Event()
        self.children: list[BaseProcess] = [
            context.Process(target=_follow, args=(rank, self.write, function, arguments))
            for rank in range(1, world)
        ]
        # they inherit what is blocked: a terminal sends Ctrl-C to all, and the first one decides
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            for child in self.children:
                child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process too if it waits for one that has failed, as NCCL does for minutes."""
        running = list(self.children)
        while running:
            wait([child.sentinel for child in running])
            if any(child.exitcode for child in running):
                if not self.ending.wait(_GRACE):
                    print(f"sddlm: {self.failure()}", file=sys.stderr, flush=True)
                    self.end()
                    os._exit(1)
                return
            running = [child for child in running if child.is_alive()]

    def failure(self) -> str:
        """What happened to the first one that failed."""
        wait([self.reasons, *(child.sentinel for child in self.children)], timeout=5)
        codes = {rank: child.exitcode for rank, child in enumerate(self.children, 1)}
        found = [(rank, f"exit code {code}") for rank, code in codes.items() if code]
        rank, reason = self.reasons.recv() if self.reasons.poll() else [*found, (0, "unknown")][0]
        return (
            f"process {rank} of {len(codes) + 1} has failed ({reason}), and all have ended; "
            "the checkpoints are intact: add `resume=True`"
        )

    def finish(self) -> None:
        """Wait until they have ended by themselves."""
        until = time.monotonic() + 60
        for child in self.children:
            child.join(max(0.0, until - time.monotonic()))

    def end(self) -> None:
        """Kill those that are left."""
        self.ending.set()
        for child in self.children:
            child.kill()
            child.join()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _follow(rank: int, reasons: Any, function: Callable[..., Any], arguments: Any) -> None:
    """Body of a process beside the first one, which alone prints."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    logging.getLogger("sddlm").addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        function(*arguments)
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        if not isinstance(error, ConnectionError):
            reasons.send((rank, one_line(error)[:500]))
        sys.exit(1)
