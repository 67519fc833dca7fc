"""Custom Diffusion: trained attentions and learned words load as documented, give the peer's pictures, and leave."""

from __future__ import annotations

import copy
import logging

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor as PeerProcessor
from safetensors.torch import load_file

import langevin
from langevin.adapters import custom_diffusion, ip_adapter
from langevin.core.errors import ConfigError, WeightsError
from langevin.core.weights_io import Entry
from langevin.weights.dialects import custom_diffusion as dialect
from langevin.weights.dialects.ip_adapter import parse
from tests.pipelines import ip_adapters as ip
from tests.pipelines import tiny
from tests.pipelines.pairs import difference

FILE = "pytorch_custom_diffusion_weights.bin"
WORDS = {"<new1>": torch.randn(1, tiny.WIDTH), "<new2>": torch.randn(1, tiny.WIDTH)}


def trained(unet, *, whole: bool) -> None:
    """Give a network of the peer the processors of its training, with random weights."""
    torch.manual_seed(8)
    processors = {}
    for name in unet.attn_processors:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        cross = name.endswith("attn2.processor")
        processors[name] = PeerProcessor(
            train_kv=cross,
            train_q_out=cross and whole,
            hidden_size=attn.to_q.weight.shape[0],
            cross_attention_dim=attn.to_k.weight.shape[1] if cross else None,
        )
    unet.set_attn_processor(processors)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """The peer's pipeline and ours over one folder; tests leave their networks as they found them."""
    folder = tmp_path_factory.mktemp("model")
    tiny.stable_diffusion(diffusers, folder).save_pretrained(folder / "model")
    made = [lib.StableDiffusionPipeline.from_pretrained(folder / "model") for lib in (diffusers, langevin)]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["crossattn_kv", "crossattn"])
def folder(request, pipes, tmp_path_factory):
    """What the documented training script leaves: the weights, and one file for each word."""
    made = tmp_path_factory.mktemp("custom")
    unet = copy.deepcopy(pipes[0].unet)
    trained(unet, whole=request.param)
    unet.save_attn_procs(made, weight_name=FILE, safe_serialization=False)
    for word, rows in WORDS.items():
        torch.save({word: rows[0]}, made / f"{word}.bin")
    return made


def snapshot(unet) -> tuple[dict, dict]:
    return {name: weight.clone() for name, weight in unet.state_dict().items()}, dict(unet.attn_processors)


def untouched(unet, before) -> bool:
    weights, processors = before
    now = unet.state_dict()
    return (
        now.keys() == weights.keys()
        and all(torch.equal(now[name], weights[name]) for name in now)
        and all(unet.attn_processors[name] is each for name, each in processors.items())
    )


def parts(unet) -> dict[str, torch.Tensor]:
    """Return the trained weights in a network, as the file names them."""
    return {
        f"{name}.{part}": weight
        for name, each in unet.attn_processors.items()
        if isinstance(each, torch.nn.Module)
        for part, weight in each.state_dict().items()
    }


@pytest.mark.parity
def test_the_documented_calls_give_the_pictures_of_the_peers_training(pipes, folder, request) -> None:
    trainer = diffusers.StableDiffusionPipeline(**pipes[0].components, requires_safety_checker=False)
    trainer.set_progress_bar_config(disable=True)
    trainer.unet = copy.deepcopy(pipes[0].unet)
    trained(trainer.unet, whole="[crossattn]" in request.node.name)
    ours = pipes[1]
    ours.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    plain = ours(prompt="a cat", num_inference_steps=2, seed=0, output_type="np").images
    before = snapshot(ours.unet)
    ours.unet.load_attn_procs(folder, weight_name=FILE)
    for pipe in (trainer, ours):
        for word in WORDS:
            pipe.load_textual_inversion(folder, weight_name=f"{word}.bin")
    call = {"prompt": ["a <new1> cat", "the <new1> in the style of a <new2>"], "num_inference_steps": 2, "eta": 1.0}
    far = difference((trainer, ours), **call)
    changed = ours(prompt="a cat", num_inference_steps=2, seed=0, output_type="np").images
    for pipe in (trainer, ours):
        pipe.unload_textual_inversion()
    assert custom_diffusion.unload(ours.unet) and untouched(ours.unet, before)
    again = ours(prompt="a cat", num_inference_steps=2, seed=0, output_type="np").images
    assert far <= 1e-4 and not (changed == plain).all()
    assert (again == plain).all()


