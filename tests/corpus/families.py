"""Chat templates of released families, in the layout in which they ship, and tokenizers with their special tokens.

Mistral's are those that mistral_common generates for its tokenizers. The others are written down from the families' documentation,
without their parts for pictures and for the descriptions of tools; those of Qwen, Llama 3.2, gpt-oss and DeepSeek write calls and
their results.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mistral_common.integrations.chat_templates.template_generator import TemplateConfig, build_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from tokenizers import AddedToken

from tests import tiny


@dataclass(frozen=True)
class Family:
    """A family's template and special tokens."""

    text: str
    end: str
    """The token that ends an answer."""
    specials: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    bos: str | None = None
    refuses: tuple[str, ...] = ()
    """Orders of roles that it does not accept, by their initials."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments that change what it writes."""
    thinks: tuple[str, str] | None = None
    """For a reasoning model: what its generation prompt ends with, and what a prompt without open thinking ends with."""
    silent: str | None = None
    """What the prompt ends with if it is asked not to think."""


def mistral(version, **options):
    """Returns the template of a Mistral tokenizer's version."""
    config = TemplateConfig(version=TokenizerVersion(version), **options)
    return build_chat_template(config)


LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' '  + content.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}
"""
LLAMA_3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}
    {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {% set content = content + message['content'] | trim + '<|eot_id|>' %}
    {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}
"""
LLAMA_3_2 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message #}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_2_5 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ("user", "system") and not (message.role == "system" and loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" and not message.tool_calls %}
        {{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != "tool" }}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != "tool" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = message.content.split('</think>')[0].split('<think>')[-1] if '</think>' in message.content else '' %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n' if content or not loop.first }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != "tool" }}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != "tool" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
