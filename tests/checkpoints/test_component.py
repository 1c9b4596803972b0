"""Reading and writing components, against torch's diffusers and transformers, and damaged folders."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from utilgen_jax import checkpoints
from utilgen_jax.checkpoints import torch_names
from utilgen_jax.errors import InputError

TORCH_CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "image_normalizer": StableUnCLIPImageNormalizer,
}
COMPONENTS = tuple(TORCH_CLASSES)


def weight_file(folder):
    """Returns the safetensors file of a component."""
    (path,) = folder.glob("*.safetensors")
    return path


def shapes_of(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def assert_trees_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("component", COMPONENTS)
def test_torch_loads_our_files(unclip_original, tmp_path, component):
    torch_class = TORCH_CLASSES[component]
    original = torch_class.from_pretrained(unclip_original / component).state_dict()

    config, params = checkpoints.load_component(unclip_original / component)
    checkpoints.save_component(tmp_path / component, config, params)
    model, info = torch_class.from_pretrained(tmp_path / component, output_loading_info=True)

    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    written = model.state_dict()
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    assert checkpoints.load_config(tmp_path / component) == checkpoints.load_config(unclip_original / component)


def test_names_and_layout(unclip_original):
    _, params = checkpoints.load_component(unclip_original / "unet")
    stored = load_file(weight_file(unclip_original / "unet"))
    np.testing.assert_array_equal(
        params["down_blocks.0"]["resnets.0"]["conv1"]["kernel"],
        stored["down_blocks.0.resnets.0.conv1.weight"].numpy().transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        params["down_blocks.0"]["attentions.0"]["proj_in"]["kernel"],
        stored["down_blocks.0.attentions.0.proj_in.weight"].numpy().T,
    )


@pytest.mark.parametrize("model_class", [CLIPTextModel, CLIPTextModelWithProjection])
@pytest.mark.parametrize("prefixed", [True, False])
def test_clip_text_with_and_without_prefix(unclip, tmp_path, model_class, prefixed):
    config = CLIPTextConfig.from_pretrained(unclip / "text_encoder")
    model = model_class(config)
    model.save_pretrained(tmp_path / "text")
    path = weight_file(tmp_path / "text")
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    if prefixed:
        tensors = {n if n == "text_projection.weight" else f"text_model.{n}": t for n, t in tensors.items()}
    tensors["text_model.embeddings.position_ids" if prefixed else "embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path, metadata={"format": "pt"})

    _, params = checkpoints.load_component(tmp_path / "text")

    assert set(params) == {"text_model", *(["text_projection"] if model_class is CLIPTextModelWithProjection else [])}
    assert set(params["text_model"]["embeddings"]) == {"token_embedding", "position_embedding"}
    checkpoints.save_component(tmp_path / "again", checkpoints.load_config(tmp_path / "text"), params)
    again, info = model_class.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("torch_dtype", "dtype"), [(torch.bfloat16, jnp.bfloat16), (torch.float16, jnp.float16)])
def test_half_precision_files(unclip, tmp_path, torch_dtype, dtype):
    exact = load_file(weight_file(unclip / "vae"))
    AutoencoderKL.from_pretrained(unclip / "vae").to(torch_dtype).save_pretrained(tmp_path / "vae")

    config, stored = checkpoints.load_component(tmp_path / "vae")
    _, cast = checkpoints.load_component(tmp_path / "vae", dtype=jnp.float32)
    checkpoints.save_component(tmp_path / "again", config, cast, dtype=dtype)

    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype(jnp.float32)}
    again = load_file(weight_file(tmp_path / "again"))
    assert again.keys() == exact.keys()
    for name, tensor in exact.items():
        assert again[name].dtype == torch_dtype
        assert torch.equal(again[name], tensor.to(torch_dtype))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_index_and_variant(unclip_original, tmp_path, variant):
    model = UNet2DConditionModel.from_pretrained(unclip_original / "unet")
    model.save_pretrained(tmp_path / "unet", max_shard_size="300KB", variant=variant)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1

    _, sharded = checkpoints.load_component(tmp_path / "unet")

    assert_trees_equal(sharded, checkpoints.load_component(unclip_original / "unet")[1])


def test_single_variant_file_is_read_only_where_there_is_no_full_one(unclip):
    path = weight_file(unclip / "vae")
    half = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert jax.tree.leaves(checkpoints.load_component(unclip / "vae")[1])[0].dtype == jnp.float32
    path.unlink()
    assert jax.tree.leaves(checkpoints.load_component(unclip / "vae")[1])[0].dtype == jnp.float16


def test_old_autoencoder_attention(unclip):
    _, params = checkpoints.load_component(unclip / "vae")
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    path, old = weight_file(unclip / "vae"), {}
    for name, tensor in load_file(path).items():
        for today, before in old_names.items():
            name = name.replace(today, before)
        # Some converters stored these matrices as 1x1 convolutions.
        old[name] = tensor[..., None, None] if name.endswith(("query.weight", "proj_attn.weight")) else tensor
    assert any("proj_attn" in name for name in old)
    save_file(old, path)

    _, loaded = checkpoints.load_component(unclip / "vae", expected=shapes_of(params))

    assert_trees_equal(loaded, params)


def write_component(folder, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_linear_file_fits_convolutional_model_and_the_reverse(tmp_path):
    linear = torch.arange(6.0).reshape(2, 3)
    folder = write_component(tmp_path / "unet", {"a.weight": linear, "b.weight": linear.clone()[..., None, None]})
    shapes = {"a": {"kernel": (1, 1, 3, 2)}, "b": {"kernel": (3, 2)}}
    expected = {name: {"kernel": jax.ShapeDtypeStruct(its["kernel"], np.float32)} for name, its in shapes.items()}
    placed = {}

    def sharding_for(name, shape):
        placed[name] = shape

    _, params = checkpoints.load_component(folder, sharding_for=sharding_for, expected=expected)

    np.testing.assert_array_equal(params["a"]["kernel"], linear.numpy().T[None, None])
    np.testing.assert_array_equal(params["b"]["kernel"], linear.numpy().T)
    assert placed == {"a/kernel": (1, 1, 3, 2), "b/kernel": (3, 2)}  # sharded as the model has it, not as the file


def test_parameters_take_the_nesting_of_the_model(tmp_path):
    folder = write_component(tmp_path / "unet", {"ff.net.0.proj.bias": torch.ones(2)})
    _, params = checkpoints.load_component(folder)
    assert_trees_equal(params, {"ff": {"net.0": {"proj": {"bias": np.ones(2)}}}})
    expected = {"ff.net.0.proj": {"bias": jax.ShapeDtypeStruct((2,), np.float32)}}
    _, params = checkpoints.load_component(folder, expected=expected)
    assert_trees_equal(params, {"ff.net.0.proj": {"bias": np.ones(2)}})


def test_all_misfits_are_listed_at_once_before_any_tensor_is_read(tmp_path):
    struct = jax.ShapeDtypeStruct
    expected = {
        "conv_in": {"kernel": struct((3, 3, 4, 8), np.float32), "bias": struct((8,), np.float32)},
        "time": {"linear_1": {"kernel": struct((5, 6), np.float32)}},
    }
    tensors = {
        "conv_in.weight": torch.ones(8, 9, 3, 3),
        "time.linear_1.weight": torch.ones(6, 5),
        "extra": torch.ones(2),
    }
    folder = write_component(tmp_path / "unet", tensors)

    def sharding_for(name, shape):
        raise AssertionError(f"{name} was read")

    with pytest.raises(InputError) as caught:
        checkpoints.load_component(folder, sharding_for=sharding_for, expected=expected)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert message.splitlines()[1:] == [
        "  missing conv_in.bias",
        "  unexpected extra",
        "  conv_in.weight has shape (8, 9, 3, 3), the model (8, 4, 3, 3)",
    ]


def test_tensors_go_where_they_are_sent(unclip_original):
    seen = {}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def sharding_for(name, shape):
        seen[name] = shape
        return device if name.endswith("kernel") else None

    _, params = checkpoints.load_component(unclip_original / "image_encoder", sharding_for=sharding_for)
    assert seen == {"/".join(path): leaf.shape for path, leaf in torch_names.flatten(params).items()}


def test_a_second_save_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save_component(
            tmp_path, {"_class_name": "X"}, {"a": {"bias": jnp.full(2, value), "steps": jnp.int32(7)}}, jnp.float16
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    stored = load_file(weight_file(tmp_path))
    assert stored["a.bias"].tolist() == [2.0, 2.0] and stored["a.bias"].dtype == torch.float16
    assert stored["a.steps"].item() == 7 and stored["a.steps"].dtype == torch.int32


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's count of resident memory")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    rows = np.ones((512, 2048), np.float32)
    tensors = {f"layers.{index}.weight": torch.from_numpy(rows + index) for index in range(24)}  # 96 MiB, 48 as float16
    folder = write_component(tmp_path / "unet", tensors)
    del tensors
    checkpoints.load_component(folder, jnp.float16)  # what is allocated once
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    _, params = checkpoints.load_component(folder, jnp.float16)
    assert len(jax.tree.leaves(params)) == 24
    assert resident_mib("VmHWM") - before < 1.3 * 48 + 16


def resident_mib(field):
    """Memory of this process, from /proc/self/status: VmRSS now, VmHWM its peak."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def truncate(folder):
    path = weight_file(folder)
    path.write_bytes(path.read_bytes()[:-100])


