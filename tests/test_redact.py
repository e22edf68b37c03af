"""Secrets in text, and text that has none."""

from __future__ import annotations

import base64
import time
from itertools import count
from pathlib import Path

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
    '{"Authorization": ["Basic S3cretPw"]}',
    "map[Authorization:[Basic S3cretPw]]",
    "('Authorization', 'Basic S3cretPw')",
    "[(b'authorization', b'Basic S3cretPw')]",
    "Authorization=>Basic S3cretPw",
    "HTTP_AUTHORIZATION: Digest S3cretPw",
    "not accepted: Basic S3cretPw",
    "Bearer S3cretPw",
    "password: S3cretPw",
    "passwd = S3cretPw",
    "token: S3cretPw",
    "secret == S3cretPw",
    "x-api-key: S3cretPw",
    "('x-api-key', 'S3cretPw')",
    "map[X-Api-Key:[S3cretPw]]",
    "http://u:S3cret with Pw@h/",
    "postgresql://u:S3cret w:x 9Pw@[::1]/db",
    "https://h/b?X-Amz-Credential=S3cretPw&X-Amz-Date=1&X-Amz-Signature=S3cretPw",
    "url: /b/k?X-Amz-Date=1&X-Amz-Signature=S3cretPw (Caused by x)",
    "X-Amz-Signature=S3cretPw",
    "X-Amz-Credential: S3cretPw/20260101/eu/s3/aws4_request",
    "{'X-Amz-Security-Token': 'S3cretPw'}",
    "X-Amz-Security-Token=S3cretPw",
    "X-Goog-Signature=S3cretPw&X-Goog-Credential=S3cretPw",
    "url: /c/b?sv=2020-08-04&sig=S3cret%2FPw%3D",
    "sig=S3cretPw",
    "SharedAccessSignature=sv=2020&sig=S3cretPw",
    "AccountName=x;AccountKey=S3cretPw==;EndpointSuffix=y",
    "/b?AWSAccessKeyId=S3cretPw&Signature=S3%2FcretPw",
    "Credential=AKIAS3cretPw00000000/20260101, Signature=0a1bS3cretPwS3cretPwS3cretPw",
    "Authorization: AWS4-HMAC-SHA256 Credential=S3cretPw/x, SignedHeaders=h, Signature=S3cretPw",
    'Authorization: Digest username="u", response="S3cretPw"',
    "Authorization: Token S3cretPw",
    "Authorization: SharedKey u:S3cretPw=",
    "Cookie: a=S3cretPw; b=S3cretPw",
    "Cookie: flag; b=S3cretPw",
    "Set-Cookie: a=S3cretPw; Path=/; HttpOnly, b=S3cretPw; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
    'Cookie: a=b; c="S3cretPw"; d=S3cretPw',
    "{'Cookie': 'a=S3cretPw; b=S3cretPw'}",
    '{"Set-Cookie": ["a=\\"S3cretPw\\"; Path=/"]}',
    "map[Cookie:[a=S3cretPw; b=S3cretPw]]",
    "[(b'cookie', b'a=S3cretPw')]",
    "HTTP_COOKIE=a=S3cretPw",
    "<RequestsCookieJar[<Cookie a=S3cretPw for h/>]>",
    "http://h/a;jsessionid=S3cretPw",
    "http://h/a;jsessionid=S3cretPw/b?c=d",
    "url: /a;jsessionid=S3cretPw/api/2.0/x",
    "JSESSIONID: S3cretPw",
]


