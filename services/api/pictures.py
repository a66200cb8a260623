"""Takes in the pictures of a question: from base64 to what is kept. It opens, stores and fetches none."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, Lock, move_on_after, to_thread

from shared.auth.sessions import Principal
from shared.catalogue import find_model
from shared.errors import InvalidInput, PictureRefused, TooLarge, Unavailable
from shared.guard.verdict import Action
from shared.opening import open_apart
from shared.pictures import MAX_FILE_BYTES, BrokenPicture, PictureBomb, PreparedPicture
from shared.settings import Settings

if TYPE_CHECKING:
    from services.api.state import Gateway

#: Characters of the base64 of the largest file, with room for a head and line breaks.
MAX_IMAGE_CHARS = MAX_FILE_BYTES * 4 // 3 * 81 // 80
#: Pictures that are opened at a time, and how long one waits for its turn, in seconds.
_AT_ONCE, _PATIENCE_S = 2, 30.0
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
    """Opens pictures in processes of their own, few at a time, however many ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = CapacityLimiter(_AT_ONCE)
        #: Whose pictures are being opened: one person's one after the other, so that nobody takes all places.
        self._lines: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    @property
    def most(self) -> int:
        """How many may come with one question; 0 where the model reads none."""
        return self._settings.max_images if find_model(self._settings.model).reads_images else 0

    async def take(self, sent: Sequence[SentPicture], user_id: str) -> list[PreparedPicture]:
        """The pictures of one request of this person's, in order.

        Raises PictureRefused, Unavailable when others' pictures take too long, or InvalidInput for too many
        or a model that reads none.
        """
        if not sent:
            return []
        model = find_model(self._settings.model)
        if not model.reads_images:
            raise InvalidInput(f"The model {model.title} reads no pictures; ask without them.")
        if len(sent) > self._settings.max_images:
            most = self._settings.max_images
            raise InvalidInput(f"A question may come with at most {most} pictures; send fewer.")
        line = self._lines.setdefault(user_id, Lock())
        return [await self._opened(each, line) for each in sent]

    async def _opened(self, sent: SentPicture, line: Lock) -> PreparedPicture:
        with move_on_after(_PATIENCE_S):
            async with line:
                return await to_thread.run_sync(_prepared, sent, limiter=self._places)
        raise Unavailable("Too many pictures wait to be opened; send the question again in a minute.")


async def take_unless_in_need(
    gateway: "Gateway", caller: Principal, query: str, sent: Sequence[SentPicture]
) -> tuple[PreparedPicture, ...]:
    """As `PictureIntake.take`. None of whoever is in need, who is told at once where help is found: no
    picture changes that, and to open some takes time.
    """
    if not sent:
        return ()
    asked = query[: gateway.settings.max_query_chars]
    # a policy that was never read is read now, so not here
    verdict = await gateway.threads.in_time(lambda: gateway.guard.screen_at_once(asked, caller.audience))
    in_need = verdict.action is Action.CRISIS
    return () if in_need else tuple(await gateway.pictures.take(sent, caller.user_id))


def _prepared(sent: SentPicture) -> PreparedPicture:
    """Raises PictureRefused."""
    data = _decoded(sent)
    try:
        return replace(open_apart(data), sent_sha256=hashlib.sha256(data).hexdigest())
    except BrokenPicture as error:
        raise PictureRefused(sent.field, error.advice or _BROKEN) from None
    except PictureBomb:
        raise PictureRefused(sent.field, _BOMB) from None
    except OSError:
        raise Unavailable("No picture can be opened right now; send the question again.") from None


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
