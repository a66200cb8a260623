"""`POST /predict`: a question in, a guarded answer out."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from sqlalchemy import Connection

from services.api.ask import Asked, Question
from services.api.deps import Asker, GatewayDep
from services.api.errors import ProblemResponse, document, problem
from services.api.in_need import help_first
from services.api.patience import in_time
from services.api.pictures import SentPicture, check_text, take_unless_in_need
from services.api.schemas import AnswerView, AskBody, ErrorView, JobView, PredictBody
from services.api.state import Gateway
from services.api.streaming import News, wait_for_end
from services.api.together import Together
from services.api.views import answer_view, error_view, job_view
from shared.auth.sessions import Principal
from shared.jobs.lifecycle import State
from shared.jobs.records import Job

router = APIRouter(tags=["ask"])

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="Sent again with the same question: the same job."),
]
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?")
#: The HTTP status for a failed job, by its error code; 500 for any other.
_FAILED = {
    "prompt-too-long": 422,
    "out-of-memory": 422,
    "deadline": 504,
    "worker-lost": 503,
    "engine-crashed": 503,
    "answers-stopped": 503,
    "adapter-unavailable": 503,
    "adapter-refused": 422,
    "picture-unreadable": 422,
    "no-pictures": 422,
}


@dataclass(frozen=True)
class Preferred:
    """What the Prefer header asks for (RFC 7240)."""

    #: Seconds to wait for the answer; None when the header does not say.
    wait_s: float | None = None
    respond_async: bool = False


async def preferred(
    request: Request,
    gateway: GatewayDep,
    prefer: Annotated[
        str | None,
        Header(
            description="RFC 7240: `respond-async` for what there is at once: the answer (200) if the "
            "question was answered before or a person is told where help is, else the job (202), however it "
            "ended. `wait=N` for the answer if it comes within N seconds, and 202 otherwise.",
            examples=["wait=30"],
        ),
    ] = None,
) -> Preferred:
    """`respond-async` alone does not wait; with `wait=N` the answer may come within N seconds."""
    # there may be several, of which `prefer`, which documents the header, is the first
    wanted = ",".join(request.headers.getlist("prefer")).lower()
    respond_async = "respond-async" in wanted
    asked = _WAIT.search(wanted)
    if asked:
        return Preferred(min(float(asked[1]), gateway.settings.wait_limit_s), respond_async)
    return Preferred(0.0 if respond_async else None, respond_async)


PreferredDep = Annotated[Preferred, Depends(preferred)]


async def get_news(request: Request) -> News:
    """The listener that this application started."""
    news: News = request.app.state.news
    return news


NewsDep = Annotated[News, Depends(get_news)]


async def get_desk(request: Request) -> Together[Asked, Job]:
    """Where this application takes questions."""
    desk: Together[Asked, Job] = request.app.state.desk
    return desk


DeskDep = Annotated[Together[Asked, Job], Depends(get_desk)]

#: What a route that takes questions does before all else.
ASKS = [Depends(help_first)]
_JOBS_PLACE = {"headers": {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"description": "The answer is being written, or there is none", "model": JobView, **_JOBS_PLACE},
    **document(401, 403, 404, 410, 413, 429),
    # these also when the answer failed or was cancelled during the wait
    **{status: told | _JOBS_PLACE for status, told in document(409, 422, 500, 503, 504).items()},
}


@router.post("/predict", response_model=AnswerView, responses=ANSWERS, dependencies=ASKS)
async def predict(
    body: PredictBody,
    caller: Asker,
    gateway: GatewayDep,
    desk: DeskDep,
    news: NewsDep,
    prefer: PreferredDep,
    idempotency_key: IdempotencyKey = None,
) -> Response | AnswerView:
    """Ask a question. Waits for the answer unless `Prefer: respond-async` is sent; `wait=N` waits N seconds.

    When the answer takes longer than the wait, 202 and the job come instead, and the answer goes on.
    When it failed or was cancelled, the problem names its job and conversation.
    """
    question = await question_of(gateway, caller, body, body.conversation_id)
    job = await in_time(desk(Asked(caller=caller, question=question, idempotency_key=idempotency_key)))
    usual_wait_s = gateway.settings.wait_limit_s
    return await respond(gateway, news, caller, job, prefer, usual_wait_s=usual_wait_s)


async def question_of(
    gateway: Gateway, caller: Principal, body: AskBody, conversation_id: str | None
) -> Question:
    """The question in a request's body. Raises TooLarge, or as `PictureIntake.take`."""
    check_text(body.query, gateway.settings)
    sent = [SentPicture(each, f"images.{number}") for number, each in enumerate(body.images)]
    return Question(
        query=body.query,
        conversation_id=conversation_id,
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        adapter=body.adapter,
        pictures=await take_unless_in_need(gateway, caller, body.query, sent),
    )


async def respond(
    gateway: Gateway, news: News, caller: Principal, job: Job, prefer: Preferred, *, usual_wait_s: float
) -> Response | AnswerView:
    """The answer if it is there within the wait, else 202 with the job.

    Who does not wait gets the job also when it failed or was cancelled, so that a question that is sent again
    has the same outcome. Raises NotAuthenticated when the caller's log-in or key ended during the wait.
    """
    wait_s = usual_wait_s if prefer.wait_s is None else prefer.wait_s
    answer = None
    if job.finished_at is not None:
        answer = await gateway.threads.in_time(partial(_read_answer, gateway, job))
    elif wait_s > 0:
        tell = partial(answer_of, gateway)
        ended = await wait_for_end(gateway, news, job.id, wait_s, tell, reader=caller.session_id)
        job, answer = ended or (job, None)
    if answer is not None:
        return answer
    if job.finished_at is not None and wait_s > 0 and not prefer.respond_async:
        return not_answered(gateway, job)
    return _accepted(gateway, job, respond_async=prefer.respond_async)


def not_answered(gateway: Gateway, job: Job) -> ProblemResponse:
    """Why a job that ended has no answer."""
    status, code, detail = 409, "cancelled", "The answer was cancelled before it was finished."
    if job.state is State.FAILED:
        failed = error_view(gateway, job) or ErrorView(code="internal", detail="The answer failed.")
        status, code, detail = _FAILED.get(failed.code, 500), failed.code, failed.detail
    elif job.first_sentence_at is not None:
        detail += " What was released of it by then is in its conversation."
    return problem(
        status, code, detail, headers=_place(job), job_id=job.id, conversation_id=job.conversation_id
    )


def answer_of(gateway: Gateway, connection: Connection, job: Job) -> AnswerView | None:
    """What the job's person reads; None unless it succeeded."""
    return answer_view(connection, gateway, job) if job.state is State.SUCCEEDED else None


def _read_answer(gateway: Gateway, job: Job) -> AnswerView | None:
    with gateway.database.read() as connection:
        return answer_of(gateway, connection, job)


def _place(job: Job) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job.id}"}


def _accepted(gateway: Gateway, job: Job, *, respond_async: bool) -> Response:
    headers = _place(job)
    if respond_async:
        headers["Preference-Applied"] = "respond-async"
    return Response(
        job_view(gateway, job).model_dump_json(),
        status_code=202,
        media_type="application/json",
        headers=headers,
    )
