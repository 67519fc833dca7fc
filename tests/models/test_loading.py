"""Loading: what fits loads exactly and frugally, and what does not is said to be what it is."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langevin import AutoencoderKL, AutoencoderTiny
from langevin.core.config import register_to_config
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.core.weights_io import CHUNK, SafetensorsFile, describe, write_safetensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = {"block_out_channels": [32], "norm_num_groups": 8}


@pytest.fixture(scope="module")
def model() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**TINY)


@pytest.fixture
def folder(model: AutoencoderKL, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- what loads -----------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["10GB", "60KB"])
def test_folders_go_both_ways(kind: str, variant: str | None, safe: bool, size: str, tmp_path: Path) -> None:
    import diffusers

    ours = {"kl": AutoencoderKL, "tiny": AutoencoderTiny}[kind]
    peer = getattr(diffusers, ours.__name__)
    widths = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    options = TINY if kind == "kl" else {**widths, "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    theirs = peer(**options)
    theirs.save_pretrained(tmp_path / "peer", variant=variant, safe_serialization=safe, max_shard_size=size)
    loaded = ours.from_pretrained(tmp_path / "peer", variant=variant)
    assert same(loaded, theirs)
    loaded.save_pretrained(tmp_path / "ours", variant=variant, safe_serialization=safe, max_shard_size=size)
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "peer").iterdir())
    for name in names:
        if name.endswith((".json", ".safetensors")):
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "peer" / name).read_bytes(), name
    if safe or size == "10GB":  # the peer does not find its own sharded .bin
        assert same(peer.from_pretrained(tmp_path / "ours", variant=variant), loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "torch.float64", "bf16"])
def test_the_cast_equals_casting_the_model(model: AutoencoderKL, folder: Path, dtype: torch.dtype | str) -> None:
    loaded = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype)
    assert loaded.dtype != torch.float32 and loaded.dtype == AutoencoderKL.from_pretrained(folder, dtype=dtype).dtype
    assert all(torch.equal(loaded.state_dict()[k], v.to(loaded.dtype)) for k, v in model.state_dict().items())


def test_evaluation_mode_gradients_and_independence_from_the_file(model: AutoencoderKL, folder: Path) -> None:
    loaded = AutoencoderKL.from_pretrained(folder)
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        loaded.encoder.conv_in.weight.zero_()
    assert same(AutoencoderKL.from_pretrained(folder), model), "writing to weights must not write to the file"
    loaded.save_pretrained(folder)
    assert AutoencoderKL.from_pretrained(folder).encoder.conv_in.weight.abs().sum() == 0
    assert same(AutoencoderKL.from_pretrained(folder, disable_mmap=True), loaded)


def test_auto_keeps_the_type_of_the_file(model: AutoencoderKL, tmp_path: Path) -> None:
    AutoencoderKL(**TINY).to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoencoderKL.from_pretrained(tmp_path).dtype == torch.float32


def test_subfolder_config_and_device(model: AutoencoderKL, folder: Path) -> None:
    assert same(AutoencoderKL.from_pretrained(folder.parent, subfolder="vae", device_map="cpu"), model)
    config = {**AutoencoderKL.load_config(folder), "scaling_factor": 0.5}
    (folder / "config.json").unlink()
    assert AutoencoderKL.from_pretrained(folder, config=config, device_map={"": "cpu"}).config.scaling_factor == 0.5
    assert AutoencoderKL.from_pretrained(folder, config=config, scaling_factor=2.0).config.scaling_factor == 2.0


def test_old_names_of_attention_layers(model: AutoencoderKL, folder: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state_dict().items():
        for present, past in old.items():
            name = name.replace(f".{present}.", f".{past}.")
        state[name] = value
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    write_safetensors(folder / WEIGHTS, state, {})
    assert same(AutoencoderKL.from_pretrained(folder), model)


def test_shared_tensors_are_one_after_loading(tmp_path: Path) -> None:
    class Tied(AutoencoderKL):
        @register_to_config
        def __init__(self, block_out_channels: tuple[int, ...] = (32,)) -> None:
            super().__init__(block_out_channels=block_out_channels)
            self.decoder.conv_in.bias = self.encoder.conv_in.bias

    tied = Tied()
    tied.save_pretrained(tmp_path)
    loaded = Tied.from_pretrained(tmp_path)
    assert same(tied, loaded) and loaded.decoder.conv_in.bias is loaded.encoder.conv_in.bias
    state = tied.state_dict()
    del state["decoder.conv_in.bias"]
    write_safetensors(tmp_path / WEIGHTS, state, {})
    assert same(tied, Tied.from_pretrained(tmp_path))


def test_a_part_left_without_values_is_an_error(folder: Path) -> None:
    class Hollow(AutoencoderKL):
        @register_to_config
        def __init__(self, block_out_channels: tuple[int, ...] = (32,), norm_num_groups: int = 8) -> None:
            super().__init__(block_out_channels=block_out_channels, norm_num_groups=norm_num_groups)
            self.register_buffer("table", torch.arange(4), persistent=False)

    with pytest.raises(ConfigError, match=r"table.*device='cpu'"):
        Hollow.from_pretrained(folder)


def test_loading_takes_little_memory(tmp_path: Path) -> None:
    """Peak memory of loading with a cast, in a process of its own, stays within 1.15 of the result (and 24 MB)."""
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(512,), layers_per_block=2).save_pretrained(tmp_path)
    program = """
