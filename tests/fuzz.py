"""What a stranger may type or hand over: random options, and hostile model directories.

    python tests/fuzz.py SEED 2000     # option combinations
    python tests/fuzz.py SEED models   # every kind of hostile model directory

Each prints how many were refused in one line, worked, worked although they must not (silent), and
ended in a traceback or in an error that nobody foresaw. The tests run a few of the former and all
of the latter.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from sddlm import cli
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import SDDLM
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.spec import to_spec
from sddlm.verbs import VERBS

#: what ran if a file or a directory chose what is imported
EVIL = 'open("evil_ran", "w").close()\nclass Evil:\n    pass\n'

VALUES = [
    "0", "1", "-1", "2", "3.5", "-0.0", "1e-400", "1e308", "1e400", "nan", "inf", "-inf", ".nan",
    ".inf", "18446744073709551616", "-9223372036854775809", "9" * 5000, "0x10", "0o7", "1_000",
    "", " ", "\t", "\n", "a\nb: c", "true", "false", "null", "~", "yes", "[]", "{}", "[1,2]",
    "[", "]", "{", "}", "{a: b}", "{class_path: evil.Evil}", "[[[[[[[[1]]]]]]]]", "[" * 3000,
    "[" * 100_000, "- " * 50_000, "{a: " * 30_000,
    "&a [*a]", "*a", "!!python/object/apply:os.system [ls]", "'", '"', "''", "\\", "%s", "${HOME}",
    "$(ls)", "`ls`", "--", "-", "-x", "--seed", "---", "=", "a=b", ":", "a: b", "#", "@x", "?",
    "é", "日本", "\u202eabc", "\x1b[31mred", "\x07", "\udcff", "\ufeff", "🙂" * 50, "x" * 3000,
    "../../x", "/", "/dev/null", "/nope/x", "a b", "~/x", "hf:x", "evil.Evil", "evil", "os.system",
    "sddlm.cli.main", "sddlm.SDDLM", "sddlm.nothing.X", "builtins.print", "SDDLM", "NELBO",
    "Autoregressive", "UniformProcess", "LogLinear", "Cosine", "NoisyToken", "MixedNegatives",
    "exact", "auto", "bf16", "cosine", "greedy", "lazy", "psi", "pydoc", "mini", "2020-01-01",
    "2020-13-99", "1:2:3", "0.1,0.2", "{pydoc: 1, x: 2}", "{pydoc: nan}", "[NoisyToken]",
]  # fmt: skip


def options(seed: int, count: int, known: str) -> Counter[str]:
    """Parse random command lines.

    Args:
        seed: of all choices.
        count: how many.
        known: lines of a verb and its option (``tests/options.txt``).

    Returns:
        how many were refused in one line, worked, or ended in a traceback; what those are is
        printed.
    """
    rng = random.Random(seed)
    lines = known.splitlines()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("evil.py").write_text(EVIL)
        for _ in range(count):
            verb, typed = _command(rng, lines)
            found[_parsed(verb, typed)] += 1
        found["imported"] += Path("evil_ran").exists()
    return found


def _command(rng: random.Random, lines: list[str]) -> tuple[str, list[str]]:
    verb = rng.choice(list(VERBS))  # of one word or two
    mine = [line[len(verb) :].split() for line in lines if line.startswith(f"{verb} --")]
    typed = [rng.choice(["run", "", "no such", "\x1b[2J"])] if VERBS[verb][2] else []
    if verb == "train" and rng.random() < 0.9:
        typed += ["--out", "r"]
    for _ in range(rng.randint(0, 4)):
        *before, option = rng.choice(mine)
        typed += before
        value = "no_such" if option == "--import" else rng.choice(VALUES)
        shape = rng.random()
        if shape < 0.1:
            option = "".join(rng.sample(option, len(option)))
        typed += [f"{option}={value}"] if shape < 0.5 else [option, value][: 1 + (shape < 0.95)]
    if rng.random() < 0.3:
        Path("options.yaml").write_text(_yaml(rng, mine), errors="surrogateescape")
        typed += ["--config", "options.yaml"]
    return verb, typed


def _yaml(rng: random.Random, mine: list[list[str]]) -> str:
    """A file of options: a tree of them, or something else."""
    if rng.random() < 0.2:
        return rng.choice(VALUES)
    tree: dict[Any, Any] = {}
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(mine)[-1].removeprefix("--").split(".")
        value: Any = rng.choice(VALUES)
        kinds = [value, 3, 2.5, None, [1], {"a": 1}, float("nan"), 2**70, True, {1: 2}]
        value = rng.choice(kinds) if rng.random() < 0.5 else value
        for name in reversed(path):
            value = {name: value}
        tree |= value
    text: str = yaml.dump(tree)
    return text


def _parsed(verb: str, typed: list[str]) -> str:
    """How a command line ends; options that print and exit, as ``--help``, work."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            cli._parse(verb, typed)
    except ConfigError as error:
        text = str(error)
        return "refused" if text.strip() else _report("empty message", (verb, typed))
    except SystemExit:
        return "worked"
    except BaseException as error:
        return _report(f"{type(error).__name__}: {str(error)[:200]}", (verb, typed))
    return "worked"


