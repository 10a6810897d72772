"""Writes expected.json: chat templates in common styles rendered by Jinja 2 under transformers' settings.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6 && venv/bin/python make.py

The Rust test renders the same sources and must give the same bytes. A case whose expected text is null must fail in
both. The templates are written for this test; each exercises what a family of published templates relies on.
"""

import json
import pathlib

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """Blocks that mark the assistant's text; their body renders as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    # Turn markers around every role, a default system turn, generation marks.
    "chatml": """\
{% if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nAnswer with care.<|im_end|>\\n' }}
{% endif %}
{% for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {% if m.role == 'assistant' %}
        {%- generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}
    {% else %}
        {{- m.content + '<|im_end|>' }}
    {% endif %}
    {{- '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{% endif %}
""",
    # Header tokens, trimmed content, the first system turn taken off, set and namespace.
    "headers": """\
{{- bos_token }}
{%- set ns = namespace(seen=0, system='') %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|header|>system<|/header|>\\n\\n" }}
{%- if tools is not none and tools %}
    {{- "Functions you may call:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- ns.system }}<|eot|>
{%- for m in messages %}
    {%- set ns.seen = ns.seen + 1 %}
    {{- '<|header|>' ~ m['role'] ~ '<|/header|>\\n\\n' ~ m['content'] | trim ~ '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\\n\\n' }}
{%- endif %}
{{- '<!-- ' ~ ns.seen ~ ' -->' }}
""",
    # Bracketed instructions that demand alternating roles; refuses others.
    "brackets": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in rest %}
    {%- if (m["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns, found " + m["role"]) }}
    {%- endif %}
    {%- if m["role"] == "user" %}
        {%- if loop.last and system is defined %}
            {{- "[Q] " + system + "\\n\\n" + m["content"] + " [/Q]" }}
        {%- else %}
            {{- "[Q] " + m["content"] + " [/Q]" }}
        {%- endif %}
    {%- else %}
        {{- " " + m["content"].strip() + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    # Plain newlines between blocks: what trim_blocks and lstrip_blocks keep.
    "newlines": """\
{% for m in messages %}
{% if m['role'] == 'user' %}
<|user|>
{{ m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
<|system|>
{{ m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
<|assistant|>
{{ m['content']  + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}
""",
    # Python's string methods, slices, filters, macros and loop control.
    "methods": """\
{%- macro show(m, width) -%}
{{ m.role.upper().ljust(width, '.') if false else m.role.title() }}: {{ m.content.split('\\n')[0].lstrip() }}
{%- endmacro -%}
{%- for m in messages -%}
    {%- if m.content.startswith('/') %}{% continue %}{% endif -%}
    {%- if '</think>' in m.content -%}
        {%- set content = m.content.split('</think>')[-1].lstrip('\\n') -%}
        [{{ content }}]
    {%- else -%}
        {{ show(m, 8) }}{{ '\\n' }}
    {%- endif -%}
    {%- if loop.index > 5 %}{% break %}{% endif -%}
{%- endfor -%}
{{ messages | map(attribute='role') | unique | join(',') }}|{{ messages | length }}|{{ messages[::-1][0].role }}
{%- for key, value in {'a': 1, 'b': none}.items() %} {{ key }}={{ value }}{% endfor %}
 {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ true }} {{ 1.0 }} {{ 7 // 2 }} {{ 'x' * 3 }} {{ ['y', "it's", 1.5, none] }} {{ {'k': [true]} }}
""",
    # JSON in all its layouts, keyword variables, tests.
    "json": """\
{{ messages | tojson }}
{{ messages[-1] | tojson(ensure_ascii=true) }}
{% if tools %}
{{ tools | tojson(indent=2, sort_keys=true) }}
{{ tools | tojson(separators=(',', ':')) }}
{% endif %}
{{ numbers | default([]) | tojson }} {{ numbers | default([]) }} {{ tools }}
{{ messages }}
{% if thinking is defined and thinking is true %}thinking{% else %}plain{% endif %}

end
""",
    # Windows line ends and comments.
    "crlf": "{# a note #}\r\n{% for m in messages %}\r\n{{ m.role }}:\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n",
}

SYSTEM = {"role": "system", "content": "  Be brief. "}
USER = {"role": "user", "content": "What is 2 < 3 & \"why\"?\nSecond line"}
ASSISTANT = {"role": "assistant", "content": " <think>hm</think>\n\nBecause it's less. "}
AGAIN = {"role": "user", "content": "größer: 漢字 🙂 \u0007\u007f </s>"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"b": [], "a": {}, "n": [1, 2.5, 1e20, None, True]}}}]

CONVERSATIONS = {
    "question": ([USER], True, None, {}),
    "system": ([SYSTEM, USER], True, None, {}),
    "answered": ([SYSTEM, USER, ASSISTANT], False, None, {}),
    "two turns": ([USER, ASSISTANT, AGAIN], True, None, {"thinking": True}),
    "tools": ([SYSTEM, USER], True, TOOLS, {"numbers": [0.1, -0.0, 1e-5, 3, 1e16, 123456789.5], "thinking": False}),
    "same role twice": ([USER, AGAIN], False, None, {}),
}


def main():
    env = environment()
    cases = []
    for template, source in TEMPLATES.items():
        for name, (messages, generate, tools, kwargs) in CONVERSATIONS.items():
            try:
                expected = env.from_string(source).render(
                    messages=messages, tools=tools, documents=None, add_generation_prompt=generate, **TOKENS, **kwargs
                )
            except jinja2.exceptions.TemplateError:
                expected = None
            cases.append({"template": template, "conversation": name, "expected": expected})
    conversations = {
        name: {"messages": messages, "add_generation_prompt": generate, "tools": tools, "kwargs": kwargs}
        for name, (messages, generate, tools, kwargs) in CONVERSATIONS.items()
    }
    out = {"jinja2": jinja2.__version__, "tokens": TOKENS, "templates": TEMPLATES, "conversations": conversations, "cases": cases}
    path = pathlib.Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n", encoding="ascii")
    print(len(cases), "cases,", sum(case["expected"] is None for case in cases), "refused")


if __name__ == "__main__":
    main()
