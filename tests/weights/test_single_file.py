"""Single files in their authors' layout against the peer: the same file, the same values; and there and back."""

from __future__ import annotations

import importlib
import json
from functools import cache

import diffusers
import diffusers.loaders.single_file_utils as peer_rules
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.core.weights_io import SafetensorsFile, write_safetensors
from langevin.weights.saving import save
from langevin.weights.single_file import SingleFile
from langevin.weights.wishes import Wishes
from tests.cli.conftest import facts, refused, run
from tests.live_bytes import LiveBytes
from tests.pipelines import tiny, tiny_xl
from tests.weights.published import FILES, networks, tensors

OPEN = {"hidden_act": "gelu"}


def spelt(network) -> dict[str, torch.Tensor]:
    """Return a state dict without the prefix that one version of transformers writes and another does not."""
    return {name.removeprefix("text_model."): value for name, value in network.state_dict().items()}


def same(one, other, *parts: str) -> None:
    """Assert that two pipelines have the same networks, value by value."""
    found = parts or [name for name, part in one.components.items() if isinstance(part, torch.nn.Module)]
    assert found
    for name in found:
        first, second = spelt(getattr(one, name)), spelt(getattr(other, name))
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def open_text_encoder():
    """Build a random text encoder as Stable Diffusion 2 has it."""
    from transformers import CLIPTextModel

    encoder = tiny.text_encoder()
    torch.manual_seed(8)
    encoder.config.hidden_act = "gelu"
    return CLIPTextModel(encoder.config).eval()


def unet(**options):
    """Build a random UNet with options that differ from the usual ones of tests."""
    torch.manual_seed(9)
    return langevin.UNet2DConditionModel(**{**tiny.UNET, **options}).eval()


def second(folder, **options):
    """Build a tiny Stable Diffusion 2."""
    found = {"use_linear_projection": True, "attention_head_dim": (4, 8), **options}
    return tiny.stable_diffusion(langevin, folder, text_encoder=open_text_encoder(), unet=unet(**found))


def upscaler(folder):
    """Build a tiny upscaler: seven channels, levels of noise as labels, one level that attends to text only."""
    parts = second(
        folder, in_channels=7, num_class_embeds=20, only_cross_attention=(True, False), cross_attention_dim=32
    ).components
    low = tiny.scheduler(langevin, "DDPMScheduler")
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return langevin.StableDiffusionUpscalePipeline(**{name: parts[name] for name in names}, low_res_scheduler=low)


def with_channels(cls: str, channels: int, build=tiny.stable_diffusion):
    """Return a builder of a pipeline whose UNet takes `channels`."""

    def built(folder):
        pipe = build(langevin, folder, unet=unet(in_channels=channels))
        return getattr(langevin, cls)(**pipe.components, requires_safety_checker=False)

    return built


def sdxl_with_channels(cls: str, channels: int):
    """Return a builder of a Stable Diffusion XL pipeline whose UNet takes `channels`."""

    def built(folder):
        parts = {**tiny_xl.parts(langevin, folder), "unet": tiny_xl.unet(langevin, in_channels=channels)}
        return getattr(langevin, cls)(**parts)

    return built


