"""Adapters from the hub: the only file of a repository or of a folder in it, and what is said about several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from langevin.adapters.files import choose, open_source
from langevin.core.errors import InputError

pytestmark = pytest.mark.hub
REPO = "me/style"


@pytest.fixture
def repo(hub, tmp_path) -> Path:
    """A repository with one adapter at its root, and two in a folder."""
    folder = tmp_path / "source"
    (folder / "more" / "deeper").mkdir(parents=True)
    for name in ("castle.safetensors", "more/one.safetensors", "more/two.safetensors", "more/deeper/x.safetensors"):
        save_file({name: torch.ones(2)}, folder / name)
    torch.save({"castle.bin": torch.ones(2)}, folder / "castle.bin")
    (folder / "README.md").write_text("castles")
    hub.publish(REPO, folder)
    return folder


def test_the_only_adapter_of_a_repository_is_found(repo) -> None:
    assert list(open_source(REPO).state) == ["castle.safetensors"]
    assert list(open_source(REPO, use_safetensors=False).state) == ["castle.bin"]
    assert list(open_source(REPO, weight_name="two.safetensors", subfolder="more").state) == ["more/two.safetensors"]
    with pytest.raises(InputError, match=r"several files .* one of: one\.safetensors, two\.safetensors"):
        open_source(REPO, subfolder="more")


def test_a_list_needs_the_hub(repo) -> None:
    with pytest.raises(InputError, match="cannot be listed without the hub; give weight_name="):
        choose(REPO, subfolder=None, safe=None, names=(), local_files_only=True)
    open_source(REPO, weight_name="castle.safetensors")
    assert open_source(REPO, weight_name="castle.safetensors", local_files_only=True).state
