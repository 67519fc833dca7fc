"""LoRA on whole pipelines: the same pictures as the peer's, and everything undone."""

from __future__ import annotations

import threading

import diffusers
import numpy as np
import pytest
import torch

import langevin
import langevin.adapters.stack
import langevin.core.weights_io
from langevin.core.errors import ConfigError, InputError, NonFiniteError, WeightsError
from tests.adapters import loras
from tests.pipelines import pairs

TOLERANCE = 1e-4
CALL = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 4.0}


def components(pipe) -> list[str]:
    return ["unet", "text_encoder", *(["text_encoder_2"] if hasattr(pipe, "text_encoder_2") else [])]


def adapter(pipe, seed: int = 0, ends=loras.UNET, strength: float = 3.0, **options) -> dict:
    """Return a random LoRA for every network of a pipeline."""
    return {
        name: loras.halves(
            getattr(pipe, name), ends if name == "unet" else loras.TEXT, seed=seed + k, strength=strength, **options
        )
        for k, name in enumerate(components(pipe))
    }


@pytest.fixture(scope="module")
def sd(sd_folder):
    """The peer's pipeline and ours; tests leave them without adapters."""
    return tuple(fresh(library, sd_folder) for library in (diffusers, langevin))


@pytest.fixture(scope="module")
def sdxl(xl_folder):
    """The same for Stable Diffusion XL."""
    return tuple(fresh(library, xl_folder) for library in (diffusers, langevin))


def clone(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def in_the_unet(parts: dict) -> dict:
    return loras.diffusers({"unet": parts["unet"]})


def add_to_texts(pipe, parts: dict, weight: float) -> None:
    """Add an adapter to the weights of the peer's text encoders, which it does not load reliably itself."""
    with torch.no_grad():
        for name, layers in parts.items():
            for path, (down, up) in layers.items() if name != "unet" else ():
                getattr(pipe, name).get_submodule(path).weight += weight * (up @ down)


def fresh(library, folder):
    pipe = library.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["sd", "sdxl"])
def both(request):
    """Both families in turn, cleaned up afterwards."""
    pipes = request.getfixturevalue(request.param)
    kept = {name: clone(getattr(pipes[0], name)) for name in components(pipes[0]) if name != "unet"}
    yield pipes
    for name, state in kept.items():
        getattr(pipes[0], name).load_state_dict(state)
    for pipe in pipes:
        if getattr(pipe, "num_fused_loras", 0):
            pipe.unfuse_lora()
        pipe.unload_lora_weights()


@pytest.fixture
def ours(sd_folder):
    return fresh(langevin, sd_folder)


def differ(pipes, **call) -> float:
    return pairs.difference(pipes, "DDIMScheduler", **{**CALL, **call})


def draw(pipe, **call) -> np.ndarray:
    pipe.scheduler = langevin.DDIMScheduler()
    return pipe(generator=torch.Generator().manual_seed(7), output_type="np", **{**CALL, **call}).images


def original(pipe) -> dict[str, str]:
    """Return the names of a tiny UNet's layers in the original layout, written out by hand."""
    blocks = {
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
    }
    names = {}
    for path in loras.targets(pipe.unet, loras.UNET):
        start = next(block for block in blocks if path.startswith(f"{block}."))
        names[path] = blocks[start] + path.removeprefix(start)
    return names


# Parity --------------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("dialect", ["diffusers", "peft", "kohya"])
def test_the_same_file_gives_the_same_pictures(both, dialect) -> None:
    theirs, ours = both
    plain, parts, spell = draw(ours), adapter(ours), getattr(loras, dialect)
    theirs.load_lora_weights(spell({"unet": parts["unet"]}))
    add_to_texts(theirs, parts, 2.0 / loras.RANK if dialect == "kohya" else 1.0)
    ours.load_lora_weights(spell(parts))
    assert differ(both) <= TOLERANCE
    assert np.abs(draw(ours) - plain).max() > 1e-2


@pytest.mark.parity
def test_names_of_the_original_checkpoint(sdxl) -> None:
    state = loras.kohya({"unet": adapter(sdxl[1])["unet"]}, names=original(sdxl[1]))
    assert any("input_blocks" in name for name in state)
    for pipe in sdxl:
        pipe.load_lora_weights(dict(state))
    try:
        assert differ(sdxl) <= TOLERANCE
    finally:
        for pipe in sdxl:
            pipe.unload_lora_weights()


