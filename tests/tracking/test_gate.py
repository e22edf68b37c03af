"""Which requests reach MLflow: no other host's, none without the token, no route but tracking's."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from smallbatch.tracking import gate

TOKEN = "a-token-of-this-start"
REFUSED = (
    "/build",  # the same as /static-files
    "/gateway",
    "/jobs",
    "/mlflow/assistant",
    "/mlflow/demo",
    "/mlflow/gateway",
    "/mlflow/gateway-proxy",
    "/mlflow/genai",
    "/mlflow/get-online-trace-details",
    "/mlflow/issues",
    "/mlflow/jobs",
    "/mlflow/label-schemas",
    "/mlflow/mcp-servers",
    "/mlflow/prompt-optimization",
    "/mlflow/review-queues",
    "/mlflow/runs/create-promptlab-run",
    "/mlflow/scorer",
    "/mlflow/scorers",
    "/mlflow/ui-telemetry",
    "/mlflow/webhooks",
    "/mlflow/workspaces",
    "/ajax-api/2.0mlflow/experiments/search-datasets",  # a slip of MLflow's
    "/api/2.0mlflow/experiments/search-datasets",
)
"""Families of MLflow's routes that were looked at and are not served, without `/api/2.0`."""


def sent_by(app: gate.App, scope: dict[str, Any], receive: Any = None) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent


async def mlflow(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def request(path: str = "/", query: str = "", method: str = "GET", **headers: str) -> Any:
    pairs = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}
    return scope | {"server": ("127.0.0.1", 5000), "query_string": query.encode()}


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"host": "good.example"}, 200), ({"host": "evil.example"}, 403), ({}, 403)],
)
@pytest.mark.parametrize("path", ["/health", "/", "/static-files/x.js"])
def test_no_path_answers_to_another_host(headers: dict[str, str], code: int, path: str) -> None:
    checked = gate.known_hosts_alone(mlflow, ["good.example"])
    assert sent_by(checked, request(path, **headers))[0]["status"] == code


OWN = {"host": "127.0.0.1:5000"}
COOKIE = f"smallbatch-5000={TOKEN}"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 403),
        ({"cookie": COOKIE}, 200),
        ({"cookie": f"other={{; {COOKIE}; x"}, 200),
        ({"cookie": f"smallbatch-5001={TOKEN}"}, 403),
        ({"cookie": f"{COOKIE}x"}, 403),
        ({"cookie": "smallbatch-5000="}, 403),
        ({"cookie": "smallbatch-5000=\xff"}, 403),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({"authorization": "Bearer "}, 403),
        ({"authorization": f"Basic {TOKEN}"}, 403),
        ({"authorization": TOKEN}, 403),
        ({"cookie": COOKIE, "origin": "http://127.0.0.1:5000"}, 200),
        ({"cookie": COOKIE, "origin": "http://127.0.0.1:6000"}, 403),  # has the cookie as well
        ({"cookie": COOKIE, "origin": "null"}, 403),
        ({"cookie": COOKIE, "origin": "http://[::1"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/static-files/x.js", "/graphql"])
def test_nobody_is_answered_without_the_token(
    headers: dict[str, str], code: int, path: str
) -> None:
    sent = sent_by(gate.holders_alone(mlflow, TOKEN), request(path, **OWN, **headers))
    assert sent[0]["status"] == code
    assert TOKEN not in str(sent)


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/", f"token={TOKEN}", 303),
        ("/", f"token={TOKEN}x", 403),
        ("/", "token=", 403),
        ("/graphql", f"token={TOKEN}", 403),
    ],
)
def test_the_printed_link_sets_a_cookie(path: str, query: str, code: int) -> None:
    sent = sent_by(gate.holders_alone(mlflow, TOKEN), request(path, query, **OWN))
    assert sent[0]["status"] == code
    headers = dict(sent[0]["headers"])
    if code == 303:
        assert headers[b"location"] == b"/"
        assert {"HttpOnly", "SameSite=Strict", COOKIE} <= set(
            headers[b"set-cookie"].decode().split("; ")
        )
    else:
        assert b"set-cookie" not in headers
        assert sent[1]["body"].decode().count("\n") == 1
        assert b"`smallbatch ui` printed" in sent[1]["body"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/ajax-api/2.0/mlflow/runs/search", 200),
        ("/api/2.0/mlflow-artifacts/artifacts/1/a b\n", 200),
        ("/api/3.0/mlflow/traces/tr-1", 200),
        ("/ajax-api/3.0/mlflow/assistant/config", 404),
        ("/ajax-api/3.0/mlflow/assistant", 404),
        ("/ajax-api/3.0/mlflow//assistant/config", 404),
        ("//ajax-api/3.0/mlflow/assistant/config", 404),
        ("/AJAX-API/3.0/mlflow/runs/search", 404),
        ("/ajax-api/2.0/mlflow/runsx", 404),
        ("/ajax-api/2.0/mlflow/runs/create-promptlab-run", 404),
        ("/gateway/x/mlflow/invocations", 404),
        ("/v1/traces/x", 404),
        ("/metrics", 404),
        ("", 404),
    ],
)
def test_only_routes_of_tracking_reach_mlflow(path: str, code: int) -> None:
    sent = sent_by(gate.tracking_alone(mlflow), request(path))
    assert sent[0]["status"] == code


