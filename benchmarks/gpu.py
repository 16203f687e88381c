"""All figures of one GPU in one run: steps, memory, FLOPs, sampling, the head; bf16 autocast.

Each arm gets the GPU for itself, in turn (A B A B): its state is put there, two steps warm it up,
``--timed`` steps are timed, and it is taken away. Peak memory is that of the allocator.

FLOPs of a step: 6 * (parameters of the blocks' matrices) * tokens, 6 * V * D for each row that
meets the vocabulary, and 12 * blocks * L * D for each token's attention (no discount for a causal
mask; noise-level conditioning is left out, it is paid once a sequence). *MFU* counts the textbook's
FLOPs, with all rows, whatever the arm does: what its speed is worth to the user. *HFU* counts the
rows that the arm's loss needs: how well it uses the device.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --shape toy --length 16 --batch 2
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from head import Rows
from measure import Timing, interleaved, machine, progress, show, synchronize, times
from shapes import SHAPES, names, network, numbers, parser
from step import AR, DIFFUSION, trainer
from textbook import TextbookDiT, sample
from torch import Tensor

from sddlm.models.dit import DiT
from sddlm.models.row_losses import CrossEntropy
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.lazy import Lazy

PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s, by a part of the device's name; the first that fits."""

SELECTED = ("sddlm SDDLM", "sddlm V1 sampled", "sddlm V1 exact")
"""Arms that bring the replaced positions alone to the vocabulary, half of all on average."""


@dataclass
class Device:
    """Where and how fast it could be.

    Attributes:
        name: ``cuda`` or ``cpu``.
        peak: bf16 FLOP/s, 0 if not known.
        bf16: whether matrix products are in bf16.
    """

    name: str
    peak: float
    bf16: bool

    def autocast(self) -> Any:
        """The context of a forward pass."""
        return torch.autocast(self.name, torch.bfloat16) if self.bf16 else nullcontext()

    def used(self) -> int:
        """Bytes allocated."""
        return torch.cuda.memory_allocated() if self.name == "cuda" else 0

    def most(self) -> int:
        """Largest number of bytes allocated since `reset`."""
        return torch.cuda.max_memory_allocated() if self.name == "cuda" else 0

    def reset(self) -> None:
        """Free what nothing refers to, and forget the peak."""
        if self.name == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def utilisation(self, flops: float, seconds: float) -> str:
        """Share of the peak in per cent."""
        return f"{100 * flops / seconds / self.peak:.1f}%" if self.peak else "-"


def peak_of(device: str) -> float:
    """bf16 FLOP/s by the device's name, 0 if it is not in `PEAKS`."""
    if device != "cuda":
        return 0.0
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), 0.0)


def flops(model: DiT, batch: int, length: int, rows: int) -> float:
    """Of a step, forward and backward, as the docstring of this file says.

    Args:
        model: the network.
        batch: B.
        length: L.
        rows: that meet the vocabulary.
    """
    config, tokens = model.config, batch * length
    matrices = sum(
        parameter.numel()
        for name, parameter in model.blocks.named_parameters()
        if "modulation" not in name and parameter.ndim == 2
    )
    attention = 12 * config.blocks * length * config.width
    return (6 * matrices + attention) * tokens + 6 * config.vocab_size * config.width * rows


@dataclass
class Found:
    """What was measured of an arm: a figure for each round.

    Attributes:
        seconds: of a step.
        state: bytes that outlive a step.
        peak: bytes at most.
    """

    seconds: list[float] = field(default_factory=list)
    state: int = 0
    peak: int = 0


def run_arm(
    arm: str, model: DiT, shape: tuple[int, int], device: Device, timed: int, found: Found
) -> None:
    """Warm an arm up and time it, on a device that holds nothing else; the network is copied."""
    device.reset()
    kind, loss = arm.split(" ", 1)
    copied = copy.deepcopy(model).to(device.name)
    chosen = trainer("sddlm" if kind == "compiled" else kind, copied, shape[0])
    if kind == "compiled":
        for block in copied.blocks:
            block.compile()
    x0 = torch.randint(model.vocab_size, shape, device=device.name)

    def step() -> None:
        with device.autocast():
            value = chosen.loss(loss, x0)
        chosen.update(value)

    # kernels are compiled and tuned; blocks again when the number of rows is found to vary
    for _ in range(6 if kind == "compiled" else 2):
        step()
    synchronize()
    found.state = device.used()  # weights, gradients, optimiser and EMA
    started = time.perf_counter()
    for _ in range(timed):
        step()
    synchronize()
    found.seconds.append((time.perf_counter() - started) / timed)
    found.peak = device.most()


