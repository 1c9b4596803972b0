"""Captions of many images: batch by batch, kept on disk, and gone on with where a broken-off run stopped."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.errors import InputError
from utilgen_jax.prompts.captions.caption_file import one_line, parse_captions, read_captions
from utilgen_jax.prompts.captions.captioner import Captioner, make_captioner
from utilgen_jax.runtime.atomic_write import append_text, cut_partial_line


def caption_labelled_images(
    source: str, labelled: LabelledImages, cache_file: str | Path, on_images: Callable[[int], None]
) -> list[str]:
    """Captions labelled images from whatever `source` names.

    Args:
        source: A file of captions, `*.jsonl`, see `read_captions`; otherwise a captioner's name, see `make_captioner`.
        labelled: N, the shots and no other.
        cache_file: See `caption_images`; where it has all captions, no captioner is loaded.
        on_images: As there.

    Returns:
        N captions, one line each.

    Raises:
        InputError: See `read_captions`, `make_captioner` and `caption_images`.
    """
    if source.endswith(".jsonl"):
        captions = read_captions(source, labelled.ids)
        on_images(len(captions))
        return captions
    load = functools.cache(lambda: make_captioner(source))
    return caption_images(
        lambda images, class_names: load()(images, class_names),
        labelled.images,
        labelled.ids,
        [labelled.class_names[label] for label in labelled.labels],
        cache_file,
        on_images,
    )


def caption_images(
    captioner: Captioner,
    images: np.ndarray,
    ids: Sequence[str],
    class_names: Sequence[str],
    cache_file: str | Path,
    on_images: Callable[[int], None],
    batch_size: int = 16,
) -> list[str]:
    """Captions the images of which the cache has no caption yet.

    Args:
        captioner: See `make_captioner`.
        images: uint8 [N, H, W, C].
        ids: N different names, see `LabelledImages.ids`.
        class_names: N, each image's own.
        cache_file: JSON lines that `read_captions` reads as well, made or added to. It knows images by their names
            alone: another captioner, data set or image size needs a file of its own.
        on_images: Called with the number of captions there are, of these labelled.
        batch_size: Images that the captioner sees at once.

    Returns:
        N captions, one line each.

    Raises:
        InputError: The cache is damaged; more than half a last line, which a broken-off run leaves and which goes.
    """
    cache_file = Path(cache_file)
    captions = _open_cache(cache_file)
    todo = [row for row, name in enumerate(ids) if name not in captions]
    if len(todo) < len(ids):
        on_images(len(ids) - len(todo))
    for start in range(0, len(todo), batch_size):
        rows = todo[start : start + batch_size]
        texts = [one_line(text) for text in captioner(images[rows], [class_names[row] for row in rows])]
        new = {ids[row]: text for row, text in zip(rows, texts, strict=True)}
        lines = [json.dumps({"id": name, "caption": text}, ensure_ascii=False) + "\n" for name, text in new.items()]
        append_text(cache_file, "".join(lines))
        captions |= new
        on_images(len(ids) - len(todo) + start + len(rows))
    return [captions[name] for name in ids]


def _open_cache(cache_file: Path) -> dict[str, str]:
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    cache_file.touch()
    cut_partial_line(cache_file)
    captions, problems = parse_captions(cache_file)
    if problems:
        raise InputError(f"{problems[0]}; remove the file to have the images captioned again")
    return captions
