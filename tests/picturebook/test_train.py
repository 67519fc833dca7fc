"""The picturebook's training: a stopped run goes on as if it had not been stopped, and says what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from langevin import UNet2DConditionModel
from langevin.core.errors import NonFiniteError
from langevin.picturebook import autoencoder, clip, data, denoiser, loop, tokenizer
from langevin.picturebook.captions import describe
from langevin.picturebook.loop import Budget, Recipe, fit
from langevin.picturebook.world import render, sample_scene


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )


def tiny_stage(folder) -> denoiser.DenoiserStage:
    torch.manual_seed(0)
    model = tiny_unet()
    latents, states = torch.randn(10, 4, 8, 8).half(), torch.randn(20, 5, 16).half()
    stage = denoiser.DenoiserStage(
        folder, latents, states, untold=torch.zeros(5, 16), shown=states[:2].float(), model=model
    )
    stage.recipe = Recipe(lr=1e-3, batch=4, warmup=2, average=0.9)
    return stage


class Stopped(Exception):
    pass


def stop_at(stage, step: int) -> None:
    """Let the stage's loss raise at the given step, as a kill would."""
    calls, loss = [], stage.loss

    def stopping(generator):
        calls.append(None)
        if len(calls) > step:
            raise Stopped
        return loss(generator)

    stage.loss = stopping


def resume(make, folder) -> None:
    """Train once in one go and once with a stop in between, and compare the weights bit for bit."""
    whole = make(folder / "whole")
    list(fit(whole, Budget(steps=4)))
    first = make(folder / "parts")
    stop_at(first, 2)
    with pytest.raises(Stopped):
        list(fit(first, Budget(steps=4), save_every=-1))
    second = make(folder / "parts")
    list(fit(second, Budget(steps=4)))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    resume(tiny_stage, tmp_path)


def test_a_finished_run_does_nothing_more(tmp_path):
    stage = tiny_stage(tmp_path)
    list(fit(stage, Budget(steps=2)))
    again = tiny_stage(tmp_path)
    assert list(fit(again, Budget(steps=2))) == []
    for a, b in zip(stage.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_progress_and_curve_are_written(tmp_path):
    lines = list(fit(tiny_stage(tmp_path), Budget(steps=3), log_every=-1))
    assert len(lines) == 3 and "samples/s" in lines[-1] and "unet 3" in lines[-1]
    points = json.loads((tmp_path / "unet.json").read_text())
    assert [point["step"] for point in points] == [1, 2, 3]
    assert all(np.isfinite(point["loss"]) for point in points)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    stage = tiny_stage(tmp_path)
    with torch.no_grad():
        stage.model.conv_in.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="unet"):
        list(fit(stage, Budget(steps=2)))


def test_the_learning_rate_warms_up_and_decays_to_zero():
    recipe = Recipe(lr=1.0, batch=1, warmup=10)
    assert recipe.lr_at(0, 0.0) == pytest.approx(0.1)
    assert recipe.lr_at(100, 1 - loop.DECAY) == 1.0
    assert 0 < recipe.lr_at(100, 0.95) < 1
    assert recipe.lr_at(100, 1.0) == 0.0


def test_a_budget_counts_steps_or_minutes():
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(minutes=2).progress(10**9, 60) == 0.5


def test_the_last_level_is_nearly_pure_noise():
    assert denoiser.signal_levels()[-1] < 1e-4


def test_low_noise_is_capped_and_high_noise_counts_in_full(tmp_path):
    stage = tiny_stage(tmp_path)
    alphas = denoiser.signal_levels()
    ratio = alphas / (1 - alphas)
    assert torch.allclose(stage.weight * (ratio + 1), torch.minimum(ratio + 1, torch.tensor(denoiser.GAMMA)))
    assert stage.weight[-1] == pytest.approx(1)


def test_a_share_of_the_captions_is_left_out(tmp_path):
    stage = tiny_stage(tmp_path)
    stage.recipe = replace(stage.recipe, batch=2000)
    x0, t, states = stage.batch(torch.Generator().manual_seed(0))
    left_out = (states == 0).all(dim=(1, 2)).float().mean()
    assert 0.07 < left_out < 0.13
    assert 0 <= t.min() < 50 and 950 < t.max() <= 999
    assert 500 < t.float().mean() < 600
    assert x0.std() == pytest.approx(1, abs=0.2)


def test_chunks_depend_on_their_seed_alone():
    one, other = data._draw((0, 3)), data._draw((0, 3))
    assert (one[0] == other[0]).all() and (one[1] == other[1]).all() and one[2] == other[2]
    options = [count for _, count in data.FIELDS]
    assert one[1].min() >= 0 and (one[1].max(axis=0) < options).all()


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng) for _ in range(8)]
    pictures = np.stack([render(scene) for scene in drawn])
    facts = torch.tensor([data.facts_of(scene) for scene in drawn])
    return data.Scenes(pictures, facts, [(describe(scene, rng), describe(scene, rng)) for scene in drawn])


