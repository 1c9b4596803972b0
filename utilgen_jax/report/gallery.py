"""Gallery of a run by class: the real images beside the highest and lowest ranked synthetic ones."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.data.streamed_images import Images
from utilgen_jax.pool.storage import Pool, PoolRecord

# Limits that keep the page small enough to mail.
MAX_CLASSES = 20
IMAGES_PER_GROUP = 8
MAX_SIDE = 128  # pixels; larger images are shrunk to it


def gallery(real: LabelledImages, pool: Pool | None) -> str:
    """Shows the real and the synthetic images of up to `MAX_CLASSES` classes, `IMAGES_PER_GROUP` of a kind.

    Args:
        real: the real training images.
        pool: the synthetic images; None for none.

    Returns:
        HTML with the images as data URIs; all text is escaped.
    """
    class_names = real.class_names
    shown = class_names[:MAX_CLASSES]
    notes = []
    if pool is not None:
        notes.append(
            "Below each synthetic image: its weight (or its soft label's probability of the class, where all weights "
            "are equal) and its difficulty. Hover over an image for its prompt."
        )
    if len(class_names) > len(shown):
        notes.append(f"The first {len(shown)} of {len(class_names)} classes.")
    blocks = []
    for label, name in enumerate(shown):
        indices = np.flatnonzero(real.labels == label)
        title = f"real, {indices.size}"
        groups = [_group(title, real.images, indices[:IMAGES_PER_GROUP], lambda _: ("real image", ""))]
        stats = ""
        if pool is not None:
            members = np.flatnonzero(pool.labels == label)
            stats = _class_stats([pool.records[int(index)] for index in members])
            groups += _pool_groups(pool, members)
        blocks.append(f'<h3>{escape(name)} <small>{stats}</small></h3><div class="groups">{"".join(groups)}</div>')
    return f'<p class="note">{" ".join(notes)}</p>' + "".join(blocks)


def _pool_groups(pool: Pool, members: NDArray[np.intp]) -> list[str]:
    """Groups the highest and lowest ranked images of one class.

    Ranks by weight; by the soft label's probability of the class where all weights are equal. Where neither varies,
    shows the first images.
    """

    def class_probability(record: PoolRecord) -> float | None:
        return None if record.soft_label is None else record.soft_label[record.label]

    records = [pool.records[int(index)] for index in members]
    rankings = (
        ("highest weight", "lowest weight", lambda record: record.weight),
        ("highest soft label", "lowest soft label", class_probability),
    )
    varying = [ranking for ranking in rankings if len({*map(ranking[2], records)} - {None}) > 1]
    first, last, score = (varying or rankings)[0]

    def texts(index: int) -> tuple[str, str]:
        record = pool.records[index]
        return record.prompt or "", f"{_number(score(record))} · {_number(record.difficulty)}"

    if not varying:
        return [_group(f"synthetic, {members.size}", pool.images, members[: 2 * IMAGES_PER_GROUP], texts)]
    ranked = members[np.argsort(-_column([score(record) for record in records]), kind="stable")]  # NaN comes last
    top, rest = ranked[:IMAGES_PER_GROUP], ranked[IMAGES_PER_GROUP:]
    groups = [_group(f"synthetic, {first}", pool.images, top, texts)]
    if rest.size:
        groups.append(_group(f"synthetic, {last}", pool.images, rest[-IMAGES_PER_GROUP:], texts))
    return groups


def _class_stats(records: Sequence[PoolRecord]) -> str:
    """Returns HTML with a class's count and means, and its prompt if all images share one."""
    stats = [f"{len(records):,} synthetic"]
    columns = {"weight": [record.weight for record in records], "difficulty": [record.difficulty for record in records]}
    for name, column in columns.items():
        values = _column(column)
        if np.isfinite(values).any():
            stats.append(f"mean {name} {np.nanmean(values):.2f}")
    prompts = {record.prompt for record in records if record.prompt}
    if len(prompts) == 1:
        stats.append(f"“{escape(prompts.pop())}”")
    return ", ".join(stats)


def _group(name: str, images: Images, indices: Iterable[int], texts: Callable[[int], tuple[str, str]]) -> str:
    """Returns a named strip of images; `texts` gives the title and the caption of an image by its index."""
    figures = []
    for index in indices:
        title, caption = texts(int(index))
        source, small = _image(images[int(index)])
        kind = ' class="pixels"' if small else ""
        text = escape(title)
        caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        figures.append(f'<figure><img{kind} src="{source}" alt="{text}" title="{text}">{caption}</figure>')
    return f'<div class="group"><h4>{escape(name)}</h4><div class="strip">{"".join(figures)}</div></div>'


def _image(image: np.ndarray) -> tuple[str, bool]:
    """Returns the data URI of a uint8 [H, W, C] image, and whether it is small enough to show pixelated."""
    opened = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small = max(opened.size) <= MAX_SIDE // 2
    opened.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if small:
        opened.save(stream, "PNG", optimize=True)
    else:
        opened.save(stream, "JPEG", quality=88)
    return data_uri(stream.getvalue(), "image/png" if small else "image/jpeg"), small


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file's content as a data URI of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
