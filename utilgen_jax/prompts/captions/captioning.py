"""Captions images in batches, with a cache on disk from which an interrupted run resumes."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.data.streamed_images import in_memory
from utilgen_jax.errors import InputError
from utilgen_jax.prompts.captions.caption_file import one_line, parse_captions, read_captions
from utilgen_jax.prompts.captions.captioner import Captioner, check_captioner, make_captioner
from utilgen_jax.runtime.atomic_write import append_text, cut_partial_line


def caption_labelled_images(
    source: str, labelled: LabelledImages, cache_file: str | Path, on_images: Callable[[int], None]
) -> list[str]:
    """Captions labelled images by a captioner or from a file.

    Args:
        source: file of captions, `*.jsonl`, see `read_captions`; or name of a captioner, see `make_captioner`.
        labelled: N images.
        cache_file: see `caption_images`; no captioner is loaded if the cache has all captions.
        on_images: see `caption_images`.

    Returns:
        N captions of one line.

    Raises:
        InputError: see `read_captions`, `make_captioner` and `caption_images`.
    """
    if source.endswith(".jsonl"):
        captions = read_captions(source, labelled.ids)
        on_images(len(captions))
        return captions
    load = functools.cache(lambda: make_captioner(source))
    return caption_images(lambda images, class_names: load()(images, class_names), labelled, cache_file, on_images)


def check_captions(source: str, ids: Sequence[str], cache_file: str | Path) -> None:
    """Checks that images can be captioned, before anything is computed: loads no captioner and writes nothing.

    Args:
        source: see `caption_labelled_images`.
        ids: of the images.
        cache_file: see `caption_images`; where it has all captions nothing else is needed.

    Raises:
        InputError: a file of captions is missing or lacks some, or a captioner is not to be had.
    """
    if source.endswith(".jsonl"):
        read_captions(source, ids)
        return
    cached = parse_captions(Path(cache_file))[0] if Path(cache_file).is_file() else {}
    if not set(ids) <= set(cached):
        check_captioner(source)


def caption_images(
    captioner: Captioner,
    labelled: LabelledImages,
    cache_file: str | Path,
    on_images: Callable[[int], None],
    batch_size: int = 16,
) -> list[str]:
    """Captions the images that the cache lacks.

    Args:
        captioner: see `make_captioner`.
        labelled: N images.
        cache_file: JSON lines in the format of `read_captions`; created if missing. Entries are keyed by image id only:
            another captioner, data set or image size needs another file.
        on_images: called with the number of images captioned so far.
        batch_size: images per call of the captioner.

    Returns:
        N captions of one line.

    Raises:
        InputError: the cache is damaged. A partial last line of an interrupted run is removed.
    """
    cache_file = Path(cache_file)
    captions = _open_cache(cache_file)
    ids = labelled.ids
    class_names = [labelled.class_names[label] for label in labelled.labels]
    todo = [row for row, name in enumerate(ids) if name not in captions]
    if len(todo) < len(ids):
        on_images(len(ids) - len(todo))
    for start in range(0, len(todo), batch_size):
        rows = todo[start : start + batch_size]
        images = in_memory(labelled.images[rows])
        texts = [one_line(text) for text in captioner(images, [class_names[row] for row in rows])]
        new = {ids[row]: text for row, text in zip(rows, texts, strict=True)}
        lines = [json.dumps({"id": name, "caption": text}, ensure_ascii=False) + "\n" for name, text in new.items()]
        append_text(cache_file, "".join(lines))
        captions |= new
        on_images(len(ids) - len(todo) + start + len(rows))
    return [captions[name] for name in ids]


def _open_cache(cache_file: Path) -> dict[str, str]:
    if not cache_file.exists():
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        cache_file.touch()
    cut_partial_line(cache_file)
    captions, problems = parse_captions(cache_file)
    if problems:
        raise InputError(f"{problems[0]}; remove the file to caption the images again")
    return captions
