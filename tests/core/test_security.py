"""Hostile files: each is refused with an error of this library, runs nothing and writes nothing.

Every planted piece of code would create the canary file; no test leaves one, and the folders are as they were.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langevin import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from langevin.core.errors import LangevinError, WeightsError
from langevin.core.pickles import PickleFile, read_objects
from langevin.core.weights_io import SafetensorsFile, open_plain
from langevin.models.weight_files import WeightFiles

READERS = {"PickleFile": PickleFile, "read_objects": read_objects, "open": open_plain}


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that planted code would write, in a folder that must not change otherwise either."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    yield home / "canary"
    assert list(home.iterdir()) == [], "something was executed or written"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Return the instructions that call module.name with arguments that instructions make."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


TOUCH = text("touch canary")
OPEN = text("open('canary', 'w').write('x')")
ATTACKS: dict[str, bytes] = {
    "os.system": call("os", "system", TOUCH),
    "posix.system": call("posix", "system", TOUCH),
    "builtins.eval": call("builtins", "eval", OPEN),
    "builtins.exec": call("builtins", "exec", OPEN),
    "python 2 eval": call("__builtin__", "eval", OPEN),
    "open": call("builtins", "open", text("canary"), text("w")),
    "compile": call("builtins", "compile", OPEN, text("x"), text("exec")),
    "getattr": call("builtins", "getattr", b"cos\n__dict__\n", text("system")),
    "import": call("builtins", "__import__", text("os")),
    "importlib": call("importlib", "import_module", text("antigravity")),
    "subprocess": call("subprocess", "Popen", b"]" + text("touch") + b"a" + text("canary") + b"a"),
    "pathlib write": call("pathlib", "Path.write_text", text("canary"), text("x")),
    "nested reduce": call("os", "system", call("builtins", "eval", text("'touch canary'"))),
    "reduce in a tensor": call("torch._utils", "_rebuild_parameter", call("os", "system", TOUCH), b"\x89", b"}"),
    "torch.hub": call("torch.hub", "load", text("me/repository"), text("model")),
    "torch.load": call("torch.serialization", "load", text("other.pt")),
    "torch in torch": call("torch.storage", "_load_from_bytes", text("x")),
    "torch.jit": call("torch.jit", "load", text("other.pt")),
    "torch.save": call("torch", "save", b"N", text("canary")),
    "numpy load": call("numpy", "load", text("canary.npy"), b"N", b"\x88"),
    "numpy memmap": call("numpy", "memmap", text("canary"), text("uint8"), text("w+"), b"K\x00", b"K\x10"),
    "numpy exec": call("numpy.testing._private.utils", "runstring", OPEN, b"}"),
    "runpy": call("runpy", "run_path", text("canary.py")),
    "timeit": call("timeit", "timeit", OPEN),
    "pickle in pickle": call("pickle", "loads", text("x")),
    "shutil": call("shutil", "copy", text(sys.executable), text("canary")),
    "dotted name": b"\x8c\x08builtins\x8c\x0aprint.eval\x93" + b"(" + OPEN + b"tR",
    "dotted permitted name": b"\x8c\x0bcollections\x8c\x16OrderedDict.__init__.x\x93)R",
    "old instance": b"(" + TOUCH + b"ios\nsystem\n",
    "old object": b"(cos\nsystem\n" + TOUCH + b"o",
    "new object": b"cos\nsystem\n(" + TOUCH + b"t\x81",
    "extension": b"\x82\x01(" + TOUCH + b"tR",
    "a module": call("torch.nn.modules.linear", "Linear", b"K\x02", b"K\x02"),
    "a class of a script": call("__main__", "Trainer"),
    "ours": call("langevin.core.files", "atomic_write", text("canary"), text("x")),
}
"""Name -> instructions that leave something on the stack, after they have run code if anything lets them."""


def new_format(body: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


def old_format(body: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue().replace(pickle.dumps({}, 2), program(body))


def bare(body: bytes) -> bytes:
    return program(body)


@pytest.mark.parametrize("wrap", [new_format, old_format, bare], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, attack: str, wrap: Callable) -> None:
    for body in (ATTACKS[attack], b"}" + text("weight") + ATTACKS[attack] + b"s"):
        path = tmp_path / "model.bin"
        path.write_bytes(wrap(body))
        for reader in READERS.values():
            with pytest.raises(WeightsError, match=r"wants to run code|has no place|damaged"):
                reader(path)


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """The usual machine runs them, or this corpus proves nothing."""
    for attack in ("os.system", "builtins.exec", "nested reduce", "old instance"):
        code = f"import pickle; pickle.loads({program(ATTACKS[attack])!r})"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
        assert (tmp_path / "canary").is_file(), attack
        (tmp_path / "canary").unlink()


def test_permitted_names_are_not_imported_and_cannot_be_changed(tmp_path: Path) -> None:
    planted = tmp_path / "omegaconf.py"
    planted.write_text("open('canary', 'w').write('x')")
    path = tmp_path / "model.ckpt"
    body = b"comegaconf.listconfig\nListConfig\n)\x81}" + text("_content") + b"N" + b"sb"
    path.write_bytes(new_format(b"}" + text("config") + body + b"s"))
    code = "import sys; from langevin.core.pickles import PickleFile; PickleFile(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert repr(PickleFile(path).extras["config"]) == "<omegaconf.listconfig.ListConfig>"
    for name in ("collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage"):
        path.write_bytes(new_format(f"c{name}\n".encode() + b"N}" + text("__defaults__") + b"Ns\x86b"))
        PickleFile(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ is not None


# -- archives and claims ----------------------------------------------------------------------------------------------


def tensor(length: int, shape: bytes, stride: bytes, offset: int = 0) -> bytes:
    """Return the instructions for a float32 tensor on the storage "0", which is said to have `length` elements."""
    number = b"\x8a\x08" + struct.pack("<q", length)
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number + b"tQ"
    first = b"\x8a\x08" + struct.pack("<q", offset)
    arguments = (storage, first, b"(" + shape + b"t", b"(" + stride + b"t", b"\x89", b"}")
    return b"}" + text("weight") + call("torch._utils", "_rebuild_tensor_v2", *arguments) + b"s"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def archive(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


GOOD = program(tensor(4, number(2) + number(2), number(2) + number(1)))


def test_an_honest_archive_of_this_making_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", [("a/data.pkl", GOOD), ("a/data/0", struct.pack("<4f", 1, 2, 3, 4))])
    assert torch.equal(read_objects(path)["weight"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


CLAIMS: dict[str, bytes] = {
    "100 GB": tensor(25 * 10**9, number(25 * 10**9), number(1)),
    "shape beyond the storage": tensor(4, number(10**6), number(1)),
    "100 GB of one value": tensor(4, number(25 * 10**9), number(0)),
    "offset beyond the storage": tensor(4, number(2), number(1), offset=3),
    "negative offset": tensor(4, number(2), number(1), offset=-2),
    "negative side": tensor(4, number(-2), number(1)),
    "negative stride": tensor(4, number(2), number(-1)),
    "negative length": tensor(-4, number(2), number(1)),
    "sides of 2^62": tensor(4, number(1 << 62) + number(1 << 62), number(0) + number(0)),
    "fewer strides than sides": tensor(4, number(2) + number(2), number(1)),
    "a hundred sides": tensor(4, number(1) * 100, number(1) * 100),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_claims_that_the_file_cannot_keep(tmp_path: Path, claim: str, old: bool) -> None:
    path = tmp_path / "a.pt"
    if old:
        path.write_bytes(old_format(CLAIMS[claim]))
    else:
        archive(path, [("a/data.pkl", program(CLAIMS[claim])), ("a/data/0", bytes(16))])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        PickleFile(path)


def test_zip_bombs_and_tampered_archives(tmp_path: Path) -> None:
    weights = ("a/data/0", bytes(16))
    path = archive(tmp_path / "a.pt", [("a/data.pkl", GOOD), ("a/data/0", bytes(50_000_000))], zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed or encrypted"):
        PickleFile(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, [("a/data.pkl", GOOD), weights, ("a/data/0", bytes(32))])
    with pytest.raises(WeightsError, match="have the same name"):
        PickleFile(path)
    archive(path, [("a/data.pkl", GOOD), weights, ("b/data.pkl", program(ATTACKS["os.system"]))])
    with pytest.raises(WeightsError, match=r"did not write; it holds a/data\.pkl"):
        PickleFile(path)
    archive(path, [("a/data.pkl", GOOD)])
    with pytest.raises(WeightsError, match="claims 16 bytes for the storage '0' and holds 0"):
        PickleFile(path)
    archive(path, [("a/data.pkl", GOOD), weights, ("a/constants.pkl", b"")])
    with pytest.raises(WeightsError, match="TorchScript"):
        PickleFile(path)
    archive(path, [("a/data.pkl", GOOD), weights, ("a/byteorder", b"big")])
    with pytest.raises(WeightsError, match="byte order"):
        PickleFile(path)
    archive(path, [("arrays.npy", b"x")])
    with pytest.raises(WeightsError, match=r"did not write; it holds arrays\.npy"):
        PickleFile(path)


def test_a_program_that_is_far_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.pt", [("a/data.pkl", GOOD), ("a/data/0", bytes(16))])
    monkeypatch.setattr("langevin.core.pickles.MAX_HEADER", len(GOOD) - 1)
    with pytest.raises(WeightsError, match=f"data.pkl has {len(GOOD)} bytes, far too many for names"):
        PickleFile(path)


def test_members_on_top_of_each_other_or_beyond_the_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", [("a/data.pkl", GOOD), ("a/data/0", bytes(16)), ("a/data/1", bytes(16))])
    content = path.read_bytes()
    entry = content.rindex(b"PK\x01\x02")
    first = content.index(b"a/data/0") - 30
    for place, value in ((42, first), (42, len(content) * 2), (42, 5), (24, 10**9), (20, 10**9)):
        broken = bytearray(content)
        broken[entry + place : entry + place + 4] = struct.pack("<I", value)
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"on top of each other|damaged|compressed"):
            PickleFile(path)


@pytest.mark.parametrize(
    "body",
    [
        b"\x8f",
        b"\x8e" + struct.pack("<Q", 1 << 60),
        b"\x96" + struct.pack("<Q", 100 * 10**9) + b"x",
        b"B" + struct.pack("<I", (1 << 32) - 1) + b"x",
        b"]" * 20_000 + b"a" * 19_999,
        b")" + b"q\x00h\x00\x86" * 60,
        b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns",
        b"]q\x00h\x00a",
        b"N" + b"r\xff\xff\xff\xff",
        b"h\x07",
        b"a",
        b"t",
        b"Q",
        b"]" + text("x" * 1000) + b"q\x00" + (b"c_codecs\nencode\n(h\x00tRa") * 30_000,
        b"](" + b"N" * 30_000 + b"eq\x00" + call("builtins", "list", b"h\x00") * 400 + b"(" + b"l",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_programs_that_would_take_all_memory_or_time(tmp_path: Path, body: bytes) -> None:
    """They are read as nothing much, or refused; either way quickly, which the time limit of the suite watches."""
    path = tmp_path / "a.pt"
    for wrap in (new_format, old_format):
        path.write_bytes(wrap(body))
        for reader in READERS.values():
            with pytest.raises(WeightsError):
                reader(path)
                raise WeightsError("an odd object and no harm")


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"
PLACE = (number(0), b"(" + number(4) + b"t", b"(" + number(1) + b"t", b"\x89", b"}")
NONSENSE: dict[str, tuple[bytes, str]] = {
    "no storage": (call("torch._utils", "_rebuild_tensor_v2", b"N", *PLACE), "a tensor has no storage"),
    "negated": (call("torch._utils", "_rebuild_tensor_v2", STORAGE, *PLACE, b"\x88"), "conjugated or negated"),
    "no type": (call("torch._utils", "_rebuild_tensor_v3", STORAGE, *PLACE, b"N"), "negated or without a type"),
    "a number of no type": (call("numpy.core.multiarray", "scalar", b"N", b"N"), "a numpy number has an unknown type"),
    "other bytes": (call("_codecs", "encode", text("a"), text("utf-8")), "bytes in an unknown encoding"),
    "nothing to fold": (b"\x85", "the stack is empty"),
    "a name of numbers": (b"K\x01K\x02\x93", "a name is no text"),
    "a call of a number": (b"K\x01)R", "something is called that is no name"),
    "a key that is a list": (b"}]Ns", "a dictionary has a key of type list"),
    "a foreign object": (b"(" + text("other") + b"tQ", "an object outside the file is asked for"),
    "a foreign storage": (STORAGE.replace(b"ctorch\nFloatStorage", b"ctorch\nSize"), "a storage has an unknown type"),
}
"""Name -> a program of permitted instructions that makes no sense, and what is said of it."""


@pytest.mark.parametrize("name", NONSENSE)
def test_programs_without_sense_say_what_they_lack(tmp_path: Path, name: str) -> None:
    body, message = NONSENSE[name]
    (tmp_path / "a.pt").write_bytes(new_format(body))
    with pytest.raises(WeightsError, match=f"a.pt is damaged or cut short .*{message}.*fetch it again"):
        PickleFile(tmp_path / "a.pt")


def test_rare_instructions_are_understood(tmp_path: Path) -> None:
    parts = {
        "instance": b"(icollections\nOrderedDict\n",
        "object": b"(ccollections\nOrderedDict\no",
        "popped": b"K\x07(00K\x08",
        "twice": b"K\x052\x86",
        "frozen": b"(K\x01K\x01\x91",
        "module": b"(" + text("module") + b"ctorch\nSize\n" + text("a.py") + text("x") + b"tQ",
        "bytes": call("_codecs", "encode", text("a"), text("latin1")),
        "typed": call("torch._tensor", "_rebuild_from_type_v2", b"ctorch\nSize\n", b"N", b"((K\x03tt", b"N"),
    }
    body = b"}" + b"".join(text(name) + code + b"s" for name, code in parts.items()) + b"ctorch\nSize\nNs"
    (tmp_path / "a.pt").write_bytes(new_format(body))
    found = read_objects(tmp_path / "a.pt")
    module = found.pop("module")
    assert module.name == "torch.Size"
    assert found == {
        "instance": {}, "object": {}, "popped": 8, "twice": (5, 5), "frozen": {1}, "bytes": b"a", "typed": (3,),
        "torch.Size": None,
    }  # fmt: skip


def test_every_cut_and_many_flips_are_errors_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    draw = torch.Generator().manual_seed(0)
    for new in (True, False):
        torch.save({"weight": torch.randn(3, 4), "bias": torch.randn(4)}, path, _use_new_zipfile_serialization=new)
        content = path.read_bytes()
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            with pytest.raises(WeightsError):
                open_plain(path)
        for place in torch.randint(len(content), (300,), generator=draw).tolist():
            broken = bytearray(content)
            broken[place] ^= 1 << place % 8
            path.write_bytes(broken)
            try:
                open_plain(path)
                read_objects(path)
            except WeightsError:
                pass


# -- safetensors ------------------------------------------------------------------------------------------------------


def safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def entry(shape: Any, *offsets: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HEADERS: dict[str, tuple[Any, bytes]] = {
    "deep nesting": (b'{"a":' * 100_000, bytes(4)),
    "deep lists": (b'{"a":' + b"[" * 100_000, bytes(4)),
    "duplicate names": (b'{"a":%s,"a":%s}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2), bytes(4)),
    "negative offsets": ({"a": entry([1], -4, 0)}, b""),
    "reversed offsets": ({"a": entry([1], 4, 0)}, bytes(4)),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "the same bytes": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "a hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "a hole at the start": ({"a": entry([1], 4, 8)}, bytes(8)),
    "100 GB": ({"a": entry([25 * 10**9], 0, 10**11)}, bytes(4)),
    "a huge shape": ({"a": entry([2**62, 2**62, 4], 0, 4)}, bytes(4)),
    "a huge empty shape": ({"a": entry([0, 2**62, 2**62], 0, 0)}, b""),
    "a negative shape": ({"a": entry([-1, -1], 0, 4)}, bytes(4)),
    "a shape of fractions": ({"a": entry([1.5], 0, 4)}, bytes(4)),
    "a shape of texts": ({"a": entry(["1"], 0, 4)}, bytes(4)),
    "a shape of truths": ({"a": entry([True], 0, 4)}, bytes(4)),
    "offsets of 2^63": ({"a": entry([1], 2**63, 2**63 + 4)}, bytes(4)),
    "offsets beyond all numbers": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[1e999,1e999]}}', bytes(4)),
    "a number of many digits": (b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 9000), bytes(4)),
    "an unknown type": ({"a": entry([1], 0, 4, dtype="os.system")}, bytes(4)),
    "metadata that is no object": ({"__metadata__": 3, "a": entry([1], 0, 4)}, bytes(4)),
    "metadata that is no text": ({"__metadata__": {"x": [1]}, "a": entry([1], 0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_absurd_headers(tmp_path: Path, name: str) -> None:
    header, data = HEADERS[name]
    with pytest.raises(WeightsError):
        SafetensorsFile(safetensors(tmp_path / "a.safetensors", header, data))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**11, 10**8, 2])
def test_absurd_header_lengths(tmp_path: Path, length: int) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": entry([1], 0, 4)}, bytes(4), length)
    with pytest.raises(WeightsError, match=r"truncated|not a safetensors|damaged"):
        SafetensorsFile(path)


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture()
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors(tmp_path / "secret.safetensors", {"w": entry([1], 0, 4)}, bytes(4))
    return folder


def write_index(folder: Path, shard: Any) -> Path:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    return index


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "a/../../secret.safetensors", "/etc/passwd", "..\\secret.safetensors", 3, ["x"]]
)
def test_an_index_that_leads_out_of_its_folder(shards: Path, shard: Any) -> None:
    with pytest.raises(WeightsError, match=r"refused|not a shard index"):
        WeightFiles.from_index(write_index(shards, shard))


def test_shards_that_are_links_out_of_the_folder(shards: Path, tmp_path: Path) -> None:
    (shards / "w.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(WeightsError, match=r"links lead outside the folder: w\.safetensors"):
        WeightFiles.from_index(write_index(shards, "w.safetensors"))
    (shards / "up").symlink_to(tmp_path)
    with pytest.raises(WeightsError, match="links lead outside the folder"):
        WeightFiles.from_index(write_index(shards, "up/secret.safetensors"))
    (shards / "own.safetensors").write_bytes((tmp_path / "secret.safetensors").read_bytes())
    (shards / "alias.safetensors").symlink_to("own.safetensors")
    assert WeightFiles.from_index(write_index(shards, "alias.safetensors")).files


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--me--x" / "snapshots" / "abc" / "unet"
    folder.mkdir(parents=True)
    blobs = tmp_path / "models--me--x" / "blobs"
    blobs.mkdir()
    safetensors(blobs / "0f", {"w": entry([1], 0, 4)}, bytes(4))
    (folder / "w.safetensors").symlink_to("../../../blobs/0f")
    assert WeightFiles.from_index(write_index(folder, "w.safetensors")).files


INDEXES: dict[str, dict[str, Any]] = {
    "os.system": {"unet": ["os", "system"]},
    "subprocess": {"unet": ["subprocess", "Popen"]},
    "builtins": {"unet": ["builtins", "eval"]},
    "a file": {"unet": ["evil", "Evil"]},
    "a file by path": {"unet": ["./evil.py", "Evil"]},
    "a module of ours": {"unet": ["langevin.core.files", "atomic_write"]},
    "a function of ours": {"unet": ["diffusers", "logging"]},
    "a class of ours that is no component": {"unet": ["diffusers", "BaseOutput"]},
    "a function of transformers": {"unet": ["transformers", "pipeline"]},
    "a module of transformers": {"unet": ["transformers", "utils"]},
    "a dotted class": {"unet": ["diffusers", "UNet2DConditionModel.__init__"]},
    "another folder": {"../x": ["diffusers", "UNet2DConditionModel"]},
    "the root folder": {"/etc": ["diffusers", "UNet2DConditionModel"]},
    "numbers": {"unet": [1, 2]},
    "lists": {"unet": [["os"], ["system"]]},
}


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("cls", [DiffusionPipeline, StableDiffusionPipeline], ids=lambda cls: cls.__name__)
def test_model_indexes_that_name_other_things(tmp_path: Path, name: str, cls: type) -> None:
    folder = tmp_path / "pipeline"
    for part in (folder / "unet", tmp_path / "x"):
        part.mkdir(parents=True)
        (part / "config.json").write_text("{}")
    for place in (folder, folder / "unet", tmp_path):
        (place / "evil.py").write_text("open('canary', 'w').write('x')\nclass Evil: pass\n")
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.1", **INDEXES[name]})
    )
    others = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    given = dict.fromkeys(others) | ({} if "unet" in INDEXES[name] else {"unet": None})
    with pytest.raises(LangevinError):
        cls.from_pretrained(folder, **given)


@pytest.mark.parametrize("name", ["os.system", "system", "evil.Evil", "../x", "logging", 3, None, ["os", "system"]])
def test_pipeline_classes_that_are_none(tmp_path: Path, name: Any) -> None:
    (tmp_path / "evil.py").write_text("open('canary', 'w').write('x')\nclass Evil: pass\n")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(LangevinError):
        DiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["_class_name", "act_fn", "down_block_types"])
def test_configurations_do_not_name_code(tmp_path: Path, key: str) -> None:
    value: Any = ["os.system"] if key.endswith("types") else "os.system"
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    with pytest.raises(LangevinError):
        AutoencoderKL.from_pretrained(tmp_path)
