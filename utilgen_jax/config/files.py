"""Finds config files: by path, or by the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path

from utilgen_jax.errors import InputError, nearest
from utilgen_jax.runtime.paths import expand

_PACKAGE = Path(__file__).parent.parent
# In an installed wheel and in a checkout: setup.py packs the checkout's folder.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_names() -> list[str]:
    """The names of the configs that come with the package; none where only its own folder was copied."""
    return sorted(_packaged())


def find_config(file: str) -> Path:
    """Returns the config file of a path, or of a name such as `cifar`.

    `configs/cifar.py` is found from any folder: where there is no such file, the package's own is taken.

    Args:
        file: path or name.

    Raises:
        InputError: there is no such file or name.
    """
    path = Path(expand(file))
    if path.is_file():
        return path
    packaged = _packaged()
    if path.stem in packaged and path.parts in ((path.stem,), ("configs", f"{path.stem}.py")):
        return packaged[path.stem]
    message = f"--config: there is no file {file!r}"
    if packaged:
        names = sorted(packaged)
        message += f"; the nearest config of the package is {nearest(path.stem, names)!r} (all: {', '.join(names)})"
    raise InputError(message)


def _packaged() -> dict[str, Path]:
    """The package's configs by name."""
    return next((found for folder in _FOLDERS if (found := {path.stem: path for path in folder.glob("*.py")})), {})
