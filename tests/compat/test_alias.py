"""`import diffusers` leads to this library: which names, from where, and what is said about the others."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.compat import NotThere, alias, helpers, table
from langevin.core.config import Config
from langevin.core.errors import ConfigError, InputError
from langevin.registry import ROWS
from tests.adapters import loras
from tests.pipelines import tiny


def fresh(code: str, **options) -> str:
    """Run code in a new interpreter with the alias installed, and return what it prints."""
    code = "import langevin.compat\nlangevin.compat.install()\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_imports() -> None:
    fresh(
        """
        import sys
        import diffusers
        assert "torch" not in sys.modules and diffusers.__version__ == langevin.core.config.FORMAT_VERSION
        import diffusers.schedulers.scheduling_ddim
        from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin, register_to_config
        from diffusers import utils
        from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
        from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
        from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
        from diffusers.loaders import FromSingleFileMixin, IPAdapterMixin, StableDiffusionLoraLoaderMixin
        from diffusers.loaders import StableDiffusionXLLoraLoaderMixin, TextualInversionLoaderMixin
        from diffusers.models import AutoencoderKL, ControlNetModel, ImageProjection, UNet2DConditionModel
        from diffusers.models.attention_processor import AttnAddedKVProcessor2_0, AttnProcessor, AttnProcessor2_0
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.lora import adjust_lora_scale_text_encoder
        from diffusers.models.modeling_utils import ModelMixin
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput, StableDiffusionMixin
        from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
        from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import retrieve_timesteps
        from diffusers.schedulers import DDIMScheduler, KarrasDiffusionSchedulers
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
        from diffusers.training_utils import compute_snr
        from diffusers.utils import BaseOutput, PIL_INTERPOLATION, USE_PEFT_BACKEND, deprecate, load_image, logging
        from diffusers.utils import is_accelerate_available, is_torch_version, is_xformers_available, make_image_grid
        from diffusers.utils import replace_example_docstring, scale_lora_layers, unscale_lora_layers
        from diffusers.utils.import_utils import is_xformers_available
        from diffusers.utils.torch_utils import is_compiled_module, randn_tensor
        import diffusers.utils.logging as logging
        assert DDIMScheduler is langevin.DDIMScheduler is diffusers.schedulers.scheduling_ddim.DDIMScheduler
        assert logging.get_logger is langevin.logging.get_logger
        assert issubclass(FrozenDict, dict) and utils.load_image is load_image
        assert not [m for name, m in sys.modules.items() if name.startswith("diffusers") and "site-packages" in
                    str(getattr(m, "__file__", ""))]
        """
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_public_class_is_where_the_peer_has_it(row) -> None:
    theirs = getattr(diffusers, row.name, None)
    module = getattr(theirs, "__module__", "diffusers")
    path = module.partition(".")[2] if "dummy" not in module else ""
    assert path in table.MODULES, f"add {path} to langevin/compat/table.py"
    assert alias.find(path, row.name) is getattr(langevin, row.name)


def test_every_module_and_name_of_the_table_exists_on_both_sides() -> None:
    """The peer has what the table says, so that the table is not a list of wishes; older homes of names are few."""
    moved = {"models.autoencoder_kl", "models.unet_2d", "models.unet_2d_condition", "models.vae", "pipelines.pndm",
             "pipelines.pndm.pipeline_pndm", "models.controlnet"}  # fmt: skip
    for path in sorted(table.MODULES - moved):
        assert alias.alias(f"diffusers.{path}".rstrip("."))
        try:
            importlib.import_module(f"diffusers.{path}".rstrip("."))
        except ModuleNotFoundError as error:
            assert not str(error.name).startswith("diffusers"), path
    older = {"numpy_to_pil", "pt_to_pil", "randn_tensor", "get_logger", "is_compiled_module"}
    for package, names in table.NAMES.items():
        for name in names:
            assert alias.find(package, name) is not None
            theirs = importlib.import_module(f"diffusers.{package}")
            inside = [m for key, m in list(sys.modules.items()) if key.startswith(f"diffusers.{package}.")]
            assert name in older or any(hasattr(m, name) for m in (theirs, *inside)) or package == "pipelines", name


def test_a_star_import_brings_the_public_classes() -> None:
    out = fresh("from diffusers import *; print(DDIMScheduler.__module__, 'StableDiffusionPipeline' in globals())")
    assert out.split() == ["langevin.schedulers.preserving", "True"]


MISSING = {
    "from diffusers import ShapEPipelin": "does not have 'ShapEPipelin' of diffusers.",
    "from diffusers import StableDifusionPipeline": "did you mean 'StableDiffusionPipeline'",
    "import diffusers.pipelines.shap_e": "does not have 'shap_e' of diffusers.pipelines",
    "from diffusers.utils import make_imagegrid": "of diffusers.utils; did you mean 'make_image_grid'",
    "from diffusers.utils.torch_utils import nothing": "'nothing' of diffusers.utils.torch_utils",
    "import diffusers.one.two.three": "does not have 'one' of diffusers",
    "from diffusers.schedulers.scheduling_dim import DDIMScheduler": "did you mean 'scheduling_ddim'",
}
"""A line of a script -> what is said about it."""


def test_what_is_not_there_is_named() -> None:
    code = f"""
    for line in {list(MISSING)!r}:
        try:
            exec(line)
        except ImportError as error:
            print(error)
    """
    said = fresh(code).splitlines()
    assert [line for line, message in zip(said, MISSING.values(), strict=True) if message not in line] == []


def test_attributes_that_are_not_there() -> None:
    root = alias.alias("diffusers")
    assert not hasattr(root, "Nothing") and getattr(root.utils, "nothing", 7) == 7
    with pytest.raises(AttributeError, match="does not have 'Nothing'"):
        _ = root.Nothing
    assert {"utils", "StableDiffusionPipeline"} <= {*dir(root), *table.MODULES} and "deprecate" in dir(root.utils)


def test_install_is_undone_and_done_again() -> None:
    out = fresh(
        """
        import diffusers, sys
        ours = diffusers
        langevin.compat.install()
        assert sum(f is langevin.compat.alias.FINDER for f in sys.meta_path) == 1 and langevin.compat.installed()
        langevin.compat.uninstall()
        assert not langevin.compat.installed() and "diffusers" not in sys.modules
        import diffusers
        print("site-packages" in diffusers.__file__)
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]
        langevin.compat.install()
        import diffusers
        assert diffusers is ours
        """
    )
    assert out.strip() == "True"


def test_the_real_package_in_use_is_not_replaced() -> None:
    assert diffusers.__file__
    with pytest.raises(NotThere, match=r"real diffusers is loaded already.*langevin run"):
        langevin.compat.install()
    assert not langevin.compat.installed()
    with pytest.raises(ImportError):
        langevin.compat.install()


# Helpers -------------------------------------------------------------------------------------------------------------


def test_questions_about_packages() -> None:
    assert alias.find("utils", "is_torch_available")() and not alias.find("utils", "is_onnx_nonsense_available")()
    assert alias.find("utils.import_utils", "is_opencv_available")() == langevin.core.imports.is_available("cv2")
    assert alias.find("utils", "is_torch_version")(">=", "2.0") and not alias.find("utils", "is_torch_version")(
        "<", "2"
    )
    assert not alias.find("utils", "is_nonsense_version")(">=", "0")
    with pytest.raises(InputError, match="operation"):
        helpers.compare("torch", "=>", "2")
    helpers.check_min_version("0.20.0")
    with pytest.raises(ConfigError, match="99"):
        helpers.check_min_version("99.0")


def test_deprecate_warns_and_hands_over() -> None:
    given = {"old": 3, "older": 4}
    with pytest.warns(FutureWarning, match="`old` is deprecated and goes in version 9"):
        assert helpers.deprecate("old", "9.0", "Use new.", take_from=given) == 3
    assert given == {"older": 4}
    with pytest.warns(FutureWarning, match="^Use new.$"):
        helpers.deprecate("x", "9.0", "Use new.", standard_warn=False)
    assert helpers.deprecate("absent", "9.0", "Use new.", take_from=given) is None
    with pytest.warns(FutureWarning):
        both = helpers.deprecate(("older", "9.0", "a"), ("also", "9.0", "b"), take_from={"older": 1, "also": 2})
    assert both == (1, 2)
    with pytest.warns(FutureWarning, match="`power`"):
        found = helpers.deprecate(("power", "9.0", "a"), ("shade", "9.0", "b"), take_from=SimpleNamespace(power=5))
    assert found == 5


def test_examples_are_put_into_the_help() -> None:
    @helpers.replace_example_docstring("    >>> draw()")
    def call():
        """Draw.

        Examples:

        Returns: it.
        """

    assert "Examples:\n    >>> draw()" in call.__doc__ and "Returns: it." in call.__doc__
    bare = helpers.replace_example_docstring("    >>> draw()")(lambda: None)
    assert bare.__doc__ is None


@pytest.mark.parity
def test_numbers_of_the_helpers() -> None:
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion as peer
    from diffusers.training_utils import compute_snr

    one, other = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.allclose(
        helpers.rescale_noise_cfg(one, other, 0.7), peer.rescale_noise_cfg(one, other, 0.7), atol=1e-5
    )
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        theirs, ours = tiny.both(name)
        got, count = helpers.retrieve_timesteps(ours, 7, "cpu")
        assert count == 7 and np.allclose(got, peer.retrieve_timesteps(theirs, 7, "cpu")[0])
        times = torch.tensor([900, 500, 3])
        assert torch.allclose(helpers.compute_snr(ours, times), compute_snr(theirs, times), rtol=1e-4)
    got, count = helpers.retrieve_timesteps(tiny.both("EulerDiscreteScheduler")[1], timesteps=[900, 500, 3])
    assert count == 3 and got.tolist() == [900, 500, 3]
    with pytest.raises(InputError, match="pass one of them"):
        helpers.retrieve_timesteps(ours, timesteps=[1], sigmas=[1.0])


def test_levels_for_a_scheduler_that_takes_none() -> None:
    class Foreign:
        def set_timesteps(self, num_inference_steps, device=None):
            pass

    with pytest.raises(ConfigError, match="Foreign takes no own `sigmas`; use `num_inference_steps`"):
        helpers.retrieve_timesteps(Foreign(), sigmas=[1.0, 0.5])


def test_compiled_modules() -> None:
    module = torch.nn.Linear(1, 1)
    assert helpers.is_compiled_module(torch.compile(module)) and not helpers.is_compiled_module(module)


@torch.no_grad()
def test_adapters_are_weighed_until_that_is_undone() -> None:
    unet = tiny.networks(langevin)["unet"]
    unet.load_lora_adapter(loras.kohya({"unet": loras.halves(unet, strength=3.0)}), adapter_name="style")
    states = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, unet.config.cross_attention_dim)

    def drawn() -> torch.Tensor:
        return unet(*states).sample

    full = drawn()
    helpers.scale_lora_layers(unet, 0.0)
    none = drawn()
    helpers.unscale_lora_layers(unet)
    assert torch.equal(drawn(), full)
    helpers.unscale_lora_layers(unet, 1.0)
    unet.disable_adapters()
    assert torch.equal(drawn(), none) and not torch.equal(none, full)


def test_latents_of_every_encoder() -> None:
    plain = SimpleNamespace(latents=torch.ones(1))
    assert helpers.retrieve_latents(plain) is plain.latents
    vae = tiny.networks(langevin)["vae"]
    encoded = vae.encode(torch.zeros(1, 3, 16, 16))
    mode = helpers.retrieve_latents(encoded, sample_mode="argmax")
    drawn = helpers.retrieve_latents(encoded, torch.Generator().manual_seed(0))
    assert torch.equal(mode, encoded.latent_dist.mode()) and not torch.equal(mode, drawn)
    with pytest.raises(InputError, match="sample_mode"):
        helpers.retrieve_latents(encoded, sample_mode="mean")


def test_a_replaced_configuration_counts() -> None:
    scheduler = tiny.scheduler(langevin, "PNDMScheduler", steps_offset=0)
    scheduler.set_timesteps(4)
    before = scheduler.timesteps.clone()
    scheduler._internal_dict = Config({**scheduler.config, "steps_offset": 1})
    scheduler.set_timesteps(4)
    assert scheduler.config.steps_offset == 1 and torch.equal(scheduler.timesteps, before + 1)
