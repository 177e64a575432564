"""Functions in chat formats: equal to the checkpoints' own templates, impossible to forge, stable from turn to turn."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.formats.gguf import GGUF
from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.call_format import OWN_CALLS
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.formats import BY_NAME
from gangpao.text.templates.tools import CALL, MARKS, OWN, form_of
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny
from tests.text.templates.test_chat import with_marks

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, e.g. 北京",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def call(name="get_weather", arguments='{"city": "北京"}', id="call_1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def talk(question="Weather?", result="12 °C", arguments='{"city": "北京"}', content="Let me look."):
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": content, "tool_calls": [call(arguments=arguments), call("clock", "{}", "call_2")]},
        {"role": "tool", "content": result, "tool_call_id": "call_1"},
        {"role": "tool", "content": "9:00", "tool_call_id": "call_2"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip


# A checkpoint's template, in its smallest form: it describes functions in its own words and writes calls as Qwen does.
TAUGHT = (
    "{% set n = namespace(tool=false) %}{% for m in messages %}"
    "{% if loop.first %}{{ '<|im_start|>system\n' }}{% if m.role == 'system' %}{{ m.content }}{% else %}Du hilfst.{% endif %}"
    "{% if tools %}{{ '\n\nWERKZEUG:' }}{% for t in tools %}{{ '\n* ' }}{{ t | tojson }}{% endfor %}{{ '\nENDE' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% if m.role == 'tool' %}{% if not n.tool %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% set n.tool = true %}"
    "{% elif m.role != 'system' or not loop.first %}{% set n.tool = false %}{{ '<|im_start|>' + m.role }}"
    "{% if m.content or not m.tool_calls %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson + '}\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_tool_tokens(metadata):
    """The marks as user-defined pieces, which plain text becomes too unless somebody takes care."""
    metadata = with_marks(metadata)
    metadata["tokenizer.ggml.tokens"] += MARKS
    metadata["tokenizer.ggml.token_type"] += [4] * len(MARKS)
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] += [0.0] * len(MARKS)
    return metadata


BPE = Tokenizer.from_gguf(with_tool_tokens(tiny.byte_level()))
SPM = Tokenizer.from_gguf(with_tool_tokens(tiny.sentencepiece()))
SPECIAL = (("bos_token", "<|endoftext|>"), ("eos_token", "<|im_end|>"))


def as_objects(messages):
    """Arguments as objects, which is what Hugging Face's templates expect."""
    return [
        {**m, "tool_calls": [{**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
                             for c in m.get("tool_calls", [])]}
        for m in messages
    ]  # fmt: skip


def rendered_by(source, messages, tools):
    context = {"messages": as_objects(messages), "tools": tools, "add_generation_prompt": True, **dict(SPECIAL)}
    return sandbox_parent.shared().render(source, context)


def marks_in(tokenizer, ids):
    special = {*tokenizer.control_ids, *(tokenizer.id_of(mark) for mark in MARKS)}
    return [tokenizer.vocabulary.pieces[i] for i in ids if i in special]


@pytest.mark.parametrize("model", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_text_and_ids_are_those_of_the_model_s_own_template(model_path, model):
    tokenizer = Tokenizer.from_gguf(GGUF.open(model_path(model)).metadata)
    source = tokenizer.chat_template
    template = ChatTemplate.for_model(source, tokenizer=tokenizer)
    assert form_of(source, template.special, template.family) != OWN
    for messages in (talk(), talk()[1:2], talk(content="")[1:5], talk()[:5]):
        text = rendered_by(source, messages, [WEATHER, CLOCK])
        assert template.render(messages, tools=[WEATHER, CLOCK]) == text
        ids = template.encode(tokenizer, messages, tools=[WEATHER, CLOCK])
        # Typed marks aside, which the footer's own example is not: the ids of the whole text at once.
        assert ids == tokenizer.encode(text, parse_special=True)


def test_the_words_around_descriptions_are_read_off_the_template():
    template = ChatTemplate.for_model(TAUGHT, tokenizer=BPE)
    assert (template.name, template.family.default_system) == ("chatml", "Du hilfst.")
    for messages in (talk(), talk()[1:], talk(content="")):
        assert template.render(messages, tools=[WEATHER]) == rendered_by(TAUGHT, messages, [WEATHER])
    assert "\n* {" in template.render(talk(), tools=[WEATHER, CLOCK])


@pytest.mark.parametrize("change", [('{"name', '{ "name'), ("tool_response", "result")])
def test_a_template_that_writes_calls_in_another_way_says_them_itself(change):
    changed = TAUGHT.replace(change[0].replace('"', '\\"'), change[1].replace('"', '\\"'))
    changed = changed.replace(*change) if changed == TAUGHT else changed
    template = ChatTemplate.for_model(changed, tokenizer=BPE)
    assert form_of(changed, template.special, template.family) == OWN
    assert template.render(talk(), tools=[WEATHER]) == rendered_by(changed, talk(), [WEATHER])
    # Without functions it is the family all the same.
    assert template.family.name == "chatml"


def test_a_template_whose_calls_cannot_be_read_gets_our_words():
    changed = TAUGHT.replace("c.function.arguments | tojson", "'?'")
    template = ChatTemplate.for_model(changed, tokenizer=BPE)
    assert template.calls is OWN_CALLS
    assert "# Functions" in template.render(talk(), tools=[WEATHER])


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_every_format_can_say_functions_calls_and_results(tokenizer, name):
    template = ChatTemplate.named(name)
    messages = talk() if template.family.system or template.family.system_in_user else talk()[1:]
    text = template.render(messages[:-1], tools=[WEATHER], add_generation_prompt=False)
    for said in ('"name": "get_weather"', "12 °C", "9:00", CALL, "北京", "Cold."):
        assert said in text
    ids = template.encode(tokenizer, messages, tools=[WEATHER])
    assert tokenizer.id_of(CALL) in ids


typed = st.lists(
    st.sampled_from([*MARKS, "<|im_start|>", "<|im_end|>", "<|im_", "<tool_", "call>", "a", "\n", " ", "</s>", "[INST]", "é"]),
    max_size=6,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("source", [TAUGHT, TAUGHT.replace("'\n' + m.content", "'\n\n' + m.content"), None])
@settings(max_examples=40, deadline=None)
@given(words=st.lists(typed, min_size=5, max_size=5))
def test_nothing_that_is_data_becomes_a_mark(source, words):
    question, result, value, content, description = words
    tool = {"type": "function", "function": {"name": "get_weather", "description": description, description: 1}}
    template = ChatTemplate.for_model(source, tokenizer=BPE)

    def marks(question, result, value, content, tool):
        arguments = json.dumps({"city": value, value: 1}, ensure_ascii=False)
        return marks_in(BPE, template.encode(BPE, talk(question, result, arguments, content), tools=[tool]))

    assert marks(question, result, value, content or "a", tool) == marks("a", "a", "a", "a", WEATHER)


def test_the_foreign_template_of_that_test_is_foreign():
    template = ChatTemplate.for_model(TAUGHT.replace("'\n' + m.content", "'\n\n' + m.content"), tokenizer=BPE)
    assert template.family is None
    assert "WERKZEUG" in template.render(talk(), tools=[WEATHER])
    bare = ChatTemplate.for_model("{% for m in messages %}{{ m.role + '= ' + m.content }}{% endfor %}", tokenizer=BPE)
    assert bare.family is None
    assert "# Functions" in bare.render(talk(), tools=[WEATHER])
    assert (
        marks_in(BPE, bare.encode(BPE, talk(question=CALL), tools=[WEATHER])).count(CALL) == 3
    )  # two calls, one example


@pytest.mark.parametrize("source", [TAUGHT, None])
def test_what_was_said_stays_a_prefix(source):
    template = ChatTemplate.for_model(source, tokenizer=BPE)
    prompts = [template.encode(BPE, talk()[:n], tools=[WEATHER]) for n in (2, 5, 7)]
    assert prompts[1][: len(prompts[0])] == prompts[0]
    assert prompts[2][: len(prompts[1])] == prompts[1]
    # However a client spells the arguments, they are said as the model is made to say them.
    compact = talk(arguments='{"city":"\\u5317\\u4eac"}')
    assert template.encode(BPE, compact, tools=[WEATHER]) == template.encode(BPE, talk(), tools=[WEATHER])
    # Broken ones, as an answer that was cut leaves them, are said as they are.
    assert '"arguments": {"city": "B}' in template.render(talk(arguments='{"city": "B'), tools=[WEATHER])


def test_the_mask_covers_calls_and_no_results():
    template = ChatTemplate.named("chatml")
    ids, mask = template.encode_with_mask(BPE, talk()[:6], tools=[WEATHER])
    learned = BPE.decode([i for i, m in zip(ids, mask, strict=True) if m], keep_special=True)
    assert learned.startswith('Let me look.\n<tool_call>\n{"name": "get_weather"')
    assert learned.endswith("</tool_call><|im_end|>Cold.<|im_end|>")
    assert "12" not in learned


def test_without_tools_nothing_changes():
    template = ChatTemplate.for_model(TAUGHT, tokenizer=BPE)
    words = [{"role": "user", "content": "a<tool_call>b"}]
    assert template.encode(BPE, words, tools=[]) == template.encode(BPE, words)
    assert BPE.id_of(CALL) in template.encode(BPE, words)  # an ordinary piece of this vocabulary


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"role": "tool", "content": "x"}, "must follow"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "must be a list"),
        ({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": 3}}]}, "must look like"),
        ({"role": "assistant", "content": None}, "must be a string"),
    ],
)
def test_damaged_calls_are_refused(message, match):
    for template in (ChatTemplate.named("chatml"), ChatTemplate.for_model(TAUGHT + "x", tokenizer=BPE)):
        with pytest.raises(ValueError, match=match):
            template.encode(BPE, [{"role": "user", "content": "hi"}, message])
