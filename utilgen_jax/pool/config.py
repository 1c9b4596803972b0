"""The config section `pool`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting

FORMATS = ("png", "webdataset", "arrayrecord")  # `packed.PACKED_FORMATS`, which needs NumPy, and single files


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """How many synthetic images there are, and how they are kept."""

    images_per_class: int = setting(50, "synthetic images a class", minimum=1)
    images_per_shot: int = setting(0, "instead, so many for each real image of the class; 0: off", minimum=0)
    fill_to: int = setting(0, "instead, as many as bring each class to this number with its shots; 0: off", minimum=0)
    format: str = setting("png", "PNG an image, or 512 images together as tar or ArrayRecord", choices=FORMATS)