def attempt(job: Callable[[], None]) -> bool:
    """Whether it went through; False if the device has too little memory for it."""
    try:
        job()
    except torch.OutOfMemoryError:
        return False
    return True


def step_table(
    shape: str, length: int, batch: int, device: Device, rounds: int, timed: int, arms: list[str]
) -> None:
    """Measure and print optimiser steps; the first arm is the baseline."""
    models = {causal: network(shape, length, causal=causal) for causal in (False, True)}
    found = {arm: Found() for arm in arms}
    failed: set[str] = set()
    with progress(f"{shape}, L {length}, B {batch}", rounds * len(arms)) as advance:
        for _ in range(rounds):
            for arm in arms:
                model = models[arm.endswith(" AR")]
                job = (arm, model, (batch, length), device, timed, found[arm])
                if arm not in failed and not attempt(lambda job=job: run_arm(*job)):
                    failed.add(arm)
                advance()
    device.reset()
    baseline, rows = found[arms[0]], []
    for arm in arms:
        one = found[arm]
        if arm in failed:
            rows.append([arm, "out of memory", *"-------"])
            continue
        model, seconds = models[arm.endswith(" AR")], statistics.median(one.seconds)
        needed = batch * length // (2 if arm in SELECTED else 1)
        ratio = "-" if arms[0] in failed else Timing(one.seconds, baseline.seconds).ratio
        working, theirs = one.peak - one.state, baseline.peak - baseline.state
        rows.append([
            arm, f"{seconds:.3g}", f"{batch * length / seconds:,.0f}", ratio,
            device.utilisation(flops(model, batch, length, batch * length), seconds),
            device.utilisation(flops(model, batch, length, needed), seconds),
            f"{one.peak / 2**30:.2f}", f"{working / 2**30:.2f}",
            times(theirs, working) if arms[0] not in failed else "-",
        ])  # fmt: skip
    columns = ["arm", "s/step", "tokens/s", f"against {arms[0]}", "MFU (textbook's FLOPs)",
               "HFU (own rows)", "peak (GiB)", "above state (GiB)", "less"]  # fmt: skip
    precision = "bf16 autocast" if device.bf16 else "float32"
    title = f"step: {shape}, L {length}, B {batch}, {precision}; {machine()}"
    show(f"{title}; {rounds} rounds of {timed} steps", columns, rows)


def sampling_table(
    shape: str, length: int, batch: int, device: Device, steps: int, few: int = 8
) -> None:
    """Measure and print samplers; `Lazy` runs whole, the others ``few`` steps, which cost alike."""
    device.reset()
    model = network(shape, length).to(device.name)
    free = network(shape, length, time_input="none").to(device.name)
    textbook = TextbookDiT.around(model)

    def draw(sampler: Ancestral | None, chosen: DiT, steps: int) -> int:
        """Network calls of the slowest sequence."""
        with device.autocast():
            if sampler is None:
                sample(textbook, (batch, length), steps)
                return steps
            drawn = sampler.sample(
                chosen,
                process=UniformProcess(),
                estimate=Estimate.LEAVE_ONE_OUT,
                batch=batch,
                length=length,
            )
        return int(drawn.nfe.max())

    arms: dict[str, tuple[Ancestral | None, DiT, int]] = {
        "textbook": (None, model, min(few, steps)),
        "Ancestral": (Ancestral(min(few, steps)), model, min(few, steps)),
        "Lazy": (Lazy(steps), model, steps),
        "Lazy, time-free": (Lazy(steps), free, steps),
    }
    rows: list[list[Any]] = []
    baseline = 0.0
    for name, (sampler, chosen, timed) in arms.items():
        device.reset()
        warm = Lazy(2) if isinstance(sampler, Lazy) else sampler
        try:
            draw(warm, chosen, min(timed, 2))
            synchronize()
            started = time.perf_counter()
            calls = draw(sampler, chosen, timed)
            synchronize()
        except torch.OutOfMemoryError:
            rows.append([name, *"---", "out of memory", "-"])
            continue
        seconds = (time.perf_counter() - started) / timed
        baseline = baseline or seconds
        rows.append([
            name, f"{1000 * seconds:.3g}", f"{batch * length / seconds / steps:,.0f}",
            times(baseline, seconds), f"{device.most() / 2**30:.2f}", f"{calls} of {timed}",
        ])  # fmt: skip
    columns = ["sampler", "ms/step", f"tokens/s at {steps} steps", "against the first",
               "peak (GiB)", "network calls"]  # fmt: skip
    show(f"sampling: {shape}, L {length}, B {batch}, {steps} steps; {machine()}", columns, rows)


