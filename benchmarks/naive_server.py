"""The plain design of many tutorials, to measure against: one FastAPI process that calls `model.generate`.

It has no queue, batch, guard, account, database or log.
"""

import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from services.worker_infer.loading import load_model_and_tokenizer
from shared.settings import SYSTEM_PROMPT


class Ask(BaseModel):
    """One question and the exact number of tokens to answer with."""

    query: str
    max_new_tokens: int


def make_app(folder: Path, dtype: str, threads: int) -> FastAPI:
    """An app with one endpoint; requests run in FastAPI's thread pool, each with its own `generate`."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model_and_tokenizer(folder, dtype=dtype)
    app = FastAPI()

    @app.post("/predict")
    def predict(ask: Ask) -> dict[str, object]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{SYSTEM_PROMPT}\n\n{ask.query}"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            tokens = model.generate(**prompt, max_new_tokens=ask.max_new_tokens, do_sample=False)
        new = tokens[0, prompt["input_ids"].shape[1] :]
        return {"answer": tokenizer.decode(new, skip_special_tokens=True), "completion_tokens": len(new)}

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])), port=int(sys.argv[4]), log_level="warning"
    )
