"""Kills, flipped bits and full disks, with a seed: what is recovered, refused, or silently wrong.

Not a test: minutes of real processes. Each is forked from this one, which has imported all there is
to import; it writes its output to a file and is killed, or given a damaged file or a small disk.
Full disks are small tmpfs mounts and need root.

    python tests/faults.py --seed 7 --kills 30 --flips 25 --disks 18
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file

from sddlm.cli import main
from sddlm.training import fit  # noqa: F401  (imported once, before forking)
from sddlm.verbs import VERBS

TEXT = "the quick brown fox {} jumps over the lazy dog and sleeps until {} in the morning.\n\n"
STEPS, EVERY = 24, 4


def command(root: Path, out: str, *more: str) -> list[str]:
    """A training of some 24 steps on the text in ``root``."""
    return [
        "train", "--data.path", str(root / "text.txt"), "--data.cache", str(root / "cache"),
        "--data.tokenizer", "bytes", "--data.length", "16", "--data.validation", "0.2",
        "--model.preset", "mini", "--model.width", "16", "--model.heads", "2",
        "--model.blocks", "1", "--train.steps", str(STEPS), "--train.batch", "4",
        "--train.warmup", "2", "--train.lr", "0.01", "--train.checkpoint_every", str(EVERY),
        "--train.validate_every", str(EVERY), "--train.validation_rows", "8",
        "--train.preview_every", str(EVERY), "--out", str(root / out), *more,
    ]  # fmt: skip


class Child:
    """A verb in a process of its own.

    Args:
        arguments: of the command line.
        log: where its output goes.
    """

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = 70
            try:
                code = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self) -> int:
        """Exit code, negative for a signal."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def judge(child: Child) -> str | None:
    """``refused in one line``, ``traceback`` or ``odd``; None if it ended well."""
    code, lines = child.wait(), child.output.strip().splitlines()
    if "Traceback" in child.output and "traceback" not in (lines or [""])[-1]:
        return "traceback"
    if code == 0:
        return None
    if lines and lines[-1].startswith("sddlm") and code in (1, 2):
        return "traceback" if "Traceback" in child.output else "refused in one line"
    return f"odd: exit code {code}, {lines[-1:]}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def table(run: Path) -> str:
    """``metrics.csv`` without the seconds, and the previews."""
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [[cell for cell, name in zip(row, rows[0], strict=True) if name != "seconds"]
            for row in rows]  # fmt: skip
    return repr(kept) + (run / "previews.jsonl").read_text()


