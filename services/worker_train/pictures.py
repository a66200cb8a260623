"""Opens pictures with limits, and turns an uploaded one into one that is safe to keep. It does not know which
row it belongs to.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image, ImageOps

#: Width times height at most: far above the 896 x 896 that MedGemma sees.
MAX_PIXELS = 16_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")


class BrokenPicture(Exception):
    """These bytes are not a picture that can be used; `advice` is None when the reason's own says all."""

    def __init__(self, advice: str | None = None) -> None:
        super().__init__(advice)
        self.advice = advice


class PictureBomb(Exception):
    """A picture made to fill the memory of whoever opens it."""


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
def _opened(file: IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sound picture may carry broken EXIF
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise _too_large(max_pixels)
                yield image
    except BrokenPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureBomb from None
    except Exception:  # decoders raise whatever they like on bad bytes
        raise BrokenPicture from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(
        "I;16"
    ):  # grey of 16 bits, as of X-ray images: a plain conversion cuts it off at 255
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _encode(image: Image.Image) -> bytes:
    bare = Image.new("RGB", image.size)  # a fresh image carries no profile, text or EXIF along
    bare.paste(image)
    sink = io.BytesIO()
    bare.save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def _too_large(max_pixels: int) -> BrokenPicture:
    return BrokenPicture(f"The picture has more than {max_pixels // 10**6} million pixels. Shrink it.")
