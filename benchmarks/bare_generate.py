"""`model.generate` called directly, one question of standard input after another; see `main`.

python -m benchmarks.bare_generate FOLDER MODEL DTYPE THREADS NEW_TOKENS
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from services.worker_infer.loading import LoadedModel, load_model
from shared.catalogue import find_model
from shared.settings import SYSTEM_PROMPT


def load(folder: Path, model_name: str, dtype: str, threads: int) -> LoadedModel:
    """The weights as the worker loads them, on the CPU."""
    torch.set_num_threads(threads)
    return load_model(
        find_model(model_name), folder=folder, device=torch.device("cpu"), dtype=getattr(torch, dtype)
    )


def prompt(loaded: LoadedModel, question: str) -> Any:
    """The question as the model reads it, after the system text."""
    return loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{SYSTEM_PROMPT}\n\n{question}"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def generate(loaded: LoadedModel, asked: Any, new_tokens: int) -> torch.Tensor:
    """(N,) the ids of a greedy answer of at most `new_tokens` tokens."""
    with torch.inference_mode():
        told = loaded.model.generate(**asked, max_new_tokens=new_tokens, do_sample=False)
    return told[0, asked["input_ids"].shape[1] :]


def main() -> None:
    """A line once the model is loaded, then for each question on standard input its tokens and seconds."""
    folder, model_name, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    threads, new_tokens = map(int, sys.argv[4:])
    loaded = load(folder, model_name, dtype, threads)
    print("ready", flush=True)
    for question in sys.stdin:
        begun = time.perf_counter()
        tokens = len(generate(loaded, prompt(loaded, question.strip()), new_tokens))
        print(tokens, time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