def _report(what: str, case: Any) -> str:
    print(f"TRACEBACK {what!r} {case!r}"[:600])
    return "traceback"


# ---------------------------------------------------------------- model directories


def tiny(place: Path) -> None:
    """Write a model directory of some thousand parameters."""
    tokenizer = Tokenizer.characters(["abcdef"])
    config = DiTConfig(vocab_size=tokenizer.vocab_size, length=6, width=16, blocks=1, heads=2)
    data = {"corpus": "six letters", "packing": {"eos": True}, "row_lengths": None}
    LanguageModel(
        DiT(config), UniformProcess(), Estimate.LEAVE_ONE_OUT, tokenizer, to_spec(SDDLM()), data
    ).save(place)
    _config(lambda config: config.pop("sha256"))(place)  # which would hide what comes behind it


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        file = place / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))

    return edit


def _set(name: str, value: Any) -> Callable[[Path], None]:
    """Set a dotted name in ``config.json``."""
    *path, last = name.split(".")

    def change(config: dict[str, Any]) -> None:
        for key in path:
            config = config[key]
        config[last] = value

    return _config(change)


def _raw(file: str, data: bytes | str) -> Callable[[Path], None]:
    content = data if isinstance(data, bytes) else data.encode()
    return lambda place: (place / file).write_bytes(content) and None


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        state = load_file(place / WEIGHTS)
        change(state)
        save_file({k: v.contiguous() for k, v in state.items()}, place / WEIGHTS)

    return edit


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        data = (place / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return edit


def _folder(file: str) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        (place / file).unlink()
        (place / file).mkdir()

    return edit


def _link(file: str, target: str) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        (place / file).unlink()
        (place / file).symlink_to(target)

    return edit


def _cut(file: str, share: float) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        data = (place / file).read_bytes()
        (place / file).write_bytes(data[: int(len(data) * share)])

    return edit


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        rules = json.loads((place / TOKENIZER).read_text())
        change(rules)
        (place / TOKENIZER).write_text(json.dumps(rules))

    return edit


WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
LONG = torch.ones(16, dtype=torch.int64)
UNIFORM = "sddlm.process.uniform.UniformProcess"


def _process(class_path: Any, init_args: Any = None) -> Callable[[Path], None]:
    return _set("process", {"class_path": class_path, "init_args": init_args or {}})


#: name: (what is done to a directory, whether the model must still write)
HOSTILE: dict[str, tuple[Callable[[Path], None], bool]] = {
    name: (edit, works)
    for name, works, edit in [
        ("nothing", True, lambda place: None),
        ("more keys", True, _set("colour", "\x1b[31m")),
        ("file beside", True, _raw("evil.py", EVIL)),
        ("config cut", False, _cut(CONFIG, 0.5)),
        ("config empty", False, _raw(CONFIG, b"")),
        ("config garbage", False, _raw(CONFIG, bytes(range(256)) * 40)),
        ("config list", False, _raw(CONFIG, "[1]")),
        ("config deep", False, _raw(CONFIG, '{"format": 1, "a": ' + "[" * 100_000)),
        ("config deep closed", False, _raw(CONFIG, '{"format":' + "[" * 900 + "]" * 900 + "}")),
        ("config huge", False, _raw(CONFIG, b'{"format": 1, "a": "' + b"x" * (17 << 20) + b'"}')),
        ("config long number", False, _raw(CONFIG, '{"format": 1' + "1" * 9999 + "}")),
        ("config folder", False, _folder(CONFIG)),
        ("config endless", False, _link(CONFIG, "/dev/zero")),
        ("config loop", False, _link(CONFIG, CONFIG)),
        ("config dangling", False, _link(CONFIG, "nowhere")),
        ("blocks huge", False, _set("blocks", 10**9)),
        ("blocks beyond int64", False, _set("blocks", 10**30)),
        ("width huge", False, _set("width", 2 * 10**12)),
        ("vocabulary huge", False, _set("vocab_size", 10**15)),
        ("length huge", False, _set("length", 10**12)),
        ("length text", False, _set("length", "6")),
        ("length float", False, _set("length", 6.5)),
        ("length true", False, _set("length", True)),
        ("heads zero", False, _set("heads", 0)),
        ("heads list", False, _set("heads", [2])),
        ("dropout nan", False, _set("dropout", float("nan"))),
        ("cond_dim huge", False, _set("cond_dim", 10**6)),
        ("input_conv huge", False, _set("input_conv", 10**6 + 1)),
        ("architecture", False, _set("architecture", {"x": 1})),
        ("causal", False, _set("causal", "yes")),
        ("no width", False, _config(lambda config: config.pop("width"))),
        ("process foreign", False, _process("evil.Evil")),
        ("process os", False, _process("os.system", {"command": "touch evil_ran"})),
        ("process main", False, _process("sddlm.exact.__main__.X")),
        ("process other kind", False, _process("sddlm.objectives.nelbo.NELBO")),
        ("process arguments", False, _process(UNIFORM, {"schedule": "abc"})),
        ("process arguments list", False, _process(UNIFORM, [1, 2])),
        ("process number", False, _process(7)),
        ("objective list", False, _set("objective", [1])),
        ("data list", False, _set("data", [1])),
        ("packing list", False, _set("data.packing", [1])),
        ("row lengths text", False, _set("data.row_lengths", "abc")),
        ("row lengths empty", False, _set("data.row_lengths", [])),
        ("estimate list", False, _set("estimate", ["denoiser"])),
        ("weights empty", False, _raw(WEIGHTS, b"")),
        ("weights cut", False, _cut(WEIGHTS, 0.7)),
        ("weights cut header", False, _cut(WEIGHTS, 0.01)),
        ("weights garbage", False, _raw(WEIGHTS, b"\xff" * 4096)),
        ("weights pickle", False, _raw(WEIGHTS, b"\x80\x04cos\nsystem\n(S'touch evil_ran'\ntR.")),
        ("weights folder", False, _folder(WEIGHTS)),
        ("weights dangling", False, _link(WEIGHTS, "nowhere")),
        ("header huge", False, _raw(WEIGHTS, struct.pack("<Q", 2**62) + b"{}")),
        ("header deep", False, _raw(WEIGHTS, struct.pack("<Q", 99_999) + b"[" * 99_999)),
        ("header offsets", False, _header(lambda h: h["norm.weight"].update(data_offsets=[0, 9]))),
        ("header shape", False, _header(lambda h: h["norm.weight"].update(shape=[2**40, 2**40]))),
        ("header dtype", False, _header(lambda h: h["norm.weight"].update(dtype="X9"))),
        ("no tensors", False, _weights(lambda state: state.clear())),
        ("tensor missing", False, _weights(lambda state: state.pop("norm.weight"))),
        ("tensor added", False, _weights(lambda s: s.update(x=torch.zeros(3)))),
        ("block added", False, _weights(lambda s: s.update({"blocks.9.x": torch.zeros(3)}))),
        ("other shape", False, _weights(lambda s: s.update({"norm.weight": torch.zeros(3)}))),
        ("integers", False, _weights(lambda s: s.update({k: v.int() for k, v in s.items()}))),
        ("one of integers", False, _weights(lambda s: s.update({"norm.weight": LONG}))),
        ("one in half", False, _weights(lambda s: s.update({"norm.weight": LONG.half()}))),
        ("complex", False, _weights(lambda s: s.update({k: v.cfloat() for k, v in s.items()}))),
        ("doubles", True, _weights(lambda s: s.update({k: v.double() for k, v in s.items()}))),
        ("tokenizer cut", False, _cut(TOKENIZER, 0.5)),
        ("tokenizer empty", False, _raw(TOKENIZER, b"")),
        ("tokenizer garbage", False, _raw(TOKENIZER, bytes(range(256)))),
        ("tokenizer list", False, _raw(TOKENIZER, "[]")),
        ("tokenizer deep", False, _raw(TOKENIZER, '{"model": ' + "[" * 100_000)),
        ("tokenizer folder", False, _folder(TOKENIZER)),
        ("tokenizer no model", False, _tokenizer(lambda rules: rules.pop("model"))),
        ("tokenizer model", False, _tokenizer(lambda rules: rules.update(model={"type": "X"}))),
        ("tokenizer large id", False, _tokenizer(lambda r: r["model"]["vocab"].update(x=2**31))),
        ("tokenizer larger id", False, _tokenizer(lambda r: r["model"]["vocab"].update(x=2**40))),
        ("tokenizer decoder", False, _tokenizer(lambda rules: rules.update(decoder={"type": 3}))),
    ]
}  # fmt: skip


def model(name: str, folder: Path) -> str:
    """Write with a hostile model directory: ``refused``, ``worked``, ``silent`` or ``traceback``.

    Args:
        name: key of `HOSTILE`.
        folder: empty, to work in.
    """
    edit, works = HOSTILE[name]
    tiny(folder / "model")
    edit(folder / "model")
    out, err = io.StringIO(), io.StringIO()
    (folder / "evil.py").write_text(EVIL)
    typed = ["sample", "model", "--count", "1", "--steps", "2", "--length", "4", "--out", "o.jsonl"]
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = cli.main([*typed, "--device", "cpu"])
    lines = err.getvalue().splitlines()
    if (folder / "evil_ran").exists() or (folder / "model" / "evil_ran").exists():
        return "imported"
    if code == 0:
        return "worked" if works else "silent"
    if saved := re.search(r"report it with (\S+)\)", err.getvalue()):
        os.unlink(saved[1])
        print(f"UNFORESEEN {name}: {lines}"[:600])
        return "traceback"
    one = len(lines) == 1 and lines[0].startswith("sddlm sample: ") and not out.getvalue()
    return "refused" if one and not works else _report(err.getvalue(), name)


def main(seed: int, what: str) -> None:
    """See the module."""
    if what == "models":
        found: Counter[str] = Counter()
        for name in HOSTILE:
            with tempfile.TemporaryDirectory() as folder:
                end = model(name, Path(folder))
                found[end] += 1
                if end not in ("refused", "worked"):
                    print(f"{end}: {name}")
    else:
        known = (Path(__file__).parent / "options.txt").read_text()
        found = options(seed, int(what), known)
    print(dict(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
