"""What every request passes before anything else looks at it: host, size, origin, caller, role. What is not allowed is refused.

The rule for roles is one table, so that a new route is closed until somebody opens it: reading needs `read`, everything else
`write`, but for the few exceptions below.
"""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autofit.web.problems import problem
from autofit.web.settings import Settings
from autofit.web.tokens import Caller, Keeper, Role

COOKIE = "autofit_token"
OPEN = frozenset({("GET", "/api/health"), ("GET", "/login"), ("POST", "/api/session"), ("DELETE", "/api/session")})
"""Without a token; so is everything in STATIC."""
STATIC = "/static/"
ASKING = frozenset({"/api/predict", "/api/explain", "/api/query"})
"""Questions that need a body: reading is enough."""
LOCAL = Caller("local", "write")
"""Who reaches a loopback port of a service without tokens."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def role_for(method: str, path: str) -> Role | None:
    """The role that a request needs; None: none."""
    if (("GET" if method == "HEAD" else method), path) in OPEN or (path.startswith(STATIC) and method in _SAFE):
        return None
    return "read" if method in _SAFE or (method == "POST" and path in ASKING) else "write"


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keeper = Keeper(settings.tokens) if settings.tokens else None
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._open += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._open -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        path, method = str(scope["path"]), str(scope["method"])

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._protect(MutableHeaders(scope=message), path)
            await send(message)

        if self._open > self._settings.max_requests:
            await problem(503, "too many requests at once; ask again in a moment", headers={"Retry-After": "1"})(
                scope, receive, reply
            )
            return
        caller = await self._caller(headers)
        refusal = self._malformed(method, headers) or self._unauthorised(method, path, headers, caller)
        if refusal is not None:
            await refusal(scope, receive, reply)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, _Limited(receive, self._settings.max_body_bytes), reply)

    def _malformed(self, method: str, headers: Headers) -> Response | None:
        """Why nobody may send this."""
        host = headers.get("host", "")
        if _name(host) not in self._settings.hosts and "*" not in self._settings.hosts:
            return problem(421, "this service does not answer under that Host; its --allow-host names others")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._settings.max_body_bytes:
            return problem(413, f"a request may have {self._settings.max_body_bytes} bytes")
        if method not in _SAFE and _is_foreign(headers, host):
            return problem(403, "this request comes from another site")
        return None

    def _unauthorised(self, method: str, path: str, headers: Headers, caller: Caller | None) -> Response | None:
        """Why this caller may not send it."""
        role = role_for(method, path)
        if role is None:
            return None
        if caller is None:
            if method in _SAFE and "text/html" in headers.get("accept", "") and not path.startswith("/api/"):
                return RedirectResponse(f"/login?next={quote(path)}", 303)
            return problem(401, "a token is needed: Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})
        if not caller.may(role):
            return problem(403, f"the token '{caller.name}' may read only")
        return None

    async def _caller(self, headers: Headers) -> Caller | None:
        if self._keeper is None:
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not token or scheme.lower() != "bearer":
            token = cookie(headers)
        return await run_in_threadpool(self._keeper.recognise, token.strip()) if token else None

    def _protect(self, headers: MutableHeaders, path: str) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        if self._settings.secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        if not path.startswith(STATIC):
            headers.setdefault("Cache-Control", "no-store")


class _Limited:
    """A `receive` that ends a body which is longer than it may be, whatever its Content-Length says."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, "the request's body is too long")
        return message


def cookie(headers: Mapping[str, str]) -> str:
    """The token that a browser sends, or nothing."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_foreign(headers: Headers, host: str) -> bool:
    """Whether a browser says that another site made it send this; other programs say neither."""
    if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != host
    except ValueError:
        return True


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