def test_the_gateway_is_answered_for_as_empty() -> None:
    """The table of runs asks for it and would show an error."""
    path = "/ajax-api/2.0/mlflow/gateway-proxy"
    assert sent_by(gate.tracking_alone(mlflow), request(path))[1]["body"] == b'{"endpoints": []}\n'
    sent = sent_by(gate.tracking_alone(mlflow), request(path, method="POST"))
    assert sent[0]["status"] == 404


def test_web_sockets_are_closed() -> None:
    scope = {"type": "websocket", "path": "/", "headers": []}
    assert sent_by(gate.tracking_alone(mlflow), scope) == [{"type": "websocket.close"}]


CHUNK = 2**16
API = "/api/2.0/mlflow"


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("path", "method", "login", "chunks", "code", "read"),
    [
        (f"{API}/runs/create", "POST", "", 0, 200, 1),
        (f"{API}/runs/create", "POST", "", 4, 200, 4),
        (f"{API}/runs/create", "POST", "", 400, 401, 5),
        ("/health", "GET", "", 400, 401, 5),
        (f"{API}/runs/create", "POST", "of nobody", 400, 401, 5),
        (f"{API}/runs/create", "POST", "of bob", 400, 200, 400),
        (f"{API}/runs/create", "POST", "of bob", 600, 413, 513),
        ("/v1/traces", "POST", "of bob", 600, 413, 513),
        (f"{API}-artifacts/artifacts/1/a b", "PUT", "", 600, 200, 600),
        (f"{API}-artifacts/artifacts/1/a\nb", "PUT", "", 600, 401, 5),
        (f"{API}-artifacts/artifacts/1/x", "POST", "", 600, 401, 5),
        (f"{API}/x/api/2.0/mlflow-artifacts/artifacts/1/x", "PUT", "", 600, 401, 5),
        ("/api/3.0/mlflow-artifacts/artifacts/1/x", "PUT", "", 600, 401, 5),
    ],
)
def test_no_more_of_a_body_is_read_than_its_sender_may_send(
    path: str, method: str, login: str, chunks: int, code: int, read: int, *, told: bool
) -> None:
    """Told its length, what is too long is not read at all."""
    taken = [0]

    async def receive() -> Any:
        taken[0] += 1
        body = b"x" * (CHUNK if chunks else 0)
        return {"type": "http.request", "body": body, "more_body": taken[0] < chunks}

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        length = 0
        while True:
            message = await receive()
            length += len(message["body"])
            if not message["more_body"]:
                break
        assert length == chunks * CHUNK
        await mlflow(scope, receive, send)

    headers = {"authorization": login} | ({"content-length": str(chunks * CHUNK)} if told else {})
    app = gate.bounded_bodies(reads, lambda header: header == "of bob")
    sent = sent_by(app, request(path, method=method, **headers), receive)
    assert sent[0]["status"] == code
    assert taken[0] == (0 if told and code != 200 else read)
    assert (b"www-authenticate" in dict(sent[0]["headers"])) is (code == 401)


def paths_of(routes: Iterable[Any], prefix: str = "") -> Generator[str]:
    """The paths of FastAPI's routes, also of routers that it includes and does not unfold."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from paths_of(route.original_router.routes, prefix + route.include_context.prefix)
        elif prefix + route.path:  # the mount of Flask's has none
            yield prefix + route.path


def test_every_route_of_mlflow_is_known() -> None:
    """A new MLflow that brings a new family of routes shows here: look at it, then list it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Starlette, at MLflow
        from mlflow.server import app as flask_app
        from mlflow.server.fastapi_app import app
    paths = {*paths_of(app.routes), *(rule.rule for rule in flask_app.url_map.iter_rules())}
    pytest.importorskip("flask_wtf")
    from mlflow.server.auth import routes

    paths |= {path for name, path in vars(routes).items() if name.isupper()}
    needed = {"/ajax-api/3.0/mlflow/assistant/config", "/v1/traces", "/ajax-api/3.0/jobs/search"}
    needed |= {"/api/3.0/mlflow/mcp-servers", "/gateway/mlflow/v1/models", "/graphql", "/signup"}
    assert needed <= paths  # the walk found them
    known = re.compile("(?:/(?:ajax-)?api/[0-9.]+)?(?:" + "|".join(REFUSED) + ")(?:/.*)?")
    allowed = {path for path in paths if gate.is_allowed(path)}
    refused = {path for path in paths if known.fullmatch(path)}
    assert not allowed & refused
    assert sorted(paths - allowed - refused) == []
    assert len(allowed) > 100