@pytest.mark.parity
def test_loading_takes_effect(pipes, folder) -> None:
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, tiny.WIDTH)
    far = []
    for pipe in pipes:
        unet = copy.deepcopy(pipe.unet)
        before = unet(x, t, text).sample
        unet.load_attn_procs(folder, weight_name=FILE)
        far.append(float((unet(x, t, text).sample - before).detach().abs().max()))
    assert far[0] == 0 and far[1] > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("safe", [True, False])
def test_what_is_saved_is_loaded_and_is_what_the_peer_saves(pipes, folder, tmp_path, safe) -> None:
    ours, again = (copy.deepcopy(pipes[1].unet) for _ in range(2))
    ours.load_attn_procs(folder, weight_name=FILE)
    ours.save_attn_procs(tmp_path, safe_serialization=safe)
    (file,) = tmp_path.iterdir()
    assert file.name == FILE.replace(".bin", ".safetensors" if safe else ".bin")
    again.load_attn_procs(tmp_path)
    assert same(parts(ours), parts(again))
    written = load_file(file) if safe else torch.load(file, weights_only=True)
    theirs = {
        name: w for name, w in torch.load(folder / FILE, weights_only=True).items() if isinstance(w, torch.Tensor)
    }
    assert same(written, theirs)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_is_saved_without_what_was_loaded(pipes, folder, tmp_path) -> None:
    unet = copy.deepcopy(pipes[1].unet)
    before = unet.state_dict()
    unet.load_attn_procs(folder, weight_name=FILE)
    assert unet.state_dict().keys() == before.keys()
    unet.save_pretrained(tmp_path)
    again = langevin.UNet2DConditionModel.from_pretrained(tmp_path)
    assert same(again.state_dict(), before)
    unet.load_state_dict(before, strict=True)


def test_a_second_load_takes_the_place_of_the_first(pipes, folder) -> None:
    unet = copy.deepcopy(pipes[1].unet)
    before = snapshot(unet)
    state = torch.load(folder / FILE, weights_only=True)
    name = next(key for key in state if key.endswith("attn2.processor.to_k_custom_diffusion.weight"))
    attention = name.split(".processor.")[0]
    unet.load_attn_procs(state)
    unet.load_attn_procs({key: value for key, value in state.items() if key.startswith(attention)})
    assert set(parts(unet)) == {key for key in state if key.startswith(f"{attention}.processor.")}
    custom_diffusion.unload(unet)
    assert untouched(unet, before) and not custom_diffusion.unload(unet)


def test_ip_adapters_and_custom_diffusion_do_not_replace_each_other(pipes, folder) -> None:
    unet = copy.deepcopy(pipes[1].unet)
    before, pictures = snapshot(unet), [parse(ip.adapter("base", unet))]
    ip_adapter.attach(unet, pictures)
    with pytest.raises(ConfigError, match=r"unload_ip_adapter\(\)"):
        unet.load_attn_procs(folder, weight_name=FILE)
    assert ip_adapter.processors(unet) and ip_adapter.detach(unet) and untouched(unet, before)
    unet.load_attn_procs(folder, weight_name=FILE)
    with pytest.raises(ConfigError, match="CustomDiffusionAttnProcessor"):
        ip_adapter.attach(unet, pictures)
    assert custom_diffusion.unload(unet) and untouched(unet, before)


