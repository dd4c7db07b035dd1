"""A service over a small database of its own, in this process."""

import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1]))

from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.store import Store
from autofit.web import tokens
from autofit.web.app import create_app
from autofit.web.settings import Settings

Serve = Callable[..., TestClient]


def fill(file: Path) -> None:
    """A finished study of six trials, and one that runs."""
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        results = [completed(2.0, 60), completed(3.0, 50), out_of_memory(), completed(2.5, 40), completed(1.0, 30)]
        for number, result in enumerate(results):
            store.start_trial(trial_record(number, prediction=prediction() if number else None))
            store.finish_trial("first", number, NOON + timedelta(minutes=number, seconds=30), result)
        store.start_trial(trial_record(5, spec=trial_record(1).spec, purpose="confirm"))
        store.finish_trial("first", 5, NOON + timedelta(minutes=6), completed(3.1, 51))
        store.set_study_status("first", "FINISHED", 1)
        store.create_study(study_record(name="second"))
        store.start_trial(trial_record(0, study="second"))


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
