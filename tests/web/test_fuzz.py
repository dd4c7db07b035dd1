"""Everything that the OpenAPI document allows, and much that it does not: no server error, no answer that it does not describe.

`AUTOFIT_FUZZ_EXAMPLES` is how many requests are made up for each operation; the default keeps CI short, 300 make more than
5,000 calls. `AUTOFIT_FUZZ_CALLS=FILE` gets their number.
"""

import os
from collections import Counter
from pathlib import Path

import schemathesis
from fastapi.testclient import TestClient
from schemathesis.checks import CheckContext  # noqa: F401 - the module must be there
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("AUTOFIT_FUZZ_EXAMPLES", "12"))
CHECKS = (
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


def test_no_server_error_and_no_answer_that_is_not_described(client: TestClient) -> None:
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", client.app)
    calls: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events"):
            continue  # lasts as long as its study; test_live follows it
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)
                run(client, cases, operation.label, calls, statuses)
            except schemathesis.errors.InvalidSchema:
                raise
    if file := os.environ.get("AUTOFIT_FUZZ_CALLS"):
        Path(file).write_text(
            f"{sum(calls.values())} calls of {len(calls)} operations; statuses {dict(sorted(statuses.items()))}\n"
        )
    assert sum(calls.values()) > len(calls) * 5
    assert {200, 404, 422} <= set(statuses)
