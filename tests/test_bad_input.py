"""Whatever a person brings, a command leaves with status 0 or 2 and never with a traceback.

Inputs are mutated at random, and go through the real commands up to the first stage. `UTILGEN_FUZZ=1000` tries a
thousand of each kind, in place of a few; a case that fails names its seed, which `UTILGEN_FUZZ_SEED` begins with.
"""

import contextlib
import importlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import DIGITS, TINY
from utilgen_jax import evaluate, export, main, pipeline
from utilgen_jax.compare import __main__ as compare
from utilgen_jax.config.schema import FIELDS, VARIANTS
from utilgen_jax.data.images import open_image
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.finetune import __main__ as finetune
from utilgen_jax.methods import METHODS
from utilgen_jax.noisy_labels import __main__ as noisy_labels
from utilgen_jax.pool.records import METADATA, PoolRecord
from utilgen_jax.pool.storage import PoolWriter, read_pool
from utilgen_jax.pretraining import __main__ as pretraining
from utilgen_jax.report.metrics import read_metrics
from utilgen_jax.sample import __main__ as sample

NUMBER = int(os.environ.get("UTILGEN_FUZZ", "0"))
FIRST = int(os.environ.get("UTILGEN_FUZZ_SEED", "0"))
CONFIGS = Path(DIGITS).parent
ODD_TEXTS = [
    "",
    " ",
    "~",
    "~x",
    "/",
    ".",
    "..",
    "\n",
    "é",
    "\U0001f40d",
    "a/b",
    "-1",
    "0",
    "1e99",
    "nan",
    "inf",
    "None",
    "[]",
]
ODD_TEXTS += [
    "True",
    "x" * 300,
    "{class}",
    "{",
    "}{",
    "%s",
    "(1,)",
    "('a',)",
    "('a', 2)",
    "a,a",
    "a|b",
    "|",
    "10**9",
    "0x1",
]
ODD_VALUES = [None, True, -1, 0, 1.5, 1e99, 10**30, "", "x", "é", [], {}, [None], {"a": []}, float("nan")]


def cases(few):
    """Random generators, one a case, each with its seed for messages."""
    return [(seed, np.random.default_rng(seed)) for seed in range(FIRST, FIRST + (NUMBER or few))]


@pytest.fixture(autouse=True)
def up_to_the_first_stage(monkeypatch, tmp_path):
    """A run sets up, opens its folder and ends; large images are refused early."""

    def run(config, workdir, shared=None):
        with set_up(config, Path(workdir), shared, pipeline.methods_of(config)):
            return {}

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    monkeypatch.chdir(tmp_path)


def status_of(command, argv, seed):
    """Runs a command; its exit status, which is 0 or 2, with a message that is no traceback."""
    error, output = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
            status = command.main(argv)
    except BaseException as raised:
        raise AssertionError(f"seed {seed}: {argv}") from raised
    assert status in (0, 2), (seed, argv, error.getvalue())
    assert (status == 2) == any(line.startswith("error: ") for line in error.getvalue().splitlines()), (seed, argv)
    return status


def pick(rng, options):
    return options[rng.integers(len(options))]