import sys, threading, time, psutil, torch
from langevin import AutoencoderKL
AutoencoderKL(block_out_channels=(32,))
process, peak, on = psutil.Process(), [0], [True]
start = process.memory_info().rss
def watch():
    while on[0]:
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
model = AutoencoderKL.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
on[0] = False; thread.join()
print(max(peak[0], process.memory_info().rss) - start, model.get_memory_footprint())
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    grown, result = map(int, done.stdout.split())
    assert result > 70e6
    assert grown < 1.15 * result + 24e6


# -- what does not fit ------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import load

    state = load((folder / WEIGHTS).read_bytes())
    change(state)
    write_safetensors(folder / WEIGHTS, state, {"format": "pt"})


def test_a_missing_weight_is_named_with_the_nearest_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def misspell(state: dict) -> None:
        state["encoder.conv_in.wieght"] = state.pop("encoder.conv_in.weight")

    rewrite(folder, misspell)
    with pytest.raises(WeightsError, match=r"1 weight is missing \('encoder.conv_in.weight' \(there is .*wieght"):
        AutoencoderKL.from_pretrained(folder)
    model, info = AutoencoderKL.from_pretrained(folder, strict=False, output_loading_info=True)
    assert info["missing_keys"] == ["encoder.conv_in.weight"]
    assert info["unexpected_keys"] == ["encoder.conv_in.wieght"]
    assert info["mismatched_keys"] == [] and model.encoder.conv_in.weight.std() > 0
    assert len([r for r in caplog.records if "encoder.conv_in" in r.message]) in (0, 2)


def test_another_shape_needs_permission(model: AutoencoderKL, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"encoder.conv_in.weight: file \(32, 3, 3, 3\), model \(32, 9, 3, 3\)"):
        AutoencoderKL.from_pretrained(folder, in_channels=9)
    with pytest.raises(WeightsError, match="ignore_mismatched_sizes=True"):
        AutoencoderKL.from_pretrained(folder, in_channels=9, strict=False)
    wide, info = AutoencoderKL.from_pretrained(
        folder, in_channels=9, low_cpu_mem_usage=False, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"] == [("encoder.conv_in.weight", (32, 3, 3, 3), (32, 9, 3, 3))]
    assert wide.encoder.conv_in.weight.shape[1] == 9 and 0 < wide.encoder.conv_in.weight.std() < 1
    assert torch.equal(wide.decoder.conv_in.weight, model.decoder.conv_in.weight)


def test_another_class_is_named(folder: Path) -> None:
    with pytest.raises(WeightsError, match="whose configuration is that of AutoencoderKL"):
        AutoencoderTiny.from_pretrained(folder)


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(folder: Path, bad: str, dtype: torch.dtype) -> None:
    def poison(state: dict) -> None:
        state["decoder.conv_out.weight"].view(-1)[-1] = float(bad)

    rewrite(folder, poison)
    for options in ({"check_finite": True}, {"disable_mmap": True}, {}):
        if dtype == torch.float32 and not options:
            # What stays in the file is not read, and so not looked at.
            assert not AutoencoderKL.from_pretrained(folder).decoder.conv_out.weight.isfinite().all()
            continue
        with pytest.raises(WeightsError, match=r"'decoder.conv_out.weight' holds (NaN|infinity)"):
            AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, **options)
    loaded = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, check_finite=False)
    assert not loaded.decoder.conv_out.weight.isfinite().all()