def same(run: Path, reference: Path) -> bool:
    a, b = weights(run), weights(reference)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Programme:
    """All faults, and what came of them.

    Args:
        root: an empty folder.
        seed: of all that is random here.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.number = 0
        text = "".join(TEXT.format(i * 7919 % 1000, i * 104729 % 100) for i in range(200))
        (root / "text.txt").write_text(text)
        started = time.perf_counter()
        self.done(command(root, "reference"))
        self.seconds = time.perf_counter() - started
        self.reference = root / "reference"

    def child(self, arguments: list[str]) -> Child:
        self.number += 1
        return Child(arguments, self.root / f"log{self.number}")

    def done(self, arguments: list[str]) -> None:
        child = self.child(arguments)
        if child.wait():
            raise SystemExit(f"{arguments} failed:\n{child.output}")

    def finish(self, out: str) -> str:
        """The same command until the run is complete, then what it is worth."""
        for more in ([], ["--resume", "true"]):
            child = self.child(command(self.root, out, *more))
            found = judge(child)
            if found is None:
                break
            if more or "--resume" not in child.output:
                return f"not resumed: {found}: {child.output.strip().splitlines()[-1:]}"
        run = self.root / out
        if not same(run, self.reference):
            return "silent: other weights"
        if table(run) != table(self.reference):
            return "silent: other table or previews"
        return "recovered"

    def a_kill(self) -> str:
        """SIGKILL at a random moment, perhaps of the resumed run too; sometimes without a cache."""
        self.number += 1
        out = f"kill{self.number}"
        if self.random.random() < 0.3:
            shutil.rmtree(self.root / "cache", ignore_errors=True)
        for more in ([], ["--resume", "true"])[: self.random.choice((1, 2))]:
            child = self.child(command(self.root, out, *more))
            time.sleep(self.random.random() * self.seconds * 1.1)
            child.kill()
        found = self.finish(out)
        shutil.rmtree(self.root / out, ignore_errors=True)
        return found

    def flip(self, path: Path) -> None:
        """One bit of a file, as a damaged disk or a careless program would leave it."""
        data = bytearray(path.read_bytes())
        at = self.random.randrange(len(data))
        data[at] ^= 1 << self.random.randrange(8)
        path.write_bytes(data)

    def stopped(self) -> Path:
        """A run that was stopped after about two thirds of its steps."""
        run = self.root / "stopped"
        if not run.exists():
            child = self.child(command(self.root, "stopped"))
            metrics = run / "metrics.csv"
            while child.code is None and not (
                metrics.exists() and f"\n{STEPS // 3 * 2}," in metrics.read_text()
            ):
                time.sleep(0.01)
            child.kill()
        return run

    def a_flip_of_the_checkpoint(self) -> str:
        run = self.stopped()
        self.number += 1
        out = self.root / f"flip{self.number}"
        shutil.copytree(run, out)
        self.flip(out / "checkpoints" / "last.ckpt")
        child = self.child(command(self.root, out.name, "--resume", "true"))
        found = judge(child)
        if found is None:
            found = "recovered" if same(out, self.reference) else "silent: other weights"
        shutil.rmtree(out)
        return found

    def a_flip_of_the_weights(self) -> str:
        self.number += 1
        out = self.root / f"flip{self.number}"
        shutil.copytree(self.reference / "model", out)
        self.flip(out / "model.safetensors")
        child = self.child(["sample", str(out), "--count", "1", "--steps", "2"])
        found = judge(child) or "silent: it wrote"
        shutil.rmtree(out)
        return found

    def a_flip_of_tokens(self, suffix: str) -> str:
        self.number += 1
        out = f"flip{self.number}"
        for path in sorted((self.root / "cache").rglob(f"train{suffix}")):
            self.flip(path)
        child = self.child(command(self.root, out))
        found = judge(child)
        if found is None:
            found = (
                "recovered" if same(self.root / out, self.reference) else "silent: other weights"
            )
        shutil.rmtree(self.root / out, ignore_errors=True)
        return found

    def a_full_disk(self, number: int) -> str:
        """A verb that writes to a disk with too little room, beside what lies there already."""
        disk = self.root / f"disk{number}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
        try:
            return self._on_the_disk(disk, number)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def _on_the_disk(self, disk: Path, number: int) -> str:
        run = disk / "run"
        shutil.copytree(self.reference, run, ignore=shutil.ignore_patterns("samples*", "eval*"))
        before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(max(0, free - 4096 * (number % 3) - 4096)))
        again = command(self.root, "x")
        again[again.index("--out") + 1] = str(disk / "new")
        caches = command(self.root, "y")
        caches[caches.index("--data.cache") + 1] = str(disk / "cache")
        cases = [
            again,
            caches,
            ["sample", str(run), "--count", "64", "--steps", "2"],
            ["eval", str(run), "--count", "16", "--steps", "2"],
            ["demo", str(run), "--steps", "4", "--fps", "0", "--html", str(disk / "page.html")],
            ["prepare", "--data.path", str(self.root / "text.txt"), "--data.tokenizer", "bytes",
             "--data.cache", str(disk / "cache2")],
        ]  # fmt: skip
        child = self.child(cases[number % len(cases)])
        found = judge(child)
        if any(not p.exists() or p.read_bytes() != data for p, data in before.items()):
            return "silent: what was there is gone"
        if found == "refused in one line" and str(disk) not in child.output:
            return f"the path is not named: {child.output.strip().splitlines()[-1]}"
        return found or "there was room"

    def count(self, name: str, times: int, fault: Callable[[int], str]) -> Counter[str]:
        """Try a fault so many times and print what came of it."""
        found = Counter(fault(number) for number in range(times))
        print(f"{name}: {times} tried; {dict(found)}", flush=True)
        return found


def run() -> None:
    """The whole programme."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kills", type=int, default=30)
    options.add_argument("--flips", type=int, default=25, help="of each of four files")
    options.add_argument("--disks", type=int, default=18)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    for module, *_ in VERBS.values():
        __import__(module)
    with tempfile.TemporaryDirectory() as folder:
        faults = Programme(Path(folder), chosen.seed)
        faults.count("kills", chosen.kills, lambda _: faults.a_kill())
        faults.count("bits of last.ckpt", chosen.flips, lambda _: faults.a_flip_of_the_checkpoint())
        faults.count("bits of the weights", chosen.flips, lambda _: faults.a_flip_of_the_weights())
        for suffix in (".bin", ".idx"):
            name = f"bits of train{suffix}"
            faults.count(name, chosen.flips, lambda _, s=suffix: faults.a_flip_of_tokens(s))
        faults.count("full disks", chosen.disks, faults.a_full_disk)


if __name__ == "__main__":
    run()