def mutated(rng, content):
    """Bytes with some changed, cut off, doubled, or put in."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(content) + 1))
        match rng.integers(5):
            case 0:
                content[place : place + 1] = rng.bytes(1)
            case 1:
                del content[place:]
            case 2:
                content[place:place] = content[place : place + 20]
            case 3:
                content[place:place] = pick(rng, [b"\0", b"\xff", b"\n", b"{", b"]", b'"', b"9" * 30])
            case 4:
                del content[place : place + int(rng.integers(1, 9))]
    return bytes(content)


def mutated_json(rng, value):
    """JSON with one of its values replaced or removed."""
    value = json.loads(json.dumps(value))
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return value
        key = pick(rng, keys)
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.7:
            inner = inner[key]
            continue
        if rng.random() < 0.2:
            del inner[key]
        else:
            inner[key] = pick(rng, ODD_VALUES)
        return value


def main_argv(*fields, config=f"{DIGITS}:method=vanilla"):
    settings = [f"--config.{path}={text}" for path, text in (*TINY, ("generator.checkpoint", "glyphs"))]
    return ["main", f"--config={config}", *settings, *fields]


def test_what_is_good_is_taken():
    assert status_of(main, main_argv("--workdir=run"), "good") == 0
    make_folder(Path("images"))
    assert status_of(main, folder_argv("run2"), "good") == 0
    make_npz("set.npz")
    assert status_of(main, npz_argv("run3"), "good") == 0


def test_config_fields():
    paths, numbers = list(FIELDS), ["1", "2", "3", "8", "12", "16", "33", "64", "0.5"]
    for seed, rng in cases(25):
        chosen = [pick(rng, paths) for _ in range(rng.integers(1, 4))]
        texts = [pick(rng, [ODD_TEXTS, numbers, FIELDS[path].choices or numbers]) for path in chosen]
        fields = [f"--config.{path}={pick(rng, options)}" for path, options in zip(chosen, texts, strict=True)]
        status_of(main, main_argv(*fields, f"--workdir=run{seed}"), seed)


def test_variants_and_flags():
    words = [*VARIANTS, *METHODS, "runlocal", "5x", "polysemy", *ODD_TEXTS]
    names = ["protocol", "config.x", "configs", "help", "workdir", "seed", ""]
    for seed, rng in cases(25):
        parts = [f"{pick(rng, words)}{pick(rng, ['', '='])}{pick(rng, words)}" for _ in range(rng.integers(3))]
        flags = [
            f"--{pick(rng, names)}{pick(rng, ['', '=', '=' + pick(rng, ODD_TEXTS)])}" for _ in range(rng.integers(3))
        ]
        argv = [*main_argv(config=f"{DIGITS}:{','.join(parts)}"), f"--workdir=run{seed}", *flags]
        status_of(main, argv, seed)


# Command -> the module and the function that would do the work.
WORK = {
    evaluate: (evaluate, "evaluate"),
    export: (export, "export"),
    finetune: ("utilgen_jax.finetune.train", "train"),
    noisy_labels: ("utilgen_jax.noisy_labels.report", "run_experiment"),
    pretraining: (pretraining, "pretrain"),
    sample: ("utilgen_jax.sample.write", "write_images"),
}
RESULTS = {
    evaluate: {"accuracy": 0.5, "low": 0.4, "high": 0.6, "num_test": 3},
    noisy_labels: ("table", {}),
    finetune: (),
}


@pytest.mark.parametrize("command", WORK, ids=lambda command: command.__name__)
def test_flags_of_the_other_commands(command, monkeypatch):
    module, function = WORK[command]
    module = importlib.import_module(module) if isinstance(module, str) else module
    monkeypatch.setattr(module, function, lambda *args, **kwargs: RESULTS.get(command))
    Image.new("L", (8, 8)).save("image.png")
    Path("file").write_bytes(b"x")
    Path("link").symlink_to("nowhere")
    Path("folder").mkdir()
    good = {
        "checkpoint": "glyphs",
        "prompt": "it",
        "out": "out",
        "workdir": "run",
        "data": "digits",
        "weights": "w.npz",
    }
    good |= {"images": "folder"}
    flags = [name for name in command.define_flags() if len(name) > 1]
    texts = [*ODD_TEXTS, "image.png", "file", "link", "folder", "link/x", "file/x", "1", "2", "32", "float16", "mlp"]
    for seed, rng in cases(25):
        given = {name: text for name, text in good.items() if name in flags and rng.random() < 0.9}
        given |= {pick(rng, flags): pick(rng, texts) for _ in range(rng.integers(1, 4))}
        status_of(command, ["command", *(f"--{name}={text}" for name, text in given.items())], seed)


def test_config_files():
    good = (CONFIGS / "digits.py").read_bytes()
    for seed, rng in cases(25):
        Path("mine.py").write_bytes(mutated(rng, good))
        status_of(main, main_argv(f"--workdir=run{seed}", config="mine.py:method=real"), seed)


def make_folder(folder):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number, end in enumerate(("png", "jpg", "gif")):
                Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(folder / split / label / f"{number}.{end}")


def folder_argv(workdir):
    own = [f"--config.data.{text}" for text in ("source=imagefolder", "path=images", "shots=2", "image_size=8")]
    return main_argv(*own, f"--workdir={workdir}")


def harm_folder(rng, folder):
    """Does to a folder what happens to folders."""
    places = sorted(folder.rglob("*"))
    place = pick(rng, places)
    files = [entry for entry in places if entry.is_file() and not entry.is_symlink()]
    match rng.integers(8):
        case 0:
            file = pick(rng, files)
            file.write_bytes(mutated(rng, file.read_bytes()))
        case 1:
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        case 2:
            name = pick(
                rng, [b"caf\xe9", b"a\nb", b"{class}", b" ", b"x.png", "\U0001f40d".encode(), b"n01440764", b"%s"]
            )
            with contextlib.suppress(OSError):
                os.rename(place, os.fsencode(place.parent) + b"/" + name)
        case 3:
            with contextlib.suppress(OSError):
                (place.parent / "link.png").symlink_to(
                    pick(rng, ["nowhere", "/etc", ".", "link.png", "../../train/cat/0.png"])
                )
        case 4:
            (place if place.is_dir() else place.parent).joinpath(pick(rng, ["new.png", "raw", "0.tif"])).mkdir(
                exist_ok=True
            )
        case 5:
            file = pick(rng, files)
            file.write_bytes(
                pick(rng, [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"P5 9 9"])
            )
        case 6:
            file = pick(rng, files).with_suffix(".tif")
            values = rng.random((9, 9)) * pick(rng, [1, 255, 4095, 60000, 70000])
            Image.fromarray(values.astype(pick(rng, [np.uint16, np.int32, np.float32]))).save(file)
        case 7:
            file = pick(rng, files)
            shutil.copy(file, pick(rng, files).with_name(f"copy{file.suffix}"))


def test_image_folders():
    statuses = set()
    for seed, rng in cases(40):
        shutil.rmtree("images", ignore_errors=True)
        make_folder(Path("images"))
        for _ in range(rng.integers(1, 3)):
            if any(Path("images").rglob("*.*")):
                harm_folder(rng, Path("images"))
        statuses.add(status_of(main, folder_argv(f"run{seed}"), seed))
    assert statuses == {0, 2}


FORMATS = (
    "png",
    "jpeg",
    "gif",
    "bmp",
    "tiff",
    "webp",
    "ppm",
    "tga",
    "ico",
    "pcx",
    "sgi",
    "dds",
    "jpeg2000",
    "qoi",
    "avif",
)


def test_image_headers():
    images = []
    for number, kind in enumerate(FORMATS):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file, kind)
        images.append(file.getvalue())
    for seed, rng in cases(300):
        content = pick(rng, images)
        cut = int(rng.integers(8, 100))
        changed = mutated(rng, content[:cut]) + content[cut:]
        try:
            opened = open_image(io.BytesIO(changed), "it", pick(rng, [1, 3]))
            assert opened.mode in ("L", "RGB"), seed
        except InputError as error:
            assert str(error).startswith("it: "), seed
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


def make_npz(file, **arrays):
    rng = np.random.default_rng(0)
    good = {f"x_{split}": rng.integers(0, 256, (6, 8, 8), np.uint8) for split in ("train", "test")}
    good |= {f"y_{split}": np.arange(6) % 2 for split in ("train", "test")} | {"class_names": np.array(["cat", "dog"])}
    np.savez(file, **{name: array for name, array in (good | arrays).items() if array is not None})


def npz_argv(workdir):
    own = [f"--config.data.{text}" for text in ("source=npz", "path=set.npz", "shots=2", "image_size=8")]
    return main_argv(*own, f"--workdir={workdir}")


def test_npz_files():
    shapes = [
        (),
        (0,),
        (6,),
        (6, 1),
        (5,),
        (6, 8),
        (6, 8, 8),
        (6, 8, 8, 1),
        (6, 8, 8, 3),
        (6, 8, 8, 4),
        (0, 8, 8),
        (6, 0, 8),
    ]
    dtypes = [np.uint8, np.int64, np.float32, bool, np.complex64, "U3", "S3", "M8[s]", np.uint64, [("a", "i4")]]
    names = ["x_train", "y_train", "x_test", "y_test", "class_names", "train_images", "val_labels", "x_val", "other"]
    statuses = set()
    for seed, rng in cases(40):
        if rng.random() < 0.3:
            make_npz("set.npz")
            Path("set.npz").write_bytes(mutated(rng, Path("set.npz").read_bytes()))
        else:
            array = np.zeros(pick(rng, shapes), pick(rng, dtypes))
            make_npz("set.npz", **{pick(rng, names): None if rng.random() < 0.2 else array})
        statuses.add(status_of(main, npz_argv(f"run{seed}"), seed))
    assert statuses == {0, 2}


def test_text_files_of_a_data_set():
    make_folder(Path("images"))
    ids = [f"train/{label}/{name}" for label in ("cat", "dog") for name in ("0.png", "1.jpg", "2.gif")]
    good = {
        "captions.jsonl": "".join(json.dumps({"id": name, "caption": "it"}) + "\n" for name in ids),
        "classes.txt": "cat a cat\ndog a dog\n",
        "without.txt": "train/cat/0.png\ntrain/dog/1.jpg\n",
    }
    fields = ["--config.prompts.captions=captions.jsonl", "--config.method=captions"]
    fields += ["--config.data.classes_file=classes.txt", "--config.data.exclude=without.txt"]
    for seed, rng in cases(25):
        for name, text in good.items():
            Path(name).write_text(text)
        name = pick(rng, list(good))
        Path(name).write_bytes(mutated(rng, good[name].encode()))
        status_of(main, [*folder_argv(f"run{seed}"), *fields], seed)


def test_what_lies_in_a_workdir():
    assert status_of(main, main_argv("--workdir=good"), "good") == 0
    for seed, rng in cases(25):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("good", "run")
        file = Path("run") / pick(rng, ["config.json", "inputs.json", "metrics.jsonl", ".lock"])
        if file.suffix == ".json" and rng.random() < 0.7:
            file.write_text(json.dumps(mutated_json(rng, json.loads(file.read_text()))))
        else:
            file.write_bytes(mutated(rng, file.read_bytes() if file.exists() else b""))
        status_of(main, main_argv("--workdir=run"), seed)
        with contextlib.suppress(InputError):
            read_metrics("run")


def test_results_of_a_comparison():
    methods = ["--methods=real", "--shots=2", "--seeds=1"]
    argv = ["compare", *main_argv(*methods)[1:]]
    run = {"method": "real", "shots": 2, "seed": 0, "accuracy": 0.5, "seconds": 1.0, "num_synthetic": 0}
    run |= {"seconds_by_stage": {}, "images_per_shot": 0, "accuracy_synthetic_only": None}
    folder = Path("run/shots_2/seed_0/real")
    assert status_of(compare, [*argv, "--workdir=run"], "good") == 2  # our runs leave no summary
    config = json.loads(Path("run/config.json").read_text())
    summary = {"method": "real", "shots": 2, "seed": 0, "accuracy": {"real_only": 0.5, "final": 0.5}}
    summary |= {"num_synthetic": 0, "seconds": {"a": 1.0}, "accuracy_synthetic_only": {}}
    for seed, rng in cases(25):
        joined = (
            mutated_json(rng, {"config": config, "runs": [run]})
            if rng.random() < 0.5
            else {"config": config, "runs": [run]}
        )
        Path("compare.json").write_text(json.dumps(joined))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(mutated_json(rng, summary)))
        join = ["--join=compare.json"] if rng.random() < 0.5 else []
        status_of(compare, [*argv, "--workdir=run", "--norun", *join], seed)


def test_pools():
    writer = PoolWriter("good", ["cat", "dog"])
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3))
    writer.append(images, [PoolRecord(label=number % 2, prompt="it", seed=number) for number in range(4)])
    lines = [json.loads(line) for line in (Path("good") / METADATA).read_text().splitlines()]
    for seed, rng in cases(60):
        shutil.rmtree("pool", ignore_errors=True)
        shutil.copytree("good", "pool")
        file = Path("pool") / METADATA
        if rng.random() < 0.6:
            file.write_text("".join(json.dumps(line) + "\n" for line in mutated_json(rng, lines)))
        else:
            file = pick(rng, [file, *Path("pool").glob("*/*.png")])
            file.write_bytes(mutated(rng, file.read_bytes()))
        for use in (
            lambda: read_pool("pool", ["cat", "dog"]),
            lambda: PoolWriter("pool", ["cat", "dog"]),
            lambda: read_pool("pool"),
        ):
            try:
                use()
            except InputError:
                pass
            except BaseException as error:
                raise AssertionError(f"seed {seed}") from error
