"""Switches of a checkpoint's own template, and answers that are left open: ours is what transformers renders."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.formats import BY_NAME
from gangpao.text.thoughts import Marks
from tests.text.templates.test_chat import BPE, assistant, system, user

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ANSWER = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}" + ANSWER
# As Qwen3's: thoughts of earlier turns are left out, and without thinking the answer begins behind an empty thought.
THINKER = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}"
    "{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- if reasoning_effort is defined %}"
    "{{ '[' + reasoning_effort + ']' }}{%- endif %}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# Which is one of our families until somebody uses the switch.
SWITCHED = PLAIN.replace(
    "assistant\n' }}", "assistant\n' }}{%- if enable_thinking is false %}{{ '<think></think>' }}{%- endif %}"
)
TALK = [system("Be brief."), user("Why?"), assistant("<think>\nHm.\n</think>\n\nBecause."), user("And?")]


def theirs(source, messages, **more):
    rendered = render_jinja_template([messages], chat_template=source, **{"add_generation_prompt": True, **more})[0]
    return rendered[0]


@pytest.mark.parametrize("source", [THINKER, SWITCHED])
@pytest.mark.parametrize(
    "variables",
    [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"enable_thinking": False, "reasoning_effort": "low"},
     {"messages": "no", "unknown": [1, {"a": None}]}],
)  # fmt: skip
def test_switches_reach_the_template(source, variables):
    template = ChatTemplate.for_model(source, tokenizer=BPE)
    known = {name: value for name, value in variables.items() if name != "messages"}
    expected = theirs(source, TALK, **known)
    assert template.render(TALK, variables=variables) == expected
    ids = template.encode(BPE, TALK, variables=variables)
    assert BPE.decode(ids, keep_special=True) == expected


def test_a_switch_that_is_not_set_is_not_false():
    template = ChatTemplate.for_model(SWITCHED, tokenizer=BPE)
    assert template.family is BY_NAME["chatml"] or template.family.name == "chatml"
    texts = [template.render(TALK, variables=v) for v in ({}, {"enable_thinking": True}, {"enable_thinking": False})]
    assert texts[0] == texts[1] != texts[2]


def test_a_switch_cannot_forge_a_turn():
    template = ChatTemplate.for_model(THINKER, tokenizer=BPE)
    ids = template.encode(BPE, TALK, variables={"reasoning_effort": "<|im_end|>"})
    assert ids.count(BPE.id_of("<|im_end|>")) == len(TALK)


@pytest.mark.parametrize("source", [PLAIN, THINKER])
@pytest.mark.parametrize("begun", ["Because", "It is\n so. ", "<|im_start|>"])
def test_an_answer_that_is_left_open(source, begun):
    template = ChatTemplate.for_model(source, tokenizer=BPE)
    talk = [*TALK[:2], assistant(begun)]
    expected = theirs(source, talk, add_generation_prompt=False, continue_final_message=True)
    assert template.render(talk, continue_final=True).rstrip() == expected.rstrip()
    ids = template.encode(BPE, talk, continue_final=True)
    assert BPE.decode(ids, keep_special=True).rstrip() == expected.rstrip()
    assert ids.count(BPE.id_of("<|im_end|>")) == 2  # and a mark that was typed is none


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_family_leaves_an_answer_open(name):
    template = ChatTemplate.named(name)
    talk = [user("Why?"), assistant("Because")]
    opened = template.render(talk, continue_final=True)
    assert opened.endswith("Because")
    assert template.render(talk, add_generation_prompt=False).startswith(opened)
    asked = template.render(talk[:1])
    assert opened.removesuffix("Because").rstrip() == asked.rstrip()


def test_an_answer_of_nothing_is_a_new_one_and_one_that_is_not_written_is_refused():
    template = ChatTemplate.for_model(THINKER, tokenizer=BPE)
    assert template.render([*TALK, assistant("")], continue_final=True) == template.render(TALK)
    thinking = ChatTemplate("own", source=THINKER, thoughts=Marks("<think>", "</think>"))
    begun = assistant("<think>\nHm.\n</think>\n\nBec")
    assert thinking.render([TALK[1], begun], continue_final=True).endswith("assistant\nBec")
    silent = ChatTemplate("own", source="{{ messages | length }}")
    with pytest.raises(ValueError, match="cannot be continued"):
        silent.render([TALK[1], assistant("Bec")], continue_final=True)
