"""Opens pictures with limits, and turns an uploaded one into one that is safe to keep. It does not know which
row it belongs to.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageOps

#: Width times height at most, unpacked: far above the 896 x 896 that MedGemma sees.
MAX_PIXELS = 16_000_000
#: Width or height at most: what is thinner than a hair is no picture, and takes long to shrink.
MAX_SIDE = 30_000
#: Of a file that comes with a question.
MAX_FILE_BYTES = 10_000_000
#: What is left of a picture that comes with a question, in pixels: the model sees no more.
_SHORT_SIDE, _LONG_SIDE = 896, 1792
_FORMATS = ("PNG", "JPEG", "WEBP")


class BrokenPicture(Exception):
    """These bytes are not a picture that can be used; `advice` is None when the reason's own says all."""

    def __init__(self, advice: str | None = None) -> None:
        super().__init__(advice)
        self.advice = advice


class PictureBomb(Exception):
    """A picture made to fill the memory of whoever opens it."""


@dataclass(frozen=True, kw_only=True)
class PreparedPicture:
    """A picture that is safe to keep and to show to the model."""

    png: bytes
    width: int
    height: int
    #: Of the file as it was sent, by which the same question is known again; empty where there was none.
    sent_sha256: str = ""


def prepare(data: bytes) -> PreparedPicture:
    """A PNG, JPEG, WebP or DICOM file as a PNG: upright, in RGB or grey, with nothing of what the file said
    besides, its shorter side at most 896 pixels and its longer one at most 1,792.

    Raises BrokenPicture, with what to do about it where that is known, and PictureBomb.
    """
    if is_dicom(data):
        from shared.dicom import read_dicom  # half a second to load, which only few need

        image = read_dicom(data, max_pixels=MAX_PIXELS)
    else:
        with _opened(io.BytesIO(data), MAX_PIXELS, shrink=True) as opened:
            image = _plain(ImageOps.exif_transpose(opened))
    image = _shrunk(image)
    return PreparedPicture(png=_encode(image), width=image.width, height=image.height)


def is_dicom(data: bytes) -> bool:
    """Whether it begins as a DICOM file does (PS3.10, 7.1)."""
    return data[128:132] == b"DICM"


def clean_picture(data: bytes) -> bytes:
    """The picture as a PNG, with nothing of what the file said besides. Raises as `read_picture`."""
    return _encode(read_picture(io.BytesIO(data), max_pixels=MAX_PIXELS))


def read_picture(file: IO[bytes], *, max_pixels: int) -> Image.Image:
    """The first frame in RGB, upright and on white.

    Its head tells how large it would unpack; nothing is unpacked that is too large.

    Raises:
        BrokenPicture: it does not open, or has more than `max_pixels`.
        PictureBomb: it would have more pixels than any camera's, 89 million.
    """
    with _opened(file, max_pixels) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


def check_picture(file: IO[bytes], *, max_pixels: int) -> None:
    """Look at its head alone. Raises as `read_picture`, which may find more that is wrong."""
    with _opened(file, max_pixels):
        pass


@contextmanager
def _opened(file: IO[bytes], max_pixels: int, *, shrink: bool = False) -> Iterator[Image.Image]:
    """With `shrink` a JPEG is unpacked at a half, a quarter or an eighth of its size where that is enough."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sound picture may carry broken EXIF
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if shrink:
                    image.draft(None, (_SHORT_SIDE, _SHORT_SIDE))
                if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
                    raise too_large(max_pixels)
                yield image
    except BrokenPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise PictureBomb from None
    except Exception:  # decoders raise whatever they like on bad bytes
        raise BrokenPicture from None


def _as_rgb(image: Image.Image) -> Image.Image:
    return _plain(image).convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """In RGB on white, or in 8 bits of grey."""
    if image.mode.startswith(
        "I;16"
    ):  # grey of 16 bits, as of X-ray images: a plain conversion cuts it off at 255
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    short, long = sorted(image.size)
    scale = min(1.0, _SHORT_SIDE / short, _LONG_SIDE / long)
    if scale == 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _encode(image: Image.Image) -> bytes:
    bare = Image.new(image.mode, image.size)  # a fresh image carries no profile, text or EXIF along
    bare.paste(image)
    sink = io.BytesIO()
    bare.save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def too_large(max_pixels: int) -> BrokenPicture:
    """What to say of a picture of more than `max_pixels`, or longer than MAX_SIDE."""
    return BrokenPicture(
        f"The picture has more than {max_pixels // 10**6} million pixels, or a side of more than "
        f"{MAX_SIDE:,}. Shrink it."
    )
