"""Pictures as people send them, drawn by the tests."""

import base64
import io
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file of this kind."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def image(colour: str = "red", size: tuple[int, int] = (9, 7)) -> str:
    """A PNG of one colour in base64, as the gateway takes it."""
    return base64.b64encode(encoded(Image.new("RGB", size, colour))).decode()


def colour_of(png: bytes) -> Any:
    """The colour of a picture's first pixel."""
    return Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))
