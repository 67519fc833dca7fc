"""Writes are whole or not at all; local names never reach the network."""

import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from langevin.core import files
from langevin.core.errors import ConfigError, InputError


def test_atomic_write_leaves_the_old_file_when_interrupted(tmp_path):
    path = tmp_path / "a.txt"
    files.atomic_write(path, "old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_atomic_folder_replaces_and_carries_over(tmp_path):
    target = tmp_path / "model"
    with files.atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        (partial / "sub").mkdir()
        (partial / "sub" / "keep").write_text("kept")
    with files.atomic_folder(target) as partial:
        (partial / "a").write_text("2")
    assert (target / "a").read_text() == "2" and (target / "sub" / "keep").read_text() == "kept"
    with pytest.raises(RuntimeError), files.atomic_folder(target) as partial:
        (partial / "a").write_text("3")
        raise RuntimeError
    assert (target / "a").read_text() == "2" and os.listdir(tmp_path) == ["model"]


def swapping(**functions):
    """Return a C library that has only these functions."""
    return lambda name: SimpleNamespace(**functions)


def test_a_system_that_cannot_exchange_folders_moves_them(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", swapping())
    target = tmp_path / "model"
    for text in ("1", "2"):
        with files.atomic_folder(target) as partial:
            (partial / "a").write_text(text)
    assert (target / "a").read_text() == "2" and os.listdir(tmp_path) == ["model"]
    target.rename(tmp_path / ".model.previous")
    with files.atomic_folder(target) as partial:
        (partial / "b").write_text("3")
    assert (target / "a").read_text() == "2", "what a killed save left aside is put back first"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["renameat2", "renamex_np"])
@pytest.mark.parametrize("status", [0, -1])
def test_the_exchange_of_every_system(tmp_path, monkeypatch, name, status):
    asked = []
    monkeypatch.setattr(files.ctypes, "CDLL", swapping(**{name: lambda *words: asked.append(words) or status}))
    assert files._exchange(tmp_path / "a", tmp_path / "b") is (status == 0)
    (words,) = asked
    assert [word for word in words if isinstance(word, bytes)] == [os.fsencode(tmp_path / k) for k in "ab"]
    assert words[-1] == 2


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    for name in ("old", "new"):
        with files.atomic_folder(tmp_path / "model", drop=lambda name: name == "dropped") as partial:
            (partial / name).write_text(name)
            if name == "old":
                (partial / "dropped").write_text("x")
    assert sorted(os.listdir(tmp_path / "model")) == ["new", "old"]


def test_saved_files_have_the_permissions_of_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        with files.atomic_folder(tmp_path / "model") as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "private").write_text("a writer may leave it so")
            (partial / "sub" / "private").chmod(0o600)
        files.atomic_write(tmp_path / "a.txt", "1")
    finally:
        os.umask(mask)
    saved = (tmp_path / "model", tmp_path / "model" / "sub" / "private", tmp_path / "a.txt")
    assert [oct(path.stat().st_mode & 0o777) for path in saved] == ["0o750", "0o640", "0o640"]


def test_a_killed_folder_save_leaves_old_or_new(tmp_path):
    """SIGKILL at random moments: what can be read is one whole generation."""
    script = (
        "import sys, pathlib\n"
        "from langevin.core.files import atomic_folder\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    with atomic_folder(sys.argv[1]) as p:\n"
        "        for k in range(8): (p / f'{k}').write_text(str(n) * 20000)\n"
        "    print(n, flush=True)\n"
    )
    target = tmp_path / "model"
    draw = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        folder = target if target.exists() else tmp_path / ".model.previous"
        assert len({(folder / str(k)).read_text() for k in range(8)}) == 1


def test_names_that_climb_are_refused(tmp_path):
    for name in ("../x", "/etc/passwd", "a/../../x", "..\\x"):
        with pytest.raises(InputError, match="outside"):
            files.safe_join(tmp_path, name)


def test_local_names_never_touch_the_network(tmp_path, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    (tmp_path / "model").mkdir()
    assert files.resolve_folder(tmp_path / "model") == tmp_path / "model"
    with pytest.raises(InputError, match="did you mean 'model'"):
        files.resolve_folder(str(tmp_path / "modle"))
    with pytest.raises(InputError, match="does not exist or is empty"):
        files.resolve_file(tmp_path / "model", "config.json", subfolder="unet")
    (tmp_path / "model" / "a.json").write_text("{}")
    assert files.resolve_file(tmp_path / "model" / "a.json", "config.json") == tmp_path / "model" / "a.json"
    with pytest.raises(InputError, match=r"a\.json is a file; a folder or a hub repository was expected"):
        files.resolve_folder(tmp_path / "model" / "a.json")
    with pytest.raises(InputError, match="did you mean 'model'"):
        files.resolve_file(str(tmp_path / "modle"), "config.json")
    with pytest.raises(InputError, match=r"a\.json"):
        files.resolve_file(tmp_path / "model", "config.json")


def test_an_unreachable_hub_is_explained():
    with pytest.raises(InputError, match="neither a local folder nor"):
        files.resolve_folder("nobody/nothing-here", local_files_only=True)
    with pytest.raises(ConfigError, match="did you mean 'revision'"):
        files.resolve_folder("nobody/nothing-here", revison="main")


def test_read_json(tmp_path):
    files.atomic_write(tmp_path / "x.json", '{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(ConfigError, match="does not exist"):
        files.read_json(tmp_path / "y.json")
