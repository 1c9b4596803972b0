"""A run goes on with the input that it began with: whatever else lies there now is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.tiny import TINY
from utilgen_jax.checkpoints.checkpoint_folder import GLYPHS
from utilgen_jax.config.command_line import read_config
from utilgen_jax.errors import InputError
from utilgen_jax.experiment import inputs
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.pipeline import methods_of

IMAGES = f"{Path(__file__).parents[2] / 'configs' / 'imagefolder.py'}:runlocal"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with images, a checkpoint and captions; the current one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in (
        f"images/{split}/{label}/{number}.png" for split in ("train", "test") for label in "ab" for number in "0123"
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(name)
    shutil.copytree(GLYPHS, "checkpoint")
    ids = [f"train/{label}/{number}.png" for label in "ab" for number in "0123"]
    Path("captions.jsonl").write_text("".join(json.dumps({"id": name, "caption": "it"}) + "\n" for name in ids))
    Path("without.txt").write_text("train/a/3.png\ntrain/b/3.png\n")
    Path("classes.txt").write_text("a cat\nb dog\n")
    return tmp_path


def run(**fields):
    """A run up to its first stage."""
    own = {"data.path": "images", "data.shots": "2", "data.exclude": "without.txt", "generator.image_size": "32"}
    own |= {"generator.checkpoint": "checkpoint", "data.classes_file": "classes.txt", "data.channels": "3"}
    own |= {"prompts.captions": "captions.jsonl", "method": "captions"}
    own |= {name.replace("__", "."): value for name, value in fields.items()}
    config = read_config(IMAGES, (*TINY, *own.items()))
    with set_up(config, Path("run"), None, methods_of(config)) as experiment:
        return experiment


def swap(one, other):
    os.rename(one, "between")
    os.rename(other, one)
    os.rename("between", other)


def edit(file, change=lambda text: text + " "):
    Path(file).write_text(change(Path(file).read_text()))


def flip_byte(file, place):
    content = bytearray(Path(file).read_bytes())
    content[place] ^= 1
    Path(file).write_bytes(content)


def rename_everywhere():
    for split in ("train", "test"):
        swap(f"images/{split}/a", f"images/{split}/b")


CHANGES = {
    "test classes swapped": (lambda: swap("images/test/a", "images/test/b"), "pixels of the test images"),
    "classes swapped": (rename_everywhere, "pixels of the few-shot images"),
    "a shot made black": (
        lambda: [Image.new("RGB", (40, 40)).save(file) for file in Path("images/train/a").iterdir()],
        "originals of the few-shot images",
    ),
    "a test image more": (lambda: shutil.copy("images/test/a/0.png", "images/test/a/x.png"), "ids of the test images"),
    "captions": (lambda: edit("captions.jsonl", lambda text: text.replace("it", "us")), "config.prompts.captions"),
    "list of ids": (lambda: edit("without.txt", lambda text: text + "\n"), "config.data.exclude"),
    "names": (lambda: edit("classes.txt", lambda text: text.replace("cat", "cow")), "class names"),
    "weights": (
        lambda: flip_byte("checkpoint/unet/diffusion_pytorch_model.safetensors", -1),
        "config.generator.checkpoint: unet/diffusion_pytorch_model.safetensors",
    ),
    "scheduler": (
        lambda: edit("checkpoint/scheduler/scheduler_config.json"),
        "config.generator.checkpoint: scheduler/scheduler_config.json",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_refused_by_name(mine, change):
    run()
    run()
    before = Path("run/inputs.json").read_bytes()
    CHANGES[change][0]()
    with pytest.raises(InputError) as caught:
        run()
    message = str(caught.value)
    assert message.startswith("run holds results of other input; take another folder")
    assert f"\n  {CHANGES[change][1]}: other content now" in message
    assert Path("run/inputs.json").read_bytes() == before


def test_a_second_run_is_told_who_runs(mine):
    code = "import sys; from pathlib import Path; from utilgen_jax.runtime.folder_lock import locked_folder\n"
    code += "with locked_folder(Path('run')):\n    print(flush=True)\n    sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=f"run is in use by another run \\(process {other.pid} on "):
            run()
        other.stdin.close()
    run()


@pytest.mark.parametrize("harm", ["gone", "cut off", "of another model"])
def test_weights_that_do_not_suit_are_told_before_the_first_stage(mine, harm):
    file = Path("checkpoint/unet/diffusion_pytorch_model.safetensors")
    if harm == "gone":
        file.unlink()
    elif harm == "cut off":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        shutil.copy("checkpoint/vae/diffusion_pytorch_model.safetensors", file)
    with pytest.raises(InputError, match="checkpoint/unet"):
        run()
    assert not Path("run").exists()


def test_what_is_not_read_may_change(mine):
    run()
    Path("checkpoint/safety_checker").mkdir()
    save_file({"a": np.zeros(2)}, "checkpoint/safety_checker/model.safetensors")
    save_file({"a": np.zeros(2)}, "checkpoint/unet/diffusion_pytorch_model.fp16.safetensors")
    Path("checkpoint/README.md").write_text("words")
    Path("images/train/a/notes.xyz").write_text("words")
    os.utime("captions.jsonl", (0, 0))
    run()


def test_paths_may_be_written_in_another_way(mine):
    run()
    os.rename("run", "elsewhere")
    os.rename("elsewhere", "run")
    run(data__path=str(mine / "images"), generator__checkpoint="./checkpoint/")


def test_a_workdir_of_before_gets_its_note(mine):
    run()
    noted = Path("run/inputs.json").read_text()
    Path("run/inputs.json").unlink()
    run()
    assert Path("run/inputs.json").read_text() == noted
    Path("run/inputs.json").write_text("{")
    with pytest.raises(InputError, match="run/inputs.json: cannot be read"):
        run()


def test_of_large_weights_size_header_and_blocks_count(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(5 * 2**20, np.float32)}, file)
    whole, size = inputs.fingerprint_file(file), file.stat().st_size
    for place in (9, size - 1, size - inputs._BLOCK):
        flip_byte(file, place)
        assert inputs.fingerprint_file(file) != whole
        flip_byte(file, place)
    assert inputs.fingerprint_file(file) == whole
    with file.open("ab") as opened:
        opened.write(b"\0")
    assert inputs.fingerprint_file(file) != whole
    assert sum(map(len, inputs._samples(file, size))) <= (inputs._BLOCKS + 1) * inputs._BLOCK
