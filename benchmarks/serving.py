"""Tokens a second of three systems with the same weights, prompts and lengths, in one run.

(a) naive: one FastAPI process that calls `model.generate` per request; (b) engine: our engine, called in
process; (c) stack: every real process, over HTTP, with guard, database and audit log.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import httpx

from benchmarks import models, report

#: Plain questions of the length that people type; each request gets its own wording.
QUESTIONS = (
    "What are the symptoms of asthma?",
    "How is high blood pressure usually treated?",
    "When should I see a doctor about a migraine?",
    "What can I do at home for lower back pain?",
)
THREADS = 2


@dataclass
class Answer:
    """One answer's figures, in seconds since the request was made."""

    tokens: int
    first_sentence_s: float
    total_s: float


@dataclass
class Run:
    """One system under one number of concurrent requests."""

    system: str
    concurrency: int
    answers: list[Answer] = field(default_factory=list)
    wall_s: float = 0.0
    peak_mb: float = 0.0

    def row(self) -> dict[str, Any]:
        first = [answer.first_sentence_s * 1000 for answer in self.answers]
        return {
            "system": self.system,
            "concurrency": self.concurrency,
            "adapters": 0,
            "tokens_per_s": round(sum(answer.tokens for answer in self.answers) / self.wall_s, 1),
            "first_sentence_ms_p50": round(report.percentile(first, 0.5), 1),
            "first_sentence_ms_p95": round(report.percentile(first, 0.95), 1),
            "peak_mb": round(self.peak_mb),
        }


def questions(requests: int) -> list[str]:
    """As many different questions. Told apart by letters: the guard may take a number for a temperature."""
    letters = (f"{first}{second}" for first in ascii_lowercase for second in ascii_lowercase)
    return [
        f"{QUESTIONS[i % len(QUESTIONS)]} ({name})" for i, name in zip(range(requests), letters, strict=False)
    ]


