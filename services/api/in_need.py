"""Tells a person in need where help is found when their question is not taken. It takes none itself."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from services.api.deps import GatewayDep
from services.api.errors import put_first
from services.api.state import Gateway
from shared.errors import NotAuthenticated
from shared.guard import Guard, load_guard
from shared.guard.verdict import Action
from shared.logs import where

log = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


async def help_first(request: Request, gateway: GatewayDep) -> AsyncIterator[None]:
    """For a route that takes questions, before all else that it asks for: whatever is refused then, a person
    in need reads first what the guard would have answered.
    """
    try:
        yield
    except NotAuthenticated:  # to read what strangers send would be work for anybody who asks for it
        raise
    except Exception:
        # in no thread of the handlers: all of these may be waiting for the database
        put_first(request, await asyncio.to_thread(_help, gateway, await request.body()))
        raise


def _help(gateway: Gateway, body: bytes) -> str:
    """The guard's answer to the question in a body, if a person in need asks it; else nothing.

    Each question is read as a patient's: who asks may not be known.
    """
    query = _query(body)
    if not query:
        return ""
    query = query[: gateway.settings.max_query_chars]
    standing = gateway.guards.known
    if standing is not None:
        try:
            return _told_by(standing.guard, query, gateway.settings.locale)
        except Exception as error:  # it may be why the question was not taken
            log.error("the policy in force cannot judge a question: %s", where(error))
    return _told_by(load_guard(), query, gateway.settings.locale)  # better than to wait for one never read


def _told_by(guard: Guard, query: str, locale: str) -> str:
    verdict = guard.screen_at_once(query)
    return guard.responses(locale).for_question(verdict.category) if verdict.action is Action.CRISIS else ""


def _query(body: bytes) -> str:
    """The question in a body that may be refused for anything else in it; nothing when there is none.

    A control character counts as a space, as which it shows: Word's line break within a paragraph is one.
    """
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(sent, dict):
        return ""
    query = sent.get("query", _asked(sent.get("messages")))
    return _CONTROL.sub(" ", query) if isinstance(query, str) else ""


def _asked(messages: Any) -> str:
    """What the user said last in a conversation of OpenAI's protocol, if that is what it is."""
    texts: list[str] = []
    for message in reversed(messages if isinstance(messages, list) else []):
        side = message.get("role") if isinstance(message, dict) else None
        if side == "user":
            texts[:0] = _texts(message.get("content"))
        elif side == "assistant" and texts and any(each.strip() for each in _texts(message.get("content"))):
            break
    return "\n\n".join(texts)


def _texts(content: Any) -> list[str]:
    parts = content if isinstance(content, list) else [{"text": content}]
    found = (part.get("text") for part in parts if isinstance(part, dict))
    return [text for text in found if isinstance(text, str)]
