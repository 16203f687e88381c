"""The data path: opening an index, reading batches, noising them, making tokens; a step's overhead.

``python benchmarks/data.py [--rounds 5] [--tiny] [--parts tokens ...] [--texts JSONL]``; some two
minutes at one thread without the part ``memory``, which prepares ``--size`` bytes of JSON lines.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from measure import Timing, interleaved, machine, show

from sddlm import (
    SDDLM,
    DataArgs,
    DiT,
    Draw,
    ModelArgs,
    Tokenizer,
    TrainArgs,
    UniformProcess,
    prepare,
)
from sddlm.data.python_docs import python_documents
from sddlm.data.rows import PackedTokens
from sddlm.data.tokenize import write_tokens
from sddlm.training.batches import train_batches
from sddlm.training.ema import EMA
from sddlm.training.run import train_model

BATCH, V = 32, 4096
PARTS = ["index", "loading", "tokens", "overhead", "memory"]


def packed(path: Path, length: int) -> PackedTokens:
    return PackedTokens(path, length=length, vocab_size=V, characters=1)


def loader(rows: PackedTokens, steps: int, workers: int = 0) -> torch.utils.data.DataLoader:
    args = TrainArgs(steps=steps, batch=BATCH, workers=workers)
    return train_batches(rows, args, seed=0, start_step=0)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def index(folder: Path, tokens: int) -> None:
    """Opening a sparse file of many tokens, and the first batches of it."""
    path = folder / "index.bin"
    with path.open("wb") as file:
        file.truncate(2 * tokens)
    table = []
    for length in (128, 1024):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        batches = iter(loader(packed(path, length), 101))
        opened = time.perf_counter() - started
        first = timed(lambda it=batches: next(it))
        more = timed(lambda it=batches: [next(it) for _ in range(100)])
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        row = [length, f"{opened * 1e3:.1f}", f"{first * 1e3:.1f}", f"{more * 10:.2f}"]
        table.append([*row, f"{grown:.1f}"])
    path.unlink()
    columns = ["L", "open (ms)", "first batch (ms)", "a batch after it (ms)", "memory grown (MB)"]
    show(f"an index of {tokens:,} tokens, none of it read before", columns, table)


def loading(folder: Path, rounds: int, batches: int) -> None:
    """The training loader with its pages in the system's cache, and noising."""
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, V, 4_000_000).astype("<u2").tofile(path)
    table = []
    for length in (128, 1024):
        for workers in (0, 2):
            seconds = []
            for _ in range(rounds):
                turn = iter(loader(packed(path, length), batches + 1, workers))
                next(turn)
                seconds.append(timed(lambda it=turn: list(it)) / batches)
            table.append([f"load, {workers} workers", length, *rates(seconds, length)])
        x0 = next(iter(loader(packed(path, length), 1)))["x0"]
        times = Draw.simple(0, 0, BATCH).times()

        def noise(x0: torch.Tensor = x0, times: torch.Tensor = times) -> None:
            for step in range(10):
                draw = Draw.simple(0, step, BATCH)
                UniformProcess().corrupt(x0, times, draw, vocab_size=V)

        found = interleaved({"noise": noise}, rounds=rounds)["noise"]
        table.append(["noise", length, *rates([s / 10 for s in found.seconds], length)])
    columns = ["", "L", "a batch (ms)", "range", "rows/s", "tokens/s"]
    show(f"batches of {BATCH}, {machine()}", columns, table)


def rates(seconds: list[float], length: int) -> list[str]:
    """Of a batch, for a table."""
    s = statistics.median(seconds)
    spread = f"{min(seconds) * 1e3:.3f} to {max(seconds) * 1e3:.3f}"
    return [f"{s * 1e3:.3f}", spread, f"{BATCH / s:,.0f}", f"{BATCH * length / s:,.0f}"]


def tokens(folder: Path, rounds: int, texts: list[str]) -> None:
    """Making tokens with all that belongs to it, beside encoding alone, on the same cores."""
    tokenizer = Tokenizer.train_bpe(texts[:40], V)
    made = sum(map(len, tokenizer.encode_batch(texts)))
    cut = [piece for text in texts for piece in tokenizer.pieces(text)]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    turn = iter(range(10**6))
    arms = {
        "`encode_batch`, whole documents": lambda: tokenizer.encode_batch(texts),
        "`encode_batch`, pieces": lambda: tokenizer.encode_batch(cut),
        "`write_tokens`: numbers, hashes, files": lambda: written(
            folder / f"tokens-{next(turn)}", texts, tokenizer
        ),
        "`prepare`: also reading JSON lines twice": lambda: prepare(
            DataArgs(path=str(path), cache=str(folder / f"cache-{next(turn)}"), length=16),
            tokenizer,
        ),
    }
    spent: dict[str, list[float]] = {name: [] for name in arms}  # CPU seconds of all threads

    def counted(name: str) -> None:
        before = time.process_time()
        arms[name]()
        spent[name].append(time.process_time() - before)

    found = interleaved({name: partial(counted, name) for name in arms}, rounds=rounds)
    cpu = {name: Timing(own[1:], next(iter(spent.values()))[1:]) for name, own in spent.items()}
    table = [
        [name, f"{t.median:.2f}", f"{made / t.median:,.0f}", t.ratio, f"{cpu[name].median:.2f}",
         cpu[name].ratio]
        for name, t in found.items()
    ]  # fmt: skip
    title = f"tokens of {sum(map(len, texts)):,} characters in {len(texts):,} documents, V {V}"
    show(title, ["", "seconds", "tokens/s", "speed", "CPU seconds", "per CPU second"], table)


