"""Schemathesis: whatever the OpenAPI allows or forbids, the server answers as it says."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from servers import NAME, Served

pytestmark = pytest.mark.slow
MUCH_IS_ALLOWED = (hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow)
IN_PLACE = {"name": NAME, "version": "1"}


@schemathesis.serializer("image/jpeg", "image/png", "application/octet-stream")
def raw(ctx: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_it_says(server: Served, mode: GenerationMode) -> None:
    config = schemathesis.Config.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404, 413, 422]}}}
    )  # what is allowed may be no image, or no base64 of one
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:

        @hypothesis.settings(max_examples=30, database=None, suppress_health_check=MUCH_IS_ALLOWED)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def answers_as_it_says(case: Case) -> None:
            case.call_and_validate()
            if "name" in case.path_parameters:  # the network that is there, too
                case.path_parameters.update(
                    {key: IN_PLACE[key] for key in case.path_parameters if key in IN_PLACE}
                )
                case.call_and_validate()

        try:
            answers_as_it_says()
        except hypothesis.errors.Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be sent that is forbidden
