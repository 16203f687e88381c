"""Public files are there whole or not at all."""

import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sddlm.errors import ConfigError
from sddlm.io import append, atomic_write, locked


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """A limit on the size of files fails the write itself, as a full disk does."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(("mode", "content"), [("w", "kurz\r\nund ≤ gut\n"), ("wb", b"\x00\xff")])
def test_writes_and_replaces(tmp_path: Path, mode: str, content: str | bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, mode) as file:
        file.write(content)
        assert path.read_text() == "old"
    data = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error):  # noqa: PT012, SIM117
        with atomic_write(path) as file:
            file.write("half")
            raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files fails the write itself, as a full disk does."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with small_files(4096), pytest.raises(OSError, match=r"File too large.*/a\.bin"):  # noqa: SIM117
        with atomic_write(path, "wb") as file:
            file.write(b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = f"""
        import os, signal
        from sddlm.io import atomic_write
        with atomic_write({str(path)!r}) as file:
            file.write("half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_without_its_folder_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no" / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write("private")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600


def test_what_cannot_be_added_leaves_the_file_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, "≤ one\n")
    append(path, "two\n")
    with small_files(4096), pytest.raises(OSError, match=r"File too large.*a\.jsonl"):
        append(path, "x" * 10_000)
    assert path.read_text() == "≤ one\ntwo\n"


def test_a_lock_is_one_process_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "busy"):
        with pytest.raises(ConfigError, match="busy"), locked(tmp_path / ".lock", "busy"):
            pass
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / ".lock", "busy"):
        pass


def test_a_kill_releases_a_lock(tmp_path: Path) -> None:
    """Also while a forked helper of the killed process lives on."""
    code = f"""
        import os, signal, time
        from pathlib import Path
        from sddlm.io import locked
        with locked(Path({str(tmp_path / ".lock")!r}), "busy"):
            if not os.fork():
                os.close(1)
                time.sleep(60)
                os._exit(0)
            print("held", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"held\n"
        assert process.wait() == -signal.SIGKILL
        try:
            with locked(tmp_path / ".lock", "busy"):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)
