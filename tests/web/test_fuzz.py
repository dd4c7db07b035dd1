"""Everything that the OpenAPI document allows, and much that it does not: no server error, no answer that it does not describe.

`AUTOFIT_FUZZ_EXAMPLES` is how many requests are made up for each operation and way of making them up; the default keeps CI
short, 125 make more than 5,000 calls. `AUTOFIT_FUZZ_SEED` makes up
others; `-s` shows what was called.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("AUTOFIT_FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
THERE = {"study": "first", "trial_number": 1}
"""What random names would hardly meet."""


def test_no_server_error_and_no_answer_that_is_not_described(serve: Callable[..., TestClient]) -> None:
    app = serve(hosts=("*",)).app
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app)
    calls: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events"):
            continue  # lasts as long as its study; test_live follows it
        known = {name: value for name, value in THERE.items() if f"{{{name}}}" in operation.path}
        ways: list[dict[str, Any]] = [{"generation_mode": mode} for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
        ways += [{"path_parameters": known}] if known else []
        for way in ways:
            _call(operation.as_strategy(**way), operation.label, calls, statuses)
    print(f"{sum(calls.values())} calls of {len(calls)} operations; statuses {dict(sorted(statuses.items()))}")
    assert len(calls) >= 20
    assert {200, 404, 422} <= set(statuses)
    assert not any(status >= 500 for status in statuses)


def _call(cases: Any, label: str, calls: Counter[str], statuses: Counter[int]) -> None:
    @seed(int(os.environ.get("AUTOFIT_FUZZ_SEED", "20261125")))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Case) -> None:
        answer = case.call()
        calls[label] += 1
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    with suppress(Unsatisfiable):  # an operation without parameters cannot be called wrongly
        check()
