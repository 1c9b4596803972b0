"""What a run reads beside its config, as fingerprints in `inputs.json`: a run goes on with the same input alone.

Files are hashed whole, but of a safetensors file of more than 16 MiB the size, the header and 64 blocks of 64 KiB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import jax

from utilgen_jax.checkpoints.weight_files import choose_weight_files
from utilgen_jax.config.schema import FIELDS, Config, flatten
from utilgen_jax.data.fingerprint import Fingerprints, digest, new_hash
from utilgen_jax.data.splits import CLASS_NAMES
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text

FILE = "inputs.json"
CHECKPOINT = "config.generator.checkpoint"
_TEXT_FILES = (".json", ".txt", ".model")
_WEIGHTS = ".safetensors"
_UNREAD = ("safety_checker",)  # component of published checkpoints
_SAMPLED_FROM, _BLOCKS, _BLOCK = 16 * 2**20, 64, 2**16
_SHOWN = 10


def fingerprint_files(config: Config, checkpoint: Path | None) -> Fingerprints:
    """The fingerprints of the files and folders that the config's fields name, and of the checkpoint's files.

    Names that are no path, such as hub ids of captioners, have none.

    Args:
        config: of the run.
        checkpoint: the generator's folder; None where nothing is synthetic.
    """
    found = {}
    # Of the data set the images are fingerprinted, as far as they are read.
    values, others = flatten(config), ("data.path", "generator.checkpoint")
    fields = [path for path, field in FIELDS.items() if field.is_path and values[path] and path not in others]
    places = {f"config.{path}": Path(values[path]) for path in fields}
    if checkpoint is not None:
        places[CHECKPOINT] = checkpoint
    for field, place in places.items():
        if place.is_file():
            found[field] = fingerprint_file(place)
        elif place.is_dir():
            found |= fingerprint_model(field, place)
    return found


def fingerprint_model(name: str, folder: Path) -> Fingerprints:
    """The fingerprints of a model's files that are read; `name` stands before theirs."""
    return {f"{name}: {file.relative_to(folder)}": fingerprint_file(file) for file in _files_of(folder)}


def of_checkpoint(fingerprints: Fingerprints) -> Fingerprints:
    """Those that pools depend on in which few-shot images have no part."""
    return {name: each for name, each in fingerprints.items() if name == CLASS_NAMES or name.startswith(CHECKPOINT)}


def check_inputs(folder: Path, now: Fingerprints) -> Fingerprints:
    """Checks that what was read before into a folder, if anything was, is as it is now; returns what was noted of it.

    Raises:
        InputError: something differs, which is named; or the note of it is damaged.
    """
    before = _read(folder)
    differing = [name for name, found in now.items() if before.get(name, found) != found]
    # A method without synthetic images reads no checkpoint.
    reads_checkpoint = any(name.startswith(CHECKPOINT) for name in now)
    gone = [name for name in before if name not in now and name.startswith(CHECKPOINT) and reads_checkpoint]
    if differing or gone:
        lines = [f"{name}: other content now" for name in differing] + [f"{name}: not there now" for name in gone]
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise InputError(
            f"{folder} holds results of other input; take another folder, remove this one, or bring back what was read "
            "before. What differs:\n  " + "\n  ".join(lines[:_SHOWN] + more)
        )
    return before


def note_inputs(folder: Path, now: Fingerprints) -> None:
    """Checks what was read before into a folder, and notes what is read now; see `check_inputs`."""
    before = check_inputs(folder, now)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps({**before, **now}, indent=2, ensure_ascii=False) + "\n")


def fingerprint_file(file: Path) -> str:
    """Returns a digest of a file's content; see the module for large ones."""
    try:
        size = file.stat().st_size
        if file.suffix == _WEIGHTS and size > _SAMPLED_FROM:
            return digest(_samples(file, size))
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, new_hash).hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


def _samples(file: Path, size: int) -> Iterable[bytes]:
    """Size, header, and blocks at equal distances, the first and the last among them."""
    yield str(size).encode()
    with file.open("rb") as opened:
        length = min(int.from_bytes(opened.read(8), "little"), size)
        yield opened.read(length)
        for block in range(_BLOCKS):
            opened.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
            yield opened.read(_BLOCK)


def _files_of(folder: Path) -> list[Path]:
    """The files of a model that are read: texts, and of each component the chosen weights."""
    files = []
    for part in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in _UNREAD)):
        names = [entry.name for entry in part.iterdir() if entry.is_file() and not entry.name.startswith(".")]
        weights = choose_weight_files(names)
        texts = [name for name in names if name.endswith(_TEXT_FILES) and ".index." not in name]
        files += [part / name for name in sorted({*weights, *texts})]
    return files


def _read(folder: Path) -> dict[str, str]:
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or not all(isinstance(found, str) for found in before.values()):
            raise ValueError("not an object of texts")
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error}); remove {folder}, or take another one") from error
    return before