def one_step(stage) -> dict[str, bool]:
    """Take one step; return which parameters have changed, by name."""
    stage.recipe = replace(stage.recipe, batch=4, average=0.0)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    list(fit(stage, Budget(steps=1)))
    return {name: not torch.equal(value, before[name]) for name, value in stage.model.state_dict().items()}


def test_clip_stages_train_what_they_say(tmp_path, scenes):
    words = tokenizer.load(tmp_path / "tokenizer")
    begun = clip.ClipStage(tmp_path, scenes, clip.tokens(tmp_path, scenes, words), words)
    assert one_step(begun)["clip.visual_projection.weight"]
    paired = begun.clip.text_model.state_dict()["final_layer_norm.weight"].clone()
    assert one_step(clip.TextStage(begun))["text.final_layer_norm.weight"]
    assert torch.equal(paired, begun.clip.text_model.state_dict()["final_layer_norm.weight"])


def test_a_spoilt_caption_says_something_else(tmp_path, scenes):
    words = tokenizer.load(tmp_path / "tokenizer")
    ids = words(["a red house above a blue car"] * 20, padding="max_length", return_tensors="pt").input_ids
    spoilt = clip.Spoiler(words)(ids, torch.Generator().manual_seed(0))
    said = {words.decode(row, skip_special_tokens=True).strip() for row in spoilt}
    assert said == {
        "a blue house above a red car",
        "a red car above a blue house",
        "a red house below a blue car",
    }


def test_the_decoder_stage_leaves_the_latents_alone(tmp_path, scenes):
    whole = autoencoder.build()
    before = autoencoder.encode(whole, scenes.images(torch.arange(2)))
    changed = one_step(autoencoder.DecoderStage(tmp_path, scenes, whole))
    assert changed["decoder.conv_out.weight"]
    assert torch.equal(before, autoencoder.encode(whole, scenes.images(torch.arange(2))))


def test_latents_have_a_quarter_of_the_side():
    model = autoencoder.build()
    assert autoencoder.encode(model, torch.zeros(1, 3, 64, 64)).shape == (1, 4, 16, 16)


TOGETHER = """
import sys
from pathlib import Path
import torch
from langevin.picturebook.loop import Budget, fit
from langevin.picturebook.train import part_company
from tests.picturebook.test_train import tiny_stage
torch.distributed.init_process_group("gloo")
stage = tiny_stage(Path(sys.argv[1]))
batches, loss = [], stage.loss
stage.loss = lambda generator: batches.append(generator.initial_seed()) or loss(generator)
list(fit(stage, Budget(steps=3)))
mine = torch.cat([weight.detach().flatten() for weight in stage.model.parameters()])
both, seeds = [torch.empty_like(mine) for _ in range(2)], [None, None]
torch.distributed.all_gather(both, mine)
torch.distributed.all_gather_object(seeds, batches)
assert torch.equal(*both), "the processes have different weights"
assert len({*seeds[0], *seeds[1]}) == 6, seeds
part_company()
"""


def test_processes_that_train_together_draw_apart_and_step_alike(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [*command, str(tmp_path / "stage")], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    alone = tiny_stage(tmp_path / "alone")
    list(fit(alone, Budget(steps=3)))
    kept = torch.load(tmp_path / "stage" / "unet.pt", weights_only=True)
    assert kept["step"] == 3 and not torch.equal(kept["average"][0], next(alone.model.parameters()))


def spread(folder, *, orthogonal: bool) -> float:
    """Return the median, over matrices, of how far apart the singular values of the first update are."""
    stage = tiny_stage(folder)
    stage.recipe = Recipe(lr=1e-3, batch=4, warmup=1, weight_decay=0.0)
    inner = [weight for weight in stage.matrices() if min(weight.flatten(1).shape) == 16]
    if not orthogonal:
        stage.matrices = lambda: ()
    before = [weight.detach().clone() for weight in inner]
    list(fit(stage, Budget(steps=1)))
    changes = [(weight.detach() - old).flatten(1) for weight, old in zip(inner, before, strict=True)]
    values = [torch.linalg.svdvals(change) for change in changes if float(change.abs().max()) > 0]
    return float(np.median([float(v[0] / v[7]) for v in values]))


def test_matrices_take_orthogonal_steps(tmp_path):
    """The update of a matrix has singular values near each other, which AdamW's has not."""
    muon, adam = spread(tmp_path / "muon", orthogonal=True), spread(tmp_path / "adam", orthogonal=False)
    assert muon < 1.6 and adam > 2 * muon, (muon, adam)
