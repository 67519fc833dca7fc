"""Picture prompts: files and folders, what a call is given, and a pipeline that is as before when they are gone."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError, WeightsError
from langevin.core.weights_io import write_safetensors
from langevin.weights.dialects import ip_adapter as dialect
from tests.pipelines import ip_adapters as ip
from tests.pipelines import tiny

PICTURE, OTHER = tiny.picture(11, (40, 32)), tiny.picture(12, (32, 32))
ALONE = {"image_encoder": None, "feature_extractor": None}
CALL = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture
def fresh(sd_folder):
    """A pipeline with networks of its own and without a picture encoder."""
    pipe = langevin.StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def seeing(fresh):
    """The same with a picture encoder."""
    fresh.image_encoder, fresh.feature_extractor = tiny.image_encoder(), tiny.feature_extractor()
    return fresh


@pytest.fixture
def repository(fresh, tmp_path):
    """A folder like the published one: adapters of two layouts, and a picture encoder beside them."""
    folder = tmp_path / "adapters"
    (folder / "models").mkdir(parents=True)
    torch.save(ip.adapter("base", fresh.unet), folder / "models/base.bin")
    write_safetensors(folder / "models/plus.safetensors", ip.flat(ip.adapter("plus", fresh.unet, seed=5)), {})
    tiny.image_encoder().save_pretrained(folder / "models/image_encoder")
    return folder


def draw(pipe, seed: int = 0, **more) -> np.ndarray:
    """Return the picture of a call."""
    return pipe(**{**CALL, **more}, generator=torch.Generator().manual_seed(seed)).images


def digest(*modules) -> str:
    """Return a hash of the state dicts of networks."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def test_files_of_both_layouts_give_one_adapter(seeing, repository) -> None:
    nested = draw_with(seeing, repository, subfolder="models", weight_name="base.bin")
    file = draw_with(seeing, repository / "models/base.bin")
    state = draw_with(seeing, ip.adapter("base", seeing.unet))
    flat = draw_with(seeing, ip.flat(ip.adapter("base", seeing.unet)))
    assert np.array_equal(nested, file) and np.array_equal(nested, state) and np.array_equal(nested, flat)
    several = draw_with(seeing, repository, subfolder="models", weight_name=["base.bin", "plus.safetensors"])
    listed = draw_with(seeing, [repository] * 2, subfolder=["models"] * 2, weight_name=["base.bin", "plus.safetensors"])
    assert np.array_equal(several, listed) and not np.array_equal(several, nested)


def draw_with(pipe, *where, **names) -> np.ndarray:
    """Return the picture with adapters, which stay loaded."""
    pipe.load_ip_adapter(*where, **names)
    return draw(pipe, ip_adapter_image=[PICTURE] * len(pipe.unet.encoder_hid_proj.image_projection_layers))


@pytest.mark.parametrize("folder", ["image_encoder", "models/image_encoder"])
def test_the_encoder_comes_with_the_adapter(fresh, repository, folder) -> None:
    before, kept = draw(fresh), digest(fresh.unet)
    fresh.load_ip_adapter(repository, subfolder="models", weight_name="base.bin", image_encoder_folder=folder)
    assert digest(fresh.image_encoder) == digest(tiny.image_encoder()) and not fresh.image_encoder.training
    assert fresh.feature_extractor.crop_size["height"] == 32
    assert not np.allclose(draw(fresh, ip_adapter_image=PICTURE), before, atol=1e-3)
    fresh.unload_ip_adapter()
    assert fresh.image_encoder is None and fresh.feature_extractor is None
    assert digest(fresh.unet) == kept and np.array_equal(draw(fresh), before)


def test_an_encoder_that_is_there_is_kept(seeing, repository) -> None:
    encoder, reader = seeing.image_encoder, seeing.feature_extractor
    seeing.load_ip_adapter(repository, subfolder="models", weight_name="plus.safetensors")
    assert seeing.image_encoder is encoder and seeing.feature_extractor is reader
    seeing.unload_ip_adapter()
    assert seeing.image_encoder is encoder and seeing.feature_extractor is reader


def test_no_encoder_is_loaded_when_none_is_asked_for(fresh, repository, caplog_ours) -> None:
    fresh.load_ip_adapter(repository, subfolder="models", weight_name="base.bin", image_encoder_folder=None)
    assert fresh.image_encoder is None and "encoder" not in caplog_ours.text
    with pytest.raises(ConfigError, match="image_encoder"):
        draw(fresh, ip_adapter_image=PICTURE)
    (repository / "models/base.bin").rename(repository / "base.bin")
    fresh.load_ip_adapter(repository)
    assert "no picture encoder" in caplog_ours.text


def test_an_encoder_beside_a_file_is_found(fresh, repository) -> None:
    fresh.load_ip_adapter(repository / "models/base.bin")
    assert digest(fresh.image_encoder) == digest(tiny.image_encoder())


