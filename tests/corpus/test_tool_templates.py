"""Tool calls and results under the templates of released families: written as Transformers writes them, or refused."""

import json
from typing import Any

import pytest

from profuser.corpus import Message, Refusal, encode_example, encode_examples, render_prompts
from profuser.corpus.decontaminate import texts_of
from profuser.corpus.template import render_conversations, template_commands
from profuser.corpus.tool_turns import protected
from profuser.recipe.template import JinjaTemplate, OwnTemplate
from profuser.recipe.verifiers import CallableConfig
from profuser.rewards.callables import call_function
from tests.corpus.families import FAMILIES, tokenizer_of
from tests.corpus.test_families import judge, text_of

DAY = "2026-03-05"
RESULT = '3 "C"\nnext </tool_response>'


def conversation(*results, text="", id="call_1", arguments: Any = None):
    """Returns a question, a call of `weather` for each result, and the results."""
    made = {"name": "weather", "arguments": arguments or {"city": "Z\u00fcrich"}}
    calls = [{"type": "function", "id": f"{id}{n or ''}", "function": made} for n in range(len(results))]
    return [
        Message("user", "Cold?"),
        Message("tool_calls", json.dumps({"content": text, "tool_calls": calls}, ensure_ascii=False)),
        *(Message("tool", result) for result in results),
    ]


def found(name, messages, answer="Yes.") -> Any:
    (example,) = encode_examples(tokenizer_of(name), [(messages, answer)], OwnTemplate(date=DAY))
    return example


