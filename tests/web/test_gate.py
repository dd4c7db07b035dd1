"""Who may do what: tokens, roles, hosts, origins, sizes, headers. Every route is in the matrix, also those that come later."""

import asyncio
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.responses import Response
from typer.testing import CliRunner

from autofit.cli.app import build, main
from autofit.errors import UsageError
from autofit.web import tokens
from autofit.web.app import create_app
from autofit.web.gate import Gate, role_for
from autofit.web.settings import Settings
from autofit.web.tokens import Keeper

OPEN = {("GET", "/api/health"), ("GET", "/login"), ("POST", "/api/session"), ("DELETE", "/api/session")}
READ = {("POST", "/api/predict"), ("POST", "/api/explain"), ("POST", "/api/query")}
WRITE = {
    ("POST", "/api/studies"),
    ("POST", "/api/studies/{study}/pause"),
    ("POST", "/api/studies/{study}/resume"),
    ("POST", "/api/studies/{study}/cancel"),
}


def routes(app: object) -> Iterator[tuple[str, str]]:
    """Method and template of every route, those of included routers too."""
    for route in _flat(app.routes):  # type: ignore[attr-defined]
        for method in sorted(route.methods or ()):
            yield method, route.path


def _flat(found: list[object]) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _flat(route.original_router.routes)


