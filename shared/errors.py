"""The error tree. It knows what went wrong and what to do next; it does not know HTTP.

MediChatError
├── InvalidInput
│   ├── BadCheckpoint
│   ├── PromptTooLong
│   ├── TooLarge
│   ├── IdempotencyMismatch
│   ├── AdapterRefused
│   │   ├── AdapterRecalled
│   │   └── WrongBase
│   ├── PictureRefused
│   ├── PolicyNotCompiled
│   └── PolicyRefused
├── NotAuthenticated
│   ├── AccountLocked
│   └── KeyRefused
├── NotAllowed
│   ├── ConsentRequired
│   └── PasswordRequired
├── NotFound
├── Conflict
│   ├── AdapterConflict
│   ├── ConversationBusy
│   ├── DatasetDamaged
│   ├── LogAltered
│   └── OnHold
├── LimitReached
├── Unavailable
│   ├── AnswersStopped
│   └── StorageFull
└── LeaseLost

Each message is shown to people: it never holds a word that somebody wrote.
"""

from collections.abc import Sequence


class MediChatError(Exception):
    """Something went wrong in MediChat; see the log of the service for the reason."""

    #: A stable, machine-readable name; part of the problem's `type` over HTTP.
    code = "internal"

    def __init__(self, detail: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail or self.__doc__)
        self.detail = detail or self.__doc__ or ""
        self.retry_after_s = retry_after_s


class InvalidInput(MediChatError):
    """The request cannot be used as it is; change it as described."""

    code = "invalid-input"


class BadCheckpoint(InvalidInput):
    """This is no checkpoint, or it was not signed with the key of this log; use another."""

    code = "bad-checkpoint"


class PromptTooLong(InvalidInput):
    """The question is longer than the model can read; shorten it and ask again."""

    code = "prompt-too-long"


class TooLarge(InvalidInput):
    """What was sent is larger than allowed; send less."""

    code = "body-too-large"


class IdempotencyMismatch(InvalidInput):
    """This Idempotency-Key was used for another request; use a new key for a new request."""

    code = "idempotency-mismatch"


class AdapterRefused(InvalidInput):
    """The adapter cannot be used; train it again, or name another."""

    code = "adapter-refused"


class AdapterRecalled(AdapterRefused):
    """An admin recalled the adapter that wrote this answer, so it ends here; ask again without it."""

    code = "adapter-unavailable"


class WrongBase(AdapterRefused):
    """The adapter was trained on another base model, or on another revision of it: train it again."""


class PolicyNotCompiled(InvalidInput):
    """This version of the guard's policy cannot be compiled; its files look right, so see the log for why."""

    code = "policy-refused"


class PictureRefused(InvalidInput):
    """A picture cannot be used; send it as PNG or JPEG."""

    code = "picture-refused"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"A picture cannot be used, {field}: {reason}")
        self.field, self.reason = field, reason


class PolicyRefused(InvalidInput):
    """The guard's policy cannot be used as it is; change the line that is named."""

    code = "policy-refused"

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(f"{file}, line {line}: {reason}.")
        self.file, self.line, self.reason = file, line, reason


class NotAuthenticated(MediChatError):
    """No valid credentials were sent; log in again."""

    code = "not-authenticated"


class AccountLocked(NotAuthenticated):
    """Too many failed log-ins for this account; wait and try again."""

    code = "account-locked"


class KeyRefused(NotAuthenticated):
    """This API key is not valid, or has expired or been revoked."""

    def __init__(self, detail: str | None = None, *, key_id: str, user_id: str, reason: str) -> None:
        super().__init__(detail)
        #: Whose key it is and why it opens nothing, for the log.
        self.key_id, self.user_id, self.reason = key_id, user_id, reason


class NotAllowed(MediChatError):
    """Your role does not allow this; ask an admin if you need it."""

    code = "not-allowed"


class ConsentRequired(NotAllowed):
    """Read and accept the disclaimer first: POST /v1/me/consent."""

    code = "consent-required"


class PasswordRequired(NotAllowed):
    """Type your password again to do this: POST /v1/me/reauthenticate, then repeat the request."""

    code = "password-required"


class NotFound(MediChatError):
    """There is nothing of yours under this id; check the id."""

    code = "not-found"


class Conflict(MediChatError):
    """The object is not in a state that allows this; reload it and try again."""

    code = "conflict"


class AdapterConflict(Conflict):
    """The adapters changed meanwhile; reload them and try again."""

    def __init__(self, detail: str | None = None, *, reason: str = "changed-meanwhile") -> None:
        super().__init__(detail)
        #: A code, for the log.
        self.reason = reason


class ConversationBusy(Conflict):
    """An answer is still being written in this conversation; wait for it or cancel it."""

    code = "conversation-busy"


class DatasetDamaged(Conflict):
    """A part of the dataset is missing or is not what was checked; upload it again and use that."""

    code = "dataset-damaged"


class LogAltered(Conflict):
    """The log is not what was signed before, so nothing was signed; verify it: POST /v1/audit/verify."""

    code = "log-altered"


class OnHold(Conflict):
    """This cannot be erased now. Ask your admin, or whoever is in charge of data protection."""

    def __init__(self, holds: Sequence[str], detail: str | None = None) -> None:
        super().__init__(detail)
        #: The ids of the legal holds, which not everybody may know of.
        self.holds = list(holds)


class LimitReached(MediChatError):
    """Too many requests; wait and try again."""

    code = "limit-reached"


class Unavailable(MediChatError):
    """A part of MediChat is not reachable; try again in a moment."""

    code = "unavailable"


class AnswersStopped(Unavailable):
    """An admin has stopped all answers for now; nothing was stored. Ask again later, or ask your doctor."""

    code = "answers-stopped"
    #: What is said of a question that was stored before.
    unfinished = "An admin stopped all answers before this one was finished. Ask again later."


class StorageFull(Unavailable):
    """The storage has no room left, and nothing was kept; free some space and try again."""

    code = "storage-full"


class LeaseLost(MediChatError):
    """Another worker owns this job now, or the lease ran out; write nothing and stop."""

    code = "lease-lost"
