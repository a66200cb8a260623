"""What can go wrong in an engine, as types; knows nothing of how a job or an HTTP answer shows it.

EngineError
├── RequestTooLong   the request can never fit: a permanent error of the request
├── AdapterUnavailable the adapter cannot be loaded; the base model and other adapters answer on
├── EngineUnavailable  the engine takes no requests: it is draining, closed or not started
├── OutOfMemory      the request alone needs more memory than the device has: a permanent error of the request
└── EngineCrashed    the engine failed while it held the request: worth another attempt
"""


class EngineError(Exception):
    """An engine could not carry out a request."""


class RequestTooLong(EngineError):
    """The prompt and the answer asked for are longer than the model or its cache can hold."""

    def __init__(
        self, *, prompt_tokens: int, max_new_tokens: int, limit_tokens: int, limited_by: str
    ) -> None:
        """`limited_by` names what sets `limit_tokens`: the model's context or the whole KV cache."""
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.limit_tokens = limit_tokens
        super().__init__(
            f"{prompt_tokens} prompt tokens and up to {max_new_tokens} new tokens make "
            f"{prompt_tokens + max_new_tokens}; {limited_by} holds {limit_tokens}. "
            "Shorten the prompt or ask for fewer new tokens."
        )


class AdapterUnavailable(EngineError):
    """The adapter that the request names cannot be loaded; requests without it are not touched."""

    def __init__(self, detail: str, *, may_pass: bool) -> None:
        """`may_pass`: another attempt may succeed (memory, storage), or never will (a bad adapter)."""
        self.may_pass = may_pass
        super().__init__(detail)


class EngineUnavailable(EngineError):
    """The engine takes no requests: it is draining, closed or not started. Give the job to another worker."""


class EngineCrashed(EngineError):
    """The engine failed while it held the request and starts again by itself. Try the request again."""


class OutOfMemory(EngineError):
    """The model ran out of memory for this answer. Shorten the question, or ask for fewer new tokens."""


#: How torch says so on a GPU and on a CPU; transformers hands on the message only.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def lacks_memory(error: BaseException | str) -> bool:
    """Whether this is what torch says where the device's memory does not suffice."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY)