def test_every_route_asks_for_its_role(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, made = guarded
    client.follow_redirects = False
    seen = set(routes(client.app))
    assert len(seen) > 25
    assert seen >= OPEN | READ | WRITE
    seen |= {("GET", "/api/openapi.json"), ("GET", "/nothing"), ("POST", "/nothing"), ("PUT", "/api/studies"), ("PATCH", "/")}
    for method, template in sorted(seen):
        if template.endswith("/events"):
            continue  # answers for as long as the study runs; test_live has it
        path = re.sub(r"\{study\}", "first", template).replace("{trial_number}", "1")
        needed = "none" if (method, template) in OPEN else "read" if method == "GET" or (method, template) in READ else "write"
        statuses = {who: _status(client, method, path, token) for who, token in {"nobody": None, **made}.items()}
        wrong = client.request(method, path, headers={"Authorization": "Bearer autofit_write_" + "A" * 43}).status_code
        said = f"{method} {template}: {statuses}, wrong token {wrong}"
        if needed == "none":
            assert 401 not in {statuses["read"], statuses["write"]} or template == "/api/session", said
            continue
        assert statuses["nobody"] == 401 and wrong == 401, said
        assert (statuses["read"] == 403) == (needed == "write"), said
        assert statuses["write"] not in {401, 403}, said


def _status(client: TestClient, method: str, path: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return client.request(method, path, headers=headers, json={} if method in {"POST", "PUT", "PATCH"} else None).status_code


def test_events_need_a_token_too() -> None:
    assert role_for("GET", "/api/studies/first/events") == "read"
    assert role_for("HEAD", "/api/health") is None
    assert role_for("POST", "/static/style.css") == "write"


def test_a_route_that_nobody_thought_of_is_closed() -> None:
    assert role_for("POST", "/api/new") == "write"
    assert role_for("GET", "/api/new") == "read"


def test_a_browser_signs_in_with_a_cookie_that_scripts_and_other_sites_cannot_use(
    guarded: tuple[TestClient, dict[str, str]],
) -> None:
    client, made = guarded
    page = client.get("/studies/first", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/studies/first")
    assert client.post("/api/session", json={"token": "autofit_read_" + "A" * 43}).status_code == 401
    answer = client.post("/api/session", json={"token": made["read"]})
    assert answer.json() == {"name": "read", "role": "read"}
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/api/studies").status_code == 200
    assert client.post("/api/studies/first/pause").status_code == 403
    assert client.delete("/api/session").status_code == 204
    assert client.get("/api/studies").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
     {"origin": "http://localhost:1"}, {"origin": "http://[bad"}],
)  # fmt: skip
def test_another_site_cannot_make_a_browser_write(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/api/studies/first/pause", headers=headers).status_code == 403
    assert client.get("/api/studies", headers=headers).status_code == 200
    own = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert client.post("/api/studies/first/pause", headers=own).status_code == 404  # let in: it was never submitted


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil.example:80"])
def test_another_host_is_not_answered(client: TestClient, host: str) -> None:
    """DNS rebinding: a name of another site that leads here."""
    assert client.get("/api/studies", headers={"host": host}).status_code == 421


def test_a_long_body_is_refused_whatever_it_says_of_itself(serve: object) -> None:
    client: TestClient = serve(max_body_bytes=1000)  # type: ignore[operator]
    long = b'{"sql": "' + b"x" * 2000 + b'"}'
    headers = {"content-type": "application/json"}
    assert client.post("/api/query", content=long, headers=headers).status_code == 413
    assert client.post("/api/query", content=iter([long[:900], long[900:]]), headers=headers).status_code == 413


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/api/studies", "/api/nothing", "/static/style.css", "/login"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_over_tls_cookies_are_marked_and_browsers_told(serve: object, token_file: Path) -> None:
    token = tokens.add(token_file, "one", "read")
    client: TestClient = serve(tokens=token_file, secure=True)  # type: ignore[operator]
    answer = client.post("/api/session", json={"token": token})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "max-age" in answer.headers["strict-transport-security"]


def test_tokens_are_kept_as_hashes_and_revoked_at_once(token_file: Path) -> None:
    token = tokens.add(token_file, "ci", "write")
    assert token.split("_", 2)[2] not in token_file.read_text()
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    keeper = Keeper(token_file)
    caller = keeper.recognise(token)
    assert caller is not None and (caller.name, caller.role) == ("ci", "write")
    assert keeper.recognise(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert keeper.recognise(token.replace("_ci_", "_cj_")) is None
    tokens.add(token_file, "other", "read")
    with pytest.raises(UsageError, match="already"):
        tokens.add(token_file, "ci", "read")
    tokens.revoke(token_file, "ci")
    assert keeper.recognise(token) is None
    token_file.unlink()
    assert keeper.recognise(token) is None


def test_beyond_this_machine_tokens_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--db", str(tmp_path / "a.db"), "serve", "--port", "0"]
    assert main([*arguments, "--host", "0.0.0.0"]) == 2
    assert "tokens" in capsys.readouterr().err
    assert main([*arguments, "--tls-cert", str(tmp_path / "no.pem")]) == 2
    assert main([*arguments, "--python", "train=/no/python"]) == 2
    assert main([*arguments, "--root", str(tmp_path / "none")]) == 2


def test_the_token_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    run = CliRunner()
    file = str(tmp_path / "tokens.json")
    made = run.invoke(build(["token"]), ["token", "add", "ci", "--role", "write", "--tokens", file])
    assert re.fullmatch(r"autofit_ci_[\w-]{43}\n", made.output)
    assert "ci" in run.invoke(build(["token"]), ["token", "list", "--tokens", file]).output
    assert run.invoke(build(["token"]), ["token", "revoke", "ci", "--tokens", file]).exit_code == 0
    assert main(["token", "revoke", "ci", "--tokens", file]) == 2


def test_a_service_is_not_made_over_another_programs_file(tmp_path: Path) -> None:
    from autofit.errors import StoreError

    file = tmp_path / "autofit.db"
    file.write_text("no database")
    with pytest.raises(StoreError):
        create_app(Settings(database=file, runs=tmp_path))


def test_beyond_so_many_requests_at_once_the_next_is_told_to_wait(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await Response("done")(scope, receive, send)

    async def scene() -> list[httpx.Response]:
        gate = Gate(slow, Settings(database=tmp_path / "a.db", runs=tmp_path, max_requests=2))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get("/")) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await asyncio.wait_for(client.get("/"), 10)
            go.set()
            return [refused, *await asyncio.gather(*waiting), await client.get("/")]

    refused, *answered = asyncio.run(scene())
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
    assert refused.headers["retry-after"] == "1" and "content-security-policy" in refused.headers
    assert [each.status_code for each in answered] == [200, 200, 200]


@pytest.mark.parametrize(("soft", "hard", "found"), [(100, 300, 300), (200, 200, 200)])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(soft: int, hard: int, found: int) -> None:
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "from autofit.cli.serve import open_files; print(open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(found)] * 2
