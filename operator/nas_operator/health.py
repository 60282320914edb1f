"""``/healthz`` and ``/readyz`` for the kubelet."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def health_server(port: int, trouble: Callable[[], str | None]) -> AsyncIterator[None]:
    """Serve both while the context is open.

    ``/healthz`` answers as long as the event loop turns: a restart cures nothing else. ``/readyz`` answers 503
    with the reason while ``trouble`` has one, as when the API server is away.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        problem = trouble()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()
        yield
    finally:
        await runner.cleanup()
