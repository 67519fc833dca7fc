"""Weights of KerasCV: HDF5 files in both ways of writing, read as Stable Diffusion 1, and everything that is refused.

The order of weights in `ORDER` and `PATHS` is what Keras 2.15 (TensorFlow) and Keras 3.15.1 (PyTorch) wrote for
KerasCV's own classes. On a UNet made of them (6.8 million random weights) the outputs differed by 3.2e-4 of 2.5, and
by 3.0e-6 with the GELU and epsilon of KerasCV; on its text encoder by 1.7e-6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import langevin
from langevin.cli import main
from langevin.core.errors import ConfigError, InputError, MissingDependencyError, WeightsError
from langevin.pipelines.keras import from_keras
from langevin.weights.checkpoint import Reverted, header_of, open_weights
from langevin.weights.header import Header
from langevin.weights.keras import KerasFile, check_order, counted
from langevin.weights.layouts import keras
from langevin.weights.layouts.clip import canonical
from langevin.weights.saving import described, save
from tests.data.published_configs import SD15
from tests.pipelines import tiny
from tests.weights import zoo
from tests.weights.published import facts_of

UNET = {**tiny.UNET, "norm_num_groups": 32}
"""A UNet whose options shapes tell."""
FIRST = {"dense": 2, "res_block": 22, "spatial_transformer": 16, "padded_conv2d": 101, "group_normalization": 62}
"""Where Keras begins to count."""
TOKEN = "<my-funny-cat-token>"
ORDER = {
    "res_block": "group_normalization/gamma group_normalization/beta padded_conv2d/conv2d/kernel "
    "padded_conv2d/conv2d/bias dense/kernel dense/bias group_normalization/gamma group_normalization/beta "
    "padded_conv2d/conv2d/kernel padded_conv2d/conv2d/bias padded_conv2d/conv2d/kernel padded_conv2d/conv2d/bias",
    "spatial_transformer": "group_normalization/gamma group_normalization/beta padded_conv2d/conv2d/kernel "
    "padded_conv2d/conv2d/bias layer_normalization/gamma layer_normalization/beta cross_attention/dense/kernel "
    "cross_attention/dense/kernel cross_attention/dense/kernel cross_attention/dense/kernel cross_attention/dense/bias "
    "layer_normalization/gamma layer_normalization/beta cross_attention/dense/kernel cross_attention/dense/kernel "
    "cross_attention/dense/kernel cross_attention/dense/kernel cross_attention/dense/bias layer_normalization/gamma "
    "layer_normalization/beta geglu/dense/kernel geglu/dense/bias dense/kernel dense/bias "
    "padded_conv2d/conv2d/kernel padded_conv2d/conv2d/bias",
    "clip_embedding": "embedding/embeddings embedding/embeddings",
    "clip_encoder_layer": "layer_normalization/gamma layer_normalization/beta clip_attention/dense/kernel "
    "clip_attention/dense/bias clip_attention/dense/kernel clip_attention/dense/bias clip_attention/dense/kernel "
    "clip_attention/dense/bias clip_attention/dense/kernel clip_attention/dense/bias layer_normalization/gamma "
    "layer_normalization/beta dense/kernel dense/bias dense/kernel dense/bias",
    "upsample": "padded_conv2d/conv2d/kernel padded_conv2d/conv2d/bias",
    "padded_conv2d": "conv2d/kernel conv2d/bias",
    "dense": "kernel bias",
    "group_normalization": "gamma beta",
    "layer_normalization": "gamma beta",
}
"""Class of a layer -> its weights in the file, numbers left out."""
PATHS = [
    ("layers/dense_1/vars/1", "time_embedding.linear_2.bias"),
    ("layers/padded_conv2d/conv2d/vars/0", "conv_in.weight"),
    ("layers/padded_conv2d_1/conv2d/vars/0", "down_blocks.0.downsamplers.0.conv.weight"),
    ("layers/res_block_1/entry_flow/padded_conv2d/conv2d/vars/0", "down_blocks.1.resnets.0.conv1.weight"),
    ("layers/res_block_1/embedding_flow/dense/vars/1", "down_blocks.1.resnets.0.time_emb_proj.bias"),
    ("layers/res_block_1/residual_projection/conv2d/vars/0", "down_blocks.1.resnets.0.conv_shortcut.weight"),
    ("layers/spatial_transformer_1/proj1/conv2d/vars/0", "mid_block.attentions.0.proj_in.weight"),
    ("layers/spatial_transformer_1/norm/vars/0", "mid_block.attentions.0.norm.weight"),
    (
        "layers/spatial_transformer_3/transformer_block/attn2/out_proj/vars/0",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0.weight",
    ),
    (
        "layers/spatial_transformer_3/transformer_block/geglu/dense/vars/0",
        "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj.weight",
    ),
    ("layers/upsample/conv/conv2d/vars/0", "up_blocks.0.upsamplers.0.conv.weight"),
    ("layers/group_normalization/vars/0", "conv_norm_out.weight"),
]


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return langevin.UNet2DConditionModel(**UNET).eval()


def as_keras(network: Any, layout: Any) -> dict[str, np.ndarray]:
    """Return a network's weights under the names of `weights.keras`, in the shapes of Keras."""
    rules, state = layout.rules(described(network)), network.state_dict()
    spelt = dict(zip(canonical(rules, state), state.values(), strict=True))
    return {name: value.numpy() for name, value in Reverted(spelt, rules).items()}


