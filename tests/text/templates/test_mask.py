"""What is learned of a conversation: the answers and their ends and nothing else, for every template and for real tokenizers."""

import itertools

import pytest

from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.formats import BY_NAME
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny
from tests.text.templates.test_chat import BPE, FOREIGN, SPM, TEMPLATES, assistant, system, user, with_marks
from tests.text.templates.test_switches import PLAIN, THINKER
from tests.text.templates.test_tools import TAUGHT, WEATHER, talk
from tests.text.templates.tool_templates import TEMPLATES as CALLING

TALK = [user("How high?"), assistant("aa hello"), user("And wide?"), assistant("你好。")]
# As Qwen3's own: the answer to the last question is shown with its thought, or an empty one; earlier ones without.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}"
    "{%- if loop.index0 > ns.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}{%- endif %}"
    "{{ m.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
# As DeepSeek-R1's: the prompt opens a thought that a finished conversation does not show.
OPENED = PLAIN.replace("assistant\n' }}", "assistant\n<think>\n' }}")


def learned(tokenizer, masked):
    """The texts of the stretches that are learned."""
    runs = itertools.groupby(zip(masked.ids, masked.mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run], keep_special=True, start=False) for mine, run in runs if mine]


def holds(tokenizer, template, messages, tools=None):
    """What is true of every mask: a label ends every answer, the first one begins the answer, and no user's token is one."""
    masked = template.encode_with_mask(tokenizer, messages, tools=tools)
    assert len(masked.ids) == len(masked.mask)
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = template.encode(tokenizer, messages[:first], tools=tools)
    assert masked.ids[: len(prompt)] == prompt
    assert masked.mask.index(1) == len(prompt)
    assert masked.mask[-1] or "\n" in tokenizer.decode(masked.ids[-1:])
    return masked


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_end_of_a_turn_is_learned_and_no_question(tokenizer, name):
    template = ChatTemplate.named(name)
    masked = holds(tokenizer, template, TALK)
    end = template.family.end
    last = end or tokenizer.vocabulary.pieces[tokenizer.eos_id]
    lead = template.family.assistant.before.removeprefix(template.family.answer)  # Llama 2's space: no prompt has it
    said = [f"{lead}aa hello{end}", f"{lead}你好。{last}"]
    assert learned(tokenizer, masked) == said
    # From the second answer on: the same ids, and the first answer is context.
    only = template.encode_with_mask(tokenizer, TALK, begin=3)
    assert only.ids == masked.ids
    assert learned(tokenizer, only) == said[1:]


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_is_learned_begins_behind_the_prompt(tokenizer, name):
    template = ChatTemplate.named(name)
    doubled = (
        [] if template.family.alternates else [[*TALK[:2], assistant("l"), assistant("e")], [assistant("a"), *TALK]]
    )
    for messages in ([*TALK, user("a"), assistant("b")], *doubled):
        for begin, message in enumerate(messages):
            if begin and message["role"] == "assistant":
                masked = template.encode_with_mask(tokenizer, messages, begin=begin)
                prompt = template.encode(tokenizer, messages[:begin])
                assert masked.ids[: len(prompt)] == prompt
                assert masked.mask.index(1) == len(prompt)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_end_is_one_id_where_the_vocabulary_has_it(name):
    template = ChatTemplate.for_model(TEMPLATES[name], tokenizer=BPE)
    masked = template.encode_with_mask(BPE, TALK)
    ends = [
        token for token, mine, after in zip(masked.ids, masked.mask, [*masked.mask[1:], 0], strict=True) if mine > after
    ]
    wanted = template.family.end or BPE.vocabulary.pieces[BPE.eos_id]
    assert ends[-1] == BPE.id_of(wanted)
    assert ends[-1] in BPE.end_ids | {BPE.id_of(wanted)}


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@pytest.mark.parametrize("source", [FOREIGN, QWEN3, THINKER, OPENED], ids=["foreign", "qwen3", "thinker", "opened"])
def test_a_foreign_template_s_answers_are_found(tokenizer, source):
    template = ChatTemplate.for_model(source, tokenizer=tokenizer)
    assert template.family is None
    messages = [system("Be <|im_end|> brief."), *TALK]
    masked = template.encode_with_mask(tokenizer, messages)
    said = learned(tokenizer, masked)
    assert len(said) == 2
    assert said[0].endswith("aa hello<|im_end|>")
    assert said[1].endswith("你好。<|im_end|>")
    assert not any(word in text for text in said for word in ("high", "wide", "brief"))
    assert sum(token == tokenizer.id_of("<|im_end|>") for token in masked.ids) == 5  # a typed one is none
    assert learned(tokenizer, template.encode_with_mask(tokenizer, messages, begin=4)) == said[1:]
    assert tokenizer.decode(masked.ids, keep_special=True).rstrip().endswith(said[1])