QWQ = QWEN_2_5.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
PHI_4 = """\
{% for message in messages %}
    {% if message['role'] in ['system', 'user', 'assistant'] %}
        {{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
    {% else %}
        {% continue %}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}
"""
PHI_3 = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
SMOLLM_2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
SMOLLM_3 = """\
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{{- "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set custom = messages[0].content -%}
{%- else -%}
  {%- set custom = "You are a helpful AI assistant named SmolLM." -%}
{%- endif -%}
{{- "Today Date: " ~ strftime_now("%d %B %Y") ~ "\\nReasoning Mode: " + mode + "\\n\\n" + custom + "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>user\\n" + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if mode == "/think" -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" }}
    {%- endif -%}
{%- endif -%}
"""
GPT_OSS = """\
{%- if not reasoning_effort is defined %}
    {%- set reasoning_effort = "medium" %}
{%- endif %}
{{- "<|start|>system<|message|>You are ChatGPT.\\nCurrent date: " + strftime_now("%Y-%m-%d") }}
{{- "\\n\\nReasoning: " + reasoning_effort + "\\n\\n# Valid channels: analysis, commentary, final.<|end|>" }}
{%- for message in messages %}
    {%- if message.role == "system" %}
        {{- "<|start|>developer<|message|># Instructions\\n\\n" + message.content + "<|end|>" }}
    {%- elif message.role == "assistant" and "tool_calls" in message %}
        {%- set call = message.tool_calls[0].function %}
        {%- if message.content %}
            {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
        {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}
        {{- call.arguments | tojson + "<|call|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start|>functions." + message.name + " to=assistant<|channel|>commentary<|message|>" }}
        {{- message.content | tojson + "<|end|>" }}
    {%- elif message.role == "assistant" %}
        {%- if loop.last and not add_generation_prompt %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- else %}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""
DEEPSEEK_R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='', answered=false) %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'@User' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and 'tool_calls' in message %}"
    "{{'@Assistant' + message['content'] + '@tool calls begin'}}"
    "{%- for call in message['tool_calls'] %}{{'@tool call begin' + call['type'] + '@tool sep' + call['function']['name']}}"
    "{{'\\n```json\\n' + call['function']['arguments'] + '\\n```@tool call end'}}{%- endfor %}"
    "{{'@tool calls end@end of sentence'}}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{% set ns.answered = true %}"
    "{{'@tool output begin' + message['content'] + '@tool output end'}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and not 'tool_calls' in message %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{('' if ns.answered else '@Assistant') + content + '@end of sentence'}}"
    "{% set ns.answered = false %}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.answered %}{{'@Assistant<think>\\n'}}{% endif %}"
)
DEEPSEEK_TOKENS = (
    *("User", "Assistant", "tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep"),
    *("tool output begin", "tool output end", "end of sentence"),
)
for each in DEEPSEEK_TOKENS:
    DEEPSEEK_R1 = DEEPSEEK_R1.replace(f"@{each}", f"<\uff5c{each.replace(' ', chr(0x2581))}\uff5c>")
DEEPSEEK_V3 = DEEPSEEK_R1.replace("<think>\\n", "")
GLM_4_5 = """\
[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not m.content.endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' %}<|assistant|>
{{ '\\n<think></think>' }}
{{- '\\n' + m.content.strip() if m.content.strip() }}
{%- elif m.role == 'system' %}<|system|>
{{ m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}
"""
MAGISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{%- elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{%- else %}{{ m.content + eos_token }}{%- endif %}{%- endfor %}"
    "{%- if thinking_open is defined and add_generation_prompt %}[THINK]{%- endif %}"
)
SEED_OSS = """\
{%- for message in messages -%}
{{ bos_token + message.role + '\\n' + message.content + eos_token }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ bos_token + 'assistant\\n<seed:think>' }}
{%- endif -%}
"""
GRANITE = """\
{%- for message in messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
THINK = ("<think>", "</think>")
EMPTY = "<think>\n\n</think>\n\n"
ASSISTANT = "<\uff5cAssistant\uff5c>"

FAMILIES = {
    "llama 2": Family(LLAMA_2, "</s>", ("<s>", "</s>"), bos="<s>", refuses=("uu", "au")),
    "llama 3": Family(LLAMA_3, "<|eot_id|>", HEADERS, bos="<|begin_of_text|>"),
    "llama 3.2": Family(
        LLAMA_3_2, "<|eot_id|>", HEADERS, bos="<|begin_of_text|>", arguments={"date_string": "1 Apr 2020"}
    ),
    "qwen 2.5": Family(QWEN_2_5, "<|im_end|>", CHATML),
    "qwen 3": Family(
        QWEN_3,
        "<|im_end|>",
        CHATML,
        (*THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        arguments={"enable_thinking": False},
        thinks=("assistant\n", "assistant\n"),
        silent=EMPTY,
    ),
    "qwq": Family(QWQ, "<|im_end|>", CHATML, THINK, thinks=("<think>\n", EMPTY), silent=EMPTY),
    "gemma 2": Family(
        GEMMA_2,
        "<end_of_turn>",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        refuses=("su", "suau", "uu", "au"),
    ),
    "gemma 3": Family(
        GEMMA_3, "<end_of_turn>", ("<bos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", refuses=("uu", "au")
    ),
    "mistral v1": Family(mistral("v1", spm=True), "</s>", ("<s>", "</s>"), bos="<s>", refuses=("au",)),
    "mistral v3": Family(
        mistral("v3", spm=True), "</s>", ("<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", refuses=("au",)
    ),
    "mistral v7": Family(
        mistral("v7"),
        "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        bos="<s>",
        refuses=("au",),
    ),
    "phi 3": Family(PHI_3, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")),
    "phi 4": Family(PHI_4, "<|im_end|>", (*CHATML, "<|im_sep|>")),
    "smollm 2": Family(SMOLLM_2, "<|im_end|>", CHATML),
    "smollm 3": Family(
        SMOLLM_3,
        "<|im_end|>",
        CHATML,
        THINK,
        arguments={"enable_thinking": False},
        thinks=("assistant\n", "assistant\n"),
        silent="<think>\n\n</think>\n",
    ),
    "vicuna": Family(tiny.VICUNA, "</s>", ("<s>", "</s>"), bos="<s>"),
    "gpt-oss": Family(
        GPT_OSS,
        "<|return|>",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
        arguments={"reasoning_effort": "low"},
        thinks=("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
        silent="<|start|>assistant<|channel|>final<|message|>",
    ),
    "deepseek r1": Family(
        DEEPSEEK_R1,
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        (*THINK, "<\uff5cUser\uff5c>", ASSISTANT),
        bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        thinks=(f"{ASSISTANT}<think>\n", f"{ASSISTANT}{EMPTY}"),
        silent=f"{ASSISTANT}{EMPTY}",
    ),
    "deepseek v3": Family(
        DEEPSEEK_V3,
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("<\uff5cUser\uff5c>", ASSISTANT),
        bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
    "glm 4.5": Family(
        GLM_4_5,
        "<|endoftext|>",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        THINK,
        arguments={"enable_thinking": False},
        thinks=("<|assistant|>", "<|assistant|>"),
        silent="<|assistant|>\n<think></think>",
    ),
    "magistral": Family(
        MAGISTRAL,
        "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
        bos="<s>",
        arguments={"thinking_open": True},
    ),
    "seed-oss": Family(
        SEED_OSS,
        "<seed:eos>",
        ("<seed:bos>", "<seed:eos>"),
        ("<seed:think>", "</seed:think>"),
        bos="<seed:bos>",
        thinks=("<seed:think>", "<seed:think></seed:think>"),
        silent="<seed:think></seed:think>",
    ),
    "granite": Family(
        GRANITE,
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        arguments={"controls": "brief"},
    ),
}


@cache
def tokenizer_of(name: str) -> Any:
    """Returns a byte-level tokenizer with a family's special tokens and its template."""
    family = FAMILIES[name]
    tokenizer = tiny.byte_level_tokenizer()
    tokens = [AddedToken(text, special=True, normalized=False) for text in family.specials]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.added])
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template = family.end, family.bos, family.text
    return tokenizer