def bits_table(shape: str, length: int, device: Device, batch: int = 8, steps: int = 32) -> None:
    """Whether a sequence has the same bits alone and in a batch; and the first layer where not."""
    device.reset()
    model = network(shape, length).to(device.name).eval()
    x = torch.randint(model.vocab_size, (batch, length), device=device.name)
    sigma = torch.full((batch,), 0.7, device=device.name)
    rows: list[list[Any]] = []
    for precision in ("float32", "bf16 autocast"):
        half = precision != "float32"
        with torch.autocast(device.name, torch.bfloat16, enabled=half), torch.inference_mode():
            whole = _layers(model, x, sigma)
            for count in (1, 2, 4):
                part = _layers(model, x[:count], sigma[:count])
                apart = [
                    (name, (a - whole[name][:count]).abs().max().item())
                    for name, a in part.items()
                    if not torch.equal(a, whole[name][:count])
                ]
                first = f"{apart[0][0]} by {apart[0][1]:.1e}" if apart else "nowhere"
                rows.append([precision, f"{count} and {batch}", first, f"{len(apart)}/{len(part)}"])
            drawn = [
                Lazy(steps).sample(
                    model, process=UniformProcess(), estimate=Estimate.LEAVE_ONE_OUT,
                    batch=count, length=length, seed=1,
                ).tokens[:1]
                for count in (1, batch, batch)
            ]  # fmt: skip
        same = (drawn[0] == drawn[1]).double().mean().item()
        again = torch.equal(drawn[1], drawn[2])
        rows.append([precision, f"samples, 1 and {batch}", f"{same:.2%} of the tokens equal",
                     f"the same batch twice: {'equal' if again else 'not equal'}"])  # fmt: skip
    columns = ["precision", "batch sizes", "first layer that differs", "layers that differ"]
    show(f"bits of one sequence: {shape}, L {length}; {machine()}", columns, rows)