BUILD = {
    "sd1": lambda folder: tiny.stable_diffusion(langevin, folder),
    "sd1-inpainting": with_channels("StableDiffusionInpaintPipeline", 9),
    "sd1-instruction": with_channels("StableDiffusionInstructPix2PixPipeline", 8),
    "sd2": second,
    "sd2-upscaling": upscaler,
    "sdxl": lambda folder: tiny_xl.base(langevin, folder),
    "sdxl-inpainting": sdxl_with_channels("StableDiffusionXLInpaintPipeline", 9),
    "sdxl-instruction": sdxl_with_channels("StableDiffusionXLInstructPix2PixPipeline", 8),
    "sdxl-refiner": lambda folder: tiny_xl.refiner(langevin, folder),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function from a name in BUILD to the pipeline, its folder and its single file."""
    known: dict = {}

    def make(name: str):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            pipe = BUILD[name](folder)
            pipe.save_pretrained(folder / "model")
            save(pipe, folder / "model.safetensors")
            known[name] = pipe, folder / "model", folder / "model.safetensors"
        return known[name]

    return make


@pytest.fixture(scope="module")
def read(made):
    """Return a function from a name in BUILD to the pipeline that its single file gives, read once for all tests."""

    @cache
    def reading(name: str):
        pipe, folder, path = made(name)
        return type(pipe).from_single_file(path, config=folder)

    return reading


# -- against the peer -----------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", BUILD)
def test_the_peer_reads_what_is_written_and_both_find_the_same(name, made, read) -> None:
    (pipe, folder, path), ours = made(name), read(name)
    same(pipe, ours)
    theirs = getattr(diffusers, type(pipe).__name__).from_single_file(
        str(path), config=str(folder), local_files_only=True
    )
    same(theirs, ours, *(name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)))
    assert type(theirs.scheduler).__name__ == type(ours.scheduler).__name__
    plain = {key: value for key, value in theirs.scheduler.config.items() if not key.startswith("_")}
    assert {key: ours.scheduler.config[key] for key in plain} == plain


@pytest.mark.parity
@pytest.mark.parametrize("name", FILES)
def test_published_unets_and_autoencoders_have_the_names_that_the_peer_finds(name) -> None:
    file, parts = tensors(name), networks(name)
    convert = {"unet": peer_rules.convert_ldm_unet_checkpoint, "vae": peer_rules.convert_ldm_vae_checkpoint}
    for part, function in convert.items():
        config = {**parts[part].config, **({"addition_embed_type": None} if part == "vae" else {})}
        theirs, ours = function(dict(file), config), parts[part].state_dict()
        assert {key: tuple(value.shape) for key, value in theirs.items()} == {
            key: tuple(value.shape) for key, value in ours.items()
        }


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sd-1.5", "sdxl-base"])
def test_published_text_encoders_have_the_names_that_the_peer_finds(name) -> None:
    theirs = peer_rules.convert_ldm_clip_checkpoint(dict(tensors(name)))
    assert {key.removeprefix("text_model.") for key in theirs} == set(spelt(networks(name)["text_encoder"]))


@pytest.mark.parametrize("name", FILES)
def test_configurations_of_published_checkpoints_are_told_from_shapes(name) -> None:
    with SingleFile(tensors(name)) as file:
        for part, network in networks(name).items():
            config = network.config if part in ("unet", "vae") else network.config.to_dict()
            told, known = file.config(part), json.loads(json.dumps(dict(config)))
            if part == "vae":
                for key in ("sample_size", "scaling_factor"):  # the published values, which the fixture leaves out
                    told.pop(key)
            if part == "unet":
                told.pop("upcast_attention", None)
                told["sample_size"] = known["sample_size"] if "unclip" in name else told["sample_size"]
            assert {key: known[key] for key in told} == told


# -- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, suffix", [*((name, ".safetensors") for name in BUILD), ("sd2", ".ckpt")])
def test_there_and_back_changes_no_value(name, suffix, made, read, tmp_path) -> None:
    pipe, folder, _ = made(name)
    if suffix == ".ckpt":
        save(pipe, tmp_path / "model.ckpt")
        save(type(pipe).from_single_file(tmp_path / "model.ckpt", config=folder), tmp_path / "again.safetensors")
    else:
        save(read(name), tmp_path / "again.safetensors")
    with SafetensorsFile(made(name)[2]) as first, SafetensorsFile(tmp_path / "again.safetensors") as other:
        assert {k: (e.dtype, e.shape) for k, e in first.entries.items()} == {
            k: (e.dtype, e.shape) for k, e in other.entries.items()
        }
        assert all(torch.equal(first.view(key), other.view(key)) for key in first.entries)


def test_a_file_that_was_written_here_keeps_its_configurations(made) -> None:
    pipe, _, path = made("sd1")
    again = langevin.StableDiffusionPipeline.from_single_file(path, tokenizer=pipe.tokenizer)
    same(pipe, again)
    for part in ("unet", "vae"):
        assert getattr(again, part).to_json_string() == getattr(pipe, part).to_json_string()
    for key in ("hidden_size", "num_attention_heads", "hidden_act", "eos_token_id"):
        assert getattr(again.text_encoder.config, key) == getattr(pipe.text_encoder.config, key)


def test_the_written_names_are_the_authors(made) -> None:
    expected = {
        "sd1": "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "sd2": "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "sdxl": "conditioner.embedders.1.model.text_projection",
        "sdxl-refiner": "conditioner.embedders.0.model.transformer.resblocks.0.mlp.c_fc.weight",
    }
    for name, key in expected.items():
        with SafetensorsFile(made(name)[2]) as file:
            assert key in file.entries
            assert "model.diffusion_model.input_blocks.0.0.weight" in file.entries
            assert file.entries["first_stage_model.encoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)


def test_a_cast_and_a_checkpoint_file(made, tmp_path) -> None:
    save(made("sd1")[0], tmp_path / "half.ckpt", dtype=torch.float16)
    held = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert set(held) == set(state(made("sd1")[2]))
    pipe = langevin.StableDiffusionPipeline.from_ckpt(tmp_path / "half.ckpt", config=made("sd1")[1], dtype="auto")
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float16


def test_v_prediction_of_sdxl_is_written_and_read(tmp_path) -> None:
    pipe = tiny_xl.base(langevin, tmp_path)
    kind = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipe.scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler", **kind)
    save(pipe, tmp_path / "v.safetensors")
    words = {"tokenizer": pipe.tokenizer, "tokenizer_2": pipe.tokenizer_2}
    config = langevin.StableDiffusionXLPipeline.from_single_file(tmp_path / "v.safetensors", **words).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"


def test_one_network_is_a_file_of_its_own(made, tmp_path) -> None:
    pipe = made("sd1")[0]
    save({"vae": pipe.vae}, tmp_path / "vae.safetensors")
    with SafetensorsFile(tmp_path / "vae.safetensors") as file:
        assert "encoder.conv_in.weight" in file.entries
    vae = langevin.AutoencoderKL.from_single_file(tmp_path / "vae.safetensors")
    assert all(torch.equal(value, pipe.vae.state_dict()[key]) for key, value in vae.state_dict().items())
    with pytest.raises(WeightsError, match=r"no UNet2DConditionModel; it holds: AutoencoderKL \(vae\)"):
        langevin.UNet2DConditionModel.from_single_file(tmp_path / "vae.safetensors")


# -- what real files are like ---------------------------------------------------------------------------------------


def state(path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file."""
    with SafetensorsFile(path) as file:
        return {name: file.view(name).clone() for name in file.entries}


def written(tmp_path, tensors) -> str:
    """Write tensors without any metadata and return the path."""
    write_safetensors(tmp_path / "file.safetensors", tensors, {})
    return tmp_path / "file.safetensors"


JUNK = {
    "betas": torch.zeros(10),
    "sqrt_alphas_cumprod": torch.zeros(10),
    "model_ema.decay": torch.zeros(()),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3),
    "embedding_manager.string_to_param_dict.*": torch.zeros(3),
}