# Numbers as names, because pytest puts them into the environment, whose URLs are secrets.
@pytest.mark.parametrize("secret", SECRETS, ids=count())
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
        "http://h:5000 is down (http://h2:80): ask admin@example.org",
        "http://HOST:PORT, and in a user's name or password / ? # and @ as %2F %3F %23 and %40",
        "found a list where a basic block is expected, not bearer tokens or a basic setup",
        "Basic Training; WWW-Authenticate: Basic realm=x",
        "password authentication failed for user postgres",
        "the token, a secret and the authorization, which is none",
        "secret: allowed is a name",
        "USER:PASSWORD and @ before HOST, and in a password : / ? # and @ as %3A",
        "a cookie: small; Cookie policy: see below; cookies: none; the cookie, x=3",
        "no signature: found ModelSignature; signature=ModelSignature(inputs=x), sig=0.00123456",
        "credential=DefaultAzureCredential() and a credential: none, credentials = 3",
        "url: /api/2.0/mlflow/runs/get?run_id=1f&max_results=5000 failed",
        "is it /tmp/x? Or a;b=c, x=1;y=2/3, /a;b and f(x)?",
        "the session id: unknown; sessionid=none",
    ],
    ids=count(),
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_surrounds_a_secret_stays() -> None:
    text = "http://u:p?w@h:5000/path?mode=ro&api_key=k#x=y: refused (see http://h2)"
    assert redact(text) == "http://…@h:5000/path?mode=ro&api_key=…: refused (see http://h2)"


@pytest.mark.parametrize(
    "name",
    ["GITHUB_TOKEN", "db_password", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MyApiKey",
     "AZURE_CREDENTIALS", "MYSQL_PWD", "API_KEY2", "GITHUB_PAT", "PAT", "DB_PASS", "mysqlpass",
     "REGISTRY_CREDS", "MY_CRED", "BLOB_SAS", "SESSION_COOKIE", "STORAGE_CONNECTION_STRING"],
)  # fmt: skip
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter 22's/x")
    for shown in ("hunter 22's/x", "hunter%2022%27s%2Fx", "hunter+22%27s%2Fx", "hunter\n 22's/x"):
        assert redact(f"the server said {shown}!") == "the server said …!"


def test_values_of_other_variables_and_short_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TOKENIZERS_PARALLELISM": "nothing", "BYPASS": "nothing", "SPAT": "nothing",
              "PWD": "/tmp/folder", "OLDPWD": "/tmp/folder",
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


def test_a_parameter_of_a_path_ends_with_its_part() -> None:
    url = "http://h/a;jsessionid=seventeen;b=c/d?mode=ro"
    assert redact("seventeen in /a;jsessionid=seventeen/x", url) == "… in /a;jsessionid=…"
    assert redact("d of http://h/a", url) == "d of http://h/a"


def _login(user: str, password: str, charset: str = "utf-8") -> str:
    return base64.b64encode(f"{user}:{password}".encode(charset)).decode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "NETRC", "PGPASSFILE",
                 "PGSERVICEFILE", "PGSYSCONFDIR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
@pytest.mark.parametrize("text", ["Basic {}", "you are {}, no", "[{}]"])
def test_a_login_is_hidden_as_it_is_sent(
    text: str, charset: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _login("alice", "zw\xf6lfzig", charset)
    assert redact(text.format(sent), "http://alice:zw%C3%B6lfzig@h") == text.format("…")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "zw\xf6lfzig")
    assert redact(text.format(sent)) == text.format("…")
    assert redact("alice is no user") == "alice is no user"


FILES = {
    ".mlflow/credentials":
        "[mlflow]\nmlflow_tracking_username = alice\nmlflow_tracking_password = seven%%teen\n",
    ".netrc": 'machine h login alice password "seven%teen"\n',
    "_netrc": "default login alice password seven%teen\n",
}  # fmt: skip
OTHERS = {
    ".databrickscfg": "[DEFAULT]\nhost = https://h\ntoken = seven%teen\n",
    ".aws/credentials": "[a]\naws_secret_access_key=other-one\n[b]\nAws_Session_Token=seven%teen\n",
    ".pg_service.conf": "# mine\n[a]\nhost=h\n[b]\n\n user=alice\n password=seven%teen\n",
    ".pgpass": "# mine\nh:5432:*:alice:other\nh:5432:*:a\\:b:seven%teen\n",
}


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_passwords_that_others_read_from_files_are_hidden(name: str, home: Path) -> None:
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_text((FILES | OTHERS)[name])
    assert redact("alice gave seven%teen: no") == "alice gave …: no"
    if name in FILES:
        assert redact(f"sent {_login('alice', 'seven%teen')}") == "sent …"