def layers(values: Mapping[str, np.ndarray]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return name of a layer, numbered as Keras numbers, -> kind and values of its weights in order."""
    found: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    for name, value in values.items():
        block, number, place, kind = name.split(".")
        # Convolutions inside of blocks count too.
        step = 9 if block == "padded_conv2d" else 1
        count = FIRST.get(block, 0) + step * int(number)
        found.setdefault(f"{block}_{count}" if count else block, {})[int(place)] = (kind, value)
    return {name: [weights[place] for place in sorted(weights)] for name, weights in found.items()}


def write(path: Path, values: Mapping[str, np.ndarray], group: str = "") -> Path:
    """Write weights as Keras 2 does."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        held = layers(values)
        root.attrs["layer_names"] = [name.encode() for name in [*reversed(held), "activation_3"]]
        root.attrs["keras_version"] = b"2.12.0"
        root.create_group("activation_3").attrs["weight_names"] = np.zeros((0,))
        for layer, weights in held.items():
            place = root.create_group(layer)
            names = [f"{layer}/part_{k:02}/{kind}:0" for k, (kind, _) in enumerate(weights)]
            place.attrs["weight_names"] = [name.encode() for name in names]
            for name, (_, value) in zip(names, weights, strict=True):
                place[name] = value
    return path


def same(one: Any, other: Any) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items()) and len(state) > 20


@pytest.fixture(scope="module")
def file(unet, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("keras") / "unet.h5", as_keras(unet, keras.UNET))


# -- reading --------------------------------------------------------------------------------------------------------


def test_a_unet_is_read_whatever_the_numbers_begin_with(unet, file, tmp_path) -> None:
    assert same(unet, langevin.UNet2DConditionModel.from_single_file(file))
    whole = write(tmp_path / "model.h5", as_keras(unet, keras.UNET), group="model_weights")
    again = langevin.UNet2DConditionModel.from_single_file(whole, disable_mmap=True)
    assert same(unet, again) and again.config.cross_attention_dim == tiny.WIDTH
    half = langevin.UNet2DConditionModel.from_single_file(file, torch_dtype=torch.float16)
    assert half.dtype == torch.float16


def test_tens_come_after_units() -> None:
    assert counted(["b_10", "b_9", "b", "a_3"]) == {"b_10": "b.2", "b_9": "b.1", "b": "b.0", "a_3": "a.0"}


@pytest.mark.parametrize("block", ORDER)
def test_the_order_of_weights_is_that_of_keras(block) -> None:
    kinds = [name.rpartition("/")[2] for name in ORDER[block].split()]
    assert kinds == [weight for *_, kind in keras.BLOCKS[block] for weight in kind.weights]
    conv = [name.split("/")[-2] == "conv2d" for name in ORDER[block].split() if "/" in name]
    table = [kind is keras.CONV for *_, kind in keras.BLOCKS[block] for _ in kind.weights]
    assert not conv or conv == table


@pytest.mark.parametrize("path, name", PATHS)
def test_the_names_of_keras_3(path, name, unet) -> None:
    form = re.fullmatch(r"layers/([a-z_0-9]+?)(?:_(\d+))?/(.+)", path)
    rest = form[3].replace("/", ".")
    assert keras.unet_rules(described(unet)).find(f"{form[1]}.{form[2] or 0}.{rest}").targets == (name,)


def test_a_file_of_keras_3(unet, tmp_path) -> None:
    rules = keras.unet_rules(described(unet))
    spelt = {each.targets[0]: each for each in rules.rules if each.old}
    with h5py.File(tmp_path / "unet.weights.h5", "w") as file:
        for name, value in unet.state_dict().items():
            found = spelt[name]
            block, number, *rest = found.sources[0].split(".")
            layer = f"{block}_{number}" if int(number) else block
            file["/".join(["layers", layer, *rest])] = found.op.inverse([value])[0].contiguous().numpy()
        file.create_group("vars")
        file["optimizer/vars/0"] = np.zeros(3)
    assert same(unet, langevin.UNet2DConditionModel.from_single_file(tmp_path / "unet.weights.h5"))