def test_known_leftovers_are_reported_and_unknown_names_refused(made, tmp_path) -> None:
    pipe, folder, path = made("sd1")
    known = {**state(path), **JUNK}
    wishes = Wishes(config=folder)
    with SingleFile(written(tmp_path, known), wishes) as file:
        for part in file.places:
            file.build(part)
        file.check_rest(file.places)
        assert set(file.report.ignored) == set(JUNK) and all(len(w.split()) > 1 for w in file.report.ignored.values())
        assert set(file.report.applied) == set(known) - set(JUNK)
    stray = {**known, "model.diffusion_model.input_blocks.1.0.in_layers.2.wieght": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"not know .*in_layers\.2\.wieght' \(there is '.*in_layers\.2\.weight'"):
        type(pipe).from_single_file(written(tmp_path, stray), config=folder)
    with pytest.raises(WeightsError, match=r"no place for: surprise\.weight.*strict=False"):
        type(pipe).from_single_file(written(tmp_path, {**known, "surprise.weight": torch.zeros(3)}), config=folder)
    loose = {**stray, "surprise.weight": torch.zeros(3)}
    same(pipe, type(pipe).from_single_file(written(tmp_path, loose), config=folder, strict=False))


def test_a_missing_weight_is_named(made, tmp_path) -> None:
    pipe, folder, path = made("sd1")
    lacking = state(path)
    del lacking["model.diffusion_model.middle_block.0.in_layers.2.bias"]
    with pytest.raises(WeightsError, match=r"lacks model\.diffusion_model\.middle_block\.0\.in_layers\.2\.bias"):
        type(pipe).from_single_file(written(tmp_path, lacking), config=folder)


