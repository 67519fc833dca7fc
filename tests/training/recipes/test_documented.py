"""The commands of the documentation parse, flag by flag, for every recipe that is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from langevin.training.recipes import RECIPES
from langevin.training.recipes import retrieve as retrieving
from langevin.training.settings import parse

BASE = "--pretrained_model_name_or_path=CompVis/stable-diffusion-v1-4 --output_dir=out"
SUBJECT = f"{BASE} --instance_data_dir=subject --instance_prompt='a photo of sks dog' --resolution=512"
PRIOR = "--class_data_dir=class --with_prior_preservation --prior_loss_weight=1.0 --class_prompt='a photo of dog'"
CONSTANT = "--lr_scheduler='constant' --lr_warmup_steps=0"
LARGE = (
    "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 "
    "--pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix"
)
ONE = "--train_batch_size=1 --gradient_accumulation_steps=1"
PICTURES = "--resolution=512 --center_crop --random_flip --train_batch_size=1 --gradient_accumulation_steps=4"
LONG = "--gradient_checkpointing --mixed_precision='fp16' --max_train_steps=15000 --learning_rate=1e-05"
ALONE = (
    "--resolution=64 --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 --learning_rate=1e-4 "
    "--lr_warmup_steps=500"
)
CUSTOM = (
    "--with_prior_preservation --real_prior --prior_loss_weight=1.0 --resolution=512 --train_batch_size=2 "
    "--lr_warmup_steps=0 --num_class_images=200 --scale_lr --hflip --push_to_hub"
)
NEW = "--instance_data_dir=cat --class_data_dir=./real_reg/samples_cat/ --class_prompt='cat'"
EDITS = (
    "--pretrained_model_name_or_path=sd --dataset_name=fusing/instructpix2pix-1000-samples "
    "--enable_xformers_memory_efficient_attention --random_flip --train_batch_size=4 --gradient_accumulation_steps=4 "
    "--gradient_checkpointing --max_train_steps=15000 --checkpointing_steps=5000 --checkpoints_total_limit=1 "
    "--learning_rate=5e-05 --lr_warmup_steps=0 --conditioning_dropout_prob=0.05 --mixed_precision=fp16 --seed=42 "
    "--push_to_hub"
)
FILLED = (
    "--pretrained_model_name_or_path=sd --output_dir=out --dataset_name=fusing/fill50k --resolution=512 "
    "--validation_image './conditioning_image_1.png' './conditioning_image_2.png' "
    "--validation_prompt 'red circle with blue background' 'cyan circle with brown floral background'"
)
COMMANDS = {
    "controlnet": [
        f"{FILLED} --learning_rate=1e-5 --train_batch_size=4 --push_to_hub",
        f"{FILLED} --learning_rate=1e-5 --train_batch_size=4 --mixed_precision='fp16' "
        "--tracker_project_name='controlnet-demo' --report_to=wandb --push_to_hub",
        f"{FILLED} --learning_rate=1e-5 {ONE} --gradient_checkpointing --use_8bit_adam "
        "--enable_xformers_memory_efficient_attention --set_grads_to_none --push_to_hub",
        f"{FILLED} {ONE} --gradient_checkpointing --enable_xformers_memory_efficient_attention --set_grads_to_none "
        "--mixed_precision fp16 --push_to_hub",
    ],
    "custom_diffusion": [
        f"{BASE} {CUSTOM} {NEW} --instance_prompt='photo of a <new1> cat' --learning_rate=1e-5 --max_train_steps=250 "
        "--modifier_token='<new1>' --validation_prompt='<new1> cat sitting in a bucket' --report_to='wandb'",
        f"{BASE} {CUSTOM} {NEW} --instance_prompt='photo of a <new1> cat' --learning_rate=1e-5 --max_train_steps=250 "
        "--modifier_token '<new1>'",
        f"{BASE} {CUSTOM} --concepts_list=./concept_list.json --learning_rate=1e-5 --max_train_steps=500 "
        "--modifier_token='<new1>+<new2>'",
        f"{BASE} {CUSTOM} {NEW} --instance_prompt='photo of a <new1> person' --learning_rate=5e-6 "
        "--max_train_steps=1000 --noaug --freeze_model=crossattn --modifier_token='<new1>' "
        "--enable_xformers_memory_efficient_attention --set_grads_to_none",
    ],
    "dreambooth": [
        f"{SUBJECT} {ONE} --learning_rate=5e-6 {CONSTANT} --max_train_steps=400",
        f"{SUBJECT} {PRIOR} {ONE} --learning_rate=5e-6 {CONSTANT} --num_class_images=200 --max_train_steps=800",
        f"{SUBJECT} {PRIOR} --train_text_encoder --train_batch_size=1 --use_8bit_adam --gradient_checkpointing "
        f"--learning_rate=2e-6 {CONSTANT} --num_class_images=200 --max_train_steps=800",
        f"{SUBJECT} {PRIOR} --train_batch_size=1 --gradient_accumulation_steps=2 --gradient_checkpointing "
        f"--use_8bit_adam --learning_rate=5e-6 {CONSTANT} --num_class_images=200 --max_train_steps=800",
        f"{SUBJECT} {PRIOR} {ONE} --gradient_checkpointing --use_8bit_adam "
        "--enable_xformers_memory_efficient_attention "
        f"--set_grads_to_none --learning_rate=2e-6 {CONSTANT} --num_class_images=200 --max_train_steps=800",
        f"{SUBJECT} {PRIOR} --train_batch_size=1 --sample_batch_size=1 --gradient_accumulation_steps=1 "
        f"--gradient_checkpointing --learning_rate=5e-6 {CONSTANT} --num_class_images=200 --max_train_steps=800 "
        "--mixed_precision=fp16 --checkpointing_steps=500 --resume_from_checkpoint='checkpoint-1500'",
    ],
    "dreambooth_lora": [
        f"{SUBJECT} {ONE} --checkpointing_steps=100 --learning_rate=1e-4 --report_to='wandb' {CONSTANT} "
        "--max_train_steps=500 --validation_prompt='A photo of sks dog in a bucket' --validation_epochs=50 --seed='0' "
        "--push_to_hub",
    ],
    "dreambooth_lora_sdxl": [
        f"{LARGE} --instance_data_dir=subject --output_dir=lora-trained-xl --mixed_precision='fp16' "
        "--instance_prompt='a photo of sks dog' --resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=4 "
        f"--learning_rate=1e-4 --report_to='wandb' {CONSTANT} --max_train_steps=500 "
        "--validation_prompt='A photo of sks dog in a bucket' --validation_epochs=25 --seed='0' --push_to_hub "
        "--enable_xformers_memory_efficient_attention --gradient_checkpointing --use_8bit_adam",
        f"{LARGE} --instance_data_dir=subject --instance_prompt='a photo of sks dog' --train_text_encoder --rank=8 "
        f"--text_encoder_lr=5e-6 --snr_gamma=5.0 {PRIOR} --num_class_images=50 --center_crop --random_flip",
    ],
    "instruct_pix2pix": [
        f"{EDITS} --resolution=256 --max_grad_norm=1",
        f"{EDITS} --resolution=256 --max_grad_norm=1 --val_image_url='https://hf.co/datasets/mountain.png' "
        "--validation_prompt='make the mountains snowy' --report_to=wandb",
        f"{EDITS} --resolution=512 --use_ema",
    ],
    "textual_inversion": [
        f"{BASE} --train_data_dir=cat --learnable_property='object' --placeholder_token='<cat-toy>' "
        "--initializer_token='toy' --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=4 "
        f"--max_train_steps=3000 --learning_rate=5.0e-04 --scale_lr {CONSTANT} --push_to_hub",
        f"{BASE} --train_data_dir=cat --placeholder_token='<cat-toy>' --initializer_token='toy' --num_vectors=5 "
        "--validation_prompt='A <cat-toy> backpack' --num_validation_images=4 --validation_steps=100 "
        "--checkpointing_steps=500 --resume_from_checkpoint='checkpoint-1500' "
        "--enable_xformers_memory_efficient_attention",
    ],
    "text_to_image": [
        f"{BASE} --dataset_name=lambdalabs/naruto-blip-captions --use_ema {PICTURES} {LONG} {CONSTANT} "
        "--max_grad_norm=1",
        f"{BASE} --train_data_dir=pictures --use_ema {PICTURES} {LONG} {CONSTANT} --push_to_hub",
    ],
    "text_to_image_lora": [
        f"{BASE} --dataset_name=lambdalabs/naruto-blip-captions {PICTURES} {LONG} {CONSTANT} --report_to=wandb",
    ],
    "text_to_image_lora_sdxl": [
        f"{LARGE} --dataset_name=lambdalabs/naruto-blip-captions --caption_column='text' --resolution=1024 "
        f"--random_flip --train_batch_size=1 --num_train_epochs=2 --checkpointing_steps=500 --learning_rate=1e-04 "
        f"{CONSTANT} --mixed_precision='fp16' --seed=42 --output_dir='sd-naruto-model-lora-sdxl' "
        "--validation_prompt='cute dragon creature' --report_to='wandb' --push_to_hub --train_text_encoder",
    ],
    "text_to_image_sdxl": [
        f"{LARGE} --dataset_name=lambdalabs/naruto-blip-captions --enable_xformers_memory_efficient_attention "
        "--resolution=512 --center_crop --random_flip --proportion_empty_prompts=0.2 --train_batch_size=1 "
        "--gradient_accumulation_steps=4 --gradient_checkpointing --max_train_steps=10000 --use_8bit_adam "
        f"--learning_rate=1e-06 {CONSTANT} --mixed_precision='fp16' --report_to='wandb' "
        "--validation_prompt='a cute Sundar Pichai creature' --validation_epochs=5 --checkpointing_steps=5000 "
        "--output_dir='sdxl-naruto-model' --push_to_hub",
    ],
    "unconditional": [
        f"--dataset_name='huggan/flowers-102-categories' --output_dir='ddpm-ema-flowers-64' {ALONE} --push_to_hub "
        "--mixed_precision=no",
        f"--train_data_dir pictures {ALONE}",
        f"--train_data_dir=pictures --center_crop --random_flip {ALONE} --use_ema --mixed_precision='fp16' "
        "--logger='wandb' --push_to_hub --checkpointing_steps=500 --resume_from_checkpoint='checkpoint-1500'",
    ],
}
"""Recipe -> commands of the documentation's training pages, without the launcher."""


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, lines in COMMANDS.items() for words in lines])
def test_a_documented_command_parses(name: str, words: str) -> None:
    settings, _ = RECIPES[name].loaded()
    found = parse(settings, shlex.split(words), name=name)
    said = dict(word.lstrip("-").split("=", 1) for word in shlex.split(words) if "=" in word)
    for flag, value in said.items():
        held = getattr(found, flag)
        assert type(held)(value) == held if not isinstance(held, bool) else True, flag
    apart = [group.split("\n") for group in "\n".join(shlex.split(words)).lstrip("-").split("\n--") if "=" not in group]
    for flag, *values in apart:
        held = getattr(found, flag)
        assert held is True if not values else held == (values if isinstance(held, list) else values[0]), flag


EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
LAUNCHES = [
    ("train_dreambooth.py", ""),
    ("train_dreambooth_lora.py", ""),
    ("train_text_to_image.py", ""),
    ("train_text_to_image.py", "--mixed_precision='fp16'"),
    ("train_unconditional.py", ""),
    ("train_unconditional.py", "--mixed_precision='fp16' --multi_gpu"),
    ("train_custom_diffusion.py", ""),
    ("train_instruct_pix2pix.py", "--mixed_precision='fp16'"),
    ("train_instruct_pix2pix.py", "--mixed_precision='fp16' --multi_gpu"),
    ("textual_inversion.py", ""),
    ("train_controlnet.py", ""),
    ("train_controlnet.py", "--mixed_precision='fp16' --multi_gpu"),
]
"""Script and flags of accelerate, as the documentation launches them."""


@pytest.mark.parametrize(("script", "flags"), LAUNCHES)
def test_a_documented_launch_reaches_its_recipe(script: str, flags: str) -> None:
    """Accelerate takes its own flags and hands over the others, and the script that it starts is there."""
    from accelerate.commands.launch import launch_command_parser

    (file,) = EXAMPLES.glob(f"*/{script}")
    (name,) = re.findall(r'main\("(\w+)"\)', file.read_text(encoding="utf-8"))
    words = shlex.split(COMMANDS[name][0])
    options = launch_command_parser().parse_args([*shlex.split(flags), str(file), *words])
    assert (options.training_script, options.training_script_args) == (str(file), words)
    assert options.mixed_precision == ("fp16" if flags else None) and options.multi_gpu == ("--multi_gpu" in flags)
    parse(RECIPES[name].loaded()[0], options.training_script_args, name=name)


@pytest.mark.parametrize("folder", ["real_reg/samples_cat", "real_reg/samples_person"])
def test_the_documented_retrieval_parses(folder: str) -> None:
    words = f"--class_prompt {folder.split('_')[-1]} --class_data_dir {folder} --num_class_images 200"
    found = parse(retrieving.RetrieveSettings, words.split(), name="retrieve")
    assert (found.class_prompt, found.class_data_dir, found.num_class_images) == (words.split()[1], folder, 200)
    assert len(list(EXAMPLES.glob("*/retrieve.py"))) == 1
