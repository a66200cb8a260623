"""Says what to do when files of the hub or of a model cannot be read. It reads none."""

from collections.abc import Iterator

from httpx2 import TransportError
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from services.worker_train.checkpoints import DiskFull, is_full
from services.worker_train.child import Away, Refused

_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500


def unreadable(error: BaseException, code: str, what: str) -> Refused | None:
    """What `error`, raised while `what` was read from a folder or the hub, means; None when it is something
    else. It is Away where another attempt may do better.
    """
    causes = list(_causes(error))
    if any(map(is_full, causes)):
        return DiskFull("free space where the models from the hub are kept (HF_HOME), and start it again.")
    if not isinstance(error, OSError):
        return None
    if may_pass(error):
        return Away(
            code,
            f"{what} could not be fetched: the hub did not answer as it should, several times. Check the "
            "network and start it again later; or set MEDICHAT_MODEL_PATH to the model's folder.",
        )
    return Refused(
        code,
        f"{what} could not be read. Accept its licence on the hub, set HF_TOKEN (containers: the secret "
        "medichat_hf_token) and check the network; or set MEDICHAT_MODEL_PATH to the model's folder.",
    )


def may_pass(error: BaseException) -> bool:
    """Whether the hub was asked and could not be reached, or is overloaded: another attempt may do better."""
    return not constants.HF_HUB_OFFLINE and any(map(_is_passing, _causes(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS
    if isinstance(error, LocalEntryNotFoundError):  # without a cause nobody was asked: it was a folder
        return error.__cause__ is not None and not isinstance(error.__cause__, HfHubHTTPError)
    return isinstance(error, ConnectionError | TimeoutError | TransportError)
