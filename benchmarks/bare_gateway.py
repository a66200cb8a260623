"""The plainest gateway there is, to measure against: FastAPI and Celery's `.delay()`, nothing else.

No account, no row, no log: the message in Redis is all that is left of a request.
"""

import sys

import uvicorn
from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel


class Ask(BaseModel):
    """One question."""

    query: str


def make_app(redis_url: str) -> FastAPI:
    """An app with one endpoint that queues the question and answers 202."""
    queue = Celery("bare", broker=redis_url)
    queue.conf.task_ignore_result = True

    @queue.task(name="bare.answer")
    def answer(query: str) -> None:
        """Never run: nobody works in this measurement."""

    app = FastAPI()

    @app.post("/predict", status_code=202)
    def predict(ask: Ask) -> dict[str, str]:
        return {"id": answer.delay(ask.query).id}

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)
