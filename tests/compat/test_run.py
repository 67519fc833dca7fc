"""`langevin run`: a script runs as `python script` runs it, on this library; `--check` runs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest

import langevin
from langevin.cli import main
from langevin.cli.run import check
from langevin.core.errors import InputError
from tests.pipelines import tiny

COMMAND = [sys.executable, "-m", "langevin", "run"]


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True)


def script(folder: Path, text: str, name: str = "script.py") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return name


def test_a_script_runs_as_python_runs_it(tmp_path) -> None:
    text = """
    import sys, os
    import neighbour
    import diffusers
    print(sys.argv, __name__, os.path.basename(__file__), neighbour.here, diffusers.DDIMScheduler.__module__)
    print(os.path.samefile(sys.path[0], os.path.dirname(__file__)), sys.modules["__main__"].__dict__ is globals())
    sys.exit(7)
    """
    script(tmp_path, "from diffusers import DDPMScheduler\nhere = DDPMScheduler.__module__", "sub/neighbour.py")
    done = run(script(tmp_path, text, "sub/script.py"), "-x", "--help", "--check", "two words", cwd=tmp_path)
    assert done.returncode == 7 and done.stderr == ""
    argv = "['sub/script.py', '-x', '--help', '--check', 'two words']"
    home = "langevin.schedulers.preserving"
    assert done.stdout.splitlines() == [f"{argv} __main__ script.py {home} {home}", "True True"]


ENDINGS = {
    "pass": (0, ""),
    "import sys; sys.exit()": (0, ""),
    "import sys; sys.exit('a word at the end')": (1, "a word at the end\n"),
    "raise SystemExit(3)": (3, ""),
    "import os; os._exit(9)": (9, ""),
}
"""A script -> its exit status and what it says."""


def test_exit_states_are_kept(tmp_path) -> None:
    for text, (status, words) in ENDINGS.items():
        done = run(script(tmp_path, text), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (status, words), text


def test_tracebacks_are_those_of_the_script(tmp_path) -> None:
    text = """
    from langevin.core.errors import InputError
    def f():
        raise InputError("of the script")
    f()
    """
    done = run(script(tmp_path, text), cwd=tmp_path)
    assert done.returncode == 1 and "runpy" not in done.stderr and "cli" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "script.py" in lines[1]
    assert lines[-1] == "langevin.core.errors.InputError: of the script"
    done = run(script(tmp_path, "def f(:\n"), cwd=tmp_path)
    assert done.returncode == 1 and "SyntaxError" in done.stderr and "runpy" not in done.stderr
    done = run(script(tmp_path, "from diffusers import NotYetPipeline\n"), cwd=tmp_path)
    assert done.returncode == 1 and "does not have 'NotYetPipeline' of diffusers" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupted_script(tmp_path) -> None:
    name = script(tmp_path, "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # what shells start with & ignores it
    process = subprocess.Popen([*COMMAND, name], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    with process:
        begun = time.monotonic()
        while not (tmp_path / "begun").exists() and time.monotonic() < begun + 60:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and words.splitlines()[-1] == "KeyboardInterrupt"


def test_a_script_that_is_not_there(tmp_path) -> None:
    script(tmp_path, "")
    done = run("scirpt.py", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'script.py'" in done.stderr
    with pytest.raises(InputError, match=r"^\S*scirpt\.py does not exist"):
        check(str(tmp_path / "scirpt.py"))
    with pytest.raises(InputError, match="is a folder; name the script in it"):
        check(str(tmp_path))


# What a script uses --------------------------------------------------------------------------------------------------

USES = """
raise SystemExit("this ran")
import diffusers, os
import diffusers as d
from diffusers import DDIMScheduler, NotYetPipeline as N
from diffusers.utils import load_image
from diffusers.models import attention_processor
import numpy.linalg

def f():
    import diffusers.schedulers.scheduling_ddim
    d.utils.logging.get_logger("x")
    diffusers.NotThisOne()
    attention_processor.AttnProcessor, attention_processor.NotThatOne
    DDIMScheduler.from_config({})
    os.path.join("a")
"""


def checked(capsys, *words: str) -> tuple[int, list[str], str]:
    with pytest.raises(SystemExit) as leaving:
        main(["run", *words])
    out, err = capsys.readouterr()
    return leaving.value.code, out.splitlines(), err


def test_the_names_of_a_script_are_listed_and_nothing_is_run(tmp_path, capsys) -> None:
    path = str(tmp_path / script(tmp_path, USES))
    status, lines, _ = checked(capsys, "--check", path)
    found = {line.split(": ")[1].split("  ")[0]: line.split("  ", 1)[1] for line in lines[:-1]}
    assert status == 1 and lines[-1] == f"{len(lines) - 4} of {len(lines) - 1} names are there."
    missing = {"diffusers.NotYetPipeline", "diffusers.NotThisOne", "diffusers.models.attention_processor.NotThatOne"}
    assert {name for name, verdict in found.items() if verdict != "yes"} == missing
    assert found["diffusers.NotThisOne"] == "no: Langevin does not have 'NotThisOne' of diffusers."
    there = {
        "diffusers",
        "diffusers.DDIMScheduler",
        "diffusers.utils.load_image",
        "diffusers.models.attention_processor",
    }
    assert there | {"diffusers.schedulers.scheduling_ddim", "diffusers.utils.logging.get_logger"} <= set(found)
    assert not [name for name in found if not name.startswith("diffusers")]


def test_a_script_that_has_all_it_needs(tmp_path, capsys) -> None:
    status, lines, _ = checked(capsys, "--check", str(tmp_path / script(tmp_path, "from diffusers import *\n")))
    assert status == 0 and lines[-1] == "1 of 1 names are there."
    status, _, err = checked(capsys, "--check", str(tmp_path / script(tmp_path, "def f(:\n")))
    assert status == 2 and "no Python that can be read" in err


# The documentation ---------------------------------------------------------------------------------------------------

SWAPPING = """
from diffusers import DiffusionPipeline
from diffusers import EulerDiscreteScheduler, DPMSolverMultistepScheduler

