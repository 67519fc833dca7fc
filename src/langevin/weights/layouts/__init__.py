"""Layouts: one file per family of checkpoints in their authors' own names, as data.

To add one, write `layouts/NAME.py` with a constant `FAMILIES`, a tuple of `weights.family.Family`, and add it to
`FAMILIES` of `weights.detect`. A family says how its files are recognised, and at which prefix which `Layout` lies; a
file that holds a single network is a family with one `Place`. A layout is rules and an inference:

    def rules(config):                                  # config: the options of the class that takes the weights
        return Rules([
            rule("input_blocks.0.0", "conv_in"),        # .weight and .bias ride along
            rule("blocks.{}.qkv", [f"blocks.{{}}.to_{x}" for x in "qkv"], Split(3)),
            *below("middle_block.0", "mid_block.resnets.0", RESNET),
        ])

    def infer(header):                                  # weights.header.Header without the prefix
        return {"in_channels": header.shape("input_blocks.0.0.weight")[1]}

The same rules read and write: `weights.checkpoint.Converted` reads a network through them without holding it twice,
`weights.checkpoint.Reverted` turns a state dict back. Operations are in `weights.ops`. Where an old spelling also
occurs, mark its rule `old=True`: it is read and never written. The first family that knows a file takes it, so more
special ones are asked first. Several families may share a layout, and layouts of one network may share rules: those of
the UNet of latent diffusion and of CLIP are in `ldm` and `clip`.
"""