def written(folder: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    folder.mkdir()
    write_tokens(folder, (("train", text) for text in texts), tokenizer, splits=["train"])


PREPARE = """
import json, re, sys, time
from pathlib import Path
from sddlm import DataArgs, prepare
started = time.perf_counter(), time.process_time()
prepared = prepare(DataArgs(path=sys.argv[1], cache=sys.argv[2], tokenizer=sys.argv[3]))
seconds = time.perf_counter() - started[0], time.process_time() - started[1]
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
tokens = sum(split["tokens"] for split in prepared.meta["splits"].values())
print(json.dumps([*seconds, int(peak) / 1024, tokens]))
"""


def memory(folder: Path, texts: list[str], size: int, tokenizers: Sequence[str]) -> None:
    """Peak memory of preparing JSON lines; all threads are of one process."""
    path = folder / "large.jsonl"
    lines = cycle(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    documents = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            documents += 1
            file.write(next(lines))
    table = []
    for kind in tokenizers:
        command = [sys.executable, "-c", PREPARE, path, folder / f"cache-{kind}", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, spent, peak, made = json.loads(done.stdout)
        table.append([kind, f"{made:,}", f"{seconds:.0f}", f"{spent:.0f}", f"{peak:.0f}"])
    title = f"preparing {path.stat().st_size / 1e6:,.0f} MB of JSON lines, {documents:,} documents"
    show(title, ["tokenizer", "tokens", "seconds", "CPU seconds", "largest memory (MiB)"], table)


def overhead(folder: Path, rounds: int, steps: int) -> None:
    """A step of ``sddlm train`` beside a bare loop with the same loss, clipping and average."""
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
    data = DataArgs(
        path=str(text), tokenizer="bytes", length=32, validation=0.1, cache=str(folder / "cache")
    )
    model = ModelArgs(preset="mini", blocks=1)
    args = TrainArgs(
        steps=steps, batch=BATCH, validate_every=10 * steps, preview_every=0,
        checkpoint_every=10 * steps,
    )  # fmt: skip
    ours, bare, loading = [], [], []
    for turn in range(rounds):
        run = folder / f"run-{turn}"
        train_model(str(run), data, model, SDDLM(), args)
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        first, last = rows[0], rows[-2]  # the last step saves
        seconds = float(last["seconds"]) - float(first["seconds"])
        ours.append(seconds / (int(last["step"]) - int(first["step"])))
        rows_of = packed(next(folder.glob("cache/tokens-*/train.bin")), 32)
        spent, waited = bare_loop(rows_of, model, args)
        bare.append(spent)
        loading.append(waited)
    medians = [statistics.median(arm) * 1e3 for arm in (ours, bare, loading)]
    more = [(a - b) * 1e3 for a, b in zip(ours, bare, strict=True)]
    show(
        f"a step of a network of 1 block, {BATCH} rows of 32 bytes, {machine()}",
        ["sddlm train (ms)", "bare loop (ms)", "of it data (ms)", "more than the bare loop (ms)"],
        [[*(f"{m:.2f}" for m in medians), f"{statistics.median(more):.2f} ({min(more):.2f} to "
          f"{max(more):.2f})"]],
    )  # fmt: skip


def bare_loop(rows: PackedTokens, model: ModelArgs, args: TrainArgs) -> tuple[float, float]:
    """Seconds of a step without the loop, table and bar; of it, waiting for the batch."""
    network = DiT(model.build(vocab_size=257, length=32, causal=False), seed=0)
    objective, average = SDDLM(), EMA(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    waited, batches, spent = 0.0, iter(loader(rows, args.steps)), 0.0
    for step in range(args.steps):
        started = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        draw = Draw(0, step, batch["slot"], BATCH)
        objective.loss(network, batch["x0"], draw).mean.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(0.99)
        if step >= 10:  # as the first row of the table
            waited += loaded - started
            spent += time.perf_counter() - started
    return spent / (args.steps - 10), waited / (args.steps - 10)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a test")
    parser.add_argument("--parts", nargs="+", default=PARTS[:-1], choices=PARTS)
    parser.add_argument("--texts", help="JSON lines, in place of the built-in corpus")
    parser.add_argument("--size", type=float, default=1e9, help="bytes of the part memory")
    chosen = parser.parse_args(argv)
    tiny, rounds = chosen.tiny, 1 if chosen.tiny else chosen.rounds
    logging.getLogger("sddlm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    texts = [f"the quick brown fox jumps over {i} lazy dogs" for i in range(99)]
    if chosen.texts:
        with open(chosen.texts, encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
    elif not tiny:
        texts = [*python_documents()][:400] * 8
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run: dict[str, Callable[[], None]] = {
            "index": lambda: index(folder, 10**8 if tiny else 10**10),
            "loading": lambda: loading(folder, rounds, 5 if tiny else 500),
            "tokens": lambda: tokens(folder, rounds, texts),
            "overhead": lambda: overhead(folder, rounds, 30 if tiny else 300),
            "memory": lambda: memory(folder, texts, int(chosen.size), ["bytes", "bpe"]),
        }
        for part in chosen.parts:
            run[part]()


if __name__ == "__main__":
    main()