def test_a_value_too_large_for_the_type_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state["decoder.conv_out.bias"].fill_(1e6))
    with pytest.raises(WeightsError, match=r"infinity in torch.float16.*torch.bfloat16"):
        AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float16)
    assert AutoencoderKL.from_pretrained(folder, torch_dtype=torch.bfloat16).decoder.conv_out.bias.max() > 9e5


# -- which file -------------------------------------------------------------------------------------------------------


def test_variants(model: AutoencoderKL, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    half = AutoencoderKL(**TINY).half()
    half.save_pretrained(folder, variant="non-ema")
    assert same(AutoencoderKL.from_pretrained(folder, dtype="auto"), half), "the only one there is"
    half.save_pretrained(folder, variant="fp16.v2")
    with pytest.raises(WeightsError, match=r"_model.safetensors.*variant='fp16.v2' or variant='non-ema'.*config.json"):
        AutoencoderKL.from_pretrained(folder)
    (folder / "diffusion_pytorch_model.fp16.v2.safetensors").unlink()
    with pytest.raises(WeightsError, match="pass variant='non-ema'"):
        AutoencoderKL.from_pretrained(folder, variant="fp16")
    assert same(AutoencoderKL.from_pretrained(folder, variant="non-ema", dtype="auto"), half)
    model.save_pretrained(folder)
    assert same(AutoencoderKL.from_pretrained(folder), model), "original and variant share a folder"
    assert same(AutoencoderKL.from_pretrained(folder, variant="non-ema", dtype="auto"), half)
    with pytest.raises(WeightsError, match="leave `variant` out"):
        AutoencoderKL.from_pretrained(folder, variant="fp16")


@pytest.mark.parametrize("shard", ["{stem}-00001-of-00001.fp16.safetensors", "{stem}.fp16-00001-of-00001.safetensors"])
@pytest.mark.parametrize("index", ["{stem}.safetensors.index.fp16.json", "{stem}.fp16.safetensors.index.json"])
def test_both_spellings_of_a_sharded_variant(model: AutoencoderKL, folder: Path, shard: str, index: str) -> None:
    stem = "diffusion_pytorch_model"
    shard, index = shard.format(stem=stem), index.format(stem=stem)
    (folder / WEIGHTS).rename(folder / shard)
    table = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), shard)}
    (folder / index).write_text(json.dumps(table))
    assert same(AutoencoderKL.from_pretrained(folder, variant="fp16"), model)


