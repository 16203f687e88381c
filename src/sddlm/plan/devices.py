"""What a run may be planned for: peak rates as their makers publish them, and this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sddlm.errors import ConfigError

#: the machine that plans
HERE = "here"


@dataclass(frozen=True)
class Device:
    """A GPU as published; dense rates, without sparsity.

    Attributes:
        name: what is typed.
        bf16: matrix products with sums in float32, FLOP/s.
        fp32: without TF32, as torch does by default, FLOP/s.
        memory: bytes (powers of ten, a little less than what it has).
        bandwidth: of the memory, bytes/s.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float


def _row(name: str, bf16: float, fp32: float, gigabytes: float, terabytes: float) -> Device:
    return Device(name, bf16 * 1e12, fp32 * 1e12, gigabytes * 1e9, terabytes * 1e12)


DEVICES = {
    device.name: device
    for device in (
        _row("a100-40", 312, 19.5, 40, 1.555),
        _row("a100-80", 312, 19.5, 80, 2.039),
        _row("h100-sxm", 989, 67, 80, 3.35),
        _row("h100-pcie", 756, 51, 80, 2.0),
        _row("h200", 989, 67, 141, 4.8),
        _row("b200", 2250, 75, 180, 7.7),
        _row("mi300x", 1307, 163.4, 192, 5.3),
        _row("l40s", 362, 91.6, 48, 0.864),
        _row("l4", 121, 30.3, 24, 0.3),
        _row("rtx-4090", 165, 82.6, 24, 1.008),
        _row("rtx-3090", 71, 35.6, 24, 0.936),
    )
}
"""TFLOP/s in bf16 and fp32, GB and TB/s, from the makers' data sheets."""

#: words in the name that a driver gives, and our name; the first that fits
_DRIVER = (
    (("A100", "40GB"), "a100-40"), (("A100",), "a100-80"), (("H100", "PCIe"), "h100-pcie"),
    (("H100",), "h100-sxm"), (("H200",), "h200"), (("B200",), "b200"), (("MI300X",), "mi300x"),
    (("L40S",), "l40s"), (("L4",), "l4"), (("4090",), "rtx-4090"), (("3090",), "rtx-3090"),
)  # fmt: skip


def find_device(name: str) -> Device | None:
    """Find a device by name; None is this machine, whose rates are measured.

    Args:
        name: a key of `DEVICES`, ``here``, or ``auto``: this machine's GPU, else ``here``.

    Raises:
        ConfigError: the name is not in the table.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return None
        said = torch.cuda.get_device_name()
        fit = (own for words, own in _DRIVER if all(word in said for word in words))
        name = next(fit, said)
    if name == HERE:
        return None
    if name not in DEVICES:
        raise ConfigError(
            f"`device` is {name!r}, must be one of {', '.join(DEVICES)}, or {HERE}, which "
            "measures this machine's CPU"
        )
    return DEVICES[name]
