"""Processes that hold a share of the weights each train as those that hold all: the same losses, weights and files."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin.core.errors import ConfigError
from langevin.training import shares
from langevin.training.divided import Division, asked, plainly
from langevin.training.machine import machine
from langevin.training.recipes.text_to_image import LoraSettings, train_lora
from tests.pipelines import tiny, tiny_xl
from tests.training.line import trainer
from tests.training.recipes.places import model, pictures
from tests.training.splits import Chain
from tests.training.test_processes import RUN, TRAIN, split
from tests.training.warm import Warm, warm

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_SYNC_MODULE_STATES": "true"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
SECOND = {**FSDP, "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_OFFLOAD_PARAMS": "true"}
SIZES = {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "70"}
RUNS = {
    "one": (1, 4, {}),
    "copies": (2, 2, {}),
    "shares": (2, 2, FSDP),
    "offloaded": (4, 1, {**SECOND, **SIZES}),
    "deepspeed": (2, 2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}),
    "alone": (1, 4, {**FSDP, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "ACCELERATE_USE_CPU": "true"}),
}
"""Run -> processes, accumulated batches and the variables that accelerate's launcher sets.

Of four processes two have no share of the last layer, which has two rows.
"""
DOCUMENTED = """
compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 4
  offload_optimizer_device: cpu
  offload_param_device: cpu
  zero3_init_flag: false
  zero_stage: 2
distributed_type: DEEPSPEED
"""


@pytest.fixture(scope="module")
def ready() -> Iterator[Warm]:
    with warm() as process:
        yield process


@pytest.fixture(scope="module")
def runs(ready, tmp_path_factory) -> dict:
    """Return the folder of every run with its log, what was seen, and what processes ended with."""
    base, found = tmp_path_factory.mktemp("runs"), {}
    for name, (processes, accumulated, env) in RUNS.items():
        parts = split(ready, base / name, processes, accumulated, 1, kind="chained", env=env)
        found[name] = (base / name, *parts)
    return found


def alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Tell whether tensors differ by the rounding of sums alone."""
    return all(torch.allclose(a, b, rtol=0, atol=2e-6) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "one"])
