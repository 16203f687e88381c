"""Other kinds of text, read from a folder in the hub's form instead of the hub."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sddlm.cli import main
from sddlm.data.corpora import CORPORA
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.zero_shot import ZERO_SHOT, evaluate_zero_shot, zero_shot_sets
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

PASSAGES = [
    "\u201cGo\u201d, he said. ",
    "And she went, but not at once.",
    "They met again in May. ",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose rows begin and end with the end of text, and one of the seven sets."""
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "lambada"
    folder.mkdir()
    pq.write_table(pa.table({"text": PASSAGES}), folder / "test.parquet")
    for name, where in (("lambada", folder), ("ptb", tmp_path / "nowhere")):
        moved = replace(CORPORA[name], dataset=str(where), config=None, revision=None)
        monkeypatch.setitem(CORPORA, name, moved)
    config = DiTConfig(vocab_size=257, length=12, width=16, blocks=1, heads=2, causal=True)
    model = DiT(config)
    model.init(0)
    random = torch.Generator().manual_seed(1)
    model.head.weight.data.normal_(0, 0.3, generator=random)
    data = {"packing": {"packing": "wrap", "bos_eos": True, "eos": True}}
    whole = (model.eval(), UniformProcess(), Estimate.NEXT_TOKEN, Tokenizer.bytes(), {}, data)
    LanguageModel(*whole).save(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_the_convention_written_out(place):
    out = place / "zero_shot.json"
    found = evaluate_zero_shot(str(place), sets="lambada,ptb", out=str(out))
    loaded = LanguageModel.load(place)
    # straight quotes, a new line in front, blanks at the ends gone: then one text, no ends between
    text = '\n"Go", he said.\nAnd she went, but not at once.\nThey met again in May.'
    ids = loaded.tokenizer.encode_batch([text])[0]
    end = loaded.tokenizer.eos_id
    rows = [[end, *ids[i : i + 10], end] for i in range(0, len(ids) - 9, 10)]
    x0 = torch.tensor(rows)  # [n, 12]
    with torch.inference_mode():
        hidden = loaded.network(x0, torch.zeros(len(x0)))
        log_p = loaded.network.head.logits(hidden.flatten(0, 1)).log_softmax(-1)
    log_p = log_p.view(*x0.shape, -1)[:, :-1].gather(2, x0[:, 1:, None])
    own = found.zero_shot["lambada"].likelihood
    assert own.nll == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert (own.rows, own.tokens) == (len(rows), len(rows) * 11)
    written = json.loads(out.read_text())
    assert written["question"] == "zero_shot"
    assert written["zero_shot"]["lambada"]["nll"] == own.nll
    assert "nowhere" in written["zero_shot"]["ptb"]["error"]


def test_none_can_be_read(place):
    with pytest.raises(ConfigError, match=r"none of the sets can be read: .*nowhere"):
        evaluate_zero_shot(str(place), sets="ptb", out=str(place / "zero_shot.json"))
    assert not (place / "zero_shot.json").exists()


def test_by_the_command_line(place, capsys):
    assert main(["eval", "zero-shot", str(place), "--sets", "lambada"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "lambada" in shown
    assert "no end of text between documents" in shown
    assert (place / "zero_shot.json").exists()


def test_names():
    assert zero_shot_sets("all") == list(ZERO_SHOT)
    assert zero_shot_sets("ptb, lm1b") == ["ptb", "lm1b"]
    assert set(ZERO_SHOT) <= set(CORPORA)
    assert len(ZERO_SHOT) == 7