repo_id = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipeline = DiffusionPipeline.from_pretrained(repo_id, use_safetensors=True)
pipeline.scheduler.compatibles

scheduler = DPMSolverMultistepScheduler.from_pretrained(repo_id, subfolder="scheduler")
stable_diffusion = DiffusionPipeline.from_pretrained(repo_id, scheduler=scheduler)
pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
image = pipeline("a cat", num_inference_steps=2).images[0]
image.save("swapped.png")
"""
SHARING = """
from diffusers import StableDiffusionPipeline, StableDiffusionImg2ImgPipeline
from diffusers.utils import load_image, make_image_grid

model_id = "stable-diffusion-v1-5/stable-diffusion-v1-5"
stable_diffusion_txt2img = StableDiffusionPipeline.from_pretrained(model_id)
components = stable_diffusion_txt2img.components
stable_diffusion_img2img = StableDiffusionImg2ImgPipeline(**components)
init_image = stable_diffusion_txt2img("a dog", num_inference_steps=2).images[0]
image = stable_diffusion_img2img("a cat", image=init_image, strength=0.5, num_inference_steps=4).images[0]
make_image_grid([init_image, image], rows=1, cols=2).save("grid.png")
"""
DENOISING = """
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
import torch

scheduler = DDPMScheduler.from_pretrained("google/ddpm-cat-256")
model = UNet2DModel.from_pretrained("google/ddpm-cat-256", use_safetensors=True)
scheduler.set_timesteps(5)
sample_size = model.config.sample_size
noise = torch.randn((1, 3, sample_size, sample_size))
input = noise

for t in scheduler.timesteps:
    with torch.no_grad():
        noisy_residual = model(input, t).sample
    previous_noisy_sample = scheduler.step(noisy_residual, t, input).prev_sample
    input = previous_noisy_sample

image = (input / 2 + 0.5).clamp(0, 1).squeeze()
image = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
image = Image.fromarray(image)
image.save("denoised.png")
"""
CALLBACK = """
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import PipelineCallback

class StopEarly(PipelineCallback):
    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        if step_index == self.cutoff_step(pipeline):
            pipeline._interrupt = True
        return callback_kwargs

    def cutoff_step(self, pipeline):
        return int(pipeline.num_timesteps * self.config.cutoff_step_ratio)

pipeline = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
image = pipeline("a cat", num_inference_steps=4, callback_on_step_end=StopEarly(cutoff_step_ratio=0.5)).images[0]
image.save("stopped.png")
"""
CUSTOM = (Path(__file__).parent / "files" / "one_step_unet.py").read_text(encoding="utf-8")
CUSTOM += """
pipeline = UnetSchedulerOneForwardPipeline.from_pretrained("google/ddpm-cifar10-32", use_safetensors=True)
output = pipeline()
torch.save(output, "step.pt")
pipeline = DiffusionPipeline.from_pretrained(
    "google/ddpm-cifar10-32", custom_pipeline="hf-internal-testing/diffusers-dummy-pipeline", trust_remote_code=True
)
assert pipeline() == "a pipeline of the community"
"""
SNIPPETS = {
    "swapped.png": SWAPPING,
    "grid.png": SHARING,
    "denoised.png": DENOISING,
    "stopped.png": CALLBACK,
    "step.pt": CUSTOM,
}
"""What a script writes -> the script: whole snippets of the documentation, on small models and few steps."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder in which the documentation's repositories lie, as tiny models under their names."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny.stable_diffusion(langevin, folder).save_pretrained(folder / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    unet, scheduler = tiny.pixel_unet(langevin), langevin.DDPMScheduler()
    langevin.DDPMPipeline(unet, scheduler).save_pretrained(folder / "google" / "ddpm-cifar10-32")
    unet.save_pretrained(folder / "google" / "ddpm-cat-256")
    scheduler.save_pretrained(folder / "google" / "ddpm-cat-256")
    code = """
    from diffusers import DiffusionPipeline

    class Dummy(DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def __call__(self):
            return "a pipeline of the community"
    """
    script(folder, code, "hf-internal-testing/diffusers-dummy-pipeline/pipeline.py")
    return folder


@pytest.mark.parametrize("result", SNIPPETS)
def test_snippets_of_the_documentation(shelf, result) -> None:
    name = script(shelf, SNIPPETS[result], f"{Path(result).stem}.py")
    done = run(name, cwd=shelf)
    assert done.returncode == 0, done.stderr
    assert (shelf / result).stat().st_size > 0
    assert not any(check(str(shelf / name)).values())