def drive(run: Run, ask: Callable[[str], Answer], requests: int) -> None:
    """Add `requests` questions to a run, as many at a time as its concurrency says."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(run.concurrency) as pool:
        run.answers += pool.map(ask, questions(requests))
    run.wall_s += time.perf_counter() - begun


def peak_mb_of(pid: int) -> float:
    """The most memory that a process and its children held, in MB (VmHWM of Linux)."""
    total = 0.0
    for each in [pid, *_children(pid)]:
        status = Path(f"/proc/{each}/status").read_text()
        total += float(status.split("VmHWM:")[1].split()[0]) / 1000
    return total


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [g for child in children for g in _children(int(child))]


class Naive:
    """System (a) in a process of its own."""

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int) -> None:
        from services.local import free_ports

        self._new_tokens = new_tokens
        (port,) = free_ports(1)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.naive_server", str(folder), model_name, dtype),
                *(str(THREADS), str(port)),
            ]
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                self._client.get("/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.2)

    def ask(self, question: str) -> Answer:
        begun = time.perf_counter()
        body = {"query": question, "max_new_tokens": self._new_tokens}
        answer = self._client.post("/predict", json=body).raise_for_status().json()
        total = time.perf_counter() - begun
        return Answer(answer["completion_tokens"], total, total)

    def peak_mb(self) -> float:
        return peak_mb_of(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class EngineInProcess:
    """System (b): the engine, its prompt building and detokenising, in this process."""

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int) -> None:
        import torch

        from services.worker_infer.loading import open_model
        from shared.guard.sentences import SentenceSplitter
        from shared.settings import Settings

        torch.set_num_threads(THREADS)
        self._splitter = SentenceSplitter
        self._settings = Settings(model=model_name, model_path=folder, dtype=dtype, device="cpu")
        self._model = open_model(self._settings)
        self._model.engine.start()
        self._new_tokens = new_tokens
        self._count = 0
        self._lock = threading.Lock()

    def ask(self, question: str) -> Answer:
        from services.worker_infer.engines.base import GenerationRequest

        begun = time.perf_counter()
        with self._lock:
            self._count += 1
            request_id = str(self._count)
        prompt = self._model.text.prompt(
            system=self._settings.system_prompt,
            turns=[],
            question=question,
            released="",
            budget_tokens=self._model.context_tokens - self._new_tokens,
        )
        request = GenerationRequest(
            request_id=request_id, prompt_token_ids=prompt, max_new_tokens=self._new_tokens
        )
        detokeniser, splitter = self._model.text.detokeniser(), self._splitter()
        tokens, first = 0, None
        for token_ids in self._model.engine.submit(request):
            tokens += len(token_ids)
            if splitter.feed(detokeniser.feed(token_ids)) and first is None:
                first = time.perf_counter() - begun
        total = time.perf_counter() - begun
        return Answer(tokens, first or total, total)

    def peak_mb(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    def close(self) -> None:
        self._model.engine.close()


class WholeStack:
    """System (c): Redis, gateway, worker, database, guard and log."""

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int, state: Path) -> None:
        from services.local import Stack
        from services.smoke import log_in

        self._new_tokens = new_tokens
        self._stack = Stack(
            state,
            without=["ui"],
            environment={
                "MEDICHAT_MODEL": model_name,
                "MEDICHAT_MODEL_PATH": str(folder),
                "MEDICHAT_DTYPE": dtype,
                "MEDICHAT_DEVICE": "cpu",
                "MEDICHAT_REQUESTS_PER_MINUTE": "100000",
                "MEDICHAT_MAX_QUEUED_JOBS_PER_USER": "1000",
                "OMP_NUM_THREADS": str(THREADS),
            },
        ).start()
        self._client = log_in(self._stack, "user")

    def ask(self, question: str) -> Answer:
        from services.smoke import follow

        begun = time.perf_counter()
        body = {"query": question, "max_new_tokens": self._new_tokens}
        accepted = self._client.post("/predict", json=body, headers={"Prefer": "respond-async"})
        job_id = accepted.raise_for_status().json()["id"]
        first, job = None, {}
        for event, data in follow(self._client, job_id):
            if event == "sentence" and first is None:
                first = time.perf_counter() - begun
            job = data
        total = time.perf_counter() - begun
        if job.get("state") != "succeeded":
            raise RuntimeError(f"a job ended as {job.get('state')}")
        return Answer(job["completion_tokens"], first or total, total)

    def peak_mb(self) -> float:
        return sum(peak_mb_of(process.pid) for process in self._stack.processes.values())

    def close(self) -> None:
        self._client.close()
        self._stack.stop()


class Bare:
    """`model.generate` called directly, in a process of its own: the naive server is measured against it."""

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.bare_generate", str(folder), model_name, dtype),
                *(str(THREADS), str(new_tokens)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: str) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        tokens, seconds = self._process.stdout.readline().split()
        return Answer(int(tokens), float(seconds), float(seconds))

    def close(self) -> None:
        self._process.communicate()


def naive_against_bare(naive: Naive, bare: Bare, requests: int) -> dict[str, float]:
    """Tokens a second of both for one user: each question is put to one and then to the other."""
    answers: dict[str, list[Answer]] = {"naive": [], "bare_generate": []}
    for number, question in enumerate(questions(requests + 1)):
        pair = [("naive", naive.ask(question)), ("bare_generate", bare.ask(question))]
        for name, answer in pair if number else []:  # the first warms up
            answers[name].append(answer)
    speed = {
        name: sum(answer.tokens for answer in given) / sum(answer.total_s for answer in given)
        for name, given in answers.items()
    }
    found = {f"{name}_tokens_per_s": round(value, 1) for name, value in speed.items()}
    return {**found, "ratio": round(speed["naive"] / speed["bare_generate"], 3)}


#: The turns at each number of users: a machine that grows slower or faster meanwhile does so for all.
TURNS = ("engine", "stack", "naive", "stack", "engine")


def measure(
    folder: Path,
    model_name: str,
    *,
    dtype: str,
    new_tokens: int,
    levels: list[int],
    rounds: int,
    compared: int,
) -> dict[str, Any]:
    """Rows of all systems at each number of concurrent requests; all are up, and take turns.

    In a turn each user asks `rounds` times; `compared` questions are for the naive server beside `generate`.
    """
    rows = []
    with tempfile.TemporaryDirectory() as state, ExitStack() as opened:

        def open_system(system: Any) -> Any:
            opened.callback(system.close)
            return system

        systems = {
            "naive": open_system(Naive(folder, model_name, dtype, new_tokens)),
            "engine": open_system(EngineInProcess(folder, model_name, dtype, new_tokens)),
            "stack": open_system(WholeStack(folder, model_name, dtype, new_tokens, Path(state))),
        }
        for name, system in systems.items():
            drive(Run(name, 1), system.ask, 1)  # warm up
        for level in levels:
            runs = {name: Run(name, level) for name in systems}
            for name in TURNS:
                drive(runs[name], systems[name].ask, max(level * rounds, 2))
            for name, run in runs.items():
                run.peak_mb = systems[name].peak_mb()
                rows.append(run.row())
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if level == 1:
                bare = Bare(folder, model_name, dtype, new_tokens)
                alone = naive_against_bare(systems["naive"], bare, compared)
                bare.close()
    return {"rows": rows, "naive_against_bare": alone}


def measure_overhead(requests: int) -> dict[str, float]:
    """What the whole path adds to one short answer of the demo model, in milliseconds.

    Each question is asked of the engine and of the stack in turn, in the same run, one at a time.
    """
    with tempfile.TemporaryDirectory() as state:
        stack = WholeStack(models.DEMO, "demo", "float32", 24, Path(state))
        engine = EngineInProcess(models.DEMO, "demo", "float32", 24)
        try:
            questions = [f"{QUESTIONS[i % len(QUESTIONS)]}" for i in range(requests)]
            for question in questions[:4]:
                stack.ask(question), engine.ask(question)
            added = [1000 * (stack.ask(q).total_s - engine.ask(q).total_s) for q in questions]
        finally:
            engine.close()
            stack.close()
    return {"p50": round(statistics.median(added), 1), "p95": round(report.percentile(added, 0.95), 1)}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The comparisons that matter, from the rows."""
    speed = {(row["system"], row["concurrency"]): row["tokens_per_s"] for row in rows}
    found = {}
    for level in sorted({level for _, level in speed}):
        found[f"stack_to_engine_at_{level}"] = round(speed["stack", level] / speed["engine", level], 3)
        found[f"stack_to_naive_at_{level}"] = round(speed["stack", level] / speed["naive", level], 2)
    return found


