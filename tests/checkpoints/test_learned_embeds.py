"""Valid and invalid files of learned tokens."""

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_one_tensor_under_the_tokens_name(tmp_path):
    file = checkpoints.save_learned_embeds(tmp_path / "new", "<toy>", ROWS)
    assert file.name == "learned_embeds.safetensors"
    assert {name: tensor.tolist() for name, tensor in load_file(file).items()} == {"<toy>": ROWS.tolist()}
    for path in (file, file.parent):
        token, embeds = checkpoints.load_learned_embeds(path)
        assert token == "<toy>" and embeds.dtype == np.float32
        np.testing.assert_array_equal(embeds, ROWS)


def test_a_single_vector_is_a_row(tmp_path):
    save_file({"<toy>": ROWS[0].astype(np.float16)}, tmp_path / "toy.safetensors")
    token, embeds = checkpoints.load_learned_embeds(tmp_path / "toy.safetensors")
    np.testing.assert_array_equal(embeds, ROWS[:1])


def test_files_of_the_web_ui_are_named_as_their_token(tmp_path):
    save_file({"emb_params": ROWS, "steps": np.array([100])}, tmp_path / "easynegative.safetensors")
    token, embeds = checkpoints.load_learned_embeds(tmp_path / "easynegative.safetensors")
    assert token == "easynegative"
    np.testing.assert_array_equal(embeds, ROWS)


def test_two_text_encoders_have_a_part_each(tmp_path):
    file = checkpoints.save_learned_embeds(tmp_path / "new", "<toy>", ROWS, widths=(1, 2))
    stored = load_file(file)
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        "clip_l": ROWS[:, :1].tolist(),
        "clip_g": ROWS[:, 1:].tolist(),
    }
    token, embeds = checkpoints.load_learned_embeds(tmp_path / "new")
    assert token == "<toy>"
    np.testing.assert_array_equal(embeds, ROWS)
    save_file(stored, tmp_path / "easynegative.safetensors")  # as web interfaces do
    assert checkpoints.load_learned_embeds(tmp_path / "easynegative.safetensors")[0] == "easynegative"
    save_file({"clip_l": ROWS, "clip_g": ROWS[:1]}, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=r"differ in number: \[2, 3\] and \[1, 3\]"):
        checkpoints.load_learned_embeds(tmp_path / "broken.safetensors")


def test_two_files_of_diffusers_training_script(tmp_path):
    save_file({"<toy>": ROWS[:, :1].copy()}, tmp_path / "learned_embeds.safetensors")
    save_file({"<toy>": ROWS[:, 1:].copy()}, tmp_path / "learned_embeds_2.safetensors")
    token, embeds = checkpoints.load_learned_embeds(tmp_path)
    assert token == "<toy>"
    np.testing.assert_array_equal(embeds, ROWS)


@pytest.mark.parametrize("name", ["learned_embeds.bin", "learned_embeds.pt"])
def test_pickles_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=rf"{name}: a pickle.*\n.*\n  safetensors\.torch\.save_file"):
            checkpoints.load_learned_embeds(path)


@pytest.mark.parametrize("nested", [False, True])
def test_the_two_lines_of_the_advice_convert_a_pickle(tmp_path, nested):
    tensors = {"<cat>": torch.tensor(ROWS)}
    torch.save({"state_dict": tensors} if nested else tensors, tmp_path / "learned_embeds.bin")
    with pytest.raises(InputError) as refusal:
        checkpoints.load_learned_embeds(tmp_path)
    _, *lines = str(refusal.value).splitlines()
    exec("\n".join(line.strip() for line in lines), {"torch": torch, "safetensors": safetensors})
    token, embeds = checkpoints.load_learned_embeds(tmp_path)
    assert token == "<cat>"
    np.testing.assert_array_equal(embeds, ROWS)


@pytest.mark.parametrize("tensors", [{"<a>": ROWS, "<b>": ROWS}, {"<a>": ROWS[None]}, {}])
def test_anything_else_is_refused_and_listed(tmp_path, tensors):
    file = tmp_path / "learned_embeds.safetensors"
    save_file(tensors, file)
    with pytest.raises(InputError, match="no learned token") as caught:
        checkpoints.load_learned_embeds(file)
    assert all(name in str(caught.value) for name in tensors)
    with pytest.raises(InputError, match="no such file"):
        checkpoints.load_learned_embeds(tmp_path / "gone.safetensors")
