import json
import os
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from processes import CONTEXT, ranks, together
from sddlm.errors import ConfigError
from sddlm.jobs import ProcessGroup, ResumableJob, digest


def counted(done: list[int]):
    """A shard that says which ones were done."""

    def shard(number: int) -> list[float]:
        done.append(number)
        return [number, number / 3]

    return shard


EXPECTED = [[number, number / 3] for number in range(5)]


def test_results_are_in_order_and_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done: list[int] = []
    assert ResumableJob().run("thirds", 5, counted(done)) == EXPECTED
    assert done == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []


def test_what_was_done_is_not_done_again(tmp_path):
    job = ResumableJob(tmp_path / "notes", {"model": "a"})

    def breaks(number: int) -> list[float]:
        if number == 3:
            raise KeyboardInterrupt
        return [number, number / 3]

    with pytest.raises(KeyboardInterrupt):
        job.run("thirds", 5, breaks)
    done: list[int] = []
    assert job.run("thirds", 5, counted(done)) == EXPECTED  # floats to the last digit
    assert done == [3, 4]
    assert job.run("thirds", 5, counted(done)) == EXPECTED
    assert done == [3, 4]
    job.finish()
    assert not (tmp_path / "notes").exists()


def test_what_a_former_version_kept_is_read(tmp_path):
    """Name of the file and lines as at bf4a3fe, where the cache key was called facts."""
    (tmp_path / "thirds-a2af6370222c2119.0.jsonl").write_text(
        '\n[0, [0, 0.0], "b41eff5fc9067222"]\n[1, [1, 0.3333333333333333], "d85e17263b1b47e9"]\n'
    )
    job, done = ResumableJob(tmp_path, {"model": "a"}).about(text="é"), []
    assert job.run("thirds", 2, counted(done), {"seed": 1}) == EXPECTED[:2]
    assert done == []


@pytest.mark.parametrize(
    "other",
    [
        lambda job, shard: job.run("fifths", 5, shard),
        lambda job, shard: job.run("thirds", 4, shard),
        lambda job, shard: job.run("thirds", 5, shard, {"seed": 1}),
        lambda job, shard: job.about(text="b").run("thirds", 5, shard),
        lambda job, shard: ResumableJob(job.folder, {"model": "b"}).run("thirds", 5, shard),
    ],
)
def test_results_of_another_question_are_not_taken(tmp_path, other):
    job, done = ResumableJob(tmp_path / "notes", {"model": "a"}), []
    job.run("thirds", 5, counted([]))
    other(job, counted(done))
    assert len(done) >= 4


def test_half_a_line_is_done_again(tmp_path):
    job, done = ResumableJob(tmp_path / "notes"), []
    job.run("thirds", 5, counted([]))
    (file,) = (tmp_path / "notes").iterdir()
    file.write_text(file.read_text()[:-5])
    assert job.run("thirds", 5, counted(done)) == EXPECTED
    assert done == [4]
    again: list[int] = []
    assert job.run("thirds", 5, counted(again)) == EXPECTED
    assert again == []


@pytest.mark.parametrize(
    "damage", [b"5\n", b"[1]\n", b'["a", 2]\n', b"\xff\n", b"[" * 9999, b'"ab"\n']
)
def test_a_line_that_is_no_result_is_computed_again(tmp_path, damage, caplog):
    """At 7bd1212 most of these were tracebacks."""
    job, done = ResumableJob(tmp_path / "notes"), []
    job.run("thirds", 5, counted([]))
    (file,) = (tmp_path / "notes").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    assert job.run("thirds", 5, counted(done)) == EXPECTED
    assert done == ([1] if damage.endswith(b"\n") else [1, 2])
    assert "damaged results in" in caplog.text


def test_no_flipped_bit_is_taken_for_a_result(tmp_path):
    """At 7bd1212 a digit that became another one was taken: 39 of 200 flips changed a result."""
    job = ResumableJob(tmp_path / "notes")
    job.run("thirds", 5, counted([]))
    (file,) = (tmp_path / "notes").iterdir()
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        assert job.run("thirds", 5, counted([])) == EXPECTED


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot keep results in .*; choose another place"):
        ResumableJob(tmp_path / "file" / "notes").run("thirds", 5, counted([]))


def program(folder: Path, most: int, environment: dict[str, str]) -> None:
    """Each process of a launched program; those that take a shard from ``most`` on wait."""
    os.environ.update(environment)
    team = ProcessGroup.join()
    job = ResumableJob(folder / "notes", team=team)

    def shard(number: int) -> list[float]:
        while number >= most:
            time.sleep(60)
        with (folder / "done.txt").open("a") as file:
            file.write(f"{number} {team.rank}\n")
        return [number, number / 3]

    found = job.run("thirds", 40, shard)
    told = [team.world, team.from_first(team.rank)]
    (folder / f"found-{team.rank}.json").write_text(json.dumps([told, found]))
    team.leave()


def start(tmp_path: Path, processes: int, most: int = 40) -> list[BaseProcess]:
    arguments = [(tmp_path, most, each) for each in ranks(processes)]
    started = [CONTEXT.Process(target=program, args=each) for each in arguments]
    for process in started:
        process.start()
    return started


def lines(path: Path) -> list[list[int]]:
    return [list(map(int, line.split())) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_real_processes_share_the_units_and_a_kill_loses_none(tmp_path):
    first = start(tmp_path, 2, most=8)
    while not (tmp_path / "done.txt").exists() or len(lines(tmp_path / "done.txt")) < 8:
        assert all(process.is_alive() for process in first)
        time.sleep(0.05)
    for process in first:
        process.kill()
        process.join()
    noted = {
        json.loads(line)[0]
        for file in (tmp_path / "notes").iterdir()
        for line in file.read_text().split("\n")[1:-1]
    }
    assert {rank for _, rank in lines(tmp_path / "done.txt")} == {0, 1}
    (tmp_path / "done.txt").unlink()
    together(program, *((tmp_path, 40, each) for each in ranks(3)))
    expected = [[number, number / 3] for number in range(40)]
    for rank in range(3):
        told, found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert told == [3, 0]
        assert found == expected
    again = [number for number, _ in lines(tmp_path / "done.txt")]
    assert len(noted) >= 6
    assert not noted & set(again)
    assert len(set(again)) == len(again)


def test_alone():
    team = ProcessGroup.join()
    assert (team.rank, team.world, team.first) == (0, 1, True)
    assert team.from_first(7) == 7
    assert team.device("cuda") == "cuda"
    assert ProcessGroup(1, 2).device("cuda") == "cuda:1"
    assert ProcessGroup(1, 2).device("cpu") == "cpu"


def test_a_digest_tells_things_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 2_999_999 + b"y")
    x = torch.arange(4)
    things = [
        [x], [x.float()], [x, x], [torch.arange(5)], ["a"], ["a", "b"], ["ab"], [["a", "b"]],
        [b"a"], [tmp_path / "a"], [tmp_path / "b"], [torch.zeros(()).bfloat16()],
    ]  # fmt: skip
    assert len({digest(*parts) for parts in things}) == len(things)
    assert digest(x, "a") == digest(torch.arange(4), "a")
