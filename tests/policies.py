"""What tests of the guard's policies need: versions that differ in a knob, added and activated over HTTP."""

from typing import Any

import httpx
from sqlalchemy import insert

from shared.db.tables_guard import guard_policies
from shared.guard.policy import packaged_policy, version_of
from tests.support import Api, Person

#: Replaced under the packaged policy.
DOSE = "You can take as many of these tablets as you like. "


def knobs(**changes: str) -> dict[str, str]:
    """policy.yaml with what is said of patients changed, as in `refer="[dosing]"`."""
    text = packaged_policy()["policy.yaml"]
    for name, value in changes.items():
        start = text.index(f"    {name}: ") + len(f"    {name}: ")
        text = text[:start] + value + text[text.index("\n", start) :]
    return {"policy.yaml": text}


def add_version(client: httpx.Client, texts: dict[str, str] | None = None, **changes: str) -> str:
    """Store a version; returns its name."""
    body = {"texts": texts or knobs(**changes), "note": "A test."}
    response = client.post("/v1/guard/policies", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["version"])


def activate(client: httpx.Client, version: str) -> dict[str, Any]:
    """Let it count; returns the state after that."""
    response = client.post(f"/v1/guard/policies/{version}/activate")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def add_bad_version(api: Api, person: Person, version: str = "0123456789ab") -> str:
    """A version that no release can compile, as if it had been stored by another one."""
    return store_version(api, person, {"policy.yaml": "x: y"}, version)


def store_version(api: Api, person: Person, texts: dict[str, str], version: str = "") -> str:
    """A version with just these files, unchecked, as another release may have stored it; returns its name."""
    version = version or version_of(texts)
    with api.gateway.database.write() as connection:
        row = {"version": version, "texts": texts, "note": "", "created_by": person.id}
        connection.execute(insert(guard_policies), {**row, "created_at": api.gateway.clock.now(connection)})
    return version
