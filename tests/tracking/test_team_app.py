"""What a team's server opens of artifacts, and for whom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from smallbatch.tracking import team_app


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("mlflow-artifacts:/1/x", True),
        ("runs:/1/x", True),
        ("models:/m/1", True),
        ("{root}/1", True),
        ("file://{root}/1", True),
        ("{root}", True),
        ("mlflow-artifacts://evil.example/1", False),
        ("file:///etc", False),
        ("/etc", False),
        ("etc", False),
        ("{root}/../other", False),
        ("file://{root}/%2e%2e/other", False),
        ("{root}/link/x", False),
        ("{root}-other", False),
        ("file://evil.example{root}/1", False),
        ("s3://x/y", False),
        ("http://[::1", False),
        ("nosuch:/x", False),
    ],
)
def test_only_the_servers_folder_is_opened(uri: str, inside: bool, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    opened: list[str] = []
    uri = uri.format(root=root)
    open_checked = team_app._confined(lambda uri, **_: opened.append(uri), root)  # type: ignore[arg-type,return-value,func-returns-value]
    if inside:
        open_checked(uri, tracking_uri="x")
        assert opened == [uri]
    else:
        with pytest.raises(Exception, match="outside of the server's folder"):
            open_checked(uri, tracking_uri="x")
        assert not opened


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([(b"host", b"good.example")], 200),
        ([(b"host", b"evil.example")], 403),
        ([], 403),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/", "/static-files/x.js"])
def test_no_path_answers_to_another_host(
    headers: list[tuple[bytes, bytes]], code: int, path: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    checked = team_app._known_hosts_alone(app, ["good.example"])
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(checked(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == code
