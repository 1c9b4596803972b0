"""Finds config files: by path, or by the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path

from utilgen_jax.errors import InputError, nearest

_PACKAGE = Path(__file__).parent.parent
# In an installed wheel and in a checkout: setup.py packs the checkout's folder.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_names() -> list[str]:
    """The names of the configs that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")


def find_config(file: str) -> Path:
    """Returns the config file of a path, or of a name such as `cifar`.

    `configs/cifar.py` is found from any folder: where there is no such file, the package's own is taken.

    Args:
        file: path or name.

    Raises:
        InputError: there is no such file or name.
    """
    path = Path(file).expanduser()
    if path.is_file():
        return path
    names = config_names()
    if path.stem in names and path.parts in ((path.stem,), ("configs", f"{path.stem}.py")):
        return _folder() / f"{path.stem}.py"
    raise InputError(
        f"--config: there is no file {file!r}; the nearest config of the package is {nearest(path.stem, names)!r} "
        f"(all: {', '.join(names)})"
    )


def _folder() -> Path:
    return next(folder for folder in _FOLDERS if (folder / "digits.py").is_file())
