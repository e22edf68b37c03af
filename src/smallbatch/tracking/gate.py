"""Which requests the servers of this package hand on to MLflow: by host, token, route and size.

MLflow serves more than the tracking of runs: an assistant that runs shell commands, a gateway that
keeps keys, jobs, web hooks. Whoever reaches those does as the server's user, so none is reachable.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_PAGES = (
    "/",
    "/get-artifact",
    "/graphql",
    "/health",
    "/model-versions/get-artifact",
    "/signup",
    "/v1/traces",
    "/version",
)
_FAMILIES = (
    "artifacts",
    "datasets",
    "experiments",
    "get-trace-artifact",
    "logged-models",
    "metrics",
    "model-versions",
    "registered-models",
    "roles",
    "runs(?!/create-promptlab-run)",  # of the gateway
    "server-info",
    "traces",
    "unified-traces",
    "upload-artifact",
    "users",
)
_ALLOWED = re.compile(
    "|".join(map(re.escape, _PAGES))
    + "|/static-files/.*"
    + rf"|/(ajax-)?api/[23]\.0/(mlflow/({'|'.join(_FAMILIES)})|mlflow-artifacts)(/.*)?",
    re.DOTALL,
)
# MLflow asks who sends these before it reads them, and writes them to disk as they come.
_UPLOAD = re.compile(r"/(ajax-)?api/2\.0/mlflow-artifacts/artifacts/.*")
_MOST_UNASKED = 2**18  # bytes of a body: more than 1000 metrics need, which clients send at a time
_MOST = 2**25
# A browser that another page led here would not send the cookie after a redirection. Of the
# assistant, which does nothing here, MLflow opens a panel the first time; and its pages are those
# for language models until others are chosen.
_GO_ON = (
    "<script>localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
    "localStorage['mlflow.workflowType_v1'] ??= '\"machine_learning\"';"
    "location.replace('/' + location.hash)</script>"
)
_NO_GATEWAY = ("GET", "/ajax-api/2.0/mlflow/gateway-proxy")


def is_allowed(path: str) -> bool:
    """Whether a path, decoded, is of a family of routes that tracking needs."""
    return _ALLOWED.fullmatch(path) is not None


def tracking_alone(app: App) -> App:
    """Refuse every route that tracking does not need, for everybody; and web sockets."""

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == _NO_GATEWAY:
            await _answer(send, 200, '{"endpoints": []}')  # else the table of runs shows an error
        elif scope["type"] == "http" and not is_allowed(scope["path"]):
            await _answer(send, 404, "This server tracks runs alone; it has no such route.")
        else:
            await app(scope, receive, send)

    return checked


def bounded_bodies(app: App, is_login: Callable[[str], bool]) -> App:
    """Refuse long bodies of who has no login, and longer ones than tracking needs, before reading.

    MLflow takes a body of any length into memory before it asks who sends it. Uploads of artifacts
    may be as long as they like.

    Args:
        app: What answers the other requests.
        is_login: Whether the header `Authorization` is that of a user. It may take its time.
    """

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (
            scope["method"] == "PUT" and _UPLOAD.fullmatch(scope["path"])
        ):
            await app(scope, receive, send)
            return
        told = _header(scope, b"content-length")
        length = int(told) if told.isdecimal() else 0
        body, most, more = bytearray(), _MOST_UNASKED, True
        while True:
            if most == _MOST_UNASKED < length:
                if not await asyncio.to_thread(is_login, _header(scope, b"authorization")):
                    realm = (b"www-authenticate", b'Basic realm="mlflow"')
                    await _answer(send, 401, "You are not authenticated.", realm)
                    return
                most = _MOST
            if length > most:
                await _answer(send, 413, f"A request here has at most {_MOST} bytes.")
                return
            if not more:
                break
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            length, more = max(length, len(body)), message.get("more_body", False)
        read = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        del body

        async def again() -> Message:
            return read.pop() if read else await receive()

        await app(scope, again, send)

    return checked


def known_hosts_alone(app: App, allowed: list[str]) -> App:
    """Refuse other hosts at every path; MLflow makes an exception of `/health`."""
    from mlflow.server.security_utils import is_allowed_host_header

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_allowed_host_header(allowed, _header(scope, b"host")):
            await _answer(send, 403, "Invalid Host header")
        else:
            await app(scope, receive, send)

    return checked


def holders_alone(app: App, token: str) -> App:
    """Ask for a token: in the link, which sets a cookie, in that cookie, or as a bearer's.

    A browser shows a cookie to every port of its host, so that another page of this host might ask
    with it: who asks from another origin is refused as well.
    """

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        cookie = f"smallbatch-{scope['server'][1]}"
        linked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        kind, _, bearer = _header(scope, b"authorization").partition(" ")
        origin = _header(scope, b"origin")
        if origin and origin.partition("://")[2] != _header(scope, b"host"):
            await _answer(send, 403, "Another page may not ask here.")
        elif scope["path"] == "/" and _same(linked[0], token):
            browser = _header(scope, b"sec-fetch-mode") == "navigate"
            await _answer(
                send,
                200 if browser else 303,
                _GO_ON if browser else "",
                (b"location", b"/"),
                (b"cache-control", b"no-store"),
                (
                    b"set-cookie",
                    f"{cookie}={token}; Path=/; HttpOnly; SameSite=Strict".encode(),
                ),
            )
        elif _same(_cookie(scope, cookie), token) or (
            kind.lower() == "bearer" and _same(bearer.strip(), token)
        ):
            await app(scope, receive, send)
        else:
            await _answer(send, 403, "Open the link that `smallbatch ui` printed: it has a token.")

    return checked


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _header(scope: Message, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _cookie(scope: Message, name: str) -> str:
    pairs = (
        part.strip().partition(b"=")
        for key, value in scope["headers"]
        if key == b"cookie"
        for part in value.split(b";")
    )
    return {key: value for key, _, value in pairs}.get(name.encode(), b"").decode("latin-1")


async def _answer(send: Send, status: int, line: str, *headers: tuple[bytes, bytes]) -> None:
    kinds = {"{": b"application/json", "<": b"text/html"}
    kind = kinds.get(line[:1], b"text/plain; charset=utf-8")
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", kind), *headers],
        }
    )
    await send({"type": "http.response.body", "body": f"{line}\n".encode()})
