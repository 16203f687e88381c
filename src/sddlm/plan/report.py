"""Tables of one plan and of several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

if TYPE_CHECKING:
    from sddlm.plan.run import Plan

_STEPS = (
    (1e24, "Y"),
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)


def short(value: float, unit: str = "") -> str:
    """Format a number with three digits and a prefix: ``1.03 G``."""
    for size, prefix in _STEPS:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.3g} seconds"


def table(plan: Plan) -> Table:
    """Table of all figures, by kind."""
    machine = "this machine" if plan.utilization is None else f"{plan.devices} x {plan.device}"
    out = Table(
        title=f"{short(plan.parameters['all'])} parameters, {short(plan.tokens)} tokens, {machine}",
        title_justify="left",
        caption="\n".join(_notes(plan)),
        caption_justify="left",
        box=SIMPLE,
    )
    out.add_column("figure")
    out.add_column("value", justify="right")
    out.add_column("of which")
    for row in (*_work_rows(plan), *_memory_rows(plan), *_time_rows(plan), *_disk_rows(plan)):
        out.add_row(*row)
    return out


def _of(parts: dict[str, float] | dict[str, int], unit: str, leave: tuple[str, ...]) -> str:
    """List the non-zero parts, largest first."""
    named = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{k} {short(v, unit)}" for k, v in named if v and k not in leave)


def _work_rows(plan: Plan) -> list[tuple[str, str, str]]:
    text = "size of the text not known" if plan.epochs is None else f"{plan.epochs:.3g} epochs"
    return [
        ("parameters", f"{plan.parameters['all']:,}", _of(plan.parameters, "", ("all",))),
        ("tokens seen", short(plan.tokens), f"{plan.steps:,} steps of {plan.batch} x "
         f"{plan.length}; {text}"),
        ("FLOPs of a token", short(plan.flops["token"]),
         _of(plan.flops, "", ("token", "step", "run"))),
        ("FLOPs of the run", short(plan.flops["run"]),
         f"{plan.asked['head']:.0%} of the positions meet the vocabulary"),
    ]  # fmt: skip


def _memory_rows(plan: Plan) -> list[tuple[str, str, str]]:
    if plan.largest is None:
        advice = "not even one sequence fits: strategy fsdp, more devices, checkpointing"
    else:
        share = plan.batch // plan.devices
        advice = f"train.micro_batch {plan.largest}, {share // plan.largest} in a step"
    fits = "fits" if plan.fits else "DOES NOT FIT"
    return [
        ("memory of a device", short(plan.memory["all"], "B"),
         _of(plan.memory, "B", ("all", "has"))),
        ("", fits, f"micro-batch {plan.micro_batch}, {plan.accumulate} in a step, of "
         f"{short(plan.memory['has'], 'B')}"),
        ("largest that fits", "-" if plan.largest is None else str(plan.largest), advice),
    ]  # fmt: skip


def _time_rows(plan: Plan) -> list[tuple[str, str, str]]:
    parts = {name: value for name, value in plan.seconds.items() if name != "step"}
    named = ", ".join(f"{k} {v:.3g} s" for k, v in sorted(parts.items(), key=lambda i: -i[1]))
    rows = [("seconds of a step", f"{plan.seconds['step']:.3g}", named)]
    for row in plan.scaling:
        days = duration(86400 * row["days"])
        hours = short(row["device_hours"])
        rows.append(
            (f"time on {row['devices']:g}", days,
             f"{hours} device-hours, {short(row['tokens_per_second'])} tokens/s")
        )  # fmt: skip
    return rows


def _disk_rows(plan: Plan) -> list[tuple[str, str, str]]:
    return [("disk", short(sum(plan.disk.values()), "B"), _of(plan.disk, "B", ()))]


def _notes(plan: Plan) -> list[str]:
    """Notes on the assumptions of the figures."""
    notes = []
    if plan.utilization is None:
        notes.append(
            "time: every operation of a step was run on this machine and timed. Start, preparation "
            "of the text, validation, previews and checkpoints are left out"
        )
    else:
        rate = "bf16" if plan.bf16 else "fp32"
        notes.append(
            f"time: FLOPs (what checkpointing computes again included) at {plan.utilization:.0%} "
            f"of the {rate} rate that the maker publishes: utilization changes it. No GPU was "
            "measured for this. Validation, loading, and what the devices say to each other are "
            "left out"
        )
    if plan.strategy == "fsdp":
        notes.append("sddlm train runs ddp; fsdp is for a loop of your own")
    if plan.epochs is None:
        notes.append(
            "disk: without the prepared tokens, 2 bytes each (4 from V = 65,537 on), 8 a document"
        )
    return notes


_COLUMNS = (
    "recipe", "parameters", "tokens", "FLOPs", "memory a GPU", "micro-batch", "GPU-hours",
    "days on {devices}", "disk",
)  # fmt: skip


def markdown(plans: Iterable[tuple[str, Plan]]) -> str:
    """Markdown table with a row for each plan, all for the same number of devices."""
    rows, devices = [], 0
    for name, plan in plans:
        devices = plan.devices
        own = next(row for row in plan.scaling if row["devices"] == plan.devices)
        rows.append(
            [name, short(plan.parameters["all"]), short(plan.tokens), short(plan.flops["run"]),
             short(plan.memory["all"], "B") + ("" if plan.fits else " (does not fit)"),
             str(plan.micro_batch), f"{own['device_hours']:,.0f}", f"{own['days']:,.2f}",
             short(sum(plan.disk.values()), "B")]
        )  # fmt: skip
    lines = [
        [column.format(devices=devices) for column in _COLUMNS],
        ["---"] * len(_COLUMNS),
        *rows,
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