def test_shares_train_as_all_do(name, runs) -> None:
    folder, log, seen, ends = runs[name]
    whole, wanted, also, (first,) = runs["one"]
    assert seen == also and len(log) == 12
    for point, other in zip(log, wanted, strict=True):
        assert point["lr"] == other["lr"] and point["loss"] == pytest.approx(other["loss"], abs=2e-6)
        assert point["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-5)
    assert max(point["grad_norm"] for point in log) > 1, "nothing was clipped"
    assert all(alike(held, first) for held in ends)

    files = [sorted(p.relative_to(place) for p in place.rglob("checkpoint-*/*")) for place in (folder, whole)]
    assert files[0] == files[1] and len(files[0]) == 12
    for file in ("net.safetensors", "average.safetensors"):
        ours, theirs = (load_file(place / "checkpoint-8" / file) for place in (folder, whole))
        assert list(ours) == list(theirs) and alike(list(ours.values()), list(theirs.values()))
    ours, theirs = (torch.load(place / "checkpoint-8" / "optimizer.bin")["optimizer"] for place in (folder, whole))
    assert ours["param_groups"] == theirs["param_groups"] and len(theirs["param_groups"]) == 2
    for number, state in theirs["state"].items():
        assert alike(list(ours["state"][number].values()), list(state.values()))


@pytest.mark.slow
def test_a_process_holds_its_share(runs) -> None:
    held = {name: [json.loads(file.read_text()) for file in sorted(folder.glob("held-*"))]
            for name, (folder, *_) in runs.items()}  # fmt: skip
    count = sum(p.numel() for p in Chain().parameters())
    assert held["one"] == held["alone"] == [{"weights": count, "average": count, "optimizer": 2 * count}]
    assert held["copies"] == held["one"] * 2
    assert [sum(part[what] for part in held["offloaded"]) for what in ("average", "optimizer")] == [count, 2 * count]
    for name in ("shares", "deepspeed"):
        assert held[name] == [{"weights": count // 2, "average": count // 2, "optimizer": count}] * 2
    assert "DeepSpeed ZeRO stage 2: each of 2 processes" in (runs["deepspeed"][0] / "said-0").read_text()
    assert "which is done by FSDP" not in (runs["deepspeed"][0] / "said-1").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_shares_or_without(runs, ready, tmp_path) -> None:
    options = {"accumulated": 2, "batch": 1, "resume": "latest", "pause": 0.1}
    group = ready.start(tmp_path / "killed", TRAIN, str(tmp_path / "killed"), options, "chained", processes=2, **FSDP)
    while not (tmp_path / "killed" / "checkpoint-4" / "state.json").exists():
        assert group.alive(), group.said()
        time.sleep(0.01)
    group.kill()
    group.wait()
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    shutil.copytree(runs["one"][0] / "checkpoint-8", tmp_path / "begun" / "checkpoint-8")

    _, _, ends = split(ready, tmp_path / "killed", 2, 2, 1, kind="chained", env=FSDP, resume="latest")
    folder, _, _, wanted = runs["shares"]
    assert all(map(torch.equal, ends[0], wanted[0])) and all(map(torch.equal, ends[1], wanted[1]))
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()

    for name, (processes, accumulated, env) in {"other": RUNS["one"], "begun": RUNS["offloaded"]}.items():
        _, _, ends = split(ready, tmp_path / name, processes, accumulated, 1, kind="chained", env=env, resume="latest")
        assert all(alike(held, wanted[0]) for held in ends)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_left_out_by_all(ready, tmp_path) -> None:
    ends = []
    for name in ("one", "shares"):
        processes, accumulated, env = RUNS[name]
        options = {"accumulated": accumulated, "batch": 1, "on_nonfinite": "skip"}
        folder = tmp_path / name
        group = ready.run(folder, TRAIN, str(folder), options, "chained", 6, processes=processes, **env)
        assert "the step is left out" in group.said()
        ends += [torch.load(file) for file in sorted(folder.glob("weights-*"))]
    assert len(ends) == 3 and all(alike(held, ends[0]) for held in ends)


@pytest.mark.slow
def test_shares_are_gathered_in_the_type_of_the_run_and_kept_in_float32(ready, runs, tmp_path) -> None:
    found = {
        name: split(ready, tmp_path / name, 2, 2, 1, kind="chained", env=RUNS[name][2], mixed_precision="bf16")
        for name in ("copies", "shares")
    }
    for point, other in zip(found["copies"][0], found["shares"][0], strict=True):
        assert point["loss"] == pytest.approx(other["loss"], rel=0.05)
    held = found["shares"][2]
    assert all(part.dtype == torch.float32 for part in held[0]) and all(map(torch.equal, *held))
    assert not alike(held[0], runs["shares"][3][0])


@pytest.mark.slow
def test_a_parameter_without_a_gradient_is_named(ready, tmp_path) -> None:
    options = {"accumulated": 1, "idle": True}
    group = ready.start(tmp_path, TRAIN, str(tmp_path), options, "plain", processes=2, **FSDP)
    assert group.wait() == [1, 1]
    assert "need a gradient of every trained parameter; net.idle get none" in group.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dreambooth", "dreambooth_lora_sdxl"])
def test_recipes_write_the_same_files(recipe, ready, tmp_path) -> None:
    """The UNet and the text encoders, previews, held-out losses, the proof; the run goes on without shares."""
    large = recipe.endswith("_sdxl")
    looks = ["--validation_prompt=a cat", "--num_validation_images=1", "--validation_steps=2", "--heldout_draws=10"]
    looks += ["--heldout_steps=2", f"--heldout_data_dir={pictures(tmp_path / 'held', 1)}"]
    if large:
        looks, base = [], tmp_path / "base"
        tiny_xl.base(langevin, tmp_path).save_pretrained(base)
    else:
        base = model(tmp_path / "base")
    flags = [
        f"--pretrained_model_name_or_path={base}",
        f"--instance_data_dir={pictures(tmp_path / 'pictures', 3)}",
        "--instance_prompt=a sks cat",
        "--train_text_encoder",
        "--output_dir=out",
        "--resolution=16",
        "--train_batch_size=1",
        "--max_train_steps=2",
        "--checkpointing_steps=1",
        "--lr_warmup_steps=0",
        "--learning_rate=1e-3",
        "--adam_epsilon=1e-3",
        "--seed=0",
        "--report_to=none",
        *looks,
    ]
    alone, env = ["--gradient_accumulation_steps=2"], {**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    one = ready.run(tmp_path / "one", RUN, recipe, [*flags, *alone]).folder / "out"
    two = ready.run(tmp_path / "two", RUN, recipe, flags, processes=2, **env).folder / "out"
    written = [sorted(p.relative_to(out) for p in out.rglob("*")) for out in (one, two)]
    assert written[0] == written[1] and (Path("previews/step-2.png") in written[0]) is not large
    for file in one.rglob("config.json"):
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes()
    files = [file.relative_to(one / "checkpoint-1") for file in (one / "checkpoint-1").rglob("*.safetensors")]
    for file in files:
        first, other = (load_file(out / "checkpoint-1" / file) for out in (one, two))
        assert first.keys() == other.keys()
        assert max(float((first[key] - other[key]).abs().max()) for key in first) < 1e-5
    for name in ("log.jsonl", "heldout.jsonl"):
        told = [[json.loads(line) for line in (out / name).open()] for out in (one, two) if (out / name).exists()]
        for point, other in zip(*told, strict=True):
            assert point["step"] == other["step"] and point["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert json.loads((two / "proof.json").read_text())["verdict"] == "proven"

    ended = {file: load_file(two / file) for file in files}
    shutil.rmtree(two / "checkpoint-2")
    ready.run(tmp_path / "two", RUN, recipe, [*flags, *alone, "--resume_from_checkpoint=latest"])
    for file, wanted in ended.items():
        found = load_file(two / file)
        assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "configured for Megatron-LM, which recipes do not do"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "configured for a parallelism_config"),
        ({**FSDP, **DEEPSPEED}, "DeepSpeed and FSDP at once"),
        ({**FSDP, "FSDP_VERSION": "3"}, r"FSDP_VERSION=3 \(1 or 2\)"),
        ({**FSDP, "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, r"FSDP_SHARDING_STRATEGY=HYBRID_SHARD \(FULL_SHARD"),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "NO_SHARD"}, "FSDP_RESHARD_AFTER_FORWARD=NO_SHARD"),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "some"}, "FSDP_AUTO_WRAP_POLICY=SOME"),
        ({**FSDP, "FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, r"LOCAL_STATE_DICT \(full_state_dict\)"),
        (
            {**FSDP, "FSDP_FORWARD_PREFETCH": "true", "FSDP_IGNORED_MODULES": "a.b"},
            r"FSDP_FORWARD_PREFETCH=true \(false\); FSDP_IGNORED_MODULES=a.b \(leave it out\)",
        ),
        ({**FSDP, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, r"ACCELERATE_DYNAMO_BACKEND=INDUCTOR \(no\)"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, r"zero_stage=1 \(2 or 3\)"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, r"PARAM_DEVICE=nvme \(cpu\)"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, r"ZERO3_INIT=true \(false\)"),
        (DEEPSPEED, "has gradient_accumulation_steps=2, and the run gradient_accumulation_steps=1"),
        ({**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "0.5"},
         "has gradient_clipping=0.5, and the run max_grad_norm=1.0"),
    ],
)  # fmt: skip
def test_what_is_asked_and_not_done_is_named(env, words, tmp_path, monkeypatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, accumulated=1)


def test_optimizers_that_need_whole_parameters_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="Adafactor cannot train weights that are divided"):
        trainer(tmp_path, optimizer=torch.optim.Adafactor)
    place = {"pretrained_model_name_or_path": "nowhere", "train_data_dir": str(pictures(tmp_path / "pictures"))}
    for options, name in (({"use_8bit_adam": True}, "use_8bit_adam"), ({"optimizer": "prodigy"}, "optimizer=prodigy")):
        with pytest.raises(ConfigError, match=f"{name} cannot train weights that are divided"):
            train_lora(LoraSettings(**place, **options))


def test_an_accelerator_that_divides_by_itself_is_refused(tmp_path, monkeypatch) -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    trainer(tmp_path)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="This process has an Accelerator for FSDP"):
        trainer(tmp_path)


def test_the_environment_is_left_as_it_was(monkeypatch) -> None:
    for name, value in {**SECOND, "FSDP_OFFLOAD_PARAMS": "false"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert asked() == Division("FSDP version 2", freed=False)
    with pytest.raises(KeyError), plainly(asked()):
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"
        with plainly():
            assert not [name for name in os.environ if name.startswith("ACCELERATE_USE")]
        raise KeyError
    machine()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("env", "division"),
    [
        ({}, Division("FSDP version 1")),
        ({"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP", "FSDP_RESHARD_AFTER_FORWARD": "true"},
         Division("FSDP version 1", freed=False)),
        ({"FSDP_SHARDING_STRATEGY": "2", "FSDP_VERSION": "2"}, Division("FSDP version 2")),
        ({"FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP"}, Division("FSDP version 1", freed=False)),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "A, B"}, Division("FSDP version 1", classes=("A", "B"))),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, Division("FSDP version 1", classes=())),
        ({"FSDP_AUTO_WRAP_POLICY": "size_based_wrap"}, Division("FSDP version 1", least=10**8)),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
         Division("FSDP version 1", checkpointing=True)),
    ],
)  # fmt: skip
def test_the_variables_of_fsdp(env, division, monkeypatch) -> None:
    for name, value in {**FSDP, **env}.items():
        monkeypatch.setenv(name, value)
    assert asked() == division


def launched(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that accelerate's launcher makes of a configuration, which needs no DeepSpeed for that."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    (folder / "config.yaml").write_text(text)
    words = ["--config_file", str(folder / "config.yaml"), "--num_processes", "1", "train_controlnet.py"]
    given, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    given.deepspeed_fields_from_accelerate_config = ""
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    made = prepare_deepspeed_cmd_env(given)[1] if given.use_deepspeed else prepare_multi_gpu_env(given)
    for name, value in made.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_documented_configuration_of_deepspeed(stage, tmp_path, monkeypatch) -> None:
    launched(DOCUMENTED.replace("zero_stage: 2", f"zero_stage: {stage}"), tmp_path, monkeypatch)
    division = asked()
    asks = f"DeepSpeed ZeRO stage {stage}"
    assert division == Division(asks, "by FSDP", freed=stage == 3, offload=True, accumulated=4, clipping=None)
    division.check(accumulated=4, clipping=1.0)


def test_the_same_configuration_without_deepspeed(tmp_path, monkeypatch) -> None:
    """The file that docs/training.md shows in its place."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(compute_environment.*?)^```$", text, re.MULTILINE | re.DOTALL)
    launched(shown, tmp_path, monkeypatch)
    assert asked() == Division("FSDP version 2", freed=False, offload=True)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "fp16"


def test_what_is_gathered_as_one() -> None:
    unet, encoder = tiny.networks(langevin)["unet"], tiny.text_encoder()

    def found(network: torch.nn.Module, **options) -> set[str]:
        names = {id(module): name for name, module in network.named_modules()}
        return {names[id(unit)] for unit in shares.units(network, Division("", **options))}

    parts = found(unet)
    assert {"down_blocks.0", "up_blocks.0.resnets.0", "mid_block.resnets.1"} <= parts
    blocks = [name for name, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks and set(blocks) <= parts
    assert not [name for name in parts if any(name.startswith(f"{block}.") for block in blocks)]
    assert all(name.split(".")[-2:-1] == ["layers"] for name in found(encoder)) and found(encoder)
    assert found(unet, classes=()) == set()
    assert found(unet, classes=("BasicTransformerBlock",)) == set(blocks)
    half = sum(p.numel() for p in unet.parameters()) // 8
    sized = shares.units(unet, Division("", least=half))
    assert sized and all(sum(p.numel() for p in unit.parameters()) >= half for unit in sized)
    with pytest.raises(ConfigError, match=r"names BasicTransformer, which unet do not have.*BasicTransformerBlock"):
        shares.check_classes({"unet": unet}, Division("", classes=("BasicTransformer",)))
