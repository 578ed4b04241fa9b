"""The Responses API in vLLM's terms: the chat whose tokens a request's prompt has."""

from collections.abc import Mapping
from typing import Any


def as_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the body of a tokenize request for the prompt of a request to `/v1/responses`.

    Raises:
        ValueError: vLLM does not accept the input (pydantic's ValidationError is one).
    """
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.openai.responses.utils import construct_input_messages, construct_tool_dicts

    request = ResponsesRequest.model_validate(fields)
    messages = construct_input_messages(request_instructions=request.instructions, request_input=request.input)
    tools = construct_tool_dicts(request.tools, request.tool_choice)
    more = {name: fields[name] for name in ("model", "chat_template_kwargs") if name in fields}
    return {**more, "messages": messages, **({"tools": tools} if tools else {})}
