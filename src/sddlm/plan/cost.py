"""Cost model for one network, objective and device."""

from __future__ import annotations

from functools import cache

from sddlm.models.config import DiTConfig
from sddlm.objectives import Objective
from sddlm.plan import here, memory, probe, sizes
from sddlm.plan.devices import Device
from sddlm.plan.memory import Strategy
from sddlm.plan.trace import Step, Tracer
from sddlm.training.args import TrainArgs


class CostModel:
    """Cost model for one network, objective and device; traces are cached."""

    def __init__(
        self,
        config: DiTConfig,
        objective: Objective,
        train: TrainArgs,
        device: Device | None,
        world: int,
        strategy: Strategy,
    ) -> None:
        self.config, self.objective, self.train = config, objective, train
        self.device, self.world, self.strategy = device, world, strategy
        self.here = device is None
        self.bf16 = train.precision == "bf16" or (train.precision == "auto" and device is not None)
        self.tracer = Tracer(config, train.activation_checkpointing, bf16=self.bf16)
        self.parameters, self.unit = sizes.parameters(self.tracer.network)
        self.asked = probe.asked(objective, config.vocab_size, config.length, train)

    @cache  # noqa: B019 - a cost model lives as long as the plan that is made on it
    def _typical(self, size: int) -> list[tuple[float, Step]]:
        """Typical micro-batches of a run, each with its share of the steps."""
        V, L, asked = self.config.vocab_size, self.config.length, self.asked
        found = probe.typical(self.objective, V, L, size, asked.head)
        return [
            (share, self.tracer.step(found, mixture, whole=asked.whole, detailed=self.here))
            for share, mixture in ((1 - asked.soft, 0), (asked.soft, asked.mixture))
            if share
        ]

    def work(self, size: int) -> dict[str, float]:
        """FLOPs per token, by part."""
        size = size if self.here else min(size, 4)
        found = {"forward": 0.0, "head": 0.0, "backward": 0.0}
        positions = size * self.config.length
        for weight, step in self._typical(size):
            # of the vocabulary head exactly the mean, whatever this one draw has
            head = step.head / max(1, step.rows) * self.asked.head * positions
            for part, flops in (
                ("forward", step.forward), ("head", head), ("backward", step.backward)
            ):  # fmt: skip
                found[part] += weight * flops / positions
        return {**found, "token": sum(found.values())}

    @cache  # noqa: B019
    def memory(self, size: int) -> dict[str, float]:
        """Memory of a device in bytes, by part, in the micro-batch with most noise."""
        V, L = self.config.vocab_size, self.config.length
        found = probe.largest(self.objective, V, L, size, self.train.batch)
        step = self.tracer.step(
            found,
            self.asked.mixture,
            whole=self.asked.whole,
            again=self.strategy == "ddp" and self.train.batch // self.world > size,
        )
        in_head = step.in_head
        if not self.here:
            in_head = memory.gpu_head(step, found, V, self.config.width, bf16=self.bf16)
        parts: dict[str, float] = dict(
            memory.on_device(
                step, self.parameters["all"], self.unit,
                world=self.world, strategy=self.strategy, bf16=self.bf16, in_head=in_head,
            )
        )  # fmt: skip
        if self.here:
            weights = [4 * parameter.numel() for parameter in self.tracer.network.parameters()]
            holes = memory.resident(weights, step.events) - sum(parts.values())
            parts["holes between"] = max(0.0, holes)
        return parts

    def largest(self, room: float) -> int | None:
        """The largest micro-batch that fits and divides a device's share of the batch."""
        share = self.train.batch // self.world
        sizes_ = [n for n in range(1, share + 1) if share % n == 0]
        low, high = 0, len(sizes_)  # sizes_[:low] fit, sizes_[high:] do not
        while low < high:
            middle = (low + high) // 2
            if sum(self.memory(sizes_[middle]).values()) <= room:
                low = middle + 1
            else:
                high = middle
        return sizes_[low - 1] if low else None

    def seconds(self, size: int, utilization: float | None) -> dict[str, float]:
        """Seconds of a step on all devices; on this machine measured, and by part."""
        passes = self.train.batch // self.world // size
        if self.device is not None and utilization is not None:
            rate = (self.device.bf16 if self.bf16 else self.device.fp32) * utilization
            flops = self.work(size)["token"] * passes * size * self.config.length
            return {"step": flops / rate}
        parts: dict[str, float] = {}
        for weight, step in self._typical(size):
            for kind, took in here.step_seconds(step.operations).items():
                parts[kind] = parts.get(kind, 0.0) + weight * passes * took
        V, L = self.config.vocab_size, self.config.length
        parts["noise"] = passes * here.noise_seconds(self.objective, V, L, size)
        parts["optimizer"] = here.update_seconds(self.parameters["all"])
        return {**parts, "step": sum(parts.values())}