def garble_header(folder):
    path = weight_file(folder)
    path.write_bytes(path.read_bytes()[:8] + b"not json" * 40)


def empty(folder):
    weight_file(folder).write_bytes(b"")


def only_pickle(folder):
    weight_file(folder).rename(folder / "diffusion_pytorch_model.bin")


def no_weights(folder):
    weight_file(folder).unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def list_config(folder):
    (folder / "config.json").write_text("[]")


def store_as_float8(folder):
    path = weight_file(folder)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "named", "message"),
    [
        (truncate, "diffusion_pytorch_model.safetensors", "not a complete safetensors file"),
        (garble_header, "diffusion_pytorch_model.safetensors", "not a complete safetensors file"),
        (empty, "diffusion_pytorch_model.safetensors", "not a complete safetensors file"),
        (only_pickle, "diffusion_pytorch_model.bin", "a pickle"),
        (no_weights, "vae", "no weights"),
        (no_config, "config.json", "no such file"),
        (broken_config, "config.json", "cannot be read as JSON"),
        (list_config, "config.json", "must be a JSON object"),
        (store_as_float8, "diffusion_pytorch_model.safetensors", "stored as F8_E4M3"),
    ],
)
def test_broken_folder_is_named(unclip, damage, named, message):
    damage(unclip / "vae")
    with pytest.raises(InputError, match=message) as caught:
        checkpoints.load_component(unclip / "vae")
    assert str(unclip / "vae") in str(caught.value) and named in str(caught.value)


