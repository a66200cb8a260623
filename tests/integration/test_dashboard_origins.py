"""The dashboard's own server: which pages may open its WebSocket, and that it asks no other host."""

import socket
from collections.abc import Iterator
from select import select

import httpx
import pytest

from services.local import Stack

STREAM = "/_stcore/stream"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.fixture(scope="module")
def way_out() -> Iterator[socket.socket]:
    """A listening socket that stands for the only way to other hosts; nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture(scope="module")
def dashboard(way_out: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dashboard whose requests to other hosts would go through `way_out`."""
    proxy = f"http://127.0.0.1:{way_out.getsockname()[1]}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    folder = tmp_path_factory.mktemp("dashboard")
    without = ("redis", "api", "worker_infer", "worker_train")
    with Stack(folder, without=without, environment=dict.fromkeys(names, proxy)) as stack:
        yield stack.ui_url


def knock(dashboard: str, origin: str) -> int:
    """The status with which a WebSocket that a page of `origin` opens is answered."""
    with httpx.stream("GET", dashboard + STREAM, headers={**UPGRADE, "Origin": origin}) as response:
        return response.status_code


def test_a_page_of_another_site_is_refused_without_asking_any_host(
    dashboard: str, way_out: socket.socket
) -> None:
    assert knock(dashboard, "https://elsewhere.example") == 403
    asked, _, _ = select([way_out], [], [], 0)
    assert not asked


def test_its_own_page_is_let_in(dashboard: str) -> None:
    assert knock(dashboard, dashboard) == 101
