"""Contact sheets: many small images in a grid, with titles."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_TEXT_SIZE = 11
_LINE = 14
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(
    images: np.ndarray,
    columns: int,
    captions: Sequence[str] | None = None,
    scale: int = 2,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Arranges images in a grid on white.

    Args:
        images: uint8 [N, H, W] grey, [N, H, W, 1] grey or [N, H, W, 3] RGB.
        columns: images per row; the last row may be shorter.
        captions: a text for each image, below it and wrapped to its width.
        scale: integer factor by which images are enlarged.
        row_titles: a text for each row, to its left.
        column_titles: a text for each column, above it.

    Returns:
        An RGB image.
    """
    if images.shape[3:] == (1,):
        images = images[..., 0]
    tiles = [Image.fromarray(image).convert("RGB") for image in images]
    width, height = images.shape[2] * scale, images.shape[1] * scale
    font = ImageFont.load_default(_TEXT_SIZE)
    letters = max(1, int(width / font.getlength("n")))
    wrapped = [textwrap.wrap(text, letters) for text in captions or ()]
    caption_height = _LINE * max((len(lines) for lines in wrapped), default=0)
    left = _GAP + (int(max(map(font.getlength, row_titles))) + 2 * _GAP if row_titles else 0)
    top = _GAP + (_LINE + _GAP if column_titles else 0)
    step_x, step_y = width + _GAP, height + caption_height + _GAP
    rows = math.ceil(len(tiles) / columns)

    sheet = Image.new("RGB", (left + columns * step_x, top + rows * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles or ()):
        draw.text((left + column * step_x + width / 2, top - _GAP), title, fill=_INK, font=font, anchor="mb")
    for row, title in enumerate(row_titles or ()):
        draw.text((left - 2 * _GAP, top + row * step_y + height / 2), title, fill=_INK, font=font, anchor="rm")
    for number, tile in enumerate(tiles):
        x, y = left + number % columns * step_x, top + number // columns * step_y
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x, y))
        for line, text in enumerate(wrapped[number] if captions else ()):
            draw.text((x, y + height + 1 + line * _LINE), text, fill=_INK, font=font)
    return sheet
