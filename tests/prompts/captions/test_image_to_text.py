"""Captioners of transformers: our captions equal those of its own classes, for tiny random checkpoints."""

import pytest

from tests.captioner_checkpoint import IMAGES, TEXT, TOWER, VISION, WORDS, blip, write_captioner
from utilgen_jax.errors import InputError
from utilgen_jax.prompts.captions import image_to_text, make_captioner


def blip2():
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    opt = {**TEXT, "model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 16}
    qformer = {**TOWER, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "cross_attention_frequency": 1}
    config = Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=opt, num_query_tokens=4, image_token_index=4
    )
    return Blip2ForConditionalGeneration(config)


def git():
    from transformers import GitConfig, GitForCausalLM

    return GitForCausalLM(GitConfig(vision_config=VISION, **TEXT))


def vit_gpt2():
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    gpt2 = GPT2Config(vocab_size=len(WORDS), **sizes, bos_token_id=0, eos_token_id=1)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), gpt2)
    config.decoder_start_token_id, config.pad_token_id = 0, 2
    return VisionEncoderDecoderModel(config=config)


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [blip2, blip, git, vit_gpt2])
def test_captions_are_those_of_the_model(tmp_path, make_model):
    said = write_captioner(tmp_path, make_model)
    captioner = make_captioner(str(tmp_path))
    assert captioner(IMAGES, ["cat"] * 4) == said == captioner(IMAGES[:2], []) + captioner(IMAGES[2:], [])
    assert max(len(caption.split()) for caption in said) <= 16
    grey = IMAGES[..., :1]
    assert captioner(grey, []) == captioner(grey.repeat(3, axis=-1), [])


@pytest.mark.slow
def test_unknown_models_are_named(tmp_path):
    with pytest.raises(InputError, match="'nobody/nothing' cannot be loaded"):
        make_captioner("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="has type 'clip', which is not one of blip, blip-2"):
        make_captioner(str(tmp_path))


def test_message_without_pytorch_has_advice(monkeypatch):
    monkeypatch.setattr(image_to_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs PyTorch: `pip install -e .\[caption\]`"):
        make_captioner("blip2")


@pytest.mark.slow
def test_pickled_weights_are_refused(tmp_path):
    import torch

    write_captioner(tmp_path, blip)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        make_captioner(str(tmp_path))
