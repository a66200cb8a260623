"""Says who may send a large body, and how much of it all may hold in memory at a time. It reads none."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.types import Scope

from services.api.errors import DATABASE_AWAY, ProblemResponse, refusal_of
from services.api.identify import Caller, Knock
from services.api.patience import in_time
from services.api.state import Gateway
from services.api.together import Together
from shared.errors import LimitReached, MediChatError, Unavailable
from shared.guard import load_guard

#: Bytes of large bodies, by what their heads announce; each takes twice that until its request is answered.
_MOST_BYTES = 256 * 2**20
#: Of one person's, so that nobody takes all the room: one body at least, however many pictures it may hold.
_MOST_OF_ONE = 96 * 2**20
_AGAIN_S = 5


class LargeBodies:
    """Lets large bodies in, or says why not."""

    def __init__(self) -> None:
        self._held = 0
        self._of: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes of those that are let in now."""
        return self._held

    @asynccontextmanager
    async def admit(self, scope: Scope, size: int) -> AsyncIterator[ProblemResponse | None]:
        """Why a body of so many bytes is not read; None, and its room is kept while this lasts.

        Whether whoever is known may ask at all, and whether a database is away, is told by the route.
        """
        try:
            person = await _find_person(scope)
            self._check(scope, person, size)
        except MediChatError as error:
            yield refusal_of(error)
            return
        self._held += size
        self._of[person] += size
        try:
            yield None
        finally:
            self._held -= size
            self._of[person] -= size
            self._of += Counter()  # keeps who holds something only

    def _check(self, scope: Scope, person: str, size: int) -> None:
        if self._of[person] and self._of[person] + size > _MOST_OF_ONE:
            told = "Other questions of yours with pictures are not answered yet; wait for one."
            raise LimitReached(f"{told} {help_line(scope)}", retry_after_s=_AGAIN_S)
        if self._held and self._held + size > _MOST_BYTES:
            told = "Too many pictures are sent at this moment; send the question again."
            raise Unavailable(f"{told} {help_line(scope)}", retry_after_s=_AGAIN_S)


async def _find_person(scope: Scope) -> str:
    """Who sends it; nobody's name while the database is away. Raises NotAuthenticated or LimitReached."""
    bearer = Headers(scope=scope).get("authorization", "").partition(" ")[2].strip()
    door: Together[Knock, Caller] = scope["app"].state.door
    try:
        caller = await in_time(door(Knock(bearer, watching=True)))
    except DATABASE_AWAY:
        return ""
    if caller.wait_s is not None:
        told = "Too many requests in one minute; wait and try again."
        raise LimitReached(f"{told} {help_line(scope)}", retry_after_s=caller.wait_s)
    return caller.principal.user_id


def help_line(scope: Scope) -> str:
    """Where help is found, for somebody whose question nobody reads. It asks no database."""
    gateway: Gateway = scope["app"].state.gateway
    known = gateway.guards.known
    guard = known.guard if known is not None else load_guard()
    return guard.responses(gateway.settings.locale).unanswered