def test_numbers_that_are_not_finite_are_named(unclip):
    path = weight_file(unclip / "vae")
    tensors = load_file(path)
    name = "decoder.conv_out.bias"
    for dtype in (torch.float32, torch.bfloat16):
        for value in (float("nan"), float("-inf")):
            save_file(
                {key: tensor.to(dtype) for key, tensor in (tensors | {name: torch.full((3,), value)}).items()}, path
            )
            with pytest.raises(InputError, match=f"{name} holds NaN or infinity: the file is damaged"):
                checkpoints.load_component(unclip / "vae")
    save_file(tensors | {name: torch.full((3,), 1e6)}, path)
    checkpoints.load_component(unclip / "vae", jnp.bfloat16)
    with pytest.raises(InputError, match=f"{name} has numbers that float16 cannot hold; use float32"):
        checkpoints.load_component(unclip / "vae", jnp.float16)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_named(unclip, prefix):
    path = weight_file(unclip / "vae")
    params = checkpoints.load_component(unclip / "vae")[1]
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InputError, match=f"the names of its tensors begin with '{prefix}'") as refusal:
        checkpoints.load_component(unclip / "vae", expected=params)
    assert len(str(refusal.value).splitlines()) == 2


def test_a_long_list_of_mismatches_is_cut_short(unclip):
    params = checkpoints.load_component(unclip / "vae")[1]
    with pytest.raises(InputError, match=r"  \.\.\. and \d+ more$") as refusal:
        checkpoints.load_component(unclip / "unet", expected=params)
    assert len(str(refusal.value).splitlines()) == 42


def test_a_variant_that_is_not_chosen_by_itself_is_named(unclip):
    path = weight_file(unclip / "vae")
    path.rename(path.with_name("diffusion_pytorch_model.ema.safetensors"))
    with pytest.raises(InputError, match="weights of the variant 'ema' alone; choose it by --variant=ema"):
        checkpoints.load_component(unclip / "vae")
    checkpoints.load_component(unclip / "vae", variant="ema")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        checkpoints.load_component(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": "../secret.safetensors"}, "not a safetensors file in this folder"),
        ({"a.weight": "/etc/secret.safetensors"}, "not a safetensors file in this folder"),
        ({"a.weight": "sub\\secret.safetensors"}, "not a safetensors file in this folder"),
        ({"a.weight": "checkpoints.bin"}, "not a safetensors file in this folder"),
        ({"a.weight": 3}, "not a safetensors file in this folder"),
        ({"a.weight": "gone.safetensors"}, "no such file"),
        ({"a.weight": "shard.safetensors", "b.weight": "shard.safetensors"}, "lacks tensor b.weight"),
        ({}, "weight_map"),
        (None, "weight_map"),
    ],
)
def test_broken_index_is_named(tmp_path, weight_map, message):
    secret = {"a.weight": torch.ones(2)}
    save_file(secret, tmp_path / "secret.safetensors")
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(secret, folder / "shard.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message) as caught:
        checkpoints.load_component(folder)
    assert str(folder) in str(caught.value)
