"""Says what to do when the files of a model cannot be read. It reads none."""

from collections.abc import Iterator

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
    kind = Away if any(map(_is_passing, causes)) else Refused
    return kind(
        code,
        f"{what} could not be read. Accept its licence on the hub, set HF_TOKEN (containers: the secret "
        "medichat_hf_token) and check the network; or set MEDICHAT_MODEL_PATH to the model's folder.",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, LocalEntryNotFoundError):
        return error.__cause__ is not None  # else nobody was asked: HF_HUB_OFFLINE, or a folder
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS
    return False