@pytest.mark.parity
def test_processors_and_convolutions(sd) -> None:
    unet = sd[1].unet
    parts = {"unet": loras.halves(unet, strength=3.0)}
    convolutions = {"unet": loras.halves(unet, ("conv1", "proj_in", "downsamplers.0.conv"), strength=3.0)}
    for state in (loras.processors(parts), loras.kohya(convolutions)):
        for pipe in sd:
            pipe.load_lora_weights(dict(state))
        assert differ(sd) <= TOLERANCE
        for pipe in sd:
            pipe.unload_lora_weights()


@pytest.mark.parity
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.2])
def test_a_scale_of_the_call(both, scale) -> None:
    theirs, ours = both
    parts = adapter(ours)
    theirs.load_lora_weights(in_the_unet(parts))
    add_to_texts(theirs, parts, scale)
    ours.load_lora_weights(loras.diffusers(parts))
    full = draw(ours)
    assert differ(both, cross_attention_kwargs={"scale": scale}) <= TOLERANCE
    assert np.abs(full - draw(ours, cross_attention_kwargs={"scale": scale})).max() > 1e-3
    assert np.array_equal(draw(ours), full)


WEIGHTS = (
    (0.4, 0.4),
    ({"unet": 0.3, "text_encoder": 0.8, "text_encoder_2": 0.8}, 0.8),
    ({"unet": {"down": 0.2, "mid": 0.5, "up": 1.2}}, 1.0),
    ({"text_encoder": 0.5, "text_encoder_2": 0.5, "unet": {"down": 0.9, "up": {"block_1": [0.4, 0.8]}}}, 0.5),
    ({"unet": {"up": {"block_1": 0.1}}}, 1.0),
)


@pytest.mark.parity
@pytest.mark.parametrize("weights, text", WEIGHTS)
def test_weights_by_component_and_block(both, weights, text) -> None:
    theirs, ours = both
    parts, own = adapter(ours), weights
    if isinstance(weights, dict):
        own = {name: value for name, value in weights.items() if name in components(ours)}
    theirs.load_lora_weights(in_the_unet(parts), adapter_name="style")
    theirs.set_adapters("style", {"unet": own["unet"]} if isinstance(own, dict) else own)
    add_to_texts(theirs, parts, text)
    ours.load_lora_weights(loras.diffusers(parts), adapter_name="style")
    ours.set_adapters("style", own)
    assert differ(both) <= TOLERANCE


def test_weights_by_block_are_for_attentions_alone(ours) -> None:
    ends = (*loras.UNET, "conv1", "downsamplers.0.conv")
    ours.load_lora_weights(loras.kohya({"unet": loras.halves(ours.unet, ends)}))
    ours.set_adapters("default_0", {"unet": {"down": 0.1, "mid": 0.2, "up": 0.3}})
    weights = langevin.adapters.stack.Stack(ours.unet).weights("default_0")
    assert {weights[path] for path in weights if "attentions" not in path} == {1.0}
    assert {weights[path] for path in weights if "attentions" in path} == {0.1, 0.2, 0.3}


@pytest.mark.parity
def test_several_adapters(both) -> None:
    theirs, ours = both
    given = {name: {"unet": adapter(ours, seed=seed, rank=rank)["unet"]} for name, seed, rank in TWO}
    for pipe in both:
        for name, parts in given.items():
            pipe.load_lora_weights(loras.diffusers(parts), adapter_name=name)
    assert [pipe.get_active_adapters() for pipe in both] == [["two"], ["two"]]
    assert differ(both) <= TOLERANCE
    for names, weights in ((["one", "two"], [0.7, -0.5]), (["one"], None), (["two", "one"], 0.5)):
        for pipe in both:
            pipe.set_adapters(names, weights)
        assert differ(both) <= TOLERANCE
    assert theirs.get_list_adapters() == ours.get_list_adapters() == {"unet": ["one", "two"]}
    for change in ("disable_lora", "enable_lora"):
        for pipe in both:
            getattr(pipe, change)()
        assert differ(both) <= TOLERANCE
    for pipe in both:
        pipe.set_adapters("two")
        pipe.delete_adapters("two")
    assert [pipe.get_active_adapters() for pipe in both] == [["one"], ["one"]]


TWO = (("one", 0, 3), ("two", 10, 2))