def draw(result: dict[str, Any]) -> None:
    """A plot of tokens a second against concurrent requests."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for system in ("naive", "engine", "stack"):
        rows = [row for row in result["rows"] if row["system"] == system]
        axes.plot(
            [r["concurrency"] for r in rows], [r["tokens_per_s"] for r in rows], marker="o", label=system
        )
    axes.set(xlabel="concurrent requests", ylabel="tokens/s", title="Layers of gemma-3-270m on this CPU")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(report.RESULTS / "serving.png", dpi=110)


def main() -> None:
    """Measure, print, keep."""
    flags = report.options(__doc__ or "").parse_args()
    levels = [1, 16] if flags.quick else [1, 4, 16, 32]
    with tempfile.TemporaryDirectory() as folder:
        big = models.layers_of_gemma_270m(Path(folder), models.DEMO)
        large = measure(
            big,
            "gemma-1b",  # its entry asks for what it gives: a text-only Gemma 3
            dtype="float32",
            new_tokens=16 if flags.quick else 64,
            levels=levels,
            rounds=1,
            compared=4 if flags.quick else 16,
        )
    result: dict[str, Any] = {
        **report.machine(),
        "model": "18 layers x 640, random weights, float32",
        **large,
        "ratios": ratios(large["rows"]),
        "overhead_ms": measure_overhead(20 if flags.quick else 200),
    }
    if not flags.quick:
        demo = measure(
            models.DEMO, "demo", dtype="float32", new_tokens=64, levels=levels, rounds=2, compared=32
        )
        result["demo"] = {**demo, "ratios": ratios(demo["rows"])}
    report.save("serving", result, quick=flags.quick)
    if not flags.quick:
        draw(result)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
