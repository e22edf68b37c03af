"""Secrets in text, and text that has none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallbatch.redact import redact

SECRETS = [
    "http://u:S3cret?Pw@h",
    "http://u:S3cret/Pw#x@h:5000/path",
    "http://u:S3cret@Pw@h",
    "http://S3cretPw@h",
    "https://h:5000/?api_key=S3cretPw",
    "https://h:5000/#access=S3cretPw",
    "https://h/?timeout=30&token=S3cretPw&mode=ro",
    "https://h/?timeout=30;token=S3cretPw",
    "https://h/?mode=ro#S=S3cretPw",
    "https://h/?S3cretPw",
    "https://h/#/runs?key=S3cretPw",
    "postgresql+psycopg2://u:S3cret%2FPw@h/db?sslmode=require",
    "postgresql:u:S3cretPw@h/db",
    "http:/S3cretPw@h",
    "//u:S3cretPw@h",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DS3cretPw",
    "host=h password=S3cretPw dbname=x",
    "DRIVER=x;PWD=S3cretPw;",
    '{"password": "S3cretPw"}',
    "Authorization: Bearer S3cretPw",
    "{'Authorization': 'Basic S3cretPw'}",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["{}", "cannot reach '{}': refused", "({}).", 'uri="{}", x'])
def test_no_secret_of_a_url_or_a_setting_is_shown(secret: str, text: str) -> None:
    shown = redact(text.format(secret))
    assert "S3cret" not in shown
    assert "Pw" not in shown
    assert "…" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db?timeout=30",
        "postgresql://h/db?sslmode=require&connect_timeout=3",
        "http://localhost:5000/#/experiments/1/runs/abc",
        "API request to http://h/api/2.0/mlflow/runs/get?run_id=1f failed: 500",
        "is it http://h:5000? It does not answer.",
        "params.yaml: dataset.token: unknown key",
        "failed: train@resnet8-bn-8 in dvc.yaml:train@resnet8-bn-8",
        "C:/x, 12:30:00 and https://h/?q=…",
        "ask admin@example.org about it",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_surrounds_a_secret_stays() -> None:
    text = "http://u:p?w@h:5000/path?mode=ro&api_key=k#x=y: refused (see http://h2)"
    assert redact(text) == "http://…@h:5000/path?mode=ro&api_key=…: refused (see http://h2)"


@pytest.mark.parametrize(
    "name",
    ["GITHUB_TOKEN", "db_password", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MyApiKey",
     "AZURE_CREDENTIALS", "MYSQL_PWD", "API_KEY2"],
)  # fmt: skip
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter 22's/x")
    for shown in ("hunter 22's/x", "hunter%2022%27s%2Fx", "hunter+22%27s%2Fx", "hunter\n 22's/x"):
        assert redact(f"the server said {shown}!") == "the server said …!"


def test_values_of_other_variables_and_short_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TOKENIZERS_PARALLELISM": "nothing", "PWD": "/tmp/folder", "OLDPWD": "/tmp/folder",
              "A_TOKEN": "false", "B_TOKEN": "\n" * 9}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    text = "false: nothing in /tmp/folder"
    assert redact(text) == text


@pytest.mark.parametrize("url", ["http://u:my pass/w@h", "http://my pass/w@h", "//h?k=my pass/w"])
def test_what_a_server_echoes_of_its_url_is_hidden(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redact("it said: my pass/w, no", url) == "it said: …, no"
    monkeypatch.setenv("SOMEWHERE", url if "://" in url else f"http:{url}")
    assert redact("it said: my pass/w, no") == "it said: …, no"


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(), st.text(alphabet="ab/?#@:=&;.'\" ", max_size=30))
def test_any_text_can_be_redacted_twice(text: str, url: str) -> None:
    once = redact(text + url)
    assert redact(once) == once


@pytest.mark.parametrize("piece", ["a", "a:/", "//", "?a=b", "@", ":", "a://b@", "#;", "password="])
def test_a_long_text_takes_no_time(piece: str) -> None:
    started = time.monotonic()
    redact(piece * (400_000 // len(piece)))
    assert time.monotonic() - started < 2
