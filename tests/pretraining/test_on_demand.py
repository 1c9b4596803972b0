"""The generator of one's own images is made where a config wants it and it is not there."""

from types import SimpleNamespace

import pytest
from PIL import Image

from utilgen_jax import main
from utilgen_jax.config.command_line import read_config
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining import on_demand, pretrain
from utilgen_jax.pretraining.layout import TRAINING_IMAGES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with four train images a class in `images`."""
    monkeypatch.chdir(tmp_path)
    for label in ("ant", "bee"):
        (tmp_path / "images" / "train" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * number).save(tmp_path / "images" / "train" / label / f"{number}.png")
    return tmp_path


@pytest.fixture
def pretrained(monkeypatch):
    """The arguments of the pretraining, which writes what tells that a folder is whole."""
    calls = []

    def run(out, domain, seed, shrink, training_ids):
        calls.append((out, domain, seed, shrink, training_ids))
        (out / "unet").mkdir(parents=True)
        (out / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
        (out / "model_index.json").write_text("{}")
        (out / TRAINING_IMAGES).write_text("\n".join(training_ids))

    monkeypatch.setattr(pretrain, "pretrain", run)
    return calls


SPEC = "imagefolder:pretrained,path=images"


def test_half_of_the_train_images_make_it_once(folder, pretrained, capsys):
    config = read_config(SPEC)
    on_demand.pretrain_if_missing(config)
    ((out, domain, seed, shrink, ids),) = pretrained
    assert (str(out), seed, shrink) == ("runs/pretrained", 0, 1)
    assert len(ids) == 4 and {name.split("/")[1] for name in ids} == {"ant", "bee"}
    assert list(domain.prompts) == ["ant", "bee"]
    assert "takes about 50 minutes" in capsys.readouterr().err
    on_demand.pretrain_if_missing(config)
    (folder / "runs" / "pretrained" / "training").mkdir()  # interrupted
    on_demand.pretrain_if_missing(read_config("imagefolder:path=images"))
    assert len(pretrained) == 1


def test_an_interrupted_one_is_continued(folder, pretrained):
    (folder / "runs" / "pretrained" / "training").mkdir(parents=True)
    (folder / "runs" / "pretrained" / "model_index.json").write_text("{}")
    on_demand.pretrain_if_missing(read_config(SPEC))
    assert len(pretrained) == 1


@pytest.mark.parametrize(("answer", "is_made"), [("", True), ("y", True), ("n", False)])
def test_a_person_is_asked(folder, pretrained, monkeypatch, answer, is_made):
    monkeypatch.setattr(on_demand.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if is_made:
        on_demand.pretrain_if_missing(read_config(SPEC))
    else:
        with pytest.raises(InputError, match="python -m utilgen_jax.pretraining .*--out=runs/pretrained"):
            on_demand.pretrain_if_missing(read_config(SPEC))
    assert len(pretrained) == is_made


def test_several_processes_do_not_make_it(folder, pretrained, monkeypatch):
    monkeypatch.setattr(on_demand.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="make it in one process"):
        on_demand.pretrain_if_missing(read_config(SPEC))
    assert not pretrained


def test_the_main_job_makes_it_before_it_runs(folder, pretrained, monkeypatch):
    ran = []
    monkeypatch.setattr("utilgen_jax.pipeline.run", lambda config, workdir: ran.append(len(pretrained)))
    assert main.main(["utilgen", f"--config={SPEC}", "--workdir=run"]) == 0
    assert ran == [1]
