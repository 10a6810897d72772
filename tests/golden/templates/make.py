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
    # Header tokens, trimmed content, the first system turn removed, set and namespace.
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
    # Bracketed instructions that require alternating roles, and raise an error otherwise.
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
    # Plain newlines between blocks, for the text that trim_blocks and lstrip_blocks keep.
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

# Each expression is rendered in a separate template. The expected text is null if jinja2 raises an error.
EXPRESSIONS = [
    # Tests.
    *(f"{value} is {test}" for value in ["none", "nothing", "'abc'", "''", "[1]", "{'a': 1}", "3", "1.5", "true", "[1]|map('string')"]
      for test in ["iterable", "sequence", "mapping", "string", "number", "none", "defined"]),
    # String methods.
    "'abcabc'.find('c')", "'größe'.find('e')", "'abcabc'.find('c', 3)", "'abc'.find('x')", "'abcabc'.rfind('b')", "'ßab'.rfind('b')",
    "'abcabc'.find('a', 1, 3)", "'abcabc'.find('a', -3)", "'abc'.index('c')", "'abc'.index('x')", "'größe'.rindex('ß')",
    "'aXbXc'.count('X')", "'aXbXc'.count('X', 2)", "'aba'.count('')", "''.count('')", "'aaaa'.count('aa')",
    "'prefix-x'.removeprefix('prefix-')", "'x'.removeprefix('y')", "'x.txt'.removesuffix('.txt')", "'x'.removesuffix('')",
    "'a=b=c'.partition('=')", "'a=b=c'.rpartition('=')", "'abc'.partition('=')", "'abc'.rpartition('=')", "'abc'.partition('')",
    "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)", "'a,b,c'.rsplit(',', 1)", "'a,b,c'.rsplit(',')", "' a  b c '.split()",
    "' a  b  c '.split(none, 1)", "' a  b  c '.rsplit(none, 1)", "' a  b  c '.rsplit()", "'a,b'.split(sep=',')", "'a b c'.split(maxsplit=1)",
    "''.split()", "''.split(',')", "'abc'.split('')", "'a,b'.split(',', 0)", "' a b '.split(none, 0)",
    "'a\\nb\\r\\nc\\x0bd\\n'.splitlines()", "'a\\r\\nb'.splitlines(true)", "''.splitlines()", "'a\\n\\nb'.splitlines(keepends=true)",
    "'7'.zfill(3)", "'-7'.zfill(4)", "'+7'.zfill(2)", "'abc'.zfill(2)", "'ab'.ljust(4, '.') ~ '|'", "'ab'.rjust(4) ~ '|'",
    "'ab'.center(5, '*')", "'abc'.center(6, '*')", "'abc'.center(2)", "'Straße'.casefold()", "'ΣΊΣΥΦΟΣ'.casefold()", "'aBc'.swapcase()",
    "\"it's a dog\".title()", "'hELLO wORLD'.title()", "'3rd x1y'.title()", "'abc'.startswith('b', 1)", "'abc'.startswith(('x', 'a'))",
    "'abc'.endswith('b', 0, 2)", "'abc'.endswith(())", "'a-b'.replace('-', '+', 1)", "'aaa'.replace('a', 'b', 2)", "'abc'.upper()",
    "' x '.strip()", "'xxaxx'.strip('x')", "'abc'.isalpha()", "'1'.isdigit()", "'ab'.join(['1', '2'])", "'{} {}'.format(1, 'x')",
    "'{a}'.format(a=3)", "'abc'[1:]", "'abc'[-1]", "'abc'[::-1]", "'aé漢'|length", "'a' in 'abc'", "'x' not in 'abc'",
    "[1, 2, 1].index(2)", "[1, 2].index(3)", "[1, 2, 1].count(1)", "{'a': 1}.get('b', 2)", "{'a': 1}.items()|list", "{'a': 1}.keys()|list",
    # Formatting.
    "'%s-%s' % (1, 'x')", "'%d' % 3", "'%05.1f' % 2.25", "'%s' % 'x'", "'%s!' % ('x',)", "'%s' % 'a'|upper", "'a' ~ '%s' % 3 ~ 'b'",
    "'%%'", "'%s' % messages[0]['role']", "'%s|%s' % (messages[0].role, 1 + 2)", "7 % 4", "'%x' % 255", "'%5s|%-5s|' % ('a', 'b')", "'%d%%' % 5",
    "'%s %s' | format(1, 2)", "'%r' % 'x'",
    # Filters.
    "'a b  c'|wordcount", "'größe x_1-y'|wordcount", "'ab'|center(6) ~ '|'", "'ab'|center|length", "'aaa'|replace('a', 'b')",
    "'aaa'|replace('a', 'b', 2)", "[1, 'a', none, true, 1.5]|string", "{'a': [1]}|string", "1.0|string", "none|string", "true|string",
    "2.5|round", "3.5|round", "2.675|round(2)", "-0.5|round", "7|round", "1234|round(-2)", "1250.0|round(-2)", "1.21|round(1, 'ceil')",
    "1.29|round(1, 'floor')", "7|round(0, 'ceil')", "1.5|round|int", "'3'|int + 1", "'x'|int", "'x'|int(5)", "'x'|float", "'x'|float(2.5)", "'0x1f'|int(0, 16)", "' 7 '|int", "none|int", "'1e3'|int", "true|int", "-3.9|int",
    "1e22", "123456789012345680.0", "1e15", "0.0001", "0.00001", "1.0", "-0.0", "'1.5'|float", "3.9|int",
    "[3, 1, 2]|sort", "[3, 1]|max", "'hello world'|title", "'hello'|capitalize", "' a '|trim ~ '|'", "[1, 2]|join('-')", "[[1, 2], [3]]|first",
    "'abc'|first", "'abc'|last", "'abc'|list", "{'b': 1, 'a': 2}|dictsort", "[1, 2, 3]|sum", "-3|abs", "'a'|default('b')", "''|default('b', true)",
    "nothing|default('b')", "[1, 2, 2]|unique|list", "[0, 1, '']|select|list", "[{'a': 1}]|map(attribute='a')|list", "'abc'|reverse",
    "[1, 2]|reverse|list", "'a\\nb'|indent(2)", "'<b>'|escape", "'x'|upper", "[1, 2, 3]|batch(2)|list", "'abc'|length", "[]|first|default('e')",
    # Operators and literals.
    "1 / 2", "7 // 2", "-7 // 2", "-7 % 3", "2 ** 10", "2 ** 0.5", "1 if false", "1 if false else 2", "not none", "1 < 2 < 3", "'a' * 3",
    "[1] + [2]", "'a' ~ 1 ~ none", "1 == 1.0", "true == 1", "(1, 'a')", "()", "(1,)", "[]", "{}", "1e3", "1_000", "0.1 + 0.2", "1e16", "1e-7",
    "10 ** 20", "none", "True", "[none, True]", "{'a': none}", "'a' < 'b'", "[1, 2] == [1, 2]", "3 in [1, 3]", "'k' in {'k': 1}", "nothing",
    "nothing.x", "messages[5]", "messages[0].nothing", "'\\u00e9\\x41\\t|'", "range(3)|list", "range(5, 0, -2)|list", "dict(a=1)",
    "namespace(a=1).a", "'a'.nothing()", "messages|length", "messages[0]|length", "messages[0].items()|list|length", "messages|map(attribute='role')|list",
]

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
    expressions = []
    for source in EXPRESSIONS:
        try:
            expected = env.from_string("{{ " + source + " }}").render(messages=[USER])
        except (jinja2.exceptions.TemplateError, ValueError, TypeError):
            expected = None
        expressions.append([source, expected])
    conversations = {
        name: {"messages": messages, "add_generation_prompt": generate, "tools": tools, "kwargs": kwargs}
        for name, (messages, generate, tools, kwargs) in CONVERSATIONS.items()
    }
    out = {"jinja2": jinja2.__version__, "tokens": TOKENS, "templates": TEMPLATES, "conversations": conversations, "cases": cases}
    out["expressions"] = expressions
    path = pathlib.Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n", encoding="ascii")
    print(len(cases), "cases,", sum(case["expected"] is None for case in cases), "refused")


if __name__ == "__main__":
    main()