def test_a_thought_is_learned_where_the_template_shows_it():
    template = ChatTemplate.for_model(QWEN3, tokenizer=BPE)
    messages = [TALK[0], {**TALK[1], "reasoning_content": "Hm."}, TALK[2], {**TALK[3], "reasoning_content": "Oh."}]
    said = learned(BPE, template.encode_with_mask(BPE, messages))
    assert said == ["aa hello<|im_end|>", "<think>\nOh.\n</think>\n\n你好。<|im_end|>"]
    # Calls behind a question that is not the last one were said with thoughts in front of them that are gone: not learned.
    held = [*messages[:2], user("a"), assistant("b"), assistant("c"), user("d"), assistant("e")]
    assert learned(BPE, template.encode_with_mask(BPE, held))[-1] == "<think>\n\n</think>\n\ne<|im_end|>"


@pytest.mark.parametrize("name", sorted(CALLING))
def test_calls_are_learned_as_the_checkpoint_writes_them(name):
    tokenizer = Tokenizer.from_gguf(with_marks(tiny.byte_level()))
    template = ChatTemplate.for_model(CALLING[name], tokenizer=tokenizer)
    messages = talk()[:6]
    messages[2] = {**messages[2], "content": None}  # one of them shows either calls or words
    masked = template.encode_with_mask(tokenizer, messages, tools=[WEATHER])
    prompt = template.encode(tokenizer, messages[:2], tools=[WEATHER])
    assert masked.ids[: len(prompt)] == prompt
    said = learned(tokenizer, masked)
    assert "get_weather" in said[0]
    assert all(text.endswith("<|im_end|>") for text in said)
    assert said[-1] == "Cold.<|im_end|>"
    assert not any("Is it" in text or "-12" in text for text in said)


def test_calls_that_our_parts_write_are_learned_too():
    template = ChatTemplate.for_model(TAUGHT, tokenizer=BPE)
    masked = template.encode_with_mask(BPE, talk()[:6], tools=[WEATHER])
    assert learned(BPE, masked)[-1] == "Cold.<|im_end|>"


def test_a_template_whose_answers_have_no_end_is_refused():
    prompt = "{% if add_generation_prompt %}{{ (messages|length + 1) ~ 'assistant: ' }}{% endif %}"
    source = "{% for m in messages %}{{ loop.index ~ m.role ~ ': ' ~ m.content ~ ' ;' }}{% endfor %}" + prompt
    template = ChatTemplate.for_model(source, tokenizer=BPE)
    with pytest.raises(ValueError, match="ends its answers in no token"):
        template.encode_with_mask(BPE, TALK)
    assert learned(BPE, template.encode_with_mask(BPE, TALK[:2])) == ["aa hello ;<|im_end|>"]


@pytest.mark.parametrize("name", ["minicpm-2b", "minicpm3"])
def test_real_tokenizers_learn_where_to_stop(shared, name):
    tokenizer = Tokenizer.from_dir(shared / name)
    template = ChatTemplate.for_model(tokenizer.chat_template, tokenizer=tokenizer, architecture="minicpm")
    masked = holds(tokenizer, template, TALK)
    end = tokenizer.id_of("<|im_end|>") if name == "minicpm3" else tokenizer.eos_id
    ends = [token for token, mine in zip(masked.ids, masked.mask, strict=True) if mine and token in tokenizer.end_ids]
    assert ends == [end] * (2 if name == "minicpm3" else 1)
    assert learned(tokenizer, masked)[0].lstrip().startswith("aa hello")
