"""The systems that the benchmarks of speed ask: a plain server, the engine by itself, the whole stack.

They answer the same questions with the same weights; what is made of their figures is not their matter.
A system that is made begins to start, and others may be made meanwhile; `wait_ready` returns once it answers.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import httpx
import yaml

from shared.guard.policy import packaged_policy

#: Plain questions of the length that people type; each request gets its own wording.
QUESTIONS = (
    "What are the symptoms of asthma?",
    "How is high blood pressure usually treated?",
    "When should I see a doctor about a migraine?",
    "What can I do at home for lower back pain?",
)


def threads_for(model_name: str) -> int:
    """With how many threads all systems compute: as many as our worker chooses by itself on two cores."""
    return 1 if model_name == "demo" else 2


@dataclass
class Answer:
    """One answer's figures, in seconds since the request was made."""

    tokens: int
    first_sentence_s: float
    total_s: float


def peak_mb_of(pid: int) -> float:
    """The most memory that a process and its children held, in MB."""
    return sum(_own_peak_mb(each) for each in [pid, *_children(pid)])


def peak_mb_of_children(pid: int) -> float:
    """The most memory that the children of a process held, in MB; 0 without any."""
    return sum(_own_peak_mb(each) for each in _children(pid))


def _own_peak_mb(pid: int) -> float:
    # VmHWM of Linux; ru_maxrss begins with the peak of the process that started this one
    _, _, peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")
    return float(peak.split()[0]) / 1000 if peak else 0.0  # it has ended, and nobody asked how


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
                *(str(threads_for(model_name)), str(port)),
            ]
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self._client.get("/healthz").raise_for_status()
            except httpx.TransportError:
                time.sleep(0.2)
            else:
                return
        raise RuntimeError("the naive server did not start")

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
    """System (b): the engine, its prompt building and detokenising, in this process.

    Its peak of memory is this process's: to be compared, each model needs a process in which no other was.
    """

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int) -> None:
        import torch

        from services.worker_infer.loading import open_model
        from shared.guard.sentences import SentenceSplitter
        from shared.settings import Settings

        torch.set_num_threads(threads_for(model_name))
        self._splitter = SentenceSplitter
        self._settings = Settings(model=model_name, model_path=folder, dtype=dtype, device="cpu")
        self._model = open_model(self._settings)
        self._model.engine.start()
        self._new_tokens = new_tokens
        self._count = 0
        self._lock = threading.Lock()

    def wait_ready(self) -> None:
        """It is ready once it is made."""

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
            request_id=request_id, prompt_token_ids=prompt.token_ids, max_new_tokens=self._new_tokens
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
        return _own_peak_mb(os.getpid())

    def close(self) -> None:
        self._model.engine.close()


class WholeStack:
    """System (c): Redis, gateway, worker, database, guard and log."""

    def __init__(
        self,
        folder: Path,
        model_name: str,
        dtype: str,
        new_tokens: int,
        state: Path,
        *,
        worker: str | None = None,
    ) -> None:
        """`worker` is the command of another worker than the product's."""
        from services.local import Stack

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
                "OMP_NUM_THREADS": str(threads_for(model_name)),
            },
        )
        if worker is not None:
            self._stack.commands["worker_infer"] = worker
        self._opened = ExitStack()
        self._opened.callback(self._stack.stop)
        try:
            self._stack.prepare()
            for name in self._stack.commands:
                self._stack.start_process(name)
        except BaseException:  # nobody holds it yet who could close it
            self._opened.close()
            raise

    def wait_ready(self) -> None:
        from services.smoke import log_in

        self._stack.wait_ready()
        self._client = self._opened.enter_context(closing(log_in(self._stack, "user")))
        address = self._client.base_url
        self._wire = self._opened.enter_context(closing(HTTPConnection(address.host, address.port)))
        self._wire_headers = {
            "Content-Type": "application/json",
            "Authorization": self._client.headers["Authorization"],
        }

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

    def ask_and_wait(self, question: str) -> Answer:
        """Likewise, by one request that waits for its answer, as `/predict` does by itself.

        It is sent by the standard library over a connection that stays open: httpx takes 0.8 ms more, which
        is the asking program's and not the path's.
        """
        body = json.dumps({"query": question, "max_new_tokens": self._new_tokens})
        begun = time.perf_counter()
        self._wire.request("POST", "/predict", body, self._wire_headers)
        response = self._wire.getresponse()
        answer = response.read()
        total = time.perf_counter() - begun
        if response.status != HTTPStatus.OK:
            raise RuntimeError(f"the question was answered by status {response.status}")
        return Answer(json.loads(answer)["usage"]["completion_tokens"], total, total)

    def use_rules_alone(self) -> None:
        """Let a policy count under which the classifier is not asked; returns once the worker has it."""
        from services.smoke import log_in

        knobs = yaml.safe_load(packaged_policy()["policy.yaml"])
        knobs["classifier"] = {
            "alone": 1,
            "flag": 1,
            "with_rule": 0,
            "refuse": 1,
            "emergency": 1,
            "crisis": 1,
        }
        body = {"texts": {"policy.yaml": yaml.safe_dump(knobs)}, "note": "Rules alone, to be measured."}
        with closing(log_in(self._stack, "admin")) as admin:
            version = admin.post("/v1/guard/policies", json=body).raise_for_status().json()["version"]
            admin.post(f"/v1/guard/policies/{version}/activate").raise_for_status()
        deadline = time.monotonic() + 60
        body = {"query": QUESTIONS[0], "max_new_tokens": 1}
        while self._client.post("/predict", json=body).json()["model"]["policy_version"] != version:
            if time.monotonic() > deadline:
                raise RuntimeError("the worker did not take up the policy")
            time.sleep(0.5)

    def peak_mb(self) -> float:
        return sum(peak_mb_of(process.pid) for process in self._stack.processes.values())

    def close(self) -> None:
        self._opened.close()


class Bare:
    """`model.generate` called directly, in a process of its own: the naive server is measured against it."""

    def __init__(self, folder: Path, model_name: str, dtype: str, new_tokens: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.bare_generate", str(folder), model_name, dtype),
                *(str(threads_for(model_name)), str(new_tokens)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("`generate` in a process of its own did not start")

    def ask(self, question: str) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        tokens, seconds = self._process.stdout.readline().split()
        return Answer(int(tokens), float(seconds), float(seconds))

    def close(self) -> None:
        self._process.communicate()
