"""Community pipelines: where the file is looked for, who lets it run, which class is taken."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.pipelines import custom
from tests.hub import conftest as stand_in
from tests.pipelines import tiny

hub = stand_in.hub
FILE = """
import pathlib
pathlib.Path({canary!r}).write_text("ran")
from diffusers import DiffusionPipeline

class First(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self):
        return "first"

class Second(First):
    def __call__(self):
        return "second"
"""


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that exists once the pipeline's code has run."""
    return tmp_path / "canary"


@pytest.fixture
def code(canary) -> str:
    return FILE.format(canary=str(canary))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with a UNet and a scheduler."""
    folder = tmp_path_factory.mktemp("weights") / "ddpm"
    langevin.DDPMPipeline(tiny.pixel_unet(langevin), langevin.DDPMScheduler()).save_pretrained(folder)
    return folder


def load(weights, custom_pipeline=None, **options):
    return langevin.DiffusionPipeline.from_pretrained(weights, custom_pipeline=custom_pipeline, **options)


@pytest.fixture
def file(tmp_path, code) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(code)
    return path


# Consent -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("consent", [None, False, "sha256:" + "0" * 64, "yes", 1, 0.5])
def test_nothing_runs_without_consent(weights, file, canary, consent) -> None:
    with pytest.raises(ConfigError) as refused:
        load(weights, file, trust_remote_code=consent)
    assert not canary.exists()
    if consent in (None, False):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        for part in (str(file), digest, "trust_remote_code=True", f"'sha256:{digest}'", "nothing was run"):
            assert part in str(refused.value)


@pytest.mark.parametrize("form", [str, Path])
def test_with_consent_it_runs(weights, file, canary, form, caplog_ours) -> None:
    langevin.logging.set_verbosity_info()
    try:
        pipe = load(weights, form(file), trust_remote_code=True)
    finally:
        langevin.logging.set_verbosity_warning()
    assert canary.read_text() == "ran" and pipe() == "second"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in caplog_ours.text
    assert "First, Second; Second is taken" in caplog_ours.text
    assert list(pipe.components) == ["unet", "scheduler"] and pipe.name_or_path == str(weights)


def test_consent_to_one_content_is_for_that_content(weights, file, canary) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(file.read_text() + "\n# one more line\n")
    for consent in (digest, f"sha256:{digest}"):
        with pytest.raises(ConfigError, match="alone; nothing was run"):
            load(weights, file, trust_remote_code=consent)
    assert not canary.exists()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load(weights, file, trust_remote_code=f"sha256:{digest.upper()}")() == "second"
    with pytest.raises(ConfigError, match="'sha256:' and the digest"):
        load(weights, file, trust_remote_code="sha256:12")


def test_what_was_read_is_what_runs(weights, file, canary, monkeypatch) -> None:
    """A file that changes after it was read runs as it was read."""
    allow = custom.allow

    def swapped(source, consent):
        allow(source, consent)
        file.write_text("raise SystemExit('the other content ran')")

    monkeypatch.setattr(custom, "allow", swapped)
    assert load(weights, file, trust_remote_code=True)() == "second"
    assert "the other content" in file.read_text()


def test_consent_is_of_no_consequence_where_there_is_no_code(weights) -> None:
    assert type(load(weights, trust_remote_code=True)) is langevin.DDPMPipeline


def test_an_error_of_the_file_is_its_own(weights, tmp_path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\nraise RuntimeError('of the file')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the file") as raised:
            load(weights, path, trust_remote_code=True)
    frame = raised.traceback[-1]
    assert Path(str(frame.path)).name == "broken.py" and frame.lineno == 1
    path.write_text("def f(:\n")
    with pytest.raises(SyntaxError):
        load(weights, path, trust_remote_code=True)


# The class -----------------------------------------------------------------------------------------------------------


def test_a_file_without_a_pipeline(weights, tmp_path) -> None:
    path = tmp_path / "none.py"
    path.write_text("from diffusers import DiffusionPipeline, StableDiffusionPipeline\nclass A: pass\n")
    with pytest.raises(ConfigError, match="defines no class on DiffusionPipeline"):
        load(weights, path, trust_remote_code=True)


def test_the_same_content_is_one_class(weights, file, tmp_path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    one, two = (type(load(weights, path, trust_remote_code=True)) for path in (file, other))
    assert one is two


def own(weights, folder: Path, code: str, written) -> Path:
    """Make a folder of weights that brings its code."""
    load(weights).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": written}))
    (folder / "my_pipeline.py").write_text(code)
    return folder


def test_a_folder_that_names_its_own_code(weights, tmp_path, code, canary) -> None:
    folder = own(weights, tmp_path / "own", code, ["my_pipeline", "First"])
    with pytest.raises(ConfigError, match=r"my_pipeline.py.*nothing was run"):
        load(folder)
    assert not canary.exists()
    assert load(folder, trust_remote_code=True)() == "first", "the class that is named, not the last"
    assert canary.exists()


def test_a_folder_that_names_what_it_has_not(weights, tmp_path, code, canary) -> None:
    folder = own(weights, tmp_path / "own", code, ["my_pipeline", "Thrid"])
    with pytest.raises(ConfigError, match="no class 'Thrid'"):
        load(folder, trust_remote_code=True)
    canary.unlink()
    with pytest.raises(InputError, match=r"has no other.py; its Python files: my_pipeline.py"):
        load(own(weights, tmp_path / "second", code, ["other", "First"]), trust_remote_code=True)
    (tmp_path / "outside.py").write_text(code)
    for name in ("../outside", str(tmp_path / "outside")):
        with pytest.raises(InputError, match="leads outside"):
            load(own(weights, tmp_path / "third", code, [name, "First"]), trust_remote_code=True)
    for written in (["my_pipeline"], ["a", "b", "c"], 3, [1, 2], {}):
        with pytest.raises(ConfigError, match="_class_name"):
            load(own(weights, tmp_path / "fourth", code, written), trust_remote_code=True)
    assert not canary.exists()


# Finding the file ----------------------------------------------------------------------------------------------------


def test_a_folder_with_a_pipeline_file(weights, tmp_path, code) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "other.py").write_text("")
    with pytest.raises(InputError, match=r"has no pipeline.py; its Python files: other.py"):
        load(weights, folder, trust_remote_code=True)
    (folder / "pipeline.py").write_text(code)
    assert load(weights, str(folder), trust_remote_code=True)() == "second"


def test_a_file_that_is_not_there(weights, file) -> None:
    with pytest.raises(InputError, match=r"did you mean 'mine.py'"):
        load(weights, file.with_name("mien.py"), trust_remote_code=True)


def test_a_folder_of_community_pipelines(weights, tmp_path, code, monkeypatch) -> None:
    monkeypatch.setenv("LANGEVIN_COMMUNITY", str(tmp_path))
    (tmp_path / "known_name.py").write_text(code)
    assert load(weights, "known_name", trust_remote_code=True)() == "second"
    with pytest.raises(InputError) as raised:
        load(weights, "knwon_name", trust_remote_code=True, local_files_only=True)
    for part in (str(tmp_path / "knwon_name.py"), "did you mean 'known_name'", "examples/community/knwon_name.py"):
        assert part in str(raised.value)


def test_names_that_can_be_no_pipeline(weights, monkeypatch) -> None:
    monkeypatch.delenv("LANGEVIN_COMMUNITY", raising=False)
    with pytest.raises(InputError, match="no file, folder, hub repository or name"):
        load(weights, "a name?x=1", trust_remote_code=True)
    with pytest.raises(InputError, match="LANGEVIN_COMMUNITY is not set"):
        load(weights, "unknown", trust_remote_code=True, local_files_only=True)


@pytest.fixture
def server(code, monkeypatch, tmp_path):
    """A stand-in for the place of the official community pipelines; its list holds what was asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            there = self.path.endswith("/known.py")
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(code.encode() if there else b"404: Not Found")

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/{{revision}}/examples/community/{{name}}.py"
        monkeypatch.setattr(custom, "ADDRESS", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("LANGEVIN_COMMUNITY", raising=False)
        yield asked
        http.shutdown()


@pytest.mark.hub
def test_official_community_pipelines(weights, server, tmp_path, canary) -> None:
    from huggingface_hub import constants

    options = {"cache_dir": tmp_path / "cache", "trust_remote_code": True}
    with pytest.raises(ConfigError, match=r"/v[\d.]+/examples/community/known.py is a program of 16 lines"):
        load(weights, "known", cache_dir=tmp_path / "cache")
    assert not canary.exists() and server == [f"/v{langevin.core.config.FORMAT_VERSION}/examples/community/known.py"]
    server.clear()
    assert load(weights, "known", **options)() == "second" and server == [], "a fixed version is fetched once"
    assert load(weights, "known", **options, force_download=True)() == "second" and len(server) == 1
    server.clear()
    for revision, asked in (("0.30.0", "v0.30.0"), ("main", "main"), ("main", "main")):
        assert load(weights, "known", custom_revision=revision, **options)() == "second"
        assert server.pop() == f"/{asked}/examples/community/known.py"
    assert load(weights, "known", custom_revision="main", local_files_only=True, **options)() == "second"
    assert server == [], "offline the last copy is taken"
    with pytest.raises(InputError, match=r"looked at no folder.*http://127.0.0.1:\d+/v.*/unknown.py.*404"):
        load(weights, "unknown", **options)
    with pytest.raises(InputError, match="leads outside"):
        load(weights, "known", custom_revision="../../x", **options)
    assert not (Path(constants.HF_HUB_CACHE) / "community-pipelines").exists()


@pytest.mark.hub
def test_a_hub_repository(weights, hub, code, canary) -> None:
    """The file is that of the code's own revision, the weights those of the first argument."""
    first = hub.publish("owner/code", {"pipeline.py": code.encode()})
    hub.publish("owner/code", {"pipeline.py": b"raise RuntimeError('the newer one')"})
    hub.publish("owner/weights", weights)
    for revision in (first, None):
        with pytest.raises(ConfigError, match=r"pipeline.py of the hub repository 'owner/code' is a program"):
            load("owner/weights", "owner/code", custom_revision=revision)
    assert not canary.exists()
    assert load("owner/weights", "owner/code", custom_revision=first, trust_remote_code=True)() == "second"
    with pytest.raises(RuntimeError, match="the newer one"):
        load("owner/weights", "owner/code", trust_remote_code=True)
    with pytest.raises(InputError, match="owner/nothing"):
        load("owner/weights", "owner/nothing", trust_remote_code=True)


@pytest.mark.hub
def test_a_hub_repository_that_brings_its_own_code(weights, hub, tmp_path, code, canary) -> None:
    hub.publish("owner/own", own(weights, tmp_path / "own", code, ["my_pipeline", "First"]))
    with pytest.raises(ConfigError, match=r"my_pipeline.py.*nothing was run"):
        load("owner/own")
    assert not canary.exists()
    assert load("owner/own", trust_remote_code=True)() == "first"
    assert load("owner/own", trust_remote_code=True, local_files_only=True)() == "first"
