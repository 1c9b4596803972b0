"""Writes a tiny random captioner in transformers' format."""

import numpy as np

WORDS = ("<s>", "</s>", "<pad>", "<unk>", "<image>", "red", "green", "blue", "cat", "dog", "sky")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
# The sizes of every tower.
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
TEXT = {**TOWER, **SPECIAL, "vocab_size": len(WORDS), "max_position_embeddings": 64}


def blip():
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {**TEXT, "encoder_hidden_size": 16, "projection_dim": 16, "sep_token_id": 1}
    return BlipForConditionalGeneration(BlipConfig(vision_config=VISION, text_config=text, projection_dim=16))


def write_captioner(folder, make_model):
    """Saves a random model, tokenizer and image processor, and returns the model's captions of IMAGES."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BlipImageProcessorPil, PreTrainedTokenizerFast

    vocabulary = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    words = Tokenizer(vocabulary)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names, additional_special_tokens=["<image>"])
    tokenizer.save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(folder)
    pixels = processor(list(IMAGES), return_tensors="pt").pixel_values
    model = make_model().eval()
    for seed in range(100):  # until it does not say one thing of all images
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        said = tokenizer.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=16), skip_special_tokens=True)
        if len(set(said)) > 1:
            model.save_pretrained(folder)
            return said
    raise AssertionError("no random model tells the images apart")