@pytest.mark.parity
def test_fused_and_unfused(both) -> None:
    theirs, ours = both
    plain, parts = draw(ours), adapter(ours)
    theirs.load_lora_weights(in_the_unet(parts), adapter_name="style")
    add_to_texts(theirs, parts, 0.6)
    ours.load_lora_weights(loras.diffusers(parts), adapter_name="style")
    whole = draw(ours)
    for pipe in both:
        pipe.fuse_lora(lora_scale=0.6)
    assert differ(both) <= TOLERANCE
    assert np.abs(draw(ours) - plain).max() > 1e-3
    assert theirs.num_fused_loras == ours.num_fused_loras == 1
    assert theirs.fused_loras == ours.fused_loras == {"style"}
    for pipe in both:
        pipe.unfuse_lora()
    assert ours.num_fused_loras == 0 and np.array_equal(draw(ours), whole)


@pytest.mark.parity
@pytest.mark.parametrize("dialect", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_the_peer_loads_what_is_saved(request, tmp_path, dialect, family) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    theirs, ours = both = tuple(fresh(library, folder) for library in (diffusers, langevin))
    ours.load_lora_weights(loras.kohya(adapter(ours), alpha=1.5))
    ours.save_lora_weights(tmp_path, dialect=dialect)
    theirs.load_lora_weights(tmp_path)
    assert differ(both) <= TOLERANCE


@pytest.mark.parity
def test_what_the_peer_saves_is_loaded(both, tmp_path) -> None:
    theirs, ours = both
    layers = in_the_unet(adapter(ours))
    type(theirs).save_lora_weights(
        tmp_path,
        {name.removeprefix("unet."): value for name, value in layers.items()},
        unet_lora_adapter_metadata={"r": 3, "lora_alpha": 1, "target_modules": list(loras.UNET)},
    )
    for pipe in both:
        pipe.load_lora_weights(tmp_path)
    assert differ(both) <= TOLERANCE
    stack = langevin.adapters.stack.Stack(ours.unet)
    assert {parts.alpha for parts in stack.parts("default_0").values()} == {1.0}


@pytest.mark.parametrize("scale", [None, 0.3])
def test_prompts_encoded_with_a_scale(both, scale) -> None:
    theirs, ours = both
    parts = adapter(ours)
    add_to_texts(theirs, parts, 1.0 if scale is None else scale)
    ours.load_lora_weights(loras.diffusers(parts))
    call = {"prompt": "a cat", "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    expected, found = theirs.encode_prompt(**call)[0], ours.encode_prompt(**call, lora_scale=scale)[0]
    assert (expected - found).abs().max() <= TOLERANCE


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["diffusers", "peft", "kohya"])
def test_load_save_load_changes_nothing(ours, tmp_path, dialect) -> None:
    ours.load_lora_weights(loras.kohya(adapter(ours), alpha=1.5))
    wanted = draw(ours)
    ours.save_lora_weights(tmp_path, dialect=dialect)
    ours.unload_lora_weights()
    assert np.abs(draw(ours) - wanted).max() > 1e-3
    ours.load_lora_weights(tmp_path)
    assert np.array_equal(draw(ours), wanted)


def test_by_default_a_file_is_saved_as_it_was(ours, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    state = {name: t.half() if t.ndim else t for name, t in loras.kohya(adapter(ours), names=None).items()}
    save_file(state, tmp_path / "style.safetensors", metadata={"ss_network_dim": "3"})
    ours.load_lora_weights(tmp_path / "style.safetensors")
    ours.save_lora_weights(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], value) and saved[name].dtype == value.dtype for name, value in state.items())
    with langevin.core.weights_io.SafetensorsFile(tmp_path / "again" / "pytorch_lora_weights.safetensors") as file:
        assert file.metadata["ss_network_dim"] == "3"