def test_the_kind_of_file_can_be_chosen(model: AutoencoderKL, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model.bin; change `use_safetensors`"):
        AutoencoderKL.from_pretrained(folder, use_safetensors=False)
    other = AutoencoderKL(**TINY)
    other.save_pretrained(folder, safe_serialization=False)
    assert same(AutoencoderKL.from_pretrained(folder), model)
    assert same(AutoencoderKL.from_pretrained(folder, use_safetensors=False), other)
    (folder / WEIGHTS).unlink()
    assert same(AutoencoderKL.from_pretrained(folder), other)
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model.safetensors"):
        AutoencoderKL.from_pretrained(folder, use_safetensors=True)


def test_wrong_arguments_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'torch_dtype'"):
        AutoencoderKL.from_pretrained(folder, torch_dtyp=torch.float16)
    with pytest.raises(ConfigError, match="did you mean 'in_channels'"):
        AutoencoderKL.from_pretrained(folder, in_chanels=9)
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        AutoencoderKL.from_pretrained(folder, dtype="flaot16")
    with pytest.raises(ConfigError, match=r"dtype is torch\.int8"):
        AutoencoderKL.from_pretrained(folder, dtype=torch.int8)
    with pytest.raises(ConfigError, match="contradict"):
        AutoencoderKL.from_pretrained(folder, dtype="fp16", torch_dtype=torch.float32)
    with pytest.raises(ConfigError, match="spreads"):
        AutoencoderKL.from_pretrained(folder, device_map={"encoder": "cpu", "decoder": "cuda:0"})
    with pytest.raises(ConfigError, match="no device of torch"):
        AutoencoderKL.from_pretrained(folder, device_map="cuhda")
    with pytest.raises(InputError, match="did you mean 'vae'"):
        AutoencoderKL.from_pretrained(folder.parent / "vea")
    with pytest.raises(InputError, match=r"has no config\.json"):
        AutoencoderKL.from_pretrained(folder.parent)
    with pytest.raises(InputError, match="neither a local folder nor in the cache"):
        AutoencoderKL.from_pretrained("nobody/nothing", local_files_only=True)


# -- what a file is ---------------------------------------------------------------------------------------------------

IMPOSTERS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643238\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML message of a server"),
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 4096, "filled with zeros"),
    "text": (b"Entry not found, please try again later", "a text file that begins with 'Entry not found"),
    "json": (b'{"error": "Repository not found"}', "a JSON file"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a PNG picture"),
    "noise": (bytes(range(255, 100, -1)) * 9, "binary data of an unknown kind"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", IMPOSTERS)
def test_a_file_that_is_something_else_is_said_to_be_that(folder: Path, name: str, suffix: str) -> None:
    content, said = IMPOSTERS[name]
    (folder / WEIGHTS).unlink()
    (folder / f"diffusion_pytorch_model.{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        AutoencoderKL.from_pretrained(folder)


def test_a_truncated_file_is_said_to_be_truncated_wherever_it_ends(model: AutoencoderKL, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for length in (9, 100, header - 1, header, header + 1, len(content) // 2, len(content) - 1):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(WeightsError, match=rf"truncated: its header speaks of \d+ bytes and it has {length}"):
            AutoencoderKL.from_pretrained(folder)
    for length in (1, 7, 8):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(WeightsError, match="not a safetensors file"):
            AutoencoderKL.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes(content + b"x")
    with pytest.raises(WeightsError, match="1 bytes after its last tensor"):
        AutoencoderKL.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["encoder.conv_in.bias"].update(data_offsets=[0, 4]),
        lambda header: header["encoder.conv_in.bias"].update(data_offsets=[-8, 120]),
        lambda header: header["encoder.conv_in.bias"].update(shape=[2**40]),
        lambda header: header["encoder.conv_in.bias"].update(shape="many"),
        lambda header: header["encoder.conv_in.bias"].update(dtype="F33"),
        lambda header: header.update({"encoder.conv_in.bias": 3}),
    ],
)
def test_a_lying_header_is_refused(folder: Path, change: Callable[[dict], None]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(WeightsError, match="damaged"):
        AutoencoderKL.from_pretrained(folder)


class Bomb:
    def __reduce__(self) -> tuple:
        return print, ("code from a file ran",)


@pytest.mark.parametrize("old_format", [True, False])
def test_code_in_a_pickle_is_not_run(folder: Path, old_format: bool, capsys: pytest.CaptureFixture) -> None:
    (folder / WEIGHTS).unlink()
    path = folder / "diffusion_pytorch_model.bin"
    torch.save({"encoder.conv_in.weight": Bomb()}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(WeightsError, match=r"wants to run code when it is opened \(.*print\)"):
        AutoencoderKL.from_pretrained(folder)
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.bin"):
        AutoencoderKL.from_pretrained(folder)
    assert "code from a file ran" not in capsys.readouterr().out


def test_other_contents_of_a_pickle_are_named(model: AutoencoderKL, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    path = folder / "diffusion_pytorch_model.bin"
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    with pytest.raises(WeightsError, match="no tensors: epoch, state_dict"):
        AutoencoderKL.from_pretrained(folder)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(WeightsError, match="it holds list"):
        AutoencoderKL.from_pretrained(folder)
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        AutoencoderKL.from_pretrained(folder)


# -- shard indexes ----------------------------------------------------------------------------------------------------


def shard(folder: Path, model: AutoencoderKL) -> Path:
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder / f"{WEIGHTS}.index.json"


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "..\\secret.safetensors"])
def test_an_index_cannot_lead_out_of_the_folder(model: AutoencoderKL, folder: Path, name: str) -> None:
    index = shard(folder, model)
    (folder.parent / "secret.safetensors").write_bytes(b"secret")
    table = json.loads(index.read_text())
    table["weight_map"]["encoder.conv_in.weight"] = name
    index.write_text(json.dumps(table))
    with pytest.raises(WeightsError, match=r"refused.*outside"):
        AutoencoderKL.from_pretrained(folder)


def test_missing_shards_and_broken_indexes_are_named(model: AutoencoderKL, folder: Path) -> None:
    index = shard(folder, model)
    assert same(AutoencoderKL.from_pretrained(folder), model)
    table = json.loads(index.read_text())
    names = sorted(set(table["weight_map"].values()))
    table["weight_map"]["ghost"] = names[0]
    index.write_text(json.dumps(table))
    with pytest.raises(WeightsError, match="promises weights that its shards do not hold: ghost"):
        AutoencoderKL.from_pretrained(folder)
    (folder / names[1]).unlink()
    with pytest.raises(WeightsError, match=f"does not hold: {names[1]}"):
        AutoencoderKL.from_pretrained(folder)
    for content in ("[]", "{", '{"weight_map": 3}', "version https://git-lfs.github.com/spec/v1"):
        index.write_text(content)
        with pytest.raises(WeightsError, match="not a shard index"):
            AutoencoderKL.from_pretrained(folder)


# -- the file format --------------------------------------------------------------------------------------------------


def test_every_type_and_shape_goes_through_and_agrees_with_the_safetensors_package(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "matrix": torch.randn(3, 5).t(),
        "a.é": torch.randn(7).half(),
        "scalar": torch.tensor(3.0),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "odd": torch.randn(2, 3).bfloat16()[:, 1:],
        "long": torch.arange(6).view(2, 3),
        "double": torch.randn(2).double(),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    theirs = load_file(path)
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "pt"} and set(file.entries) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(theirs[name], tensor)
            view = file.view(name)
            assert view is None or torch.equal(view, tensor)
        targets = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
        file.read(targets)
        assert all(torch.equal(targets[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(WeightsError, match="meta device"):
        write_safetensors(path, {"x": torch.empty(2, device="meta")}, {})
    with pytest.raises(WeightsError, match="sparse"):
        write_safetensors(path, {"x": torch.eye(2).to_sparse()}, {})


def test_large_tensors_are_read_in_blocks_and_small_ones_share_them(tmp_path: Path) -> None:
    tensors = {"big": torch.randn(14, 1 << 20), "one": torch.randn(5), "two": torch.randn(2, 2), "half": torch.ones(3)}
    tensors["half"] = tensors["half"].half()
    write_safetensors(tmp_path / "x.safetensors", tensors, {})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        targets = {name: torch.empty(tensor.shape, dtype=torch.float16) for name, tensor in tensors.items()}
        seen: list[tuple[str, int]] = []
        file.read(targets, lambda piece, name: seen.append((name, piece.numel())))
        assert all(torch.equal(targets[name], tensor.half()) for name, tensor in tensors.items())
        assert {name for name, _ in seen} == set(tensors) 
        assert len(seen) == -(-tensors["big"].nbytes // CHUNK) + 3
        assert sum(count for _, count in seen) == sum(tensor.numel() for tensor in tensors.values())


def test_a_large_sum_is_no_damage_and_a_damaged_neighbour_is_not_blamed(folder: Path) -> None:
    def fill(value: float) -> Callable[[dict], None]:
        return lambda state: state["decoder.conv_out.bias"].fill_(value)

    rewrite(folder, fill(65515.0))
    assert AutoencoderKL.from_pretrained(folder, dtype="float16").decoder.conv_out.bias.max() == 65504.0
    rewrite(folder, fill(3.0e38))
    assert AutoencoderKL.from_pretrained(folder).decoder.conv_out.bias.isfinite().all()
    for value in (65520.0, float("inf")):
        rewrite(folder, fill(value))
        with pytest.raises(WeightsError, match=r"'decoder.conv_out.bias' holds infinity in torch.float16"):
            AutoencoderKL.from_pretrained(folder, dtype="float16")
    with pytest.raises(WeightsError, match=r"'decoder.conv_out.bias' holds infinity in torch.float32"):
        AutoencoderKL.from_pretrained(folder, check_finite=True)


def test_initial_values_are_computed_only_where_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Size] = []

    def draw(tensor: torch.Tensor, *arguments: float, **options: object) -> torch.Tensor:
        drawn.append(tensor.shape)
        return tensor

    monkeypatch.setattr(torch.nn.init, "_no_grad_uniform_", draw)
    AutoencoderKL.from_pretrained(folder)
    assert drawn == []
    AutoencoderKL(**TINY)
    assert drawn


def test_descriptions(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "zip")
    assert describe(tmp_path / "zip").startswith("a zip archive")
