import os
import threading
from pathlib import Path

import pytest

from sddlm.data.cache import build_once, damage


def fill(folder: Path, said: list[str], begun: threading.Event | None = None) -> None:
    with build_once(folder) as temporary:
        said.append("nothing" if temporary is None else "filled")
        if temporary is not None:
            if begun is not None:
                begun.set()
                assert go_on.wait(600)
            (temporary / "a").write_text("x")


go_on = threading.Event()


def test_who_waits_finds_it_done(tmp_path: Path) -> None:
    folder, said, begun = tmp_path / "cache" / "x", [], threading.Event()
    first = threading.Thread(target=fill, args=(folder, said, begun))
    first.start()
    assert begun.wait(600)
    second = threading.Thread(target=fill, args=(folder, said))
    second.start()
    second.join(0.3)
    assert second.is_alive()  # it waits
    go_on.set()
    for thread in (first, second):
        thread.join(600)
    assert said == ["filled", "nothing"]
    assert sorted(os.listdir(folder)) == ["a", "checksums.json"]
    assert os.listdir(folder.parent) == ["x"]  # no lock either


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "x"

    def interrupted() -> None:
        with build_once(folder) as temporary:
            assert temporary is not None
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    with build_once(folder) as temporary:
        assert temporary is not None
        assert os.listdir(temporary) == []
        (temporary / "whole").write_text("x")
    assert damage(folder) == ""
    with build_once(folder) as temporary:
        assert temporary is None
