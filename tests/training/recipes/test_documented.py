"""The commands of the documentation parse, flag by flag, for every recipe that is there."""

from __future__ import annotations

import shlex

import pytest

from langevin.training.recipes import RECIPES
from langevin.training.settings import parse

BASE = "--pretrained_model_name_or_path=CompVis/stable-diffusion-v1-4 --output_dir=out"
SUBJECT = f"{BASE} --instance_data_dir=subject --instance_prompt='a photo of sks dog' --resolution=512"
PRIOR = "--class_data_dir=class --with_prior_preservation --prior_loss_weight=1.0 --class_prompt='a photo of dog'"
CONSTANT = "--lr_scheduler='constant' --lr_warmup_steps=0"
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
    "unconditional": [
        f"--dataset_name='huggan/flowers-102-categories' --output_dir='ddpm-ema-flowers-64' {ALONE} --push_to_hub "
        "--mixed_precision=no",
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
