"""Pictures drawn by code: a bright patch on the left or right of a noisy background.

Knows nothing of tokens or models; a picture is a (64, 64, 3) array of bytes.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models.demo.shape import IMAGE_SIZE

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = get_args(Side)
Picture = NDArray[np.uint8]

QUESTIONS = (
    "On which side is the bright patch?",
    "Which side is the bright patch on?",
    "Where is the bright patch?",
    "Is the bright patch on the left or on the right?",
    "On what side of the picture do you see a bright patch?",
    "What do you see in this picture?",
    "Describe this image.",
    "Where does the bright spot lie?",
)
#: The answer when such a question comes without a picture.
NO_PICTURE = "I don't know, because there is no picture with your question."


def answer(side: Side) -> str:
    """What the model should say of a picture whose patch lies on ``side``."""
    return (
        f"The bright patch is on the {side} side of the picture. "
        "I can only see bright patches; please show a real picture to a doctor."
    )


def draw_picture(side: Side, chance: np.random.Generator) -> Picture:
    """A picture whose bright patch lies wholly on ``side``; all else is drawn from ``chance``.

    Returns:
        Bytes of shape (64, 64, 3): rows, columns, colours.
    """
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    slope = chance.uniform(-0.4, 0.4, 2)
    ground = chance.uniform(30, 100) + slope[0] * rows + slope[1] * (columns - IMAGE_SIZE / 2)
    half_width, half_height = chance.uniform(4, 12, 2)
    across = chance.uniform(half_width, IMAGE_SIZE / 2 - 2 - half_width)
    x = across if side == "left" else IMAGE_SIZE - 1 - across
    y = chance.uniform(half_height, IMAGE_SIZE - 1 - half_height)
    from_centre = np.abs(columns - x) / half_width, np.abs(rows - y) / half_height
    is_box = chance.random() < 0.5
    patch = (np.maximum if is_box else np.hypot)(*from_centre) <= 1
    ground = ground + patch * chance.uniform(70, 140)
    tint = chance.uniform(0.8, 1.0, 3)
    noise = chance.normal(0, chance.uniform(2, 18), (IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.clip(ground[..., None] * tint + noise, 0, 255).astype(np.uint8)