ARGUMENTS = '{"city": "Z\u00fcrich"}'
WRITTEN = {
    "qwen 2.5": (f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', RESULT),
    "qwen 3": (f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', RESULT),
    "qwq": (f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', RESULT),
    "llama 3.2": (f'{{"name": "weather", "parameters": {ARGUMENTS}}}<|eot_id|>', json.dumps(RESULT)),
    # An id of another length than nine is numbered.
    "mistral v3": (f'[{{"name": "weather", "arguments": {ARGUMENTS}, "id": "000000000"}}]', json.dumps(RESULT)),
    "mistral nemo": (f'[{{"name": "weather", "arguments": {ARGUMENTS}, "id": "000000000"}}]', RESULT),
    "mistral v7": (f'[{{"name": "weather", "arguments": {ARGUMENTS}, "id": "000000000"}}]', RESULT),
    "gpt-oss": (f"to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>", json.dumps(RESULT)),
    "magistral": (f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}", RESULT),
    "glm 4.5": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Z\u00fcrich</arg_value>\n</tool_call>",
        RESULT,
    ),
    "seed-oss": ("<function=weather>\n<parameter=city>Z\u00fcrich</parameter>\n</function>", RESULT),
    # Arguments as text.
    "deepseek r1 0528": (f"weather\n```json\n{ARGUMENTS}\n```", RESULT),
}
LEAVES_OUT = "it leaves out a tool call (for turns of user, tool_calls, tool)"
REFUSED = {
    "llama 2": "Conversation roles must alternate",
    "llama 3": LEAVES_OUT,
    "gemma 2": "Conversation roles must alternate",
    "gemma 3": "Conversation roles must alternate",
    "vicuna": "Conversation roles must alternate",
    "mistral v1": "Unexpected role",
    # It opens no thinking after a result.
    "deepseek r1": "its thinking after a tool's result differs from that after a question (for turns of user, tool_calls",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_writes_the_call_and_the_result_or_refuses_the_row(name):
    example = found(name, conversation(RESULT))
    if name not in WRITTEN:
        assert isinstance(example, Refusal)
        assert example.reason.startswith(REFUSED.get(name, LEAVES_OUT))
        return
    prompt, (call, result) = text_of(name, example.prompt_ids), WRITTEN[name]
    assert prompt.index("Cold?") < prompt.index(call) < prompt.index(result)
    assert text_of(name, example.response_ids[:-1]).strip() == "Yes."
    (asked,) = render_prompts(tokenizer_of(name), [conversation(RESULT)], OwnTemplate(date=DAY))
    assert text_of(name, asked).startswith(prompt.rpartition(result)[0] + result)


@pytest.mark.parametrize("name", WRITTEN)
def test_special_tokens_in_calls_and_results_are_text(name):
    tokenizer = tokenizer_of(name)
    specials = "".join(template_commands(tokenizer, OwnTemplate(date=DAY)))
    spelt = found(
        name, conversation(f"x {specials} y", id=FAMILIES[name].end, arguments={"city": specials, specials: [specials]})
    )
    plain = found(name, conversation("x y", arguments={"city": "z", "more": ["z"]}))
    ids = {tokenizer.convert_tokens_to_ids(each) for each in template_commands(tokenizer, OwnTemplate(date=DAY))}
    assert [i for i in spelt.prompt_ids if i in ids] == [i for i in plain.prompt_ids if i in ids]
    assert f"x {specials} y" in text_of(name, spelt.prompt_ids)
    assert text_of(name, spelt.prompt_ids).count(specials) >= 4


def test_an_added_token_around_results_is_text_in_a_result_and_one_around_calls_is_the_models_own():
    strings = template_commands(tokenizer_of("qwen 3"), OwnTemplate())
    assert "</tool_response>" in strings
    assert not {"<tool_call>", "<think>"} & {*strings}


def test_marks_leave_the_json_of_calls_readable():
    (_, call, _) = protected(conversation("x", text='a"b', arguments={"city": '"[</s>'}), ('"', "[", "{", "</s>"))
    turn = json.loads(call.content)
    assert turn["tool_calls"][0]["function"]["name"] == "weather"
    assert turn["content"] != 'a"b'


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("llama 3.2", conversation("3", "4"), "This model only supports single tool-calls at once!"),
        ("llama 3.2", conversation("3", text="Let me look."), "it leaves out the text beside a tool call"),
        ("mistral v3", conversation("3", text="Let me look."), "Assistant message cannot have both content and tool calls"),
        ("gpt-oss", conversation("3", "4"), "it leaves out a tool call"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_take_is_refused_with_the_reason_and_alone(name, messages, reason):
    tokenizer, good = tokenizer_of(name), conversation("3")
    rows = [(each, "Yes.") for each in (good, messages, [Message("user", "q")])]
    first, refused, last = encode_examples(tokenizer, rows, OwnTemplate(date=DAY))
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith(reason)
    assert [first, last] == [encode_example(tokenizer, *rows[n], OwnTemplate(date=DAY)) for n in (0, 2)]


TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
CALLS = "{{ m.tool_calls | tojson if m.tool_calls else '' }}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{{% if m.role != 'tool' %}}{TURN}{CALLS}{{% endif %}}", "it leaves out a tool's result"),
        (f"{{% if not m.tool_calls %}}{TURN}{{% endif %}}", "it leaves out a tool call"),
        (TURN, "it leaves out a tool call"),
        (f"{TURN}{{{{ m.tool_calls[0].function.name if m.tool_calls else '' }}}}", "it leaves out a tool call"),
        (f"{{% if m.role == 'tool' %}}{{{{ raise_exception('No tools.') }}}}{{% endif %}}{TURN}{CALLS}", "No tools."),
        (f"{TURN}{CALLS}", None),
    ],
)
@pytest.mark.parametrize("result", ["3", "Cold?", "Zurich"])
def test_a_template_that_drops_a_part_is_noticed_even_if_its_text_is_elsewhere(body, reason, result):
    opening = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = JinjaTemplate(kind="jinja", text=f"{{% for m in messages %}}{body}{{% endfor %}}{opening}")
    messages = [*conversation(result), Message("assistant", "Yes.")]
    (whole,) = render_conversations(tokenizer_of("qwen 2.5"), [messages], template)
    assert isinstance(whole, Refusal) == bool(reason)
    assert not isinstance(whole, Refusal) or whole.reason.startswith(str(reason))


@pytest.mark.parametrize("name", ["qwen 2.5", "llama 3"])
def test_a_judge_reads_what_its_template_writes_and_names_the_row_that_it_leaves_out(name, tmp_path, capsys):
    template = OwnTemplate(date=DAY)
    row = {"row_id": "r", "messages": [message._asdict() for message in conversation("3 C")]}
    (read,) = judge(tokenizer_of(name), tmp_path, template).encode([row], ["Yes."])
    messages = [*conversation("3 C"), Message("assistant", "Yes.")]
    (whole,) = render_conversations(tokenizer_of(name), [messages], template)
    if isinstance(whole, Refusal):
        assert read == []
        line = (
            "rewards.j: row:r: its chat template refuses it: it leaves out a tool call (for turns of user, tool_calls"
        )
        assert line in capsys.readouterr().out
    else:
        assert text_of(name, read) == whole


def test_functions_of_users_get_turns_and_decontamination_the_texts():
    row = {"row_id": "r", "response": "Yes.", "messages": [m._asdict() for m in conversation("3 C", text="So:")]}
    seen = []
    config = CallableConfig(kind="callable", name="f", path="m:f")
    assert call_function(lambda messages, answer, response: bool(seen.extend(messages)), config, row, "No.") == 0
    assert [turn["role"] for turn in seen] == ["user", "assistant", "tool"]
    assert seen[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Z\u00fcrich"}
    assert {"Cold?", "So:", "weather", "Z\u00fcrich", "3 C", "Yes."} <= {*texts_of(row)}
