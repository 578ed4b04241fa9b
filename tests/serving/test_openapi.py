"""The OpenAPI document."""

import jsonschema

from profuser.serving.requests import CHAT, COMPLETIONS, RESPONSES
from tests.serving.fake_backend import PROMPT, Fake, gateway, send


def test_the_document_describes_the_api(tmp_path):
    document = send(gateway(tmp_path, Fake()), "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {CHAT, COMPLETIONS, RESPONSES, "/v1/models", "/v1/models/{name}", "/metrics", "/health"} == set(
        document["paths"]
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            jsonschema.Draft202012Validator.check_schema(body)
            assert all(response["description"] for response in operation["responses"].values())
            assert ("401" in operation["responses"]) == (path != "/health")
            assert [p["name"] for p in operation.get("parameters", [])] == (["name"] if "{name}" in path else [])
    chat = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(PROMPT, chat)
    assert chat["properties"]["model"]["enum"] == ["fused", "org/source"]
