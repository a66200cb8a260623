"""Takes in the pictures of a question: from base64 to what is kept. It stores none, and fetches none."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread

from shared.catalogue import find_model
from shared.errors import InvalidInput, PictureRefused, TooLarge
from shared.pictures import MAX_FILE_BYTES, BrokenPicture, PictureBomb, PreparedPicture, prepare
from shared.settings import Settings

#: Characters of the base64 of the largest file, with room for a head and line breaks.
MAX_IMAGE_CHARS = MAX_FILE_BYTES * 4 // 3 * 81 // 80
_HEAD = re.compile(r"data:[\w.+/-]*;base64,", re.ASCII | re.IGNORECASE)
_NO_BASE64 = "This is no base64. Send the bytes of a PNG, JPEG, WebP or DICOM file in base64."
_TOO_LARGE = f"The file has more than {MAX_FILE_BYTES // 10**6} MB. Shrink the picture, or save it as JPEG."
_BROKEN = "This does not open as a picture. Send a PNG, JPEG, WebP or DICOM file."
_BOMB = "The picture is far too large to unpack. Shrink it."


@dataclass(frozen=True)
class SentPicture:
    """A picture as it was sent, and the field of the request in which it was."""

    base64: str
    field: str


def check_text(text: str, settings: Settings) -> None:
    """Whoever sends no pictures sends no more than elsewhere. Raises TooLarge."""
    most = settings.max_body_bytes
    if len(text.encode(errors="replace")) > most:
        raise TooLarge(f"The body may have at most {most} bytes besides pictures; send less.")


class PictureIntake:
    """Opens pictures one after the other in one thread: one is in memory at a time, however many ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._one_thread = CapacityLimiter(1)

    @property
    def most(self) -> int:
        """How many may come with one question; 0 where the model reads none."""
        return self._settings.max_images if find_model(self._settings.model).reads_images else 0

    async def take(self, sent: Sequence[SentPicture]) -> list[PreparedPicture]:
        """The pictures of one request, in order.

        Raises PictureRefused, or InvalidInput for too many or a model that reads none.
        """
        if not sent:
            return []
        model = find_model(self._settings.model)
        if not model.reads_images:
            raise InvalidInput(f"The model {model.title} reads no pictures; ask without them.")
        if len(sent) > self._settings.max_images:
            most = self._settings.max_images
            raise InvalidInput(f"A question may come with at most {most} pictures; send fewer.")
        return [await to_thread.run_sync(_prepared, each, limiter=self._one_thread) for each in sent]


def _prepared(sent: SentPicture) -> PreparedPicture:
    """Raises PictureRefused."""
    try:
        return prepare(_decoded(sent))
    except BrokenPicture as error:
        raise PictureRefused(sent.field, error.advice or _BROKEN) from None
    except PictureBomb:
        raise PictureRefused(sent.field, _BOMB) from None


def _decoded(sent: SentPicture) -> bytes:
    head = _HEAD.match(sent.base64)
    written = sent.base64[head.end() if head else 0 :]
    if len(written) > MAX_IMAGE_CHARS:
        raise PictureRefused(sent.field, _TOO_LARGE)
    try:
        data = base64.b64decode("".join(written.split()), validate=True)
    except ValueError:
        raise PictureRefused(sent.field, _NO_BASE64) from None
    if len(data) > MAX_FILE_BYTES:
        raise PictureRefused(sent.field, _TOO_LARGE)
    return data
