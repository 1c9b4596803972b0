"""Opening checkpoint folders that torch's diffusers wrote: what is read, and what is refused with which words."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import AsymmetricAutoencoderKL, DiffusionPipeline
from safetensors.numpy import load_file, save_file

from tests.torch_parity import relative_error
from utilgen_jax.diffusion.samplers import make_sampler
from utilgen_jax.diffusion.schedules import read_by
from utilgen_jax.errors import InputError
from utilgen_jax.generator import loading
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.loading import load_stable_diffusion, read_architecture
from utilgen_jax.generator.stable_diffusion import example_arguments, expected_params
from utilgen_jax.generator.tokens import add_learned_embeds


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", ["sd15", "sd21", "unclip"])
def test_every_weight_of_the_folder_is_loaded(checkpoint, loaded, family):
    folder, params = checkpoint(family), loaded(family).params
    components = {"text_encoder", "unet", "vae"}
    if family == "unclip":
        components |= {"image_encoder", "image_normalizer"}
    assert set(params) == components
    for name in components:
        [file] = (folder / name).glob("*.safetensors")
        tensors = load_file(file)
        leaves = jax.tree.leaves(params[name])
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
        # Loading permutes axes only, so the sorted values tell whether any is missing.
        here = np.sort(np.concatenate([np.ravel(leaf) for leaf in leaves]))
        there = np.concatenate([tensor.ravel() for key, tensor in tensors.items() if "position_ids" not in key])
        np.testing.assert_array_equal(here, np.sort(there))


def test_what_the_configs_say_is_read(loaded):
    sd = loaded("sd21")
    assert sd.schedule.prediction_type == "v_prediction"
    assert (sd.image_encoder, sd.architecture.image_noising_schedule) == (None, None)
    assert sd.architecture.vae_scale_factor == 2
    assert sd.tokenizer.model_max_length == 77
    unclip = loaded("unclip").architecture
    # The cosine schedule, of a scheduler that would clip if one sampled with it: it only noises image embeddings.
    assert unclip.image_noising_schedule.alphas_cumprod[500] == pytest.approx(0.4923, abs=1e-3)
    assert unclip.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_dtype_is_that_of_weights_and_activations_but_not_of_schedules(checkpoint):
    sd = load_stable_diffusion(checkpoint("unclip"), jnp.bfloat16)
    params = dict(sd.params)
    normalizer = params.pop("image_normalizer")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(normalizer)} == {jnp.dtype(jnp.float32)}
    assert sd.unet.dtype == sd.vae.dtype == jnp.bfloat16
    assert sd.schedule.alphas_cumprod.dtype == jnp.float32


@pytest.mark.slow
def test_storage_may_be_narrower_than_activations(checkpoint, loaded):
    sd = loaded("unclip")
    ids, latents = np.arange(77)[None], jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    encode = jax.jit(lambda params: sd.text_encoder.apply({"params": params}, ids).last_hidden_state)
    decode = jax.jit(lambda params: sd.vae.apply({"params": params}, latents, method="decode"))
    cases = ((encode, "text_encoder", jnp.float16, 2e-3), (decode, "vae", jnp.bfloat16, 2e-2))
    for function, name, stored, tolerance in cases:
        narrow = load_stable_diffusion(checkpoint("unclip"), stored, architecture=sd.architecture)
        assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params[name])} == {jnp.dtype(stored)}
        assert narrow.architecture is sd.architecture  # computes in float32
        assert narrow.schedule.alphas_cumprod.dtype == jnp.float32
        output = function(narrow.params[name])
        assert output.dtype == jnp.float32
        assert 0 < relative_error(output, function(sd.params[name])) < tolerance


def test_the_autoencoder_may_compute_in_float32_alone(checkpoint):
    sd = load_stable_diffusion(
        checkpoint("sd15"),
        jnp.bfloat16,
        architecture=read_architecture(checkpoint("sd15"), jnp.bfloat16, vae_dtype=jnp.float32),
    )
    assert (sd.unet.dtype, sd.vae.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(sd)} == {jnp.dtype(jnp.bfloat16)}
    decode = partial(sd.vae.apply, {"params": sd.params["vae"]}, method="decode")
    assert jax.eval_shape(decode, jnp.zeros((1, 8, 8, 4), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.slow
def test_a_component_from_elsewhere(checkpoint, copy_of):
    other = copy_of("sd21") / "vae"
    edit_json(other / "config.json", scaling_factor=0.5)
    sd = load_stable_diffusion(checkpoint("sd15"), components={"vae": other})
    theirs = load_stable_diffusion(checkpoint("sd21")).params
    own = load_stable_diffusion(checkpoint("sd15")).params
    assert sd.vae.scaling_factor == 0.5
    jax.tree.map(np.testing.assert_array_equal, sd.params["vae"], theirs["vae"])
    jax.tree.map(np.testing.assert_array_equal, sd.params["unet"], own["unet"])
    with pytest.raises(InputError, match="components: vea cannot be replaced; text_encoder, text_encoder_2, unet"):
        load_stable_diffusion(checkpoint("sd15"), components={"vea": other})
    with pytest.raises(InputError, match="nowhere/config.json: no such file"):
        load_stable_diffusion(checkpoint("sd15"), components={"vae": other.parent / "nowhere"})


def test_sharding_is_asked_for_each_tensor(checkpoint):
    device = jax.devices()[3]
    asked = []

    def sharding_for(name, shape):
        asked.append(name)
        return jax.sharding.SingleDeviceSharding(device)

    sd = load_stable_diffusion(checkpoint("sd15"), sharding_for=sharding_for)
    assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(sd))
    assert len(asked) == len(jax.tree.leaves(sd))


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_component_is_named(copy_of, component):
    folder = copy_of("sd15")
    shutil.rmtree(folder / component)
    with pytest.raises(InputError, match=f"{folder}: has no folder {component}. A Stable Diffusion checkpoint"):
        load_stable_diffusion(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="has no folder tokenizer, text_encoder, unet, vae, scheduler"):
        load_stable_diffusion(tmp_path / "nothing")


@pytest.mark.parametrize("component", ["image_noising_scheduler", "image_normalizer"])
def test_an_unclip_checkpoint_needs_its_image_parts(copy_of, component):
    folder = copy_of("unclip")
    shutil.rmtree(folder / component)
    with pytest.raises(InputError, match=component):
        load_stable_diffusion(folder)


def test_weights_that_do_not_fit_the_config_are_listed_by_torch_name_and_shape(copy_of):
    folder = copy_of("sd15")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:8].copy()
    del tensors["conv_out.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError) as refusal:
        load_stable_diffusion(folder)
    message = str(refusal.value)
    assert str(folder / "unet") in message and "missing conv_out.bias" in message
    assert "conv_in.weight has shape (8, 4, 3, 3), the model (16, 4, 3, 3)" in message


def test_a_normalizer_of_another_width_is_refused(copy_of):
    folder = copy_of("unclip")
    [file] = (folder / "image_normalizer").glob("*.safetensors")
    save_file({name: tensor[:, :3].copy() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="image_normalizer: the weights do not fit"):
        load_stable_diffusion(folder)


@pytest.mark.parametrize(
    ("component", "file", "change"),
    [
        ("unet", "config.json", {"class_embed_type": "timestep"}),
        ("vae", "config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}),
        ("text_encoder", "config.json", {"hidden_act": "relu6"}),
        ("scheduler", "scheduler_config.json", {"prediction_type": "flow"}),
    ],
)
def test_an_unsupported_setting_is_named(copy_of, component, file, change):
    folder = copy_of("sd15")
    edit_json(folder / component / file, **change)
    with pytest.raises(InputError, match=next(iter(change))):
        read_architecture(folder)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("sd15", {"in_channels": 9}),  # inpainting
        ("sd15", {"cross_attention_dim": 64}),
        ("unclip", {"projection_class_embeddings_input_dim": 16}),
    ],
)
def test_components_that_do_not_fit_each_other_are_refused(copy_of, family, change):
    folder = copy_of(family)
    edit_json(folder / "unet" / "config.json", **change)
    [(field, value)] = change.items()
    with pytest.raises(InputError, match=f"unet/config.json: {field}={value} should be "):
        read_architecture(folder)


def torch_pipeline(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    return pipeline, pipeline.scheduler.config


@pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")  # which torch corrects
@pytest.mark.parametrize("version", ["0.8.1", "0.9.0", "0.10.2", None])
@pytest.mark.parametrize("size", [8, 64, 96])
def test_the_sample_size_of_old_configs_is_what_torch_takes(copy_of, version, size):
    folder = copy_of("sd15")
    edit_json(folder / "unet" / "config.json", sample_size=size, _diffusers_version=version or "0.42.0")
    expected = torch_pipeline(folder)[0].unet.config.sample_size
    assert read_architecture(folder).unet.sample_size == expected


def test_a_sample_size_may_be_a_list(copy_of):
    folder = copy_of("sd15")
    edit_json(folder / "unet" / "config.json", sample_size=[4, 8])
    assert read_architecture(folder).unet.sample_size == (4, 8)


@pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")
@pytest.mark.parametrize("family", ["sd15", "unclip"])
@pytest.mark.parametrize(
    "change", [{"steps_offset": 0}, {"steps_offset": None}, {"clip_sample": True}, {"clip_sample": None}]
)
def test_steps_and_clipping_are_those_of_torchs_pipeline(copy_of, family, change):
    folder = copy_of(family)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"} | change
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    edit_json(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    pipeline, theirs = torch_pipeline(folder)
    schedule = read_architecture(folder).schedule
    settings = read_by(schedule, "DDIMScheduler").settings
    assert settings == {name: theirs[name] for name in settings}
    pipeline.scheduler.set_timesteps(7)
    np.testing.assert_array_equal(make_sampler("checkpoint", schedule, 7).timesteps, pipeline.scheduler.timesteps)


@pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_schedulers_class_is_that_of_the_index(copy_of, name):
    folder = copy_of("sd15")
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
    theirs = torch_pipeline(folder)[0].scheduler
    theirs.set_timesteps(5)
    schedule = read_architecture(folder).schedule
    assert type(theirs).__name__ == name and schedule.settings["_class_name"] == name
    np.testing.assert_allclose(make_sampler("checkpoint", schedule, 5).timesteps, theirs.timesteps, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("controlnet", "ControlNetModel", r"controlnet \(ControlNetModel\): not supported, and images would be made"),
        ("prior", "PriorTransformer", r"prior \(PriorTransformer\): not supported"),
        (
            "vae",
            "AsymmetricAutoencoderKL",
            "vae is a AsymmetricAutoencoderKL, which is not supported; Auto",
        ),
        ("text_encoder", "T5EncoderModel", "text_encoder is a T5EncoderModel"),
    ],
)
def test_a_component_that_is_not_supported_is_refused_by_name(copy_of, name, kind, words):
    folder = copy_of("sd15")
    edit_json(folder / "model_index.json", **{name: ["diffusers", kind]})
    with pytest.raises(InputError, match=words):
        read_architecture(folder)


def test_a_setting_of_another_pipeline_is_refused(copy_of):
    folder = copy_of("sd15")
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=True)
    with pytest.raises(InputError, match="model_index.json: force_zeros_for_empty_prompt = True is a field"):
        read_architecture(folder)


def test_an_ip_adapters_image_encoder_is_left_out(copy_of, checkpoint):
    folder = copy_of("sd15")
    shutil.copytree(checkpoint("unclip") / "image_encoder", folder / "image_encoder")
    edit_json(folder / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    assert torch_pipeline(folder)[0].image_encoder is not None
    assert read_architecture(folder) == read_architecture(checkpoint("sd15"))


@pytest.mark.parametrize("value", [{"tokenizer_class": "T5Tokenizer"}, {"model_max_length": [77]}])
def test_another_tokenizer_is_refused(copy_of, value):
    folder = copy_of("sd15")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", **value)
    with pytest.raises(InputError, match=f"tokenizer_config.json: {next(iter(value))} = "):
        read_architecture(folder)


def test_a_token_that_the_text_encoder_has_no_row_for_is_named(copy_of):
    folder = copy_of("sd15")
    path = folder / "tokenizer" / "tokenizer_config.json"
    size = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    edit_json(path, added_tokens_decoder={str(size): {"content": "<cat>", "special": False}})
    sd = load_stable_diffusion(folder)
    assert np.isfinite(encode_prompts(sd, ["a photo"])).all()
    with pytest.raises(InputError, match=f"tokenizer: '<cat>' has no row in the text_encoder.*vocab_size={size}"):
        encode_prompts(sd, ["a photo of <cat>"])
    with pytest.raises(InputError, match=f"tokenizer: knows {size + 1} tokens"):
        add_learned_embeds(sd, ("<dog>", np.zeros(32)))


def test_an_autoencoder_of_another_class_is_named(checkpoint, tmp_path):
    AsymmetricAutoencoderKL(
        down_block_out_channels=(32,), up_block_out_channels=(32,), norm_num_groups=8
    ).save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=f"{tmp_path}/config.json: vae is a AsymmetricAutoencoderKL, which is not supp"
    ):
        read_architecture(checkpoint("sd15"), components={"vae": tmp_path})


@pytest.mark.parametrize("value", [None, 0, [16], 17])
def test_a_normalizer_says_its_width(copy_of, value):
    folder = copy_of("unclip")
    edit_json(folder / "image_normalizer" / "config.json", embedding_dim=value)
    with pytest.raises(InputError, match="image_normalizer/config.json: embedding_dim = .* is not supported; 16 is"):
        load_stable_diffusion(folder)


def test_a_broken_config_is_named(copy_of):
    folder = copy_of("sd15")
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(InputError, match="vae/config.json: cannot be read as JSON"):
        read_architecture(folder)


def test_changed_files_are_read_again(copy_of):
    folder = copy_of("sd15")
    first = read_architecture(folder)
    edit_json(folder / "vae" / "config.json", scaling_factor=0.25)
    assert (read_architecture(folder).vae.scaling_factor, first.vae.scaling_factor) == (0.25, 0.18215)


def test_an_architecture_that_is_given_is_not_read_again(checkpoint, monkeypatch):
    folder = checkpoint("sd15")
    architecture = read_architecture(folder, jnp.bfloat16)
    monkeypatch.setattr(loading, "read_architecture", None)
    sd = load_stable_diffusion(folder, architecture=architecture)
    assert sd.architecture is architecture
    assert {leaf.dtype for leaf in jax.tree.leaves(sd)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "image_encoder"])
def test_example_arguments_suit_each_module(loaded, name):
    sd = loaded("unclip")
    module = getattr(sd, name)
    shapes = jax.tree.map(lambda leaf: leaf.shape, sd.params[name])
    assert jax.tree.map(lambda leaf: leaf.shape, expected_params(module)) == shapes
    output = jax.eval_shape(module.apply, sd.variables(name), *example_arguments(module))
    assert all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(output))