def test_a_file_a_folder_here_and_a_pickle(ours, tmp_path, monkeypatch) -> None:
    from safetensors.torch import save_file

    state = loras.kohya(adapter(ours))
    save_file(state, tmp_path / "castle.safetensors")
    torch.save(state, tmp_path / "castle.pt")
    monkeypatch.chdir(tmp_path)
    pictures = []
    for where, options in (
        (str(tmp_path / "castle.safetensors"), {}),
        (".", {"weight_name": "castle.safetensors"}),
        (tmp_path, {}),
        (tmp_path, {"weight_name": "castle.pt"}),
        (tmp_path.parent, {"subfolder": tmp_path.name, "use_safetensors": False}),
        (state, {}),
    ):
        ours.load_lora_weights(where, **options)
        pictures.append(draw(ours))
        ours.unload_lora_weights()
    assert all(np.array_equal(pictures[0], other) for other in pictures)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"give weight_name=, one of: castle.safetensors, other.safetensors"):
        ours.load_lora_weights(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        ours.load_lora_weights(tmp_path / "none")
    with pytest.raises(ConfigError, match="did you mean 'weight_name'"):
        ours.load_lora_weights(tmp_path, weightname="x")


def test_layers_given_to_the_class(ours, tmp_path) -> None:
    parts = {"unet": loras.halves(ours.unet)}
    layers = {name.removeprefix("unet."): value for name, value in loras.diffusers(parts).items()}
    cls = type(ours)
    cls.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="mine.safetensors")
    state, alphas = cls.lora_state_dict(tmp_path)
    assert state.keys() == loras.diffusers(parts).keys() and alphas is None
    cls.load_lora_into_unet(state, alphas, ours.unet)
    assert ours.get_list_adapters() == {"unet": ["default_0"]}
    with pytest.raises(ConfigError, match="nothing to save"):
        cls.save_lora_weights(tmp_path)


def test_alphas_travel_beside_the_state_dict(ours) -> None:
    cls, state = type(ours), loras.kohya(adapter(ours), alpha=1.0)
    ours.load_lora_weights(state)
    wanted = draw(ours)
    ours.unload_lora_weights()
    tensors, alphas = ours.lora_state_dict(state)
    assert set(alphas.values()) == {1.0} and tensors.keys() | alphas.keys() == state.keys()
    cls.load_lora_into_unet(tensors, alphas, ours.unet, adapter_name="a")
    cls.load_lora_into_text_encoder(tensors, alphas, ours.text_encoder, adapter_name="a")
    assert np.array_equal(draw(ours), wanted)


# Strictness ----------------------------------------------------------------------------------------------------------


def test_nothing_is_attached_when_a_file_does_not_fit(ours, sdxl) -> None:
    good = loras.kohya(adapter(ours))
    wrong = [
        {name.replace("lora_unet", "lora_unt"): value for name, value in good.items()},
        {name.replace("to_q", "to_kq"): value for name, value in good.items()},
        {name: value for name, value in good.items() if "lora_up" not in name},
        loras.kohya(adapter(sdxl[1])),
        {},
    ]
    plain = draw(ours)
    for state in wrong:
        with pytest.raises(WeightsError):
            ours.load_lora_weights(state)
        assert ours.get_list_adapters() == {} and np.array_equal(draw(ours), plain)


def test_parts_of_absent_components_are_left_out_with_one_warning(ours, caplog_ours) -> None:
    state = loras.diffusers(adapter(ours))
    small = langevin.StableDiffusionPipeline(
        **{**ours.components, "text_encoder": None, "tokenizer": None}, requires_safety_checker=False
    )
    small.load_lora_weights(state)
    assert small.get_list_adapters() == {"unet": ["default_0"]}
    assert len(caplog_ours.records) == 1 and "there is no text_encoder here" in caplog_ours.text
    small.unload_lora_weights()
    caplog_ours.clear()
    ours.load_lora_weights({name: value for name, value in state.items() if name.startswith("unet.")})
    assert not caplog_ours.records


def test_a_scale_without_an_adapter_warns_once(ours, caplog_ours) -> None:
    draw(ours, cross_attention_kwargs={"scale": 0.5})
    assert [record.message for record in caplog_ours.records if "scale" in record.message] == [
        "The adapters' scale of 0.5 has no effect: no adapter is loaded."
    ]


def test_names_and_weights_are_checked(ours) -> None:
    with pytest.raises(ConfigError, match="No adapter is loaded"):
        ours.set_adapters("style")
    ours.load_lora_weights(loras.diffusers(adapter(ours)), adapter_name="style")
    before = draw(ours)
    for names, weights, message in (
        ("stile", None, "did you mean 'style'"),
        ("style", [1.0, 2.0], "2 weights for 1 adapters"),
        ("style", {"unt": 1.0}, "did you mean 'unet'"),
        ("style", {"unet": {"middle": 1.0}}, "'middle'"),
        ("style", {"unet": {"up": {"block_7": 1.0}}}, "'block_7'"),
        ("style", {"unet": {"up": {"block_1": [1.0, 2.0, 3.0]}}}, "3 weights for 2"),
        ("style", {"text_encoder": {"down": 1.0}}, "must be a number"),
        ("style", "much", "must be a number"),
    ):
        with pytest.raises((ConfigError, InputError), match=message):
            ours.set_adapters(names, weights)
    with pytest.raises(ConfigError, match="'style' is in use"):
        ours.load_lora_weights(loras.diffusers(adapter(ours)), adapter_name="style")
    assert np.array_equal(draw(ours), before)


