"""Schedules of the training loop."""

from pathlib import Path

import numpy as np
import pytest

from sddlm.errors import ConfigError
from sddlm.training.args import TrainArgs


def test_curriculum_grows_linearly_to_one_and_stays():
    args = TrainArgs(steps=100, curriculum=0.5, curriculum_start=0.2)
    assert args.t_max(0) == 0.2
    assert args.t_max(25) == pytest.approx(0.6)
    assert args.t_max(50) == args.t_max(99) == 1.0
    assert TrainArgs(steps=100).t_max(0) == 1.0


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    args = TrainArgs(steps=100, warmup=10)
    assert args.lr_factor(0) == pytest.approx(0.1)
    assert args.lr_factor(9) == args.lr_factor(10) == pytest.approx(1.0)
    assert args.lr_factor(100) == pytest.approx(0.1)
    constant = TrainArgs(steps=100, warmup=10, schedule="constant")
    assert constant.lr_factor(99) == 1.0
    assert TrainArgs(warmup=0).lr_factor(0) == 1.0


def test_averaged_weights_follow_the_published_decay():
    golden = np.load(Path(__file__).parent.parent / "golden" / "misc.npz")["ema_trace"]
    shadow = np.zeros(3)
    args = TrainArgs(ema=0.9999)
    for k, expected in enumerate(golden, start=1):
        decay = args.ema_decay(k)
        shadow = decay * shadow + (1 - decay) * k
        assert shadow == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "`steps`"),
        ({"lr": 0.0}, "`lr`"),
        ({"ema": 1.0}, "`ema`"),
        ({"curriculum": -0.1}, "`curriculum`"),
        ({"curriculum_start": 0.0}, "`curriculum_start`"),
        ({"batch": 10, "micro_batch": 4}, "`micro_batch`"),
        ({"steps": 0, "clip": -1.0}, "`clip`"),
    ],
)
def test_wrong_values_are_named_all_at_once(wrong, named):
    with pytest.raises(ConfigError) as error:
        TrainArgs(**wrong)
    for name in [named, *(f"`{name}`" for name in wrong if name != "batch")]:
        assert name in str(error.value)
