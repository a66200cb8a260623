"""The plain design of many tutorials, to measure against: one FastAPI process that calls `model.generate`.

It has no queue, batch, guard, account, database or log.
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.bare_generate import generate, load, prompt


class Ask(BaseModel):
    """One question and the exact number of tokens to answer with."""

    query: str
    max_new_tokens: int


def make_app(folder: Path, model_name: str, dtype: str, threads: int) -> FastAPI:
    """An app with one endpoint; requests run in FastAPI's thread pool, each with its own `generate`."""
    loaded = load(folder, model_name, dtype, threads)
    app = FastAPI()

    @app.post("/predict")
    def predict(ask: Ask) -> dict[str, object]:
        new = generate(loaded, prompt(loaded, ask.query), ask.max_new_tokens)
        return {
            "answer": loaded.tokenizer.decode(new, skip_special_tokens=True),
            "completion_tokens": len(new),
        }

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])),
        port=int(sys.argv[5]),
        log_level="warning",
    )
