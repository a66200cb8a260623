"""One's conversations: read, find, rename, take out, answer again, rate."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest

from services.api.routers.conversations import SEARCHED, UNREADABLE
from shared.db.tables import conversations, data_keys, feedback, jobs, messages
from shared.jobs.lifecycle import EventKind
from tests.support import Api, ask_async


def talk(api: Api, client, query: str = "What is asthma?", *sentences: str) -> str:  # type: ignore[no-untyped-def]
    conversation = ask_async(client, query)["conversation_id"]
    api.answer(*(sentences or ("Asthma narrows the airways.",)))
    return str(conversation)


def test_a_conversation_holds_question_and_answer(api: Api) -> None:
    client = api.log_in()
    conversation = client.get(f"/v1/conversations/{talk(api, client)}").json()
    said = [(message["role"], message["text"]) for message in conversation["messages"]]
    assert said == [("user", "What is asthma?"), ("assistant", "Asthma narrows the airways.")]
    assert conversation["title"] == "What is asthma?"
    assert conversation["job"]["state"] == "succeeded"


def test_an_answer_stands_after_its_question_though_a_crisis_came_in_between(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    job = api.claim()
    api.release(job, "Asthma narrows the airways.")
    crisis = "I want to kill myself"
    helped = client.post("/predict", json={"query": crisis, "conversation_id": conversation}).json()
    api.finish(job)
    said = client.get(f"/v1/conversations/{conversation}").json()["messages"]
    texts = [message["text"] for message in said]
    assert texts == ["What is asthma?", "Asthma narrows the airways.", crisis, helped["answer"]]


def test_an_answer_under_way_is_still_shown_after_a_crisis_beside_it(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    conversation = asked["conversation_id"]
    api.release(api.claim(), "Asthma narrows the airways.")
    client.post("/predict", json={"query": "I want to kill myself", "conversation_id": conversation})
    view = client.get(f"/v1/conversations/{conversation}").json()
    assert (view["job"]["id"], view["job"]["state"]) == (asked["id"], "running")
    assert [sentence["text"] for sentence in view["released"]] == ["Asthma narrows the airways."]


def test_a_running_answer_is_part_of_it(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    api.release(api.claim(), "Asthma ")
    view = client.get(f"/v1/conversations/{conversation}").json()
    assert [sentence["text"] for sentence in view["released"]] == ["Asthma "]
    assert view["job"]["state"] == "running"


def test_the_list_is_newest_first_and_comes_in_pages(api: Api) -> None:
    client = api.log_in()
    made = [talk(api, client, f"Question {number}?") for number in range(5)]
    seen, cursor = [], None
    while True:
        page = client.get(
            "/v1/conversations", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
        ).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]


def test_search_finds_words_of_titles_and_messages(api: Api) -> None:
    client = api.log_in()
    asthma = talk(api, client, "What is asthma?", "It narrows the airways.")
    talk(api, client, "What is gout?", "Crystals in a joint.")
    for words in ("ASTHMA", "airways"):
        found = client.get("/v1/conversations", params={"search": words}).json()["items"]
        assert [item["id"] for item in found] == [asthma]


def test_a_search_ends_only_where_the_history_does(api: Api) -> None:
    person = api.person()
    made = api.write_history(person, ["What is gout?", *["What is asthma?"] * (2 * SEARCHED), "And gout?"])
    client, found, cursor = api.client(person), [], ""
    while cursor is not None:
        params = {"search": "gout", **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/conversations", params=params).json()
        found.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
    assert found == [[made[-1]], [], [made[0]]]


def test_a_search_goes_on_after_the_last_one_that_it_gave_out(api: Api) -> None:
    person = api.person()
    made = api.write_history(person, ["What is gout?", "And gout?", "What is asthma?", "Still gout?"])
    client = api.client(person)
    first = client.get("/v1/conversations", params={"search": "gout", "limit": 2}).json()
    assert [item["id"] for item in first["items"]] == [made[3], made[1]]
    params = {"search": "gout", "limit": 2, "cursor": first["next_cursor"]}
    second = client.get("/v1/conversations", params=params).json()
    assert [item["id"] for item in second["items"]] == [made[0]]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("harm", ["key destroyed", "key broken", "title broken"])
def test_one_that_can_no_longer_be_read_is_listed_as_such_among_the_others(api: Api, harm: str) -> None:
    client = api.log_in()
    lost, other = talk(api, client, "What is asthma?"), talk(api, client, "And asthma at night?")
    owned = data_keys.c.owner_id == lost
    if harm == "key destroyed":
        api.set(data_keys, owned, wrapped_key=None, destroyed_at=datetime(2026, 1, 1, tzinfo=UTC))
    elif harm == "key broken":
        api.set(data_keys, owned, wrapped_key=b"broken")
    else:
        api.set(conversations, conversations.c.id == lost, title_ciphertext=b"broken")
    listed = client.get("/v1/conversations").json()["items"]
    assert [(item["id"], item["title"]) for item in listed] == [
        (other, "And asthma at night?"),
        (lost, UNREADABLE),
    ]
    found = client.get("/v1/conversations", params={"search": "asthma"}).json()["items"]
    assert [item["id"] for item in found] == [other]
    opened = client.get(f"/v1/conversations/{lost}")
    assert (opened.status_code, opened.headers["content-type"]) == (410, "application/problem+json")
    assert "can no longer be read" in opened.json()["detail"]
    assert client.get(f"/v1/conversations/{other}").status_code == 200


def test_asking_on_where_the_key_is_gone_is_refused_in_words(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    api.set(data_keys, data_keys.c.scope == "conversation", wrapped_key=None)
    refused = [
        client.post(f"{path}/messages", json={"query": "And at night?"}),
        client.post(f"{path}/regenerate"),
        client.patch(path, json={"title": "My lungs"}),
    ]
    assert [response.status_code for response in refused] == [410] * 3
    assert client.delete(path).status_code == 204


def test_a_conversation_can_be_renamed(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    assert client.patch(path, json={"title": "My lungs"}).status_code == 200
    assert client.get(path).json()["title"] == "My lungs"
    assert len(api.audit("conversation.renamed")) == 1


def test_a_removed_conversation_is_gone_from_view_and_kept_in_the_rows(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.get("/v1/conversations").json()["items"] == []
    assert api.count(conversations) == 1
    assert len(api.audit("conversation.hidden")) == 1


def test_a_regenerated_answer_takes_the_place_of_the_former(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    first = client.get(path).json()["messages"][-1]
    assert client.post(f"{path}/regenerate").status_code == 202
    api.answer("Asthma is a lung disease.")
    said = client.get(path).json()["messages"]
    assert [message["text"] for message in said] == ["What is asthma?", "Asthma is a lung disease."]
    assert api.count(messages, messages.c.id == first["id"], messages.c.hidden_at.is_not(None)) == 1
    assert api.count(jobs, jobs.c.parent_job_id == first["job_id"]) == 1


def test_while_an_answer_is_written_again_only_the_new_one_is_shown(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    client.post(f"{path}/regenerate")
    api.release(api.claim(), "Asthma is ")
    view = client.get(path).json()
    assert [message["role"] for message in view["messages"]] == ["user"]
    assert [sentence["text"] for sentence in view["released"]] == ["Asthma is "]


@pytest.mark.parametrize("released", [(), ("Asthma is ",)])
def test_when_the_second_answer_fails_the_first_one_stays(api: Api, released: tuple[str, ...]) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    client.post(f"{path}/regenerate")
    job = api.claim()
    for text in released:
        api.release(job, text)
    api.finish(job, EventKind.FAILED, error="internal", error_detail="Try again.")
    said = client.get(path).json()["messages"]
    assert [message["text"] for message in said] == ["What is asthma?", "Asthma narrows the airways."]


def test_a_second_answer_that_is_stopped_keeps_what_was_shown_of_it(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    client.post(f"{path}/regenerate")
    job = api.claim()
    api.release(job, "Asthma is ")
    client.post(f"/v1/jobs/{job.id}/cancel")
    api.finish(job, EventKind.CANCELLED)
    said = client.get(path).json()["messages"]
    assert [message["text"] for message in said] == ["What is asthma?", "Asthma is"]


def test_asking_again_counts_towards_the_limit(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(max_queued_jobs_per_user=1)
    client = api.log_in()
    answered = talk(api, client)
    ask_async(client)
    assert client.post(f"/v1/conversations/{answered}/regenerate").status_code == 429


def test_a_failed_answer_can_be_tried_again(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    api.finish(api.claim(), EventKind.FAILED, error="internal", error_detail="Try again.")
    assert client.post(f"/v1/conversations/{conversation}/regenerate").status_code == 202


def test_an_answer_under_way_is_not_regenerated(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    assert client.post(f"/v1/conversations/{conversation}/regenerate").status_code == 409


def test_an_answer_is_rated_once_and_the_rating_can_be_taken_back(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    message = client.get(path).json()["messages"][-1]["id"]
    for rating in ("up", "down"):
        body = {"rating": rating, "comment": "because of this"}
        assert client.put(f"/v1/messages/{message}/feedback", json=body).status_code == 204
        assert client.get(path).json()["messages"][-1]["feedback"] == rating
    assert api.count(feedback) == 1
    assert client.delete(f"/v1/messages/{message}/feedback").status_code == 204
    assert client.get(path).json()["messages"][-1]["feedback"] is None


def test_an_answer_rated_many_times_at_once_has_one_rating(api: Api) -> None:
    client = api.log_in()
    path = f"/v1/conversations/{talk(api, client)}"
    message = client.get(path).json()["messages"][-1]["id"]
    together = Barrier(8)

    def rate(number: int) -> int:
        together.wait()
        body = {"rating": "up" if number % 2 else "down"}
        return client.put(f"/v1/messages/{message}/feedback", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(rate, range(64))) == {204}
    assert api.count(feedback) == 1
    assert len(api.audit("feedback.given")) == 64


def test_only_answers_are_rated(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.answer("Because.")
    question, _answer = client.get(f"/v1/conversations/{job['conversation_id']}").json()["messages"]
    refused = client.put(f"/v1/messages/{question['id']}/feedback", json={"rating": "up"})
    assert (refused.status_code, "Only an answer" in refused.json()["detail"]) == (409, True)
    assert api.count(feedback) == 0
    assert not api.audit("feedback.given")
