"""Puts the gateway together: routes, errors, middleware, and what lives as long as the process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from anyio import to_thread
from fastapi import FastAPI

from services.api import errors
from services.api.ask import accept
from services.api.description import Described
from services.api.identify import identify
from services.api.large_bodies import LargeBodies, help_line
from services.api.maintenance import Maintenance
from services.api.middleware import Around, Larger
from services.api.openai_shape import in_shape_of
from services.api.pictures import MAX_IMAGE_CHARS
from services.api.routers import (
    adapters,
    api_keys,
    audit,
    auth,
    break_glass,
    chat_completions,
    comparisons,
    conversations,
    datasets,
    erasure,
    evaluations,
    exports,
    finding,
    guard,
    health,
    holds,
    jobs,
    login,
    me,
    messages,
    models,
    predict,
    replays,
    review_results,
    reviews,
    saved_views,
    sealed_log,
    system,
    training,
    transcripts,
    users,
)
from services.api.sealing import Sealing
from services.api.signing import Signing
from services.api.state import open_gateway
from services.api.streaming import News
from services.api.together import Together
from shared.guard.policy import MOST_BYTES
from shared.settings import Settings, get_settings

#: Where questions are asked, which pictures may come with.
PATHS_WITH_PICTURES = ("/predict", "/v1/conversations/[^/]+/messages", "/v1/chat/completions")
#: Handlers that run at the same time. They are short, and more of them than this only wait for Python's lock:
#: on 2 cores 40 (the default) accepted a third fewer questions a second.
THREADS = 6
ROUTERS = (
    predict,
    chat_completions,
    models,
    jobs,
    conversations,
    messages,
    review_results,  # before what takes an id at the same place
    reviews,
    datasets,
    auth,
    login,
    me,
    users,
    api_keys,
    training,
    adapters,
    evaluations,
    comparisons,
    guard,
    replays,
    audit,
    sealed_log,
    transcripts,
    break_glass,
    finding,
    saved_views,
    exports,
    system,
    health,
    erasure,
    holds,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; it opens the database and Redis when it starts and closes them when it ends.

    It may start again after that, under whatever `app.state.settings` is then; but for the limits of bodies,
    which stay as they were made.
    """
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings: Settings = app.state.settings
        gateway = open_gateway(settings)
        news = News(settings)
        maintenance, sealing = Maintenance(gateway), Sealing(gateway)
        signing = Signing(gateway, sealing.holder)
        app.state.gateway, app.state.news, app.state.maintenance = gateway, news, maintenance
        away = errors.DATABASE_AWAY
        app.state.door = Together(partial(identify, gateway), shared_fate=away)
        app.state.desk = Together(partial(accept, gateway), shared_fate=away)
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        news.start()
        gateway.guards.start()
        maintenance.start()
        sealing.start()
        signing.start()
        try:
            yield
        finally:
            signing.close()
            sealing.close()
            maintenance.close()
            await news.close()
            gateway.close()

    app = Described(
        title="MediChat",
        description="Guarded answers from a medical model. Not a doctor, not a medical device.",
        version="0.1.0",
        lifespan=lifespan,
        # the pages of Swagger and ReDoc load scripts from other hosts
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    errors.install(app, in_shape_of)
    for module in ROUTERS:
        app.include_router(module.router)
    with_pictures = settings.max_body_bytes + settings.max_images * MAX_IMAGE_CHARS
    app.state.large_bodies = LargeBodies()
    admit = app.state.large_bodies.admit
    larger = [
        Larger("POST", "/v1/datasets", settings.max_dataset_bytes),
        Larger("POST", "/v1/guard/policies", MOST_BYTES + settings.max_body_bytes),
        *(Larger("POST", path, with_pictures, admit, help_line) for path in PATHS_WITH_PICTURES),
    ]
    app.add_middleware(Around, max_body_bytes=settings.max_body_bytes, shape=in_shape_of, larger=larger)
    return app
