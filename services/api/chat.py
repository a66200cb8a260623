"""Between OpenAI's chat protocol and questions and answers as MediChat keeps them. It asks nobody.

The protocol has no conversations: each request says all that was said. So each begins a conversation of its
own, in which what was said before stands as given: its asker's word, not MediChat's.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice

from pydantic import TypeAdapter, ValidationError

from services.api.ask import Question
from services.api.pictures import SentPicture
from services.api.schemas import AnswerView, PlainText
from services.api.schemas_chat import (
    ChatAnswer,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatGuarded,
    ChatMessage,
    ChatUsage,
    ChunkChoice,
    FinishReason,
    SentenceVerdict,
)
from services.api.views import sentence_view
from shared.conversations import Given, Sentence, Speaker
from shared.errors import InvalidInput
from shared.jobs.records import Job
from shared.pictures import PreparedPicture

_plain: TypeAdapter[str] = TypeAdapter(PlainText)
_SEEDS = 2**31


def pictures_in(body: ChatBody) -> list[SentPicture]:
    """The pictures of all messages, in order. Raises InvalidInput for one that is not the user's."""
    sent = []
    for number, message in enumerate(body.messages):
        if message.images and message.role != "user":
            raise InvalidInput(f"messages.{number} holds a picture, and only the user's messages may.")
        sent += [
            SentPicture(url, f"messages.{number}.content.{part}.image_url.url")
            for part, url in message.images
        ]
    return sent


def asked_in(body: ChatBody) -> str:
    """The text that is asked, as `question_of` joins it; empty where the user did not speak last."""
    texts: list[str] = []
    for message in reversed(body.messages):
        if message.role == "user":
            texts.append(message.text)
        elif message.role == "assistant" and message.text.strip():
            break
    return "\n\n".join(text for text in reversed(texts) if text.strip())


def question_of(body: ChatBody, adapter: str | None, pictures: Sequence[PreparedPicture] = ()) -> Question:
    """The question that a request asks, of this adapter, with what was made of `pictures_in` it.

    Raises InvalidInput.
    """
    *given, asked = _turns(body.messages, iter(pictures)) or [Given(side="system", text="")]
    if asked.side != "user":
        raise InvalidInput("The last message must be the user's, and say something: it is what is answered.")
    drawn = body.top_p is not None and body.top_p < 1 and body.temperature is None
    return Question(
        query=asked.text,
        max_new_tokens=body.longest,
        temperature=1.0 if drawn else body.temperature,
        adapter=adapter,
        top_p=body.top_p,
        seed=None if body.seed is None else body.seed % _SEEDS,
        stop=body.stops,
        given=tuple(given),
        pictures=asked.pictures,
    )


def _turns(messages: Sequence[ChatMessage], pictures: Iterator[PreparedPicture]) -> list[Given]:
    """What was said, one turn after the other: instructions first, wherever they stand, and messages of the
    same side that follow each other as one. Raises InvalidInput.
    """
    instructions, turns = [], list[Given]()
    for number, message in enumerate(messages):
        shown = tuple(islice(pictures, len(message.images)))
        if not message.text.strip() and not shown:
            continue
        text = _checked(message.text, number) if message.text.strip() else ""
        if message.role in ("system", "developer"):
            instructions.append(text)
            continue
        side: Speaker = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1].side == side:
            before = turns.pop()
            text = "\n\n".join(filter(None, (before.text, text)))
            shown = before.pictures + shown
        turns.append(Given(side=side, text=text, pictures=shown))
    if not all(turn.text for turn in turns):
        raise InvalidInput("A message holds a picture and no text; say what is asked about it.")
    if instructions:
        turns.insert(0, Given(side="system", text="\n\n".join(instructions)))
    return turns


def _checked(text: str, number: int) -> str:
    try:
        return _plain.validate_python(text)
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InvalidInput(f"messages.{number}.content {what}.") from None


def completion(job: Job, answer: AnswerView, model: str) -> ChatCompletion:
    """The answer of a job that succeeded."""
    return ChatCompletion(
        id=_id(job),
        created=_created(job),
        model=model,
        choices=[ChatChoice(message=ChatAnswer(content=answer.answer), finish_reason=_finish(job, answer))],
        usage=_usage(answer),
        medichat=_guarded(answer),
    )


class Chunks:
    """Makes the chunks of one streamed answer."""

    def __init__(self, job: Job, model: str) -> None:
        self._id, self._created, self._model = _id(job), _created(job), model

    def begin(self) -> ChatChunk:
        """The first: who speaks."""
        return self._chunk(ChunkChoice(delta=ChatDelta(role="assistant", content="")))

    def sentence(self, sentence: Sentence) -> ChatChunk:
        """A sentence, with what the guard did to it."""
        seen = sentence_view(sentence)
        chunk = self._chunk(ChunkChoice(delta=ChatDelta(content=seen.text)))
        chunk.medichat = SentenceVerdict(seq=seen.seq, action=seen.action, category=seen.category)
        return chunk

    def end(self, job: Job, answer: AnswerView) -> ChatChunk:
        """The last with a choice: how it ended."""
        chunk = self._chunk(ChunkChoice(delta=ChatDelta(), finish_reason=_finish(job, answer)))
        chunk.medichat = _guarded(answer)
        return chunk

    def usage(self, answer: AnswerView) -> ChatChunk:
        """What it took."""
        chunk = self._chunk()
        chunk.usage = _usage(answer)
        return chunk

    def _chunk(self, *choices: ChunkChoice) -> ChatChunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=list(choices))


def as_json(chunk: ChatChunk) -> str:
    """A chunk as it is sent: what it does not add is left out, but for an end that has not come."""
    told = chunk.model_dump(mode="json")
    for name in ("usage", "medichat"):
        if told[name] is None:
            del told[name]
    for choice in told["choices"]:
        choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
    return json.dumps(told, ensure_ascii=False)


def _id(job: Job) -> str:
    return f"chatcmpl-{job.id}"


def _created(job: Job) -> int:
    return int(job.created_at.timestamp())


def _finish(job: Job, answer: AnswerView) -> FinishReason:
    """As the protocol names it.

    Help for a person in need is no filter's doing: a client may hide what a filter has touched.
    """
    touched = answer.guard.sentences_replaced or job.finish_reason == "guard"
    if touched and answer.guard_state == "none":
        return "content_filter"
    return "length" if job.finish_reason == "length" else "stop"


def _usage(answer: AnswerView) -> ChatUsage:
    read, written = answer.usage.prompt_tokens or 0, answer.usage.completion_tokens or 0
    return ChatUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _guarded(answer: AnswerView) -> ChatGuarded:
    return ChatGuarded(
        job_id=answer.job_id,
        conversation_id=answer.conversation_id,
        guard=answer.guard,
        model=answer.model,
        disclaimer=answer.disclaimer,
    )
