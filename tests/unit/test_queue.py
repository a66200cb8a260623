"""How the processes reach Redis: with which name and password, and whether they ask who it is."""

import ssl

import pytest
from pydantic import SecretStr
from redis.connection import parse_url

from shared.queue import make_celery, redis_url
from shared.settings import Settings


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://host:1/0", ""),
        ("redis://:old@host:1/0", ""),
        ("redis://medi%40chat@host:1/0", "medi@chat"),
        ("rediss://medi%40chat:old@host:1/0?ssl_ca_certs=/ca.pem", "medi@chat"),
    ],
)
def test_the_secret_replaces_the_password_and_nothing_else(url: str, name: str) -> None:
    settings = Settings(redis_url=url, redis_password=SecretStr("p@ss:/word"))
    given, asked = parse_url(redis_url(settings)), parse_url(url)
    assert given.pop("password") == "p@ss:/word"
    assert given.pop("username", "") == name
    assert given == {key: value for key, value in asked.items() if key not in ("username", "password")}


def test_without_a_secret_the_url_stays_as_it_is() -> None:
    assert redis_url(Settings(redis_url="redis://me:old@host:1/0")) == "redis://me:old@host:1/0"


def test_the_queue_asks_a_redis_with_tls_who_it_is() -> None:
    """Celery's own choice would be to ask nobody; what the URL says of TLS goes before ours."""
    with make_celery(Settings(redis_url="rediss://host:1/0")).connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    with make_celery(Settings(redis_url="redis://host:1/0")).connection_for_write() as connection:
        assert not connection.ssl