def _layers(model: DiT, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Output of every layer, in the order in which they ran."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, module in model.named_modules()
        if name and name != "rotary"  # which returns a pair
    ]
    hidden = model(x, sigma)
    found["logits"] = model.head.logits(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
    for hook in hooks:
        hook.remove()
    return found


def kernels(rows: Rows) -> dict[str, Callable[[], Tensor] | str]:
    """Cross-entropies of other libraries: a loss, or why there is none."""
    half, head = torch.bfloat16, rows.head
    target = rows.noisy.x0[:, 0]
    found: dict[str, Callable[[], Tensor] | str] = {}
    try:
        from cut_cross_entropy import linear_cross_entropy

        # has no bias, which is 0 here
        found["cut_cross_entropy"] = lambda: linear_cross_entropy(
            rows.hidden.to(half), head.weight.to(half), target, reduction="sum"
        )
    except (ImportError, RuntimeError):
        found["cut_cross_entropy"] = "not installed"
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["liger_kernel"] = lambda: liger(
            head.weight.to(half), rows.hidden.to(half), target, head.bias.to(half)
        )
    except (ImportError, RuntimeError):
        found["liger_kernel"] = "not installed"
    return found


def head_table(shape: str, count: int, device: Device, rounds: int) -> None:
    """Measure and print cross-entropy of hidden rows, forward and backward."""
    width, vocab_size = SHAPES[shape]["width"], SHAPES[shape]["vocab_size"]
    device.reset()
    rows = Rows(count, width, vocab_size, device.name)
    target = rows.noisy.x0[:, 0]

    def cross_entropy() -> Tensor:
        logits = F.linear(rows.hidden, rows.head.weight, rows.head.bias)
        return F.cross_entropy(logits, target, reduction="sum")

    losses: dict[str, Callable[[], Tensor] | str] = {
        "textbook": cross_entropy,
        "sddlm": lambda: rows.head(rows.hidden, CrossEntropy(target)).total,
        **kernels(rows),
    }

    def autocast(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def value() -> Tensor:
            with device.autocast():
                return loss()

        return value

    arms = {n: rows.arm(autocast(loss)) for n, loss in losses.items() if not isinstance(loss, str)}
    values, peaks = {}, {}
    for name, run in list(arms.items()):
        try:
            run()  # kernels are compiled and tuned
        except Exception as error:  # of another library: the others can still be measured
            if name in ("textbook", "sddlm"):
                raise
            losses[name] = f"failed: {type(error).__name__}"
            del arms[name]
            continue
        rows.head.zero_grad()
        rows.hidden.grad = None
        device.reset()
        before = device.used()
        values[name] = run().item()
        peaks[name] = (device.most() - before) / 2**20
    timings = interleaved(arms, rounds=rounds, label=f"head {shape}")
    job = 6 * vocab_size * width * count
    printed = [
        [name, f"{1000 * one.median:.3g}", one.ratio, device.utilisation(job, one.median),
         f"{peaks[name]:,.0f}", f"{values[name] / count:.5f}"]
        for name, one in timings.items()
    ]  # fmt: skip
    printed += [[name, loss, *"----"] for name, loss in losses.items() if isinstance(loss, str)]
    columns = ["head", "ms", "against the textbook", "of the peak", "above inputs (MiB)",
               "loss a row"]  # fmt: skip
    show(f"head: {shape}, {count} rows, V {vocab_size}; {machine()}", columns, printed)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, "small,1b", rounds=3)
    options.add_argument("--length", type=int, default=1024, help="[%(default)s]")
    options.add_argument("--batch", type=numbers, default=[16, 4],
                         help="B of each shape, the last for all further ones [16,4]")  # fmt: skip
    options.add_argument("--parts", default="step,sampling,head,bits", help="[%(default)s]")
    options.add_argument("--arms", default=",".join(DIFFUSION + AR),
                         help="of the step; compiled SDDLM too [%(default)s]")  # fmt: skip
    options.add_argument("--timed", type=int, default=5, help="steps a round [%(default)s]")
    options.add_argument("--sampling_steps", type=numbers, default=[64], help="[64]")
    options.add_argument("--sampling_batch", type=numbers, default=[1, 8], help="[1,8]")
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="[%(default)s]")
    options.add_argument("--peak", type=float, help="bf16 FLOP/s of a device not known here")
    options.add_argument("--precision", choices=["bf16", "32"], default="bf16",
                         help="[%(default)s]")  # fmt: skip
    chosen = options.parse_args(argv)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; try --device cpu --shape toy")
    peak = chosen.peak or peak_of(chosen.device)
    device = Device(chosen.device, peak, chosen.precision == "bf16")
    for number, shape in enumerate(names(chosen.shape)):
        batch = chosen.batch[min(number, len(chosen.batch) - 1)]
        if "step" in chosen.parts:
            step_table(shape, chosen.length, batch, device, chosen.rounds, chosen.timed,
                       names(chosen.arms))  # fmt: skip
        if "sampling" in chosen.parts:
            for steps in chosen.sampling_steps:
                for sequences in chosen.sampling_batch:
                    sampling_table(shape, chosen.length, sequences, device, steps)
        if "bits" in chosen.parts:
            bits_table(shape, chosen.length, device)
        if "head" in chosen.parts:
            head_table(shape, batch * chosen.length, device, chosen.rounds)


if __name__ == "__main__":
    main()