def test_a_user_of_the_environment_goes_with_a_password_of_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".mlflow").mkdir()
    (home / ".mlflow/credentials").write_text(FILES[".mlflow/credentials"])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    assert redact(f"sent {_login('bob', 'seven%teen')}") == "sent …"


def test_a_variable_names_the_file_with_passwords(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mine").write_text("h:5432:*:alice:seventeen")
    monkeypatch.setenv("PGPASSFILE", str(home / "mine"))
    assert redact("it was seventeen") == "it was …"


PGPASS, SERVICE = "h:5432:*:alice:seventeen", "[team]\npassword=seventeen\n"
BY_SERVICE = "[team]\nhost=h\npassfile={home}/a file\n"


@pytest.mark.parametrize(
    ("contents", "variables", "urls"),
    [
        ({"a file": SERVICE}, {"PGSERVICEFILE": "{home}/a file"}, []),
        ({"pg_service.conf": SERVICE}, {"PGSYSCONFDIR": "{home}"}, []),
        ({"a file": PGPASS}, {}, ["postgresql://h/db?sslmode=require&passfile={home}/a%20file"]),
        ({"a file": PGPASS}, {"SOMEWHERE": "postgresql://h/?passfile={home}/a+file#x"}, []),
        ({"a file": SERVICE}, {}, ["postgresql://?servicefile={home}/a+file&service=team"]),
        ({"a file": PGPASS, ".pg_service.conf": BY_SERVICE}, {}, []),
    ],
    ids=count(),
)
def test_postgresql_takes_passwords_from_files_that_others_name(
    contents: dict[str, str],
    variables: dict[str, str],
    urls: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in contents.items():
        (home / name).write_text(content.format(home=home))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=home))
    shown = redact("it was seventeen", *(url.format(home=home) for url in urls))
    assert shown == "it was …"


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"no = [such\n::::\n", b"machine"])
def test_an_odd_file_with_passwords_is_no_obstacle(name: str, content: bytes, home: Path) -> None:
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_bytes(content)
    assert redact("as it is") == "as it is"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_the_password_of_a_proxy_without_a_scheme_is_hidden(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "user:my:passw@proxy:3128")
    assert redact("through user:my:passw@proxy:3128") == "through …@proxy:3128"
    assert redact(f"my:passw, {_login('user', 'my:passw')}") == "…, …"
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert redact("localhost,127.0.0.1") == "localhost,127.0.0.1"


PIECES = ["password", "cookie", "sig", "digest ", "?", ";", "/", "&",
          "authorization", "token", "basic ", "bearer", " ", ":", "=", "=>", "['", "b'",
          '"', "S3cretPw", "//u:", "x y@h", "@", ",", "\\"]  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_settings_can_be_redacted_twice(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(), st.text(alphabet="ab/?#@:=&;.'\" ", max_size=30))
def test_any_text_can_be_redacted_twice(text: str, url: str) -> None:
    once = redact(text + url)
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a:/",
        "//",
        "?a=b",
        "@",
        ":",
        "a://b@",
        "#;",
        "password=",
        "password ",
        "token:",
        "token = a",
        "authorization: [",
        "basic ",
        "bearer a",
        "//u:p ",
        "//u:pw x@",
        "secret\\",
        "token//u:",
        "S3//u:[",
        "key', (",
        "cookie:",
        "cookie: a=",
        'cookie: a="',
        "authorization: b ",
        "authorization: b c=",
        "&sig=",
        "signature: a",
        "/a;b",
        "?a",
        "/;a=",
        " ",
    ],
)
def test_a_long_text_takes_no_time(piece: str) -> None:
    started = time.monotonic()
    redact(piece * (400_000 // len(piece)))
    assert time.monotonic() - started < 2
