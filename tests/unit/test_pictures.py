"""Uploaded pictures: opened with limits, and written anew."""

import io
from typing import Any

import pytest
from PIL import Image, ImageOps

from shared import pictures
from shared.pictures import BrokenPicture, PictureBomb, clean_picture


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(clean_picture(data)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_becomes_an_rgb_png(kind: str) -> None:
    image = opened(encoded(Image.new("RGB", (9, 7), "red"), kind))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (9, 7))


def test_the_same_picture_gives_the_same_bytes() -> None:
    data = encoded(Image.new("RGB", (9, 7), "red"))
    assert clean_picture(data) == clean_picture(data)


def test_exif_turns_the_picture_and_goes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    exif[0x010E] = "Mrs Example"  # description
    data = encoded(Image.new("RGB", (9, 7), "red"), "JPEG", exif=exif)
    clean = clean_picture(data)
    assert b"Example" in data
    assert b"Example" not in clean
    assert Image.open(io.BytesIO(clean)).size == (7, 9)


def test_exif_that_is_damaged_costs_no_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "Mrs Example, of the ward on the second floor"
    data = encoded(Image.new("RGB", (9, 7), "red"), "JPEG", exif=exif.tobytes()[:-40])
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert opened(data).size == (7, 9)


def test_what_is_transparent_becomes_white() -> None:
    assert opened(encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_grey_of_16_bits_keeps_its_shades() -> None:
    grey = Image.new("I;16", (2, 1))
    grey.putpixel((0, 0), 0x4000)
    grey.putpixel((1, 0), 0xC000)
    image = opened(encoded(grey))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(64, 64, 64), (192, 192, 192)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(Image.effect_noise((64, 64), 50))[:-900],
        encoded(Image.new("RGB", (2, 2)), "GIF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_does_not_open_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenPicture):
        clean_picture(data)


def test_a_picture_with_too_many_pixels_is_broken_and_says_why() -> None:
    data = encoded(Image.new("1", (5000, 5000)))
    assert len(data) < 10_000
    with pytest.raises(BrokenPicture, match="16 million pixels"):
        clean_picture(data)


def test_the_limit_is_looked_at_before_a_picture_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(_image: Image.Image) -> Image.Image:
        raise AssertionError

    monkeypatch.setattr(pictures, "_as_rgb", unpack)
    for side, problem in ((5000, BrokenPicture), (10_000, PictureBomb), (14_000, PictureBomb)):
        with pytest.raises(problem):
            clean_picture(encoded(Image.new("1", (side, side))))
