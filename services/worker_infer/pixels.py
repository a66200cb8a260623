"""Turns kept pictures into the numbers that the model's vision tower reads. It knows no prompt and no engine.

Training does the same with the same class, so a picture means the same in both.
"""

import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from transformers import Gemma3ImageProcessorPil, PreTrainedConfig

from shared.errors import InvalidInput
from shared.pictures import MAX_PIXELS, BrokenPicture, PictureBomb, read_picture


class PictureUnreadable(InvalidInput):
    """A picture of this conversation cannot be opened any more; begin a new one and send it again."""

    code = "picture-unreadable"


class NoPictures(InvalidInput):
    """The model that answers now reads no pictures, or has no memory for them; ask without them."""

    code = "no-pictures"


class PictureReader:
    """One model's way from a file to pixels; threads may share it."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """`config` is the model's, which has a vision tower."""
        side: int = config.vision_config.image_size
        # what Gemma 3's checkpoints say besides (bilinear, mean and deviation 0.5) is what the class does
        self._processor = cast(Any, Gemma3ImageProcessorPil)(size={"height": side, "width": side})

    def read(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """[pictures, 3, height, width], from -1 for black to 1 for white. Raises PictureUnreadable."""
        try:
            opened = [read_picture(io.BytesIO(file), max_pixels=MAX_PIXELS) for file in files]
        except (BrokenPicture, PictureBomb) as error:
            raise PictureUnreadable from error
        pixels: NDArray[np.float32] = self._processor(images=opened, return_tensors="np")["pixel_values"]
        return pixels
