"""Uploaded pictures: opened with limits, and written anew."""

import io

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from shared import pictures
from shared.pictures import BrokenPicture, PictureBomb, PreparedPicture, clean_picture, prepare
from tests.drawn import encoded


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


# -- pictures that come with a question


def sizes(prepared: PreparedPicture) -> tuple[int, int]:
    """As it says, which is as it is."""
    assert Image.open(io.BytesIO(prepared.png)).size == (prepared.width, prepared.height)
    return prepared.width, prepared.height


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((9, 7), (9, 7)),
        ((896, 1792), (896, 1792)),
        ((4000, 3000), (1195, 896)),
        ((3000, 4000), (896, 1195)),
        ((8000, 1000), (1792, 224)),
        ((5000, 1), (1792, 1)),
    ],
)
def test_a_picture_is_shrunk_to_what_the_model_sees(
    kind: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    assert sizes(prepare(encoded(Image.new("RGB", before, "red"), kind))) == after


def test_a_photograph_of_50_million_pixels_is_taken_for_it_is_never_unpacked_whole() -> None:
    photograph = encoded(Image.new("L", (8160, 6120), 90), "JPEG")
    assert sizes(prepare(photograph)) == (1195, 896)
    with pytest.raises(BrokenPicture, match="16 million pixels"):
        prepare(encoded(Image.new("1", (8160, 6120))))


def test_nothing_of_the_file_is_kept_and_it_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    exif[0x010E] = "Mrs Example"
    info = PngInfo()
    info.add_text("Patient", "Mrs Example")
    picture = Image.new("RGB", (90, 70), "red")
    for data in (encoded(picture, "JPEG", exif=exif), encoded(picture, pnginfo=info, exif=exif)):
        assert b"Mrs Example" in data
        prepared = prepare(data)
        assert b"Example" not in prepared.png
        assert sizes(prepared) == (70, 90)
        assert Image.open(io.BytesIO(prepared.png)).info == {}


def test_grey_stays_grey_and_keeps_its_shades() -> None:
    grey = Image.new("I;16", (2, 1))
    grey.putpixel((0, 0), 0x4000)
    grey.putpixel((1, 0), 0xC000)
    image = Image.open(io.BytesIO(prepare(encoded(grey)).png))
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((1, 0))) == ("L", 64, 192)


def test_a_bomb_and_what_is_no_picture_are_refused() -> None:
    for side, problem in ((5000, BrokenPicture), (10_000, PictureBomb), (14_000, PictureBomb)):
        with pytest.raises(problem):
            prepare(encoded(Image.new("1", (side, side))))
    for data in (b"", b"not a picture", encoded(Image.new("RGB", (2, 2)), "GIF")):
        with pytest.raises(BrokenPicture):
            prepare(data)