@pytest.mark.parity
def test_moving_averages(made, tmp_path) -> None:
    pipe, folder, path = made("sd1")
    tensors = state(path)
    names = [name for name in tensors if name.startswith("model.diffusion_model.")]
    ema = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensors[name] + 1 for name in names}
    both = written(tmp_path, {**tensors, **ema})
    plain = langevin.UNet2DConditionModel.from_single_file(both, config=folder, subfolder="unet")
    averaged = langevin.UNet2DConditionModel.from_single_file(both, config=folder, subfolder="unet", extract_ema=True)
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value) and torch.equal(averaged.state_dict()[key], value + 1)
    theirs = peer_rules.convert_ldm_unet_checkpoint({**tensors, **ema}, dict(pipe.unet.config), extract_ema=True)
    assert all(torch.equal(averaged.state_dict()[key], value) for key, value in theirs.items())
    with pytest.raises(WeightsError, match="holds none of the UNet's moving averages"):
        langevin.UNet2DConditionModel.from_single_file(path, config=folder, subfolder="unet", extract_ema=True)


def test_the_older_spelling_of_the_text_encoder(made, tmp_path) -> None:
    pipe, folder, path = made("sd1")
    older = {name.replace("transformer.text_model.", "transformer."): value for name, value in state(path).items()}
    same(pipe, type(pipe).from_single_file(written(tmp_path, older), config=folder))


def test_the_whole_tower_of_openclip_loses_its_last_layer_and_projection(made, tmp_path) -> None:
    pipe, folder, path = made("sd2")
    tensors, base = state(path), "cond_stage_model.model."
    last = {k: v for k, v in tensors.items() if ".resblocks.2." in k}
    tensors |= {name.replace(".resblocks.2.", ".resblocks.3."): value for name, value in last.items()}
    tensors |= {f"{base}text_projection": torch.zeros(32, 32), f"{base}logit_scale": torch.zeros(())}
    with SingleFile(written(tmp_path, tensors), Wishes(config=folder)) as file:
        assert spelt(file.build("text_encoder")).keys() == spelt(pipe.text_encoder).keys()
        file.check_rest(file.places)
        assert file.report.ignored[f"{base}text_projection"].startswith("the projection")
        assert sum(".resblocks.3." in name for name in file.report.ignored) == len(last)


def test_a_stable_unclip_file_holds_an_image_encoder(tmp_path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    torch.manual_seed(3)
    config = CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=24, hidden_act="gelu")
    encoder = CLIPVisionModelWithProjection(config).eval()
    pipe = second(tmp_path, class_embed_type="projection", projection_class_embeddings_input_dim=48)
    save({**pipe.components, "image_encoder": encoder}, tmp_path / "unclip.safetensors")
    tensors = state(tmp_path / "unclip.safetensors")
    assert "embedder.model.visual.transformer.resblocks.1.attn.in_proj_weight" in tensors
    stats = {"noise_augmentor.data_mean": torch.ones(1, 24), "noise_augmentor.data_std": torch.ones(1, 24)}
    with SingleFile(written(tmp_path, {**tensors, **stats, "noise_augmentor.betas": torch.zeros(4)})) as file:
        assert file.facts.kind == "unclip" and "image_normalizer" in file.places
        assert file.places["image_normalizer"].layout.rules({}).find("data_mean").targets == ("mean",)
        found = file.build("image_encoder")
        assert all(torch.equal(found.state_dict()[key], value) for key, value in encoder.state_dict().items())
        pixels = torch.randn(1, 3, 32, 32)
        assert torch.equal(found(pixels).image_embeds, encoder(pixels).image_embeds)


# -- without any configuration --------------------------------------------------------------------------------------

