"""Every law of negatives trains through the command line, and is written down as it was given."""

import pytest

from sddlm.cli import main
from sddlm.lm import LanguageModel
from sddlm.objectives.negatives import (
    MixedNegatives,
    SequenceNegatives,
    UniformNegatives,
    UnigramNegatives,
)
from sddlm.spec import from_spec
from sddlm.training.monitor import read_metrics

FLAGS = [
    "UniformNegatives --objective.negatives.count 4",
    "UniformNegatives --objective.negatives.count exact",
    "UnigramNegatives",
    "UnigramNegatives --objective.negatives.count exact",
    "SequenceNegatives --objective.negatives.count 2",
    "TopNegatives",
    "NoisyToken",
    "NoisyToken --objective.negatives.low 0.5",
    "MixedNegatives",
    "MixedNegatives --objective.negatives.parts [TopNegatives] --objective.negatives.shares [1]",
]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS)
def test_each_trains_from_the_command_line(config, tmp_path, flags):
    run = tmp_path / "run"
    typed = ["train", "--config", str(config), "--out", str(run), "--train.steps", "4"]
    more = ["--train.preview_every", "0", "--objective", "SDDLMV1", "--objective.negatives"]
    assert main([*typed, *more, *flags.split()]) == 0
    assert read_metrics(run)[-1]["val_nelbo"] > 0
    saved = from_spec(LanguageModel.load(run).objective)
    assert type(saved.negatives).__name__ == flags.split()[0]


@pytest.mark.slow
def test_a_mixture_from_yaml_trains_and_resumes_with_its_own_configuration(config, tmp_path):
    text = config.read_text().replace("objective: SDDLM\n", MIXED).replace("steps: 12", "steps: 6")
    config.write_text(text)
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    saved = from_spec(LanguageModel.load(run).objective)
    assert saved.negatives == MixedNegatives(
        [UniformNegatives("exact"), UnigramNegatives(), SequenceNegatives(2)], [2.0, 1.0, 1.0]
    )
    again = ["train", "--config", str(run / "config.yaml"), "--out", str(run), "--resume"]
    assert main(again) == 0


MIXED = """\
objective:
  class_path: SDDLMV1
  init_args:
    eps: 1.0e-5
    negatives:
      class_path: MixedNegatives
      init_args:
        parts:
          - {class_path: UniformNegatives, init_args: {count: exact}}
          - UnigramNegatives
          - {class_path: SequenceNegatives, init_args: {count: 2}}
        shares: [2, 1, 1]
"""


def test_the_warning_is_shown_once_on_the_command_line(config, tmp_path):
    typed = ["train", "--config", str(config), "--out", str(tmp_path / "run"), "--train.steps", "1"]
    with pytest.warns(UserWarning, match="not far below weight / V") as seen:
        assert main([*typed, "--objective", "SDDLMV1", "--objective.eps", "0.01"]) == 0
    assert len(seen) == 1