def test_what_a_file_says(file) -> None:
    facts = facts_of(header_of(file))
    assert facts.family == "keras_unet" and facts.prediction_type == "epsilon"
    with open_weights(file) as opened:
        assert isinstance(opened, KerasFile) and opened.metadata == {"keras_version": "2.12.0"}
        assert opened.entries["padded_conv2d.0.0.kernel"].shape == (3, 3, 4, 32)


def test_inspect_knows_both(file, trained, tmp_path) -> None:
    found = langevin.inspect(file)
    assert (found.kind, found.family, found.ok) == ("unet", "sd1", True) and found.tensors > 100
    found = langevin.inspect(trained[1])
    assert (found.kind, found.family, found.ok) == ("text encoder", "sd1", True)
    (tmp_path / "cut.h5").write_bytes(file.read_bytes()[:5000])
    (said,) = langevin.inspect(tmp_path / "cut.h5").damage
    assert said.startswith("It is a damaged HDF5 file")


def test_bfloat16_of_keras_3(tmp_path) -> None:
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.array([0x3F80, 0x4000], dtype=np.uint16).view("V2")
        file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
    with open_weights(tmp_path / "x.weights.h5") as opened:
        target = torch.empty(2)
        opened.read({"dense.0.vars.0": target})
    assert target.tolist() == [1.0, 2.0]


def test_the_published_sizes_are_told_from_shapes() -> None:
    network = zoo.network("UNet2DConditionModel", json.dumps(SD15))
    with torch.device("meta"):
        held = Reverted(network.state_dict(), keras.unet_rules(described(network)))
        shapes = {name: tuple(value.shape) for name, value in held.items()}
    config = keras.infer_unet(Header(shapes))
    assert len(shapes) == 686 and shapes["spatial_transformer.15.24.kernel"] == (1, 1, 320, 320)
    assert all(described(network)[name] == value or list(described(network)[name]) == value
               for name, value in config.items())  # fmt: skip
    words = {"clip_embedding.0.0.embeddings": (49409, 768), "clip_embedding.0.1.embeddings": (77, 768)}
    layer = {f"clip_encoder_layer.{k}.12.kernel": (768, 3072) for k in range(12)}
    text = keras.infer_text(Header({**words, **layer}))
    assert (text["vocab_size"], text["eos_token_id"], text["num_attention_heads"]) == (49409, 49407, 12)
    assert text["num_hidden_layers"] == 12 and text["hidden_act"] == "quick_gelu"


