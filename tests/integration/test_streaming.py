"""Following an answer: every sentence once, in order, whatever happens to the connection or to Redis."""

import json
import threading

import pytest

from shared.jobs.lifecycle import EventKind
from tests.support import Api, RedisServer, ask_async, sse_events


def follow(client, job_id: str, **headers: str) -> list[tuple[str, str, str]]:  # type: ignore[no-untyped-def]
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        return list(sse_events(response))


def test_a_finished_answer_is_told_from_its_beginning(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.answer("One. ", "Two.")
    events = follow(client, job["id"])
    assert [(event, number) for event, number, _ in events] == [
        ("sentence", "1"),
        ("sentence", "2"),
        ("end", ""),
    ]
    assert [json.loads(data)["text"] for event, _, data in events if event == "sentence"] == ["One. ", "Two."]
    assert json.loads(events[-1][2])["answer"]["answer"] == "One. Two."


def test_the_state_is_told_before_what_was_written_in_it(api: Api) -> None:
    client = api.log_in()
    ask_async(client)
    job = api.claim()
    api.release(job, "One. ")
    with client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = sse_events(response)
        assert [next(events)[0] for _ in range(2)] == ["state", "sentence"]


def test_a_reconnecting_client_misses_nothing_and_gets_nothing_twice(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.answer("One. ", "Two. ", "Three.")
    events = follow(client, job["id"], **{"Last-Event-ID": "1"})
    assert [number for event, number, _ in events if event == "sentence"] == ["2", "3"]


def each_sentence_as_it_comes(api: Api) -> None:
    """Each sentence is released only once the one before it was seen."""
    client = api.log_in()
    ask_async(client)
    job = api.claim()
    seen: list[str] = []
    with client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = sse_events(response)
        for seq, text in enumerate(("One. ", "Two. ", "Three."), start=1):
            api.release(job, text, seq)
            number = next(number for event, number, _ in events if event == "sentence")
            seen.append(number)
        api.finish(job)
        assert [event for event, _, _ in events][-1] == "end"
    assert seen == ["1", "2", "3"]


def test_sentences_come_as_they_are_released(api: Api) -> None:
    each_sentence_as_it_comes(api)


def test_without_redis_sentences_come_as_well(make_api, tmp_path) -> None:  # type: ignore[no-untyped-def]
    each_sentence_as_it_comes(make_api(redis_url=RedisServer(tmp_path).url))


def test_redis_may_come_and_go_meanwhile(make_api, tmp_path) -> None:  # type: ignore[no-untyped-def]
    redis = RedisServer(tmp_path).start()
    api = make_api(redis_url=redis.url)
    client = api.log_in()
    ask_async(client)
    job = api.claim()
    with client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = sse_events(response)
        api.release(job, "One. ", 1)
        assert next(number for event, number, _ in events if event == "sentence") == "1"
        redis.kill()
        api.release(job, "Two. ", 2)
        assert next(number for event, number, _ in events if event == "sentence") == "2"
        redis.start()
        api.release(job, "Three.", 3)
        assert next(number for event, number, _ in events if event == "sentence") == "3"
        api.finish(job)
        assert [event for event, _, _ in events][-1] == "end"
    redis.kill()


def test_a_failed_job_ends_the_stream_with_the_reason(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.finish(api.claim(), EventKind.FAILED, error="worker-lost", error_detail="Ask again.")
    (end,) = follow(client, job["id"])
    assert end[0] == "end"
    help_line = api.gateway.guard.responses(api.settings.locale).unanswered
    assert json.loads(end[2])["error"] == {"code": "worker-lost", "detail": f"Ask again. {help_line}"}


def test_a_cancelled_answer_keeps_what_was_released(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    job = api.claim()
    api.release(job, "One. ", 1)
    assert client.post(f"/v1/jobs/{job.id}/cancel").json()["cancel_requested"] is True
    api.finish(job, EventKind.CANCELLED)
    conversation = client.get(f"/v1/conversations/{asked['conversation_id']}").json()
    assert conversation["messages"][-1]["text"] == "One."
    assert conversation["job"]["state"] == "cancelled"


def test_a_waiting_job_is_cancelled_at_once(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert [event for event, _, _ in follow(client, job["id"])] == ["end"]


def test_many_readers_of_one_answer_each_get_all_of_it(api: Api) -> None:
    client = api.log_in()
    ask_async(client)
    job = api.claim()
    told: list[list[str]] = []

    def read() -> None:
        told.append([number for event, number, _ in follow(client, job.id) if event == "sentence"])

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for seq in range(1, 6):
        api.release(job, f"{seq}. ", seq)
    api.finish(job)
    for reader in readers:
        reader.join(timeout=20)
    assert told == [["1", "2", "3", "4", "5"]] * 8


@pytest.mark.parametrize("by_key", [False, True])
def test_a_stream_ends_when_its_log_in_does(api: Api, by_key: bool) -> None:
    client = api.log_in()
    made = client.post("/v1/api-keys", json={"name": "a key", "scopes": ["read"]}).json()
    reader = api.client()
    reader.headers["Authorization"] = f"Bearer {made['key']}" if by_key else client.headers["Authorization"]
    ask_async(client)
    job = api.claim()
    with reader.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = sse_events(response)
        assert next(events)[0] == "state"
        if by_key:
            client.delete(f"/v1/api-keys/{made['id']}")
        else:
            client.post("/v1/auth/logout")
        assert list(events) == [], "nothing more is told, and the stream is over"
    api.release(job, "One. ")