def test_an_encoder_of_another_adapter_is_refused(fresh, repository) -> None:
    wide = ip.adapter("base", fresh.unet, embeds=40)
    torch.save(wide, repository / "models/wide.bin")
    with pytest.raises(ConfigError, match=r"40 numbers.*gives 32"):
        fresh.load_ip_adapter(repository, subfolder="models", weight_name="wide.bin")
    assert fresh.image_encoder is None and fresh.unet.encoder_hid_proj is None


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ({"subfolder": "models"}, InputError, r"weight_name.*base.bin, plus"),
        ({"subfolder": "models", "weight_name": "bass.bin"}, InputError, "base.bin"),
        ({"subfolder": ["models"] * 3, "weight_name": ["base.bin"] * 2}, InputError, "2 weight names"),
        ({"subfolder": "models/image_encoder", "weight_name": "model.safetensors"}, WeightsError, "no IP-Adapter"),
        ({"subfolder": "models", "weightname": "base.bin"}, ConfigError, "weight_name"),
    ],
)
def test_loads_that_fail_change_nothing(fresh, repository, names, error, words) -> None:
    with pytest.raises(error, match=words):
        fresh.load_ip_adapter(repository, **names)
    assert fresh.image_encoder is None and fresh.unet.encoder_hid_proj is None


def test_a_local_path_that_is_not_there_names_its_neighbour(seeing, repository) -> None:
    with pytest.raises(InputError, match=r"modles does not exist; did you mean 'models'"):
        seeing.load_ip_adapter(f"{repository}/modles")
    with pytest.raises(InputError, match=r"weight_name.*says which file of h94/IP-Adapter"):
        seeing.load_ip_adapter("h94/IP-Adapter")


def test_pipelines_without_picture_prompts_say_so(fresh) -> None:
    parts = {**fresh.components, "depth_estimator": None, "feature_extractor": None}
    known = tiny.constructor(langevin.StableDiffusionDepth2ImgPipeline)
    pipe = langevin.StableDiffusionDepth2ImgPipeline(**{name: parts[name] for name in known})
    with pytest.raises(ConfigError, match="takes no picture prompts"):
        pipe.load_ip_adapter(ip.adapter("base", fresh.unet))


def test_a_call_without_a_picture_is_one_of_the_prompt_alone(seeing) -> None:
    before = draw(seeing)
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    assert np.array_equal(draw(seeing), before)
    seeing.set_ip_adapter_scale(0.0)
    assert np.array_equal(draw(seeing, ip_adapter_image=PICTURE), before)


EMBEDS = torch.randn(2, 1, ip.EMBEDS, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(1, 1, 16, 16)
MASKED = {"cross_attention_kwargs": {"ip_adapter_masks": [MASK]}}
WRONG = [
    ("", {"ip_adapter_image": PICTURE}, ConfigError, "load_ip_adapter"),
    ("base", {"ip_adapter_image": PICTURE, "ip_adapter_image_embeds": [EMBEDS]}, InputError, "Both"),
    ("base", {"ip_adapter_image": [PICTURE, OTHER]}, InputError, "list inside the list"),
    ("base", {"ip_adapter_image": [[]]}, InputError, "empty"),
    ("faceid", {"ip_adapter_image": PICTURE}, InputError, "insightface"),
    ("base", {"ip_adapter_image_embeds": EMBEDS}, InputError, "one tensor per IP-Adapter"),
    ("base", {"ip_adapter_image_embeds": [EMBEDS] * 2}, InputError, "2 entries"),
    ("base", {"ip_adapter_image_embeds": [EMBEDS[..., :8]]}, InputError, "with width 32"),
    ("base", {"ip_adapter_image_embeds": [EMBEDS[:1]]}, InputError, "negative rows"),
    ("base", {"ip_adapter_image_embeds": [EMBEDS * float("nan")]}, InputError, "NaN"),
    ("plus", {"ip_adapter_image_embeds": [EMBEDS]}, InputError, "tokens"),
    ("faceid-plus", {"ip_adapter_image_embeds": [ip.faces()]}, InputError, "clip_embeds"),
    ("base", {"cross_attention_kwargs": {"ip_adapter_masks": MASK}}, InputError, "no picture prompt"),
    (
        "base",
        {"ip_adapter_image": PICTURE, "cross_attention_kwargs": {"ip_adapter_masks": [MASK] * 2}},
        InputError,
        "2 entries for 1",
    ),
    (
        "base",
        {
            "ip_adapter_image": PICTURE,
            "height": 16,
            "width": 32,
            "cross_attention_kwargs": {"ip_adapter_masks": [MASK]},
        },
        InputError,
        "16x16 and the picture 16x32",
    ),
]


@pytest.mark.parametrize(("kind", "call", "error", "words"), WRONG, ids=[row[3] for row in WRONG])
def test_calls_that_cannot_work_fail_before_any_work(seeing, monkeypatch, kind, call, error, words) -> None:
    if kind:
        seeing.load_ip_adapter(ip.adapter(kind, seeing.unet))
    monkeypatch.setattr(seeing.text_encoder, "forward", None)
    monkeypatch.setattr(seeing.image_encoder, "forward", None)
    with pytest.raises(error, match=words):
        draw(seeing, **call)


def test_scales_per_picture_need_masks(seeing) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    seeing.set_ip_adapter_scale([[0.5, 0.2]])
    for call in ({}, {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 16, 16)]}}):
        with pytest.raises(InputError, match="2 scales"):
            draw(seeing, ip_adapter_image=PICTURE, **call)