def test_the_type_is_the_attentions(pipes, folder) -> None:
    unet = copy.deepcopy(pipes[1].unet).half()
    unet.load_attn_procs(folder, weight_name=FILE)
    assert {weight.dtype for weight in unet.parameters()} == {torch.float16} and parts(unet)
    unet.set_default_attn_processor()
    default = dict(unet.attn_processors)
    assert not parts(unet) and custom_diffusion.unload(unet)
    assert all(unet.attn_processors[name] is each for name, each in default.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {k.replace("mid_block", "mid_blok"): v for k, v in s.items()},
            "no attention 'mid_blok.*there is 'mid_block",
        ),
        (
            lambda s: {k: v[..., :5] if hasattr(v, "shape") else v for k, v in s.items()},
            r"other shapes: .*file \(.*, 5\)",
        ),
        (lambda s: {k: v for k, v in s.items() if "to_v" not in k}, "lacks to_v_custom_diffusion.weight"),
        (lambda s: {**s, "x.to_z_custom_diffusion": torch.zeros(1)}, "none of theirs: x.to_z_custom_diffusion"),
    ],
    ids=["names", "shapes", "halves", "foreign"],
)
def test_wrong_files_change_nothing(pipes, folder, change, words) -> None:
    unet = copy.deepcopy(pipes[1].unet)
    before = snapshot(unet)
    with pytest.raises(WeightsError, match=words):
        unet.load_attn_procs(change(torch.load(folder / FILE, weights_only=True)))
    assert untouched(unet, before)


def test_there_has_to_be_something_to_save(pipes, tmp_path) -> None:
    with pytest.raises(WeightsError, match="No attention of this UNet2DConditionModel has weights"):
        custom_diffusion.save(pipes[1].unet, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_look_tells_what_it_is(folder) -> None:
    state = torch.load(folder / FILE, weights_only=True)
    entries = {name: Entry(w.dtype, tuple(w.shape), 0, 1) for name, w in state.items() if isinstance(w, torch.Tensor)}
    found = dialect.probe(entries, {})
    assert found is not None and found.kind == "custom diffusion"
    assert found.details["attentions"] == 4 and found.details["projections"][0] == "to_k"
    assert dialect.probe({**entries, "conv.weight": entries[next(iter(entries))]}, {}) is None
    assert dialect.probe({}, {}) is None


# DreamBooth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_results_of_dreambooth_load_as_documented(pipes, tmp_path, caplog) -> None:
    """The result is a pipeline; its parts, and those of a checkpoint with a folder for each, can be taken alone."""
    tuned = tiny.stable_diffusion(diffusers, tmp_path / "words", scheduler=tiny.scheduler(diffusers, "DDIMScheduler"))
    with torch.no_grad():
        for part in (tuned.unet, tuned.text_encoder):
            for weight in part.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    tuned.save_pretrained(tmp_path / "result")
    tuned.unet.save_pretrained(tmp_path / "result" / "checkpoint-100" / "unet")
    tuned.text_encoder.save_pretrained(tmp_path / "result" / "checkpoint-100" / "text_encoder")
    base = tmp_path / "base"
    tiny.stable_diffusion(diffusers, tmp_path / "base-words").save_pretrained(base)
    from transformers import CLIPTextModel

    with caplog.at_level(logging.WARNING, logger="langevin"):
        whole = langevin.StableDiffusionPipeline.from_pretrained(tmp_path / "result")
        unet = langevin.UNet2DConditionModel.from_pretrained(tmp_path / "result" / "checkpoint-100" / "unet")
        text = CLIPTextModel.from_pretrained(tmp_path / "result" / "checkpoint-100", subfolder="text_encoder")
        parts = langevin.DiffusionPipeline.from_pretrained(base, unet=unet, text_encoder=text)
    assert not caplog.records
    for pipe in (tuned, whole, parts):
        pipe.set_progress_bar_config(disable=True)
    for ours in (whole, parts):
        assert difference((tuned, ours), prompt=["a cat", "a dog"], num_inference_steps=2) <= 1e-4
    plain = langevin.DiffusionPipeline.from_pretrained(base)
    plain.set_progress_bar_config(disable=True)
    assert difference((tuned, plain), prompt=["a cat", "a dog"], num_inference_steps=2) > 1e-3
