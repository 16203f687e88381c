"""Checks of the weights of a network against what it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sddlm.errors import ConfigError


def check_weights(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that weights are complete and finite.

    Args:
        state: weights by name.
        shapes: shape of each weight that the network has.

    Raises:
        ConfigError: names or shapes do not match, or a weight is not finite.
    """
    if problems := misfits(state, shapes) + not_finite(state):
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ConfigError(f"the weights do not fit the network: {'; '.join(problems[:4])}{more}")


def misfits(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape than it should."""
    lines = [f"{name} {list(shapes[name])} is missing" for name in shapes if name not in state]
    unexpected = [name for name in state if name not in shapes]
    lines += [f"{name} {list(state[name].shape)} is unexpected" for name in unexpected]
    return lines + [
        f"{name} is {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in state and list(state[name].shape) != list(shape)
    ]


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor with a NaN or an infinity."""
    return [
        f"{name} is not finite: the training diverged, or the file is damaged"
        for name, tensor in state.items()
        if not tensor.isfinite().all()
    ]