# -- pipelines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.stable_diffusion(langevin, folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[Path, Path, Any, torch.Tensor]:
    """Files of a fine-tuned UNet and of a text encoder with two learned words, the UNet, and the words' rows."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    unet, encoder = langevin.UNet2DConditionModel(**tiny.UNET), tiny.text_encoder()
    rows = torch.randn(2, tiny.WIDTH)
    values = as_keras(encoder, keras.TEXT)
    words = "clip_embedding.0.0.embeddings"
    values[words] = np.concatenate([values[words], rows.numpy()])
    return (
        write(folder / "unet.h5", as_keras(unet, keras.UNET)),
        write(folder / "text.h5", values),
        unet,
        rows,
    )


def test_a_pipeline_with_both(base, trained, tmp_path) -> None:
    unet_file, text_file, unet, rows = trained
    pipe = from_keras(base, unet=unet_file, text_encoder=text_file, placeholder_token=[TOKEN, "<two>"])
    assert same(unet, pipe.unet)
    pipe.save_pretrained(tmp_path / "pipeline")
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    ids = again.tokenizer(f"two {TOKEN} and <two>").input_ids
    known = again.tokenizer.convert_tokens_to_ids([TOKEN, "<two>"])
    assert set(known) <= set(ids)
    assert torch.equal(again.text_encoder.get_input_embeddings().weight[known], rows)
    pictures = [each(f"a {TOKEN}", num_inference_steps=2, seed=0, output_type="np").images[0] for each in (pipe, again)]
    assert np.array_equal(*pictures)
    plain = from_keras(base, unet=unet_file)
    other = plain(f"a {TOKEN}", num_inference_steps=2, seed=0, output_type="np").images[0]
    assert not np.array_equal(pictures[0], other)


def test_words_and_rows_must_agree(base, trained, tmp_path) -> None:
    unet_file, text_file, *_ = trained
    with pytest.raises(InputError, match=r"2 rows of words behind the 194 .* names 1"):
        from_keras(base, text_encoder=text_file, placeholder_token=TOKEN)
    with pytest.raises(InputError, match="names 0"):
        from_keras(base, text_encoder=text_file)
    with pytest.raises(InputError, match="pass `text_encoder`"):
        from_keras(base, unet=unet_file, placeholder_token=TOKEN)
    with pytest.raises(InputError, match="needs a file"):
        from_keras(base)
    with pytest.raises(WeightsError, match="holds the text_encoder; pass it as `text_encoder`"):
        from_keras(base, unet=text_file)
    save({"vae": langevin.AutoencoderKL.from_pretrained(base / "vae")}, tmp_path / "vae.safetensors")
    with pytest.raises(WeightsError, match=r"no file of KerasCV\. It is autoencoder_kl"):
        from_keras(base, unet=tmp_path / "vae.safetensors")
    with pytest.raises(ConfigError, match="from_keras puts it into a pipeline"):
        langevin.StableDiffusionPipeline.from_single_file(unet_file)


def test_the_command(base, trained, tmp_path, capsys) -> None:
    unet_file, text_file, unet, _ = trained
    words = ["--placeholder-token", TOKEN, "--placeholder-token", "<two>"]

    def convert(*argv: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["convert", *map(str, argv)])
        return int(leaving.value.code or 0), capsys.readouterr().err

    both = (unet_file, tmp_path / "both", "--base", base, "--keras-text-encoder", text_file, *words)
    assert convert(*both) == (0, "")
    pipe = langevin.StableDiffusionPipeline.from_pretrained(tmp_path / "both")
    assert same(unet, pipe.unet) and TOKEN in pipe.tokenizer.get_vocab()
    assert convert(text_file, tmp_path / "text", "--base", base, *words)[0] == 0
    code, said = convert(text_file, tmp_path / "none", *words)
    assert code == 2 and "need --base" in said
    code, said = convert(text_file, tmp_path / "none", "--base", base, "--keras-text-encoder", text_file)
    assert code == 2 and "pass the UNet first" in said and not (tmp_path / "none").exists()


# -- refusals -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(WeightsError) as error:
        langevin.UNet2DConditionModel.from_single_file(path)
    return str(error.value)


def test_missing_layers_and_weights_are_named(unet, tmp_path) -> None:
    values = as_keras(unet, keras.UNET)
    fewer = {name: value for name, value in values.items() if not name.startswith("res_block.5.")}
    assert "7 res_block of 8" in refused(write(tmp_path / "fewer.h5", fewer))
    short = {name: value for name, value in values.items() if name != "spatial_transformer.1.25.bias"}
    assert "lacks spatial_transformer.1.25.bias" in refused(write(tmp_path / "short.h5", short))
    more = {**values, "upsample.0.2.gamma": np.zeros(3, np.float32)}
    said = refused(write(tmp_path / "more.h5", more))
    assert "does not know 'upsample.0.2.gamma'" in said and "upsample.0.1.bias" in said
    wrong = {**values, "dense.0.0.kernel": values["dense.0.0.kernel"].T}
    assert "time_embedding.linear_1.weight" in refused(write(tmp_path / "wrong.h5", wrong))


def test_parts_that_were_not_trained_change_the_order(unet, tmp_path) -> None:
    values = as_keras(unet, keras.UNET)
    name = "spatial_transformer.0"
    names = [each for each in values if each.startswith(f"{name}.")]
    ordered = sorted(names, key=lambda each: int(each.split(".")[2]))
    moved = [*ordered[2:], *ordered[:2]]
    others = {each: value for each, value in values.items() if each not in names}
    frozen = {f"{name}.{k}.{each.split('.')[3]}": values[each] for k, each in enumerate(moved)}
    assert "model.trainable = True" in refused(write(tmp_path / "frozen.h5", {**others, **frozen}))
    with h5py.File(tmp_path / "numbers.h5", "w") as file:
        weights = ["a/dense_5/kernel:0", "a/dense_4/kernel:0"]
        file.attrs["layer_names"] = ["a"]
        file.create_group("a").attrs["weight_names"] = weights
        file["a/a/dense_5/kernel:0"] = file["a/a/dense_4/kernel:0"] = np.zeros(2)
    assert "'a' was written while some of its parts were not trained" in refused(tmp_path / "numbers.h5")


def test_a_convolution_that_keras_2_numbers_afresh_is_in_order() -> None:
    """These names were written by Keras 2.15."""
    names = [f"res_block_3/{part}/kernel:0" for part in ("padded_conv2d_14/conv2d_14", "padded_conv2d/conv2d")]
    check_order(Path("unet.h5"), "res_block_3", ["res_block_3/dense_26/kernel:0", *names, "dense_2"])


def test_the_second_version_is_refused(unet, tmp_path) -> None:
    values = as_keras(unet, keras.UNET)
    linear = {name: value[0, 0] if value.shape[:2] == (1, 1) else value for name, value in values.items()}
    assert "UNet of Stable Diffusion 2" in refused(write(tmp_path / "two.h5", linear))
    wide = {"clip_embedding.0.0.embeddings": np.zeros((9, 1024)), "clip_embedding.0.1.embeddings": np.zeros((7, 1024))}
    assert "text encoder of Stable Diffusion 2" in refused(write(tmp_path / "text.h5", wide))


def test_programs_are_refused_with_the_way_out(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    for place in (tmp_path / "unet.pb", tmp_path / "model" / "saved_model.pb"):
        place.write_bytes(b"\x08\x01\x12\x04")
        assert "model.save_weights" in refused(place)
    assert "only TensorFlow runs" in refused(tmp_path / "model")


def test_damage(file, tmp_path) -> None:
    data = file.read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    assert "damaged HDF5 file" in refused(tmp_path / "cut.h5")
    (tmp_path / "head.h5").write_bytes(data[:9])
    assert "damaged HDF5 file" in refused(tmp_path / "head.h5")
    rng = np.random.default_rng(0)
    for _ in range(60):
        bent = bytearray(data)
        for at in rng.integers(8, 60_000, 20):
            bent[at] = rng.integers(256)
        (tmp_path / "bent.h5").write_bytes(bent)
        try:
            with open_weights(tmp_path / "bent.h5"):
                pass
        except WeightsError:
            pass


def virtual(shape: tuple[int, ...]) -> h5py.VirtualLayout:
    """Return values that lie in another file."""
    found = h5py.VirtualLayout(shape=shape, dtype="<f4")
    found[:] = h5py.VirtualSource("other.h5", "x", shape=shape)
    return found


REPLACED: dict[str, Callable[[h5py.Group, str, tuple[int, ...]], Any]] = {
    "is a link that leads elsewhere": lambda at, name, _: at.__setitem__(name, h5py.ExternalLink("other.h5", "/x")),
    "a link that leads": lambda at, name, _: at.__setitem__(name, h5py.SoftLink("/padded_conv2d_101")),
    "takes its values from other files": lambda at, name, shape: at.create_virtual_dataset(name, virtual(shape)),
    "values from other files": lambda at, name, shape: at.create_dataset(
        name, shape, "<f4", external=[("/etc/passwd", 0, 4 * shape[0] * shape[1])]
    ),
    "compressed, in pieces": lambda at, name, shape: at.create_dataset(name, shape, "<f4", compression="gzip"),
    "or without values": lambda at, name, shape: at.create_dataset(name, shape, "<f4"),
    "a group where the values": lambda at, name, _: at.create_group(name),
    "which is no type of weights": lambda at, name, _: at.create_dataset(name, data=np.array([b"abc"], dtype="S3")),
    "and does not hold it": lambda at, name, _: None,
}
"""Words of the message -> what takes the place of a weight: its layer's group, its name there and its shape."""


@pytest.mark.parametrize("said", REPLACED)
def test_references_out_of_the_file_and_other_values_are_refused(said, file, tmp_path) -> None:
    path, layer, weight = tmp_path / "changed.h5", "dense_2", "dense_2/part_00/kernel:0"
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "r+") as opened:
        group = opened[layer]
        shape = group[weight].shape
        del group[weight]
        REPLACED[said](group, weight, shape)
    assert said in refused(path)


def test_other_files_of_hdf5(tmp_path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    said = refused(tmp_path / "other.h5")
    assert "without the layers of a Keras model; it holds measurements" in said
    with h5py.File(tmp_path / "loop.weights.h5", "w") as file:
        file.create_group("layers/dense")
        file["layers/dense/again"] = file["layers"]
    assert "stands in it twice" in refused(tmp_path / "loop.weights.h5")
    with h5py.File(tmp_path / "mlp.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(3)
    assert "no layout that is known here" in refused(tmp_path / "mlp.weights.h5")


def test_without_h5py(file, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr("langevin.core.imports.is_available", lambda name: False)
    with pytest.raises(MissingDependencyError, match=r'pip install "langevin\[keras\]"'):
        open_weights(file)
