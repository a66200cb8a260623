"""How long a search by words takes among many conversations: fills a database, then asks as the gateway does.

The conversations are encrypted and indexed as in use; their words are drawn by Zipf's law, so that some
are in nearly all of them and most in few.
"""

import json
import random
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, text

from benchmarks import report
from shared.auth.roles import AccountStatus, Role
from shared.clock import DatabaseClock
from shared.db import Database
from shared.db.engine import connect
from shared.db.tables import conversations, data_keys, messages, users
from shared.db.tables_privacy import search_pending, search_terms
from shared.finding import find
from shared.finding_filters import Filters
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.privacy.envelope import Envelope
from shared.privacy.search import terms_of
from shared.privacy.search_index import index_secret, make_index_key

_QUESTION_WORDS, _ANSWER_WORDS, _VOCABULARY = 12, 36, 5_000
#: Conversations of one transaction.
_BATCH = 2_000
_KEY = bytes(range(32))
#: What is searched for: words by their rank (0 is the most frequent).
SEARCHES = {
    "frequent": "w0",
    "middling": "w100",
    "rare": f"w{_VOCABULARY - 1}",
    "absent": "nowhere",
    "two frequent": "w0 w1",
    "two rare": f"w{_VOCABULARY - 1} w{_VOCABULARY - 2}",
    "frequent and rare": f"w0 w{_VOCABULARY - 1}",
    "five": "w0 w5 w20 w50 w100",
}


def measure(url: str, number: int, *, repeats: int = 15) -> float:
    """Milliseconds of the slowest kind of search (each kind's median) among `number` conversations.

    `url` names a migrated database without rows.
    """
    return max(measure_each(url, number, repeats=repeats).values())


def measure_each(url: str, number: int, *, repeats: int = 15) -> dict[str, float]:
    """Milliseconds of a first page of 20, by the kind of search; medians."""
    database, envelope = connect(url), Envelope({1: _KEY})
    try:
        fill(database, envelope, number)
        return {kind: _time(database, envelope, words, repeats) for kind, words in SEARCHES.items()}
    finally:
        database.close()


def fill(database: Database, envelope: Envelope, number: int) -> None:
    """Write `number` conversations of a question and an answer each, and make them searchable."""
    draw = random.Random(0)
    clock = DatabaseClock()
    with database.write() as connection:
        secret = index_secret(make_index_key(connection, envelope, clock))
        now = clock.now(connection)
        person = _person(connection, now)
    vocabulary = [f"w{rank}" for rank in range(_VOCABULARY)]
    terms = dict(zip(vocabulary, terms_of(secret, vocabulary), strict=True))
    weights = [1 / (rank + 1) for rank in range(_VOCABULARY)]
    for begin in range(0, number, _BATCH):
        count = min(_BATCH, number - begin)
        said = [draw.choices(vocabulary, weights, k=_QUESTION_WORDS + _ANSWER_WORDS) for _ in range(count)]
        rows = [_conversation(envelope, person, words, now) for words in said]
        indexed = [
            {"term": terms[word], "conversation_id": row["conversation"]["id"]}
            for row, words in zip(rows, said, strict=True)
            for word in set(words)
        ]
        indexed.sort(key=lambda row: (row["term"], row["conversation_id"]))
        with database.write() as connection:
            if database.dialect == "sqlite":
                connection.execute(text("PRAGMA cache_size = -400000"))
            connection.execute(insert(data_keys), [row["key"] for row in rows])
            connection.execute(insert(conversations), [row["conversation"] for row in rows])
            connection.execute(insert(messages), [each for row in rows for each in row["messages"]])
            connection.execute(insert(search_terms), indexed)
            connection.execute(delete(search_pending))
        now += timedelta(seconds=1)
    if database.dialect == "postgresql":  # what its own housekeeping does within a minute
        with database.read() as connection:
            for table in ("search_terms", "conversations", "data_keys", "messages"):
                connection.execute(text(f"ANALYZE {table}"))


def _person(connection: Connection, now: datetime) -> str:
    person = new_id()
    row = {
        "id": person,
        "name": "somebody",
        "role": Role.USER,
        "audience": Audience.PATIENT,
        "status": AccountStatus.ACTIVE,
        "password_hash": "",
        "created_at": now,
    }
    connection.execute(insert(users), row)
    return person


def _conversation(envelope: Envelope, person: str, words: list[str], now: datetime) -> dict[str, Any]:
    conversation_id = new_id()
    key, wrapped, version = envelope.new_data_key(new_id())
    texts = (" ".join(words[:_QUESTION_WORDS]), " ".join(words[_QUESTION_WORDS:]))
    said = []
    for seq, (role, written) in enumerate(zip(("user", "assistant"), texts, strict=True), start=1):
        message_id = new_id()
        said.append(
            {
                "id": message_id,
                "conversation_id": conversation_id,
                "seq": seq,
                "role": role,
                "parts": [{"type": "text"}],
                "ciphertext": key.encrypt(written, place=f"message:{message_id}"),
                "key_id": key.key_id,
                "created_at": now,
            }
        )
    return {
        "key": {
            "key_id": key.key_id,
            "scope": "conversation",
            "owner_id": conversation_id,
            "wrapped_key": wrapped,
            "master_key_version": version,
            "created_at": now,
        },
        "conversation": {
            "id": conversation_id,
            "user_id": person,
            "key_id": key.key_id,
            "created_at": now,
            "updated_at": now,
            "message_count": 2,
        },
        "messages": said,
    }


def _time(database: Database, envelope: Envelope, words: str, repeats: int) -> float:
    took = []
    for _ in range(repeats):
        begun = time.perf_counter()
        find(database, envelope, Filters(words=words), before=None, limit=20)
        took.append(1000 * (time.perf_counter() - begun))
    return round(statistics.median(took), 2)


def main() -> None:
    """Measure, print."""
    parser = report.options(__doc__ or "")
    parser.add_argument("url", help="SQLAlchemy URL of a migrated database without rows")
    parser.add_argument("--conversations", type=int, help="100,000 unless told, or 5,000 with --quick")
    flags = parser.parse_args()
    number = flags.conversations or (5_000 if flags.quick else 100_000)
    begun = datetime.now(UTC)
    each = measure_each(flags.url, number)
    seconds = round((datetime.now(UTC) - begun).total_seconds(), 1)
    result = {**report.machine(), "conversations": number, "search_ms": each, "took_s": seconds}
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
