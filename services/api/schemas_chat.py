"""What requests and answers in OpenAI's protocol look like ("Chat Completions", "Models"). It does nothing.

Only what is offered here can be said: a field that would change nothing is refused, unless it says what holds
anyway.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from services.api.schemas import Body, GuardView, ModelView

_MOST_STOPS, _STOP_CHARS = 4, 64
_MOST_MESSAGES = 500
#: Of one message.
_MOST_PARTS = 256
_READ = ("text", "image_url")


def _only_what_is_read(content: Any) -> Any:
    """Raises ValueError for a part of another type or a picture elsewhere, in words that say what to do."""
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict):
            continue
        if part.get("type") not in _READ:
            raise ValueError("may hold parts of types text and image_url; sound and files are not read here")
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else None
        if isinstance(url, str) and url[:5].lower() != "data:":
            raise ValueError(
                "may hold pictures as data: URLs only, for nothing is fetched here; send each in base64"
            )
    return content


class _Lenient(Body):
    """Unknown fields are refused, unless they say nothing: clients send what they know as null or empty."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {
            name: value
            for name, value in sent.items()
            if name in cls.model_fields or value not in (None, [], {}, "")
        }


class TextPart(_Lenient):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Lenient):
    """A picture, as a `data:` URL."""

    url: str = Field(description="`data:image/…;base64,…`: the picture itself, for nothing is fetched here.")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Not read: there is one.")


class ImagePart(_Lenient):
    """A picture in a message of the user's."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Lenient):
    """What one side said. System and developer messages are instructions, behind those of the clinic."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=_MOST_PARTS)
        ]
        | None,
        BeforeValidator(_only_what_is_read),
    ] = Field(
        None,
        description="Text, or parts of type `text` and, of the user's, `image_url`. None is left out.",
    )
    name: str | None = Field(None, max_length=64, description="Not read: the model knows one user.")
    refusal: str | None = Field(None, description="Not read: none of ours says anything here.")

    @property
    def text(self) -> str:
        """All of it as one text."""
        if isinstance(self.content, list):
            return "\n\n".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""

    @property
    def images(self) -> list[tuple[int, str]]:
        """Its pictures, each with the number of its part."""
        parts = self.content if isinstance(self.content, list) else []
        return [
            (number, part.image_url.url) for number, part in enumerate(parts) if isinstance(part, ImagePart)
        ]


class StreamOptions(_Lenient):
    """What a stream tells besides."""

    include_usage: bool = Field(False, description="Whether a last chunk tells the usage.")
    include_obfuscation: bool = Field(
        False, description="Chunks are sentences here: nothing is added to them."
    )


class ResponseFormat(_Lenient):
    """What the answer looks like."""

    type: Literal["text"]


class ChatBody(_Lenient):
    """A conversation whose last message is to be answered."""

    model: str = Field(
        min_length=1,
        max_length=255,
        description="As `GET /v1/models` lists it: the base model's name, or an adapter's.",
    )
    messages: list[ChatMessage] = Field(
        min_length=1, max_length=_MOST_MESSAGES, description="The last is the user's, and is answered."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, strict=True, description="Longest answer, in tokens."
    )
    max_tokens: int | None = Field(None, ge=1, strict=True, description="The former name of that.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Left out, it is 0, which always gives the likeliest words, or 1 with a `top_p` below 1.",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw among the likeliest tokens that together have this probability."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed draws the same answer.")
    stop: str | list[str] | None = Field(
        None,
        description=f"Up to {_MOST_STOPS} texts of {_STOP_CHARS} characters; the answer ends before any.",
    )
    stream: bool | None = Field(None, description="Send each sentence once it was checked.")
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(None, description="One answer to a request.")
    response_format: ResponseFormat | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    store: bool | None = Field(
        None, description="Not a choice: every question and answer is kept for the clinic's auditors."
    )
    user: str | None = Field(None, max_length=255, description="Not read: who asks is known by the key.")
    metadata: dict[str, str] | None = Field(None, description="Not read, and not kept.")
    service_tier: str | None = Field(None, max_length=64, description="Not read: there is one.")

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > _MOST_STOPS or not all(0 < len(each) <= _STOP_CHARS for each in stops):
            raise ValueError(f"may name {_MOST_STOPS} texts of 1 to {_STOP_CHARS} characters")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        """How long the answer may be, in tokens."""
        return self.max_completion_tokens or self.max_tokens


class _Told(BaseModel):
    """`model_` is no prefix of ours."""

    model_config = ConfigDict(protected_namespaces=())


class ChatUsage(BaseModel):
    """Tokens read and written; 0 where the guard answered by itself."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatGuarded(_Told):
    """What MediChat says of an answer beside OpenAI's fields."""

    job_id: str
    conversation_id: str
    guard: GuardView
    model: ModelView
    disclaimer: str


class SentenceVerdict(BaseModel):
    """What the guard did to the sentence of this chunk."""

    seq: int
    action: str
    category: str | None


class ChatAnswer(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


FinishReason = Annotated[
    Literal["stop", "length", "content_filter"],
    Field(
        description="`content_filter` when the guard ended the answer, or refused the question; never of "
        "what tells a person in need where help is found."
    ),
]


class ChatChoice(BaseModel):
    """The answer; there is one."""

    index: int = 0
    message: ChatAnswer
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A finished answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="When the question was accepted, in seconds since 1970.")
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    medichat: ChatGuarded


class ChatDelta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The answer so far gets longer by this."""

    index: int = 0
    delta: ChatDelta
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed answer: a sentence, its end, or its usage."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    medichat: SentenceVerdict | ChatGuarded | None = None


class ServedAdapter(BaseModel):
    """What MediChat says of an adapter beside OpenAI's fields."""

    adapter_sha256: str | None
    status: str
    answers_everybody: bool = Field(description="Whether it answers who names the base model only.")


class ServedModel(BaseModel):
    """Something that can answer."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="In seconds since 1970; 0 for the base model.")
    owned_by: str
    medichat: ServedAdapter


class ServedModels(BaseModel):
    """All that can answer."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class ChatProblem(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str
    help: str | None = Field(
        None, description="Where help is found, for a person in need; `message` begins with it."
    )


class ChatError(BaseModel):
    """An error in OpenAI's shape."""

    error: ChatProblem
