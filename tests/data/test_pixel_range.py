"""Grey images of more than 8 bits. Pillow writes the files, NumPy says what comes out."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.image_source import SizedSource
from utilgen_jax.data.images import open_image
from utilgen_jax.errors import InputError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(tmp_path, pixels, name="image.tif"):
    Image.fromarray(pixels).save(tmp_path / name)
    return np.asarray(open_image(tmp_path / name, name, 1))


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_16_bits_are_scaled(tmp_path, capsys, name):
    np.testing.assert_array_equal(read(tmp_path, GREY.astype(np.uint16) * 257, name), GREY)
    assert capsys.readouterr().err == ""


def test_12_bits_in_a_16_bit_png_are_told(tmp_path, capsys):
    assert read(tmp_path, GREY.astype(np.uint16) * 16, "twelve.png").max() == 16
    assert capsys.readouterr().err.startswith(
        "warning: twelve.png: 1 of 1 images of 16 bits hold no value above 16383 of 65535 and come out dark;"
    )


@pytest.mark.parametrize(("bits", "is_told"), [(12, True), (16, False)])
def test_12_bits_in_a_colour_png_of_16_bits_are_told(tmp_path, capsys, bits, is_told):
    values = np.arange(16 * 16 * 3).reshape(16, 16, 3) * (2**bits - 1) // 767
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "deep.png", "it")), values // 256)
    assert ("1 of 1 images of 16 bits hold no value above 16383" in capsys.readouterr().err) == is_told


def test_a_tiff_of_12_bits_says_so(tmp_path, capsys):
    levels = np.rint(GREY.astype(float) * 4095 / 255).astype(int).reshape(-1, 2)
    packed = b"".join(struct.pack(">I", (first << 12 | second) << 8)[:3] for first, second in levels.tolist())
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 16), (279, len(packed))]
    folder = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + folder + bytes(4)
    (tmp_path / "twelve.tif").write_bytes(head.ljust(200, b"\0") + packed)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "twelve.tif", "it", 1)), GREY)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        ((GREY / 255).astype(np.float32), "hold floating-point numbers and are read as 0..1"),
        (GREY.astype(np.float32), "hold floating-point numbers and are read as 0..255"),
        (GREY.astype(np.int32), "hold 32-bit integers and are read as 0..255"),
        (GREY.astype(np.int32) * 257, "hold 32-bit integers and are read as 0..65535"),
    ],
)
def test_ranges_that_no_file_tells_are_guessed_and_told(tmp_path, capsys, pixels, told):
    name = f"{told[5:10]}{told[-5:]}.tif"
    np.testing.assert_array_equal(read(tmp_path, pixels, name), GREY)
    assert capsys.readouterr().err == f"warning: {name}: 1 of 1 images {told}\n"


@pytest.mark.parametrize(
    "pixels",
    [GREY.astype(np.int32) - 100, GREY.astype(np.int32) * 1000, GREY.astype(np.float32) * 2, GREY / np.float32("nan")],
    ids=["negative", "large", "large floats", "no numbers"],
)
def test_ranges_that_cannot_be_guessed_are_refused(tmp_path, pixels):
    with pytest.raises(InputError, match=r"^image.tif: its .* go from .* to .*; save it with 8 bits"):
        read(tmp_path, pixels)


def test_a_data_set_tells_the_number_of_such_images(tmp_path, capsys):
    for number in range(4):
        Image.fromarray(GREY.astype(np.int32 if number < 3 else np.uint8)).save(tmp_path / f"{number}.tif")

    class Folder(SizedSource):
        name, image_size, channels = "mine", 16, 1

        def open(self, index):
            return open_image(tmp_path / f"{index}.tif", "it", 1)

    assert (Folder().read([0, 1, 2, 3]) == GREY[..., None]).all()
    assert capsys.readouterr().err == "warning: mine: 3 of 4 images hold 32-bit integers and are read as 0..255\n"


def test_frames_beyond_the_first_are_told(tmp_path, capsys):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "two.gif", "two.gif", 1)), GREY)
    told = "1 of 1 images have several frames, of which the first one is read"
    assert capsys.readouterr().err == f"warning: two.gif: {told}\n"