def test_one_row_of_embeddings_per_prompt(seeing) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    rows = torch.randn(2, 1, ip.EMBEDS, generator=torch.Generator().manual_seed(1))
    call = {"guidance_scale": 1.0, "latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    alone = [draw(seeing, ip_adapter_image_embeds=[rows[k : k + 1]], **call)[0] for k in range(2)]
    call |= {"prompt": ["a cat"] * 2, "latents": call["latents"].repeat(4, 1, 1, 1), "num_images_per_prompt": 2}
    both = draw(seeing, ip_adapter_image_embeds=[rows], **call)
    for k, picture in enumerate(both):
        assert np.allclose(picture, alone[k // 2], atol=1e-5)


def test_members_of_and_share_the_picture(seeing) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    call = {"prompt": "a cat AND a dog", "prompt_syntax": "a1111"}
    assert not np.allclose(draw(seeing, ip_adapter_image=PICTURE, **call), draw(seeing, **call), atol=1e-3)


def test_threads_keep_their_pictures(seeing) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    pictures = [PICTURE, OTHER]
    alone = [draw(seeing, ip_adapter_image=picture) for picture in pictures]
    together: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        together[k] = draw(seeing, ip_adapter_image=pictures[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(together[k], alone[k], atol=1e-5) for k in range(2))
    assert not np.allclose(*alone, atol=1e-3)


def test_a_pipeline_is_saved_without_its_adapter(seeing, tmp_path) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    seeing.save_pretrained(tmp_path / "saved")
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert digest(again.unet) == digest(seeing.unet) and again.unet.encoder_hid_proj is None


def test_pipelines_share_an_adapter(seeing) -> None:
    seeing.load_ip_adapter(ip.adapter("base", seeing.unet))
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(seeing)
    assert not np.allclose(
        draw(other, image=tiny.picture(1), ip_adapter_image=PICTURE), draw(other, image=tiny.picture(1)), atol=1e-3
    )
    other.unload_ip_adapter()
    with pytest.raises(ConfigError, match="load_ip_adapter"):
        draw(seeing, ip_adapter_image=PICTURE)


def test_lora_and_adapter_leave_in_any_order(seeing) -> None:
    before, kept = draw(seeing), digest(seeing.unet)
    face = ip.adapter("faceid", seeing.unet, lora=2)
    rows = [ip.faces()]
    lora = {f"unet.{name}": value for name, value in lora_of(seeing.unet).items()}
    seeing.load_lora_weights(dict(lora), adapter_name="style")
    seeing.load_ip_adapter(face)
    both = draw(seeing, ip_adapter_image_embeds=rows)
    seeing.unload_lora_weights()
    seeing.unload_ip_adapter()
    assert digest(seeing.unet) == kept and np.array_equal(draw(seeing), before)
    seeing.load_ip_adapter(face)
    seeing.load_lora_weights(dict(lora), adapter_name="style")
    seeing.set_adapters(["style", "faceid_0"])
    assert np.allclose(draw(seeing, ip_adapter_image_embeds=rows), both, atol=1e-5)
    seeing.unload_ip_adapter()
    assert seeing.get_active_adapters() == ["style"]
    seeing.unload_lora_weights()
    assert digest(seeing.unet) == kept and np.array_equal(draw(seeing), before)


def lora_of(unet) -> dict[str, torch.Tensor]:
    """Return a random LoRA for one cross-attention of a UNet."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layer, generator = unet.get_submodule(path), torch.Generator().manual_seed(8)
    down = torch.randn(2, layer.in_features, generator=generator) * 0.3
    return {
        f"{path}.lora_A.weight": down,
        f"{path}.lora_B.weight": torch.randn(layer.out_features, 2, generator=generator),
    }


def test_a_file_is_read_as_it_is(seeing, repository) -> None:
    found = dialect.read(repository / "models/plus.safetensors")
    assert found.kind.name == "plus" and found.tokens == 4
    (repository / "models/cut.bin").write_bytes((repository / "models/base.bin").read_bytes()[:400])
    with pytest.raises(WeightsError):
        dialect.read(repository / "models/cut.bin")