NARROW = {"block_out_channels": (32, 64), "norm_num_groups": 32}


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory):
    """A file of unpublished sizes whose options are those of the family, with no metadata, and its pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(4)
    text = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **text)).eval()
    vae = langevin.AutoencoderKL(**{**tiny.VAE, **NARROW, "layers_per_block": 2}).eval()
    pipe = tiny.stable_diffusion(
        langevin, folder, text_encoder=encoder, vae=vae, unet=unet(**NARROW, cross_attention_dim=64, layers_per_block=2)
    )
    save(pipe, folder / "kept.safetensors")
    return pipe, written(folder, state(folder / "kept.safetensors"))


def test_a_file_needs_nothing_beside_it(plain_file) -> None:
    pipe, path = plain_file
    again = langevin.StableDiffusionPipeline.from_single_file(path, local_files_only=True)
    same(pipe, again)
    assert again.tokenizer("a photo of an astronaut").input_ids == [49406, 320, 1125, 539, 550, 18376, 49407]
    assert again.tokenizer.pad_token == "<|endoftext|>" and again.tokenizer.model_max_length == 77
    assert isinstance(again.scheduler, langevin.PNDMScheduler) and again.scheduler.config.steps_offset == 1
    assert again.safety_checker is None and not again.config.requires_safety_checker
    pipe = langevin.StableDiffusionPipeline(**{**pipe.components, "tokenizer": again.tokenizer})
    call = {"prompt": "a cat", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    results = [p(**call, generator=torch.Generator().manual_seed(0)).images for p in (pipe, again)]
    assert (results[0] == results[1]).all()


def test_the_command_line_takes_it_as_a_model(plain_file, capsys, tmp_path) -> None:
    call = ["--model", plain_file[1], "--steps", "1", "--size", "16", "--device", "cpu", "--output", str(tmp_path)]
    (path,) = run(capsys, "a cat", *call, "--quiet")
    assert facts(path)["pipeline"] == "StableDiffusionPipeline" and facts(path)["seed"] is not None
    (path,) = run(capsys, "a cat", *call, "--image", str(path), "--strength", "1", "--quiet")
    assert facts(path)["pipeline"] == "StableDiffusionImg2ImgPipeline"
    vae = str(tmp_path / "vae.safetensors")
    save({"vae": plain_file[0].vae}, vae)
    assert "no whole model" in refused(capsys, "a cat", *call, "--model", vae)


def test_the_authors_configuration_says_what_shapes_do_not(plain_file, tmp_path) -> None:
    importlib.import_module("yaml")
    (tmp_path / "model.yaml").write_text(
        "model:\n  params:\n    linear_start: 0.001\n    linear_end: 0.02\n    timesteps: 500\n    image_size: 8\n"
        "    parameterization: v\n    scale_factor: 0.5\n"
        "    unet_config:\n      params:\n        model_channels: 32\n        channel_mult: [1, 2]\n"
        "        num_head_channels: 16\n"
        "    first_stage_config:\n      params:\n        ddconfig:\n          resolution: 64\n"
    )
    words = plain_file[0].tokenizer
    pipe = langevin.StableDiffusionPipeline.from_single_file(
        plain_file[1], original_config=tmp_path / "model.yaml", tokenizer=words
    )
    assert pipe.unet.config.attention_head_dim == [2, 4] and pipe.unet.config.sample_size == 32
    assert (pipe.vae.config.scaling_factor, pipe.vae.config.sample_size) == (0.5, 64)
    config = pipe.scheduler.config
    assert (config.beta_start, config.beta_end, config.num_train_timesteps) == (0.001, 0.02, 500)
    assert config.prediction_type == "v_prediction"
    with pytest.raises(InputError, match=r"absent\.yaml"):
        langevin.StableDiffusionPipeline.from_single_file(plain_file[1], original_config=tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"model\.params"):
        langevin.StableDiffusionPipeline.from_single_file(plain_file[1], original_config={"a": 1})


def test_the_callers_word_wins(plain_file) -> None:
    words = plain_file[0].tokenizer
    pipe = langevin.StableDiffusionPipeline.from_single_file(
        plain_file[1],
        tokenizer=words,
        prediction_type="v_prediction",
        image_size=64,
        upcast_attention=True,
        scheduler_type="euler-ancestral",
        torch_dtype={"default": torch.float32, "unet": torch.float16},
    )
    assert type(pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.unet.config.upcast_attention and pipe.unet.config.sample_size == 32
    assert pipe.unet.dtype == torch.float16 and pipe.vae.dtype == torch.float32
    parts = {"tokenizer": words, "vae": pipe.vae, "scheduler": pipe.scheduler}
    given = langevin.StableDiffusionPipeline.from_single_file(plain_file[1], **parts)
    assert given.vae is pipe.vae and given.scheduler is pipe.scheduler


def test_sizes_that_cannot_be_told_ask_for_a_configuration(made, tmp_path) -> None:
    path = written(tmp_path, state(made("sd1")[2]))
    with pytest.raises(ConfigError, match=r"16 channels wide.*pass `config`"):
        langevin.AutoencoderKL.from_single_file(path)
    with pytest.raises(WeightsError, match=r"32 wide.*heads cannot be told"):
        langevin.StableDiffusionPipeline.from_single_file(path, config=None, vae=made("sd1")[0].vae)


# -- the wrong file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, wrong, right",
    [
        ("sd1-inpainting", "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
        ("sd1", "StableDiffusionXLPipeline", "StableDiffusionPipeline"),
        ("sd1", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionPipeline"),
        ("sdxl", "StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        ("sdxl-refiner", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ("sd2-upscaling", "StableDiffusionLatentUpscalePipeline", "StableDiffusionUpscalePipeline"),
    ],
)
def test_a_file_for_another_pipeline_names_it(name, wrong, right, made) -> None:
    with pytest.raises(ConfigError, match=rf"is not for {wrong}.*call {right}\.from_single_file") as error:
        getattr(langevin, wrong).from_single_file(made(name)[2])
    assert "Its UNet takes" in str(error.value)


@pytest.mark.parametrize("wanted", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_other_tasks_load_a_file_for_text_to_image(wanted, made) -> None:
    pipe, folder, path = made("sd1")
    same(pipe, getattr(langevin, wanted).from_single_file(path, config=folder))


def test_what_the_file_does_not_hold_is_asked_for(made) -> None:
    pipe, folder, path = made("sd1")
    with pytest.raises(ConfigError, match="also needs controlnet: pass `controlnet="):
        langevin.StableDiffusionControlNetPipeline.from_single_file(path, config=folder)
    with pytest.raises(ConfigError, match="knows 194 words and the tokenizer has 49408"):
        langevin.StableDiffusionPipeline.from_single_file(path)
    with pytest.raises(ConfigError, match="tokeniser"):
        langevin.StableDiffusionPipeline.from_single_file(path, tokeniser=pipe.tokenizer)
    with pytest.raises(ConfigError, match="does not accept 'orginal_config'; did you mean 'original_config'"):
        langevin.StableDiffusionPipeline.from_single_file(path, orginal_config=None)
    with pytest.raises(ConfigError, match="does not accept 'args'"):
        langevin.StableDiffusionPipeline.from_single_file(path, args=3)


def test_paths_and_addresses(made, tmp_path, monkeypatch) -> None:
    pipe, folder, path = made("sd1")
    asked = []

    def fetched(repo, name, **options):
        asked.append((repo, name, options))
        return path

    monkeypatch.setattr("langevin.core.hub.fetch_file", fetched)
    link = "https://huggingface.co/owner/model/{}/main/sub/model.safetensors"
    for kind in ("blob", "resolve"):
        same(pipe, type(pipe).from_single_file(link.format(kind), config=folder, local_files_only=True))
    assert asked == [("owner/model", "sub/model.safetensors", {"revision": "main", "local_files_only": True})] * 2
    with pytest.raises(InputError, match=r"blob/main/FILE\.safetensors"):
        type(pipe).from_single_file("https://example.com/model.safetensors")
    with pytest.raises(InputError, match="from_pretrained loads folders"):
        type(pipe).from_single_file(folder)
    with pytest.raises(InputError, match=r"did you mean 'model\.safetensors'"):
        type(pipe).from_single_file(path.with_name("modle.safetensors"))
    with pytest.raises(InputError, match=r"\.safetensors"):
        save(pipe, tmp_path / "model.bin")
    with pytest.raises(InputError, match="did you mean 'stable_diffusion'"):
        save(pipe, tmp_path / "model.safetensors", layout="stable_difusion")


def test_a_state_dict_in_memory(made) -> None:
    pipe, folder, path = made("sd1")
    network = langevin.UNet2DConditionModel.from_single_file(state(path), config=folder, subfolder="unet")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in pipe.unet.state_dict().items())


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_cast_takes_little_more_memory_than_its_result(made, tmp_path) -> None:
    pipe, folder, path = made("sdxl")
    with LiveBytes("cpu") as memory:
        ours = langevin.StableDiffusionXLPipeline.from_single_file(path, config=folder, torch_dtype=torch.float16)
    parts = [p for p in ours.components.values() if isinstance(p, torch.nn.Module)]
    result = sum(p.nbytes for part in parts for p in part.state_dict().values())
    largest = max(p.nbytes for part in pipe.components.values() if hasattr(part, "state_dict")
                  for p in part.state_dict().values())  # fmt: skip
    assert memory.peak < 1.1 * result + 2 * largest
