"""utilgen_jax: synthetic training images, chosen and shaped by how much they help the task.

The functions that others want are attributes of the package, `import utilgen_jax as ug`; README.md beside this file has
an example of each. They are imported when they are first used: `import utilgen_jax` is free of JAX.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_LIBRARY, _BILEVEL = "utilgen_jax.library", "utilgen_jax.bilevel"
# name -> the module that it is imported from
_FACE = {
    "load_checkpoint": _LIBRARY,
    "sample_images": _LIBRARY,
    "train_lora": _LIBRARY,
    "save_lora": _LIBRARY,
    "show_difficulty": _LIBRARY,
    "trainable_generator": _LIBRARY,
    "load_images": _LIBRARY,
    "labelled_images": _LIBRARY,
    "make_classifier": _LIBRARY,
    "train_classifier": _LIBRARY,
    "value_pool": _LIBRARY,
    "run": _LIBRARY,
    "Examples": f"{_BILEVEL}.examples",
    "influence": f"{_BILEVEL}.influence",
    "init_bilevel": _BILEVEL,
    "make_bilevel_update": _BILEVEL,
    "uniform": f"{_BILEVEL}.weightings",
    "loss_network": f"{_BILEVEL}.weightings",
    "feature_network": f"{_BILEVEL}.weightings",
    "saflex": f"{_BILEVEL}.weightings",
}

__all__ = [*_FACE, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Imports one of the functions when it is first used (PEP 562)."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_FACE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The names that tab completion offers."""
    return sorted({*globals(), *_FACE})
