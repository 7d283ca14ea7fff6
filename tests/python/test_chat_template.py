"""Chat templates: where they are found, what they render, what they may not do."""

import json

import pytest

from mimo_rt import errors
from mimo_rt.chat_template import MAX_MESSAGES, MAX_OUTPUT_CHARS, ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{%- for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(source, **tokens):
    return ChatTemplate(source, "test", tokens)


def render(source, messages=USER, **options):
    return template(source).render(messages, **options)


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_chatml():
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert render(CHATML, messages) == head + "<|im_start|>assistant\n"
    assert render(CHATML, messages, add_generation_prompt=False) == head


def test_whitespace_rules_and_extensions_are_those_of_transformers():
    source = "  {% for m in messages %}\n{{ m.content }}\n  {% break %}\n{% endfor %}\nend"
    assert render(source) == "Hi\nend"
    marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}!"
    assert render(marked) == "Hi!"


def test_transformers_renders_the_same(tmp_path):
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    compiled = chat._compile_jinja_template(CHATML)
    expected = compiled.render(messages=USER, add_generation_prompt=True)
    assert render(CHATML) == expected
    assert render(CHATML, [{"role": "user", "content": "Ho"}]) != expected


def test_globals_and_filters():
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "Hi"}]'
    assert render("{{ x | tojson }}", x="<ü>") == '"<ü>"'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ tools is none }}{{ nothing is defined }}") == "TrueFalse"
    assert render("{{ tools[0].name }}", tools=[{"name": "f"}]) == "f"


def test_special_tokens(tmp_path):
    write(
        tmp_path / "tokenizer_config.json",
        {
            "bos_token": {"content": "<s>", "special": True},
            "eos_token": "</s>",
            "pad_token": None,
            "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
        },
    )
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "<s>|</s>|"


def test_where_templates_are_found(tmp_path):
    assert ChatTemplate.from_directory(tmp_path) is None
    write(tmp_path / "chat_template.json", {"chat_template": "json"})
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "json"
    write(tmp_path / "tokenizer_config.json", {"chat_template": "config"})
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "config"
    write(tmp_path / "chat_template.jinja", "file")
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "file"


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "d"
    assert ChatTemplate.from_directory(tmp_path, has_tools=True).render(USER) == "t"
    write(tmp_path / "tokenizer_config.json", {"chat_template": named[1:]})
    with pytest.raises(errors.BadFormatError, match="default.*tool_use"):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("file_name", "content", "needle"),
    [
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[1]", "expected a JSON object, got list"),
        ("tokenizer_config.json", '{"chat_template": 3}', "expected a string, got int"),
        ("tokenizer_config.json", "[" * 100_000, "not JSON"),
        ("chat_template.jinja", "{% if %}", "line 1"),
        ("chat_template.jinja", "{% nonsense %}", "line 1"),
        ("chat_template.jinja", "x" * (2 << 20), "expected at most"),
        ("chat_template.json", '"' + "x" * (2 << 20) + '"', "expected at most"),
    ],
)
def test_bad_files_name_themselves(tmp_path, file_name, content, needle):
    write(tmp_path / file_name, content)
    with pytest.raises(errors.BadFormatError, match=needle) as caught:
        ChatTemplate.from_directory(tmp_path)
    assert file_name in str(caught.value)


def test_not_utf8(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.BadFormatError, match="not UTF-8"):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hi",
        {"role": "user", "content": "Hi"},
        ["Hi"],
        [{"content": "Hi"}],
        [{"role": 3, "content": "Hi"}],
        [*USER] * (MAX_MESSAGES + 1),
    ],
)
def test_bad_messages(messages):
    with pytest.raises(errors.InvalidArgumentError, match="messages"):
        render(CHATML, messages)


def test_the_template_can_refuse():
    source = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}ok"
    assert render(source) == "ok"
    with pytest.raises(errors.InvalidArgumentError, match="one message only"):
        render(source, USER * 2)


@pytest.mark.parametrize("source", ["{{ messages[0].role + messages[0].content }}",
                                    "{{ messages[0].role | dictsort }}", "{{ messages[0].role | xmlattr }}"])
def test_messages_of_another_shape_than_the_template_expects(source):
    with pytest.raises(errors.InvalidArgumentError, match="failed on these messages"):
        render(source, [{"role": "user", "content": 3}])


@pytest.mark.parametrize("tools", [5, "search", {"name": "f"}, {1}])
def test_tools_are_a_list(tools):
    with pytest.raises(errors.InvalidArgumentError, match=r"\[chat\] tools: expected a list, got "):
        render("{{ tools }}", tools=tools)
    assert render("{{ tools }}", tools=({"name": "f"},)) == "[{'name': 'f'}]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ (messages.append)({}) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ ('a' * 10) * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ {} | tojson(indent=1000000000) }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source):
    with pytest.raises(errors.MimoRtError):
        template(source + "x").render(USER)


def test_the_sandbox_lets_ordinary_expressions_pass():
    assert render("{{ 'ab' * 3 }}{{ 'a'.ljust(3) }}|{{ 2 * 3 }}") == "abababa  |6"
    assert render("{% for i in range(3) %}{{ i }}{% endfor %}") == "012"
    kept = "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = 5 %}{% endfor %}"
    assert render(kept + "{{ ns.x }}") == "5"


def test_loops_and_output_are_limited():
    loop = "{% for i in range(400) %}{% for j in range(400) %}x{% endfor %}{% endfor %}"
    with pytest.raises(errors.CapacityError, match="range"):
        render(loop)
    with pytest.raises(errors.CapacityError, match="output"):
        text = "x" * (MAX_OUTPUT_CHARS // 49)
        render("{% for i in range(50) %}{{ text }}{% endfor %}", text=text)
    assert len(render(loop.replace("400", "300"))) == 90_000


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(errors.MimoRtError):
        render("{% set _ = messages.pop() %}", messages)
    assert messages == USER
