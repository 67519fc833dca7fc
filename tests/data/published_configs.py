"""UNet configurations of published checkpoints, as far as they differ from the defaults of the class."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

SD15: Options = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_BASE: Options = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD21: Options = {**SD21_BASE, "sample_size": 96, "upcast_attention": True}
X4_UPSCALER: Options = {
    "sample_size": 128,
    "in_channels": 7,
    "block_out_channels": [256, 512, 512, 1024],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "attention_head_dim": 8,
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "only_cross_attention": [True, True, True, False],
    "num_class_embeds": 1000,
}
SDXL: Options = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_REFINER: Options = {
    **SDXL,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
SIMPLE_BLOCKS: Options = {
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift",
}
KANDINSKY21: Options = {
    **SIMPLE_BLOCKS,
    "sample_size": 64,
    "out_channels": 8,
    "block_out_channels": [384, 768, 1152, 1536],
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "encoder_hid_dim": 1024,
    "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "text_image",
}
KANDINSKY22: Options = {
    **KANDINSKY21,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
}
IF_I_M: Options = {
    **SIMPLE_BLOCKS,
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [192, 384, 576, 768],
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "act_fn": "gelu",
    "time_embedding_act_fn": "gelu",
}
IF_I_XL: Options = {**IF_I_M, "block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816}
IF_II: Options = {
    **IF_I_M,
    "sample_size": 256,
    "in_channels": 6,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": [2, 2, 3, 3],
    "cross_attention_dim": 1280,
    "class_embed_type": "timestep",
    "only_cross_attention": True,
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 0.7071,
    "mid_block_scale_factor": 0.7071,
}
UNCLIP_DECODER: Options = {
    **SIMPLE_BLOCKS,
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [320, 640, 960, 1280],
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 1536,
    "class_embed_type": "identity",
}
X2_UPSCALER: Options = {
    "sample_size": 128,
    "in_channels": 8,
    "out_channels": 5,
    "block_out_channels": [384, 384, 768, 768],
    "down_block_types": ["KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3],
    "mid_block_type": None,
    "up_block_types": [*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"],
    "layers_per_block": 4,
    "norm_num_groups": None,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "act_fn": "gelu",
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": 896,
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
}

CONDITIONAL: dict[str, Options] = {
    "default": {},
    "sd-1.5": SD15,
    "sd-1.5-inpainting": {**SD15, "in_channels": 9},
    "sd-2.1-base": SD21_BASE,
    "sd-2.1": SD21,
    "sd-2-depth": {**SD21_BASE, "in_channels": 5},
    "sd-2-inpainting": {**SD21_BASE, "in_channels": 9},
    "sd-1.5-instruct-pix2pix": {**SD15, "in_channels": 8},
    "sd-image-variations": SD15,
    "sd-x4-upscaler": X4_UPSCALER,
    "sd-x2-latent-upscaler": X2_UPSCALER,
    "sd-turbo": SD21_BASE,
    "stable-unclip-h": {**SD21, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
    "stable-unclip-l": {**SD21, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 1536},
    "sdxl-base": SDXL,
    "sdxl-inpainting": {**SDXL, "in_channels": 9},
    "sdxl-instruct-pix2pix": {**SDXL, "in_channels": 8},
    "sdxl-turbo": {**SDXL, "sample_size": 64},
    "sdxl-refiner": SDXL_REFINER,
    "lcm-sd-1.5": {**SD15, "time_cond_proj_dim": 256},
    "kandinsky-2.1": KANDINSKY21,
    "kandinsky-2.1-inpaint": {**KANDINSKY21, "in_channels": 9},
    "kandinsky-2.2": KANDINSKY22,
    "kandinsky-2.2-controlnet-depth": {**KANDINSKY22, "addition_embed_type": "image_hint", "in_channels": 8},
    "if-I-M": IF_I_M,
    "if-I-XL": IF_I_XL,
    "if-II": IF_II,
    "unclip-decoder": UNCLIP_DECODER,
}

DDPM: Options = {
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
UNCONDITIONAL: dict[str, Options] = {
    "default": {},
    "ddpm-cat-256": {
        **DDPM,
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    },
    "ddpm-cifar10-32": {
        **DDPM,
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
    "ncsnpp-256": {
        "sample_size": 256,
        "time_embedding_type": "fourier",
        "freq_shift": 0,
        "attention_head_dim": None,
        "norm_num_groups": None,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 2**0.5,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "down_block_types": [*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2],
        "up_block_types": [*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4],
    },
}


def half(unet: Options, **more: Any) -> Options:
    """Return the options of a UNet that its ControlNet shares."""
    return {**{k: v for k, v in unet.items() if k not in ("sample_size", "up_block_types")}, **more}


CONTROLNETS: dict[str, Options] = {
    "default": {},
    "sd-controlnet-canny": half(SD15),
    "control-v11e-sd15-shuffle": half(SD15, global_pool_conditions=True),
    "controlnet-sd21-canny": half(SD21),
    "controlnet-canny-sdxl-1.0": half(SDXL),
    "controlnet-canny-sdxl-1.0-mid": half(SDXL, transformer_layers_per_block=1),
    "controlnet-canny-sdxl-1.0-small": half(
        SDXL, down_block_types=["DownBlock2D"] * 3, mid_block_type="UNetMidBlock2D", transformer_layers_per_block=1
    ),
}
T2I_ADAPTERS: dict[str, Options] = {
    "default": {},
    "t2iadapter-canny-sd14v1": {"in_channels": 1, "channels": [320, 640, 1280, 1280], "downscale_factor": 8},
    "t2iadapter-seg-sd14v1": {"in_channels": 3, "channels": [320, 640, 1280, 1280], "downscale_factor": 8},
    "t2iadapter-color-sd14v1": {
        "channels": [320, 640, 1280],
        "num_res_blocks": 4,
        "downscale_factor": 8,
        "adapter_type": "light_adapter",
    },
    "t2i-adapter-canny-sdxl-1.0": {
        "channels": [320, 640, 1280, 1280],
        "downscale_factor": 16,
        "adapter_type": "full_adapter_xl",
    },
}
