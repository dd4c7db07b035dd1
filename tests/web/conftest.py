"""A service over a small database of its own, in this process."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1]))

from served_database import fill

from autofit.web import tokens
from autofit.web.app import create_app
from autofit.web.settings import Settings

Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("filled") / "autofit.db"
    fill(file)
    return file


@pytest.fixture
def database(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path))


@pytest.fixture
def serve(database: Path, tmp_path: Path, stub_python: str) -> Iterator[Serve]:
    """Builds a client; keywords are settings."""
    opened: list[TestClient] = []

    def build(**settings: object) -> TestClient:
        known = {"database": database, "runs": tmp_path / "runs", "python": stub_python}
        app = create_app(Settings.model_validate({**known, **settings}))
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield build
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def guarded(serve: Serve, token_file: Path) -> tuple[TestClient, dict[str, str]]:
    """A service with tokens, and one of each role."""
    made = {role: tokens.add(token_file, role, role) for role in ("read", "write")}
    return serve(tokens=token_file), made
