"""The dashboard in Streamlit's own test runner, for tests of its pages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.testing.v1 import AppTest, app_test
from streamlit.testing.v1.local_script_runner import LocalScriptRunner
from streamlit.util import calc_hash

from services.ui import client, session
from shared.settings import get_settings
from tests.support import Api

APP = Path(session.__file__).with_name("app.py")


@contextmanager
def served_by(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages ask this gateway."""
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    get_settings.cache_clear()
    client._connections.cache_clear()
    yield
    client._connections().close()
    client._connections.cache_clear()
    get_settings.cache_clear()


def open_with(
    monkeypatch: pytest.MonkeyPatch, cookie: str | None, *, page: str = "", **query: str
) -> AppTest:
    """The dashboard in a browser that holds this log-in, at a page and with what its address says."""
    monkeypatch.setattr(session, "token", lambda: cookie)
    app = AppTest.from_file(str(APP), default_timeout=20)
    for name, value in query.items():
        app.query_params[name] = value
    return to_page(app.run(), page) if page else app.run()


def to_page(app: AppTest, path: str) -> AppTest:
    """Go where a click on the page's name leads."""
    app._page_hash = calc_hash(path)
    return app.run()


def tick(app: AppTest) -> AppTest:
    """What the browser has done by itself every now and then, once: draw each part that repeats."""
    parts = list(app._fragment_storage._fragments)
    assert parts, "nothing of this page repeats, and to draw no part would draw all"

    class Runner(LocalScriptRunner):
        def request_rerun(self, data: RerunData) -> bool:
            self._requests = ScriptRequests()  # it was made with a request to draw all
            return super().request_rerun(replace(data, fragment_id_queue=parts, is_auto_rerun=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_test, "LocalScriptRunner", Runner)
        return app.run()


def texts(app: AppTest) -> str:
    """Everything that is written on the page and its sidebar."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success", "code")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(app, kind))


def button(app: AppTest, label: str):  # type: ignore[no-untyped-def]
    """The button of this label."""
    return next(each for each in app.button if each.label == label)


def choose(app: AppTest, label: str, name: str) -> AppTest:
    """Choose the entry of this name in the list of this label."""
    return next(each for each in app.selectbox if each.label == label).set_value(name).run()


def charts(app: AppTest) -> list[Any]:
    """What Vega-Lite is told to draw."""
    return [json.loads(each.proto.spec) for each in app.get("vega_lite_chart")]