# Runs ----------------------------------------------------------------------------------------------------------------


def test_pipelines_that_share_networks_share_adapters(ours) -> None:
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(ours)
    ours.load_lora_weights(loras.diffusers(adapter(ours)), adapter_name="style")
    assert other.get_list_adapters() == ours.get_list_adapters()
    other.set_adapters("style", 0.5)
    half = draw(ours)
    ours.set_adapters("style", 0.5)
    assert np.array_equal(draw(ours), half)
    other.unload_lora_weights()
    assert ours.get_list_adapters() == {}


def test_two_runs_at_once_with_a_scale(ours) -> None:
    ours.load_lora_weights(loras.diffusers(adapter(ours)))
    call = {"cross_attention_kwargs": {"scale": 0.5}}
    wanted, made = draw(ours, **call), []
    threads = [threading.Thread(target=lambda: made.append(draw(ours, **call))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3 and all(np.array_equal(wanted, one) for one in made)


def test_a_direct_call_of_the_network(ours, caplog_ours) -> None:
    unet = ours.unet
    call = {"sample": torch.randn(1, 4, 8, 8), "timestep": 5, "encoder_hidden_states": torch.randn(1, 7, 32)}
    with torch.no_grad():
        plain = unet(**call).sample
        unet(**call, cross_attention_kwargs={"scale": 1.0})
        assert not caplog_ours.records
        assert torch.equal(unet(**call, cross_attention_kwargs={"scale": 0.5}).sample, plain)
        unet(**call, cross_attention_kwargs={"scale": 0.5})
        assert len(caplog_ours.records) == 1
        ours.load_lora_weights(loras.diffusers(adapter(ours)))
        full = unet(**call).sample
        assert torch.equal(unet(**call, cross_attention_kwargs={"scale": 0.0}).sample, plain)
        half = unet(call["sample"], 5, call["encoder_hidden_states"], None, None, None, {"scale": 0.5}).sample
        ours.set_adapters("default_0", 0.5)
        assert torch.equal(unet(**call).sample, half) and not torch.equal(half, full)


@pytest.mark.slow
def test_a_compiled_network(ours) -> None:
    state = in_the_unet(adapter(ours))
    ours.load_lora_weights(state)
    wanted = draw(ours, cross_attention_kwargs={"scale": 0.5})
    ours.unload_lora_weights()
    bare = ours.unet
    ours.unet = torch.compile(bare, backend="eager", fullgraph=True)
    ours.load_lora_weights(state)
    assert np.abs(draw(ours, cross_attention_kwargs={"scale": 0.5}) - wanted).max() <= TOLERANCE
    ours.unload_lora_weights()
    ours.unet = bare


def test_another_adapter_takes_the_place(ours) -> None:
    one, two = (loras.diffusers(adapter(ours, seed=seed)) for seed in (0, 20))
    ours.load_lora_weights(two)
    wanted = draw(ours)
    ours.unload_lora_weights()
    with pytest.raises(ConfigError, match="no adapter is loaded"):
        ours.load_lora_weights(one, hotswap=True)
    ours.enable_lora_hotswap(target_rank=8)
    ours.load_lora_weights(one, adapter_name="style")
    ours.load_lora_weights(two, adapter_name="style", hotswap=True)
    assert np.abs(draw(ours) - wanted).max() <= 1e-5
    with pytest.raises(ConfigError, match="before the first adapter"):
        ours.enable_lora_hotswap()


def test_an_exchange_happens_in_every_network_or_in_none(ours) -> None:
    ours.enable_lora_hotswap(target_rank=3)
    ours.load_lora_weights(loras.diffusers(adapter(ours)), adapter_name="style")
    before = draw(ours)
    large = {**adapter(ours, seed=20), "text_encoder": loras.halves(ours.text_encoder, loras.TEXT, rank=5)}
    with pytest.raises(ConfigError, match="target_rank=3"):
        ours.load_lora_weights(loras.diffusers(large), hotswap=True)
    assert np.array_equal(draw(ours), before)
    ours.load_lora_weights(in_the_unet(adapter(ours, seed=20)), hotswap=True)
    assert ours.get_list_adapters() == {"unet": ["style"]} and not np.array_equal(draw(ours), before)


def test_fused_in_every_network_or_in_none(ours) -> None:
    state = loras.diffusers(adapter(ours))
    ours.load_lora_weights(state, adapter_name="style")
    before = draw(ours)
    name = next(name for name in state if name.startswith("text_encoder") and "up" in name)
    state[name] = torch.full_like(state[name], float("inf"))
    ours.load_lora_weights(state, adapter_name="damaged")
    with pytest.raises(NonFiniteError):
        ours.fuse_lora(safe_fusing=True)
    assert ours.fused_loras == set()
    ours.set_adapters("style")
    assert np.array_equal(draw(ours), before)
    ours.fuse_lora()
    with pytest.raises(ConfigError, match="all are fused already"):
        ours.fuse_lora()


def test_which_adapter_is_meant(ours, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no adapter is loaded"):
        ours.save_lora_weights(tmp_path)
    state = loras.diffusers(adapter(ours))
    with pytest.raises(InputError, match="must be a text"):
        ours.load_lora_weights(state, adapter_name="")
    for name in ("one", "two"):
        ours.load_lora_weights(state, adapter_name=name)
    ours.set_adapters(["one", "two"])
    with pytest.raises(ConfigError, match="loaded are: one, two; give adapter_name"):
        ours.save_lora_weights(tmp_path)
    ours.save_lora_weights(tmp_path, adapter_name="two")
    assert len(list(tmp_path.iterdir())) == 1


def test_adapters_merged_into_one(ours) -> None:
    for name, seed in (("one", 0), ("two", 10)):
        ours.load_lora_weights(loras.diffusers(adapter(ours, seed=seed)), adapter_name=name)
    ours.set_adapters(["one", "two"], [0.7, 0.4])
    wanted = draw(ours)
    ours.add_weighted_adapter(["one", "two"], [0.7, 0.4], "both", combination_type="cat")
    assert ours.get_active_adapters() == ["both"]
    assert ours.get_list_adapters()["unet"] == ["one", "two", "both"]
    assert np.abs(draw(ours) - wanted).max() <= TOLERANCE
    ours.add_weighted_adapter(["one", "two"], [0.7, 0.4], "pruned", combination_type="ties", density=0.5)
    assert np.abs(draw(ours) - wanted).max() > TOLERANCE
    with pytest.raises(InputError, match="give one for each"):
        ours.add_weighted_adapter(["one", "two"], [1.0], "x")
    with pytest.raises(ConfigError, match="'both' is in use"):
        ours.add_weighted_adapter(["one"], [1.0], "both")


def test_everything_is_undone(ours) -> None:
    weights = {name: value.clone() for name, value in ours.unet.state_dict().items()}
    plain = draw(ours)
    ours.load_lora_weights(loras.diffusers(adapter(ours)))
    ours.load_lora_weights(loras.kohya(adapter(ours, seed=4)))
    ours.set_adapters(["default_0", "default_1"], [0.3, 0.4])
    ours.fuse_lora(adapter_names=["default_0"])
    ours.load_lora_weights(in_the_unet(adapter(ours, seed=8)), adapter_name="drawing")
    ours.set_lora_device(["default_1", "drawing"], "cpu")
    ours.unload_lora_weights()
    assert ours.unet.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in ours.unet.state_dict().items())
    assert np.array_equal(draw(ours), plain)


def test_the_older_adapter_rests_in_every_network(ours) -> None:
    state = loras.diffusers(adapter(ours))
    ours.load_lora_weights(state, adapter_name="one")
    ours.load_lora_weights({n: v for n, v in loras.diffusers(adapter(ours, seed=9)).items() if n.startswith("unet.")})
    assert ours.get_active_adapters() == ["default_1"]
    assert langevin.adapters.stack.Stack(ours.text_encoder).active == []


def test_fused_weights_are_saved_before_they_are_unloaded(ours, tmp_path, caplog_ours) -> None:
    plain = draw(ours)
    ours.load_lora_weights(loras.diffusers(adapter(ours)))
    ours.fuse_lora()
    fused = draw(ours)
    ours.save_pretrained(tmp_path)
    ours.unload_lora_weights()
    assert "save the pipeline before" in caplog_ours.text and np.array_equal(draw(ours), plain)
    assert np.array_equal(draw(fresh(langevin, tmp_path)), fused)
