"""Schemathesis: whatever the OpenAPI allows or forbids, the server answers as it says."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis import Case
from servers import NAME, Served

pytestmark = pytest.mark.slow


@schemathesis.serializer("image/jpeg", "image/png", "application/octet-stream")
def raw(ctx: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.fixture
def api(server: Served) -> schemathesis.BaseSchema:
    config = schemathesis.Config.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404, 413, 422]}}}
    )  # what is allowed may be no image, or no base64 of one
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(max_examples=60, deadline=None)
def test_every_operation_answers_as_it_says(case: Case) -> None:
    if "name" in case.path_parameters and len(case.body or "") % 2 == 0:
        case.path_parameters["name"] = NAME
    case.call_and_validate()
