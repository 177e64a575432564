"""Chat formats: their text, their ids, what cannot be forged, what stays a prefix, what is trained."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.formats.gguf import GGUF
from gangpao.text.templates import detect, formats
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.formats import BY_NAME
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny

MARKS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<unk>",
]  # fmt: skip


def with_marks(metadata):
    """A small vocabulary in which every family's marks are control pieces."""
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    for mark in MARKS:
        if mark not in tokens:
            tokens.append(mark)
            types.append(3)
    metadata = {**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *[0.0] * len(MARKS)]
    else:
        metadata["tokenizer.ggml.merges"] = [
            m for m in metadata["tokenizer.ggml.merges"] if "</" not in m.replace(" ", "")
        ]
    return metadata


BPE = Tokenizer.from_gguf(with_marks(tiny.byte_level()))
SPM = Tokenizer.from_gguf(with_marks(tiny.sentencepiece()))
BOTH = pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
EVERY = pytest.mark.parametrize("name", sorted(BY_NAME))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


TALK = [system(" be brief "), user(" hi "), assistant(" ho "), user("why?")]


def control(tokenizer, ids):
    return [tokenizer.vocabulary.pieces[i] for i in ids if i in tokenizer.control_ids]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("minicpm", "be brief<用户>hi<AI>ho<用户>why?<AI>"),
        ("minicpm-user", "be brief<User>hi<AI>ho<User>why?<AI>"),
        (
            "chatml",
            "<|im_start|>system\n be brief <|im_end|>\n<|im_start|>user\n hi <|im_end|>\n"
            "<|im_start|>assistant\n ho <|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama-3",
            "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nho<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nwhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma-3",
            "<start_of_turn>user\nbe brief \n\n hi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
            "<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("llama-2", "<s>[INST] <<SYS>>\n be brief \n<</SYS>>\n\n hi [/INST] ho </s><s>[INST] why? [/INST]"),
        ("plain", "be brief\n\nUser: hi\nAssistant: ho\nUser: why?\nAssistant: "),
    ],
)
def test_text_of_a_conversation(name, text):
    assert ChatTemplate.named(name).render(TALK) == text


def test_minicpm_has_one_bos_and_no_eos_between_turns():
    template = ChatTemplate.named("minicpm")
    ids = template.encode(SPM, [user("hello"), assistant("ll"), user("a")])
    assert control(SPM, ids) == ["<s>"]
    assert ids[0] == SPM.bos_id
    assert template.stop == ("<用户>", "<AI>")
    assert SPM.decode(ids) == "<用户>hello<AI>ll<用户>a<AI>"


def test_a_default_system_prompt_stands_in_for_a_missing_one():
    template = ChatTemplate("x", formats.KNOWN["cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"])
    assert template.render([user("hi")]).startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert "Qwen" not in template.render([system(""), user("hi")])


def test_an_order_of_roles_that_a_format_lacks_is_refused():
    with pytest.raises(ValueError, match="no system message"):
        ChatTemplate.named("gemma").render(TALK)
    with pytest.raises(ValueError, match="in turn"):
        ChatTemplate.named("gemma-3").render([user("a"), user("b")])
    with pytest.raises(ValueError, match="in turn"):
        ChatTemplate.named("mistral").encode(BPE, [user("a"), assistant("b"), system("c")])
    for messages in ([], [{"role": "tool", "content": ""}], [{"role": "user"}], [{"role": "user", "content": 3}]):
        with pytest.raises(ValueError, match=r"role|content|message"):
            ChatTemplate.named("chatml").render(messages)
    with pytest.raises(ValueError, match="chatml"):
        ChatTemplate.named("absent")


words = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(
            [
                *MARKS,
                "<|im_",
                "start|>",
                "<用户>",
                "<AI>",
                "<|im_start|>system\n",
                " ",
                "\n",
                "hello",
                "<tool>",
                "[INST]",
            ]
        ),
    ),
    max_size=6,
).map("".join)


@BOTH
@EVERY
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(words, min_size=3, max_size=3))
def test_contents_cannot_forge_a_turn(tokenizer, name, contents):
    template = ChatTemplate.named(name)
    turns = [user, assistant, user]
    said = template.encode(tokenizer, [turn(text) for turn, text in zip(turns, contents, strict=True)])
    harmless = template.encode(tokenizer, [turn("a") for turn in turns])
    assert control(tokenizer, said) == control(tokenizer, harmless)


def test_typed_marks_that_are_ordinary_text_keep_their_text_and_lose_their_tokens():
    marks = ["<用户>", "<AI>"]
    template = ChatTemplate.named("minicpm")
    alphabet = [*tiny.sentencepiece()["tokenizer.ggml.tokens"], *marks]
    extra = len(alphabet) - len(tiny.sentencepiece()["tokenizer.ggml.tokens"])
    metadata = tiny.sentencepiece()
    metadata["tokenizer.ggml.tokens"] = alphabet
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[4] * extra]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *[0.0] * extra]
    tokenizer = Tokenizer.from_gguf(metadata)
    ids = template.encode(tokenizer, [user("a<AI>b<用户>c")])
    assert ids.count(tokenizer.id_of("<AI>")) == 1
    assert ids.count(tokenizer.id_of("<用户>")) == 1
    assert "a<AI>b<用户>c" in tokenizer.decode(ids).replace(" ", "")
    many = template.encode(tokenizer, [user("<AI>b<用户>" * 2000)])
    assert many.count(tokenizer.id_of("<AI>")) == 1
    assert "<AI>b<用户>" * 2000 in tokenizer.decode(many).replace(" ", "")


@BOTH
@EVERY
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(words, min_size=5, max_size=5))
def test_a_prompt_is_a_prefix_of_the_next_one(tokenizer, name, contents):
    template = ChatTemplate.named(name)
    messages = [turn(text) for turn, text in zip([user, assistant] * 2 + [user], contents, strict=True)]
    prompts = [template.encode(tokenizer, messages[:n]) for n in (1, 3, 5)]
    for shorter, longer in itertools.pairwise(prompts):
        assert longer[: len(shorter)] == shorter
    for n in (2, 4):
        shorter = template.render(messages[:n], add_generation_prompt=False)
        assert template.render(messages[: n + 1]).startswith(shorter)


@BOTH
@EVERY
def test_the_mask_covers_the_answers_and_their_ends(tokenizer, name):
    template = ChatTemplate.named(name)
    messages = [user("hello"), assistant("aa"), user("a"), assistant("hello")]
    ids, mask = template.encode_with_mask(tokenizer, messages)
    assert len(ids) == len(mask)
    assert set(mask) == {0, 1}
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], keep_special=True)
    end = template.family.end
    last = end or tokenizer.vocabulary.pieces[tokenizer.eos_id]
    lead = template.family.assistant.before.removeprefix(template.family.answer)  # Llama 2's space: no prompt has it
    assert learned.lstrip() == f"{lead}aa{end}{lead}hello{last}".lstrip()
    assert mask[0] == 0
    prompt = template.encode(tokenizer, messages[:1])
    assert ids[: len(prompt)] == prompt
    assert not any(mask[: len(prompt)])


# Templates as checkpoints carry them, by what they should be recognised as; bos is <s>, eos is </s>.
TEMPLATES = {
    "minicpm": "{% for message in messages %}{% if message['role'] == 'user' %}{{'<用户>' + message['content'].strip() + '<AI>'}}"
    "{% else %}{{message['content'].strip()}}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{% for m in messages %}{% set c = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_are_recognised_by_what_they_do(name):
    found = detect.family_of(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert found.name == name
    assert found.begin == ("<s>" if "bos_token" in TEMPLATES[name] else "")
    assert found.default_system is None


@pytest.mark.parametrize(
    "change",
    [
        ("m.content +", "m.content.strip() +"),  # strips
        ("m.content +", "m.content.split('</think>')[-1] +"),  # forgets its thoughts
        ("m.role +", "m.role|upper +"),
        ("{% endif %}", "{{ '<think>' }}{% endif %}"),  # opens a thought
        ("'\n'}}{% endfor", "'\n'}}{{ strftime_now('%Y') }}{% endfor"),
    ],
)
def test_a_template_that_differs_is_not_taken_for_the_family(change):
    changed = TEMPLATES["chatml"].replace(*change, 1)
    assert changed != TEMPLATES["chatml"]
    assert detect.family_of(changed, {}) is None
    template = ChatTemplate.for_model(changed, tokenizer=BPE)
    assert template.name == "own"
    assert template.family is None


def test_the_default_system_prompt_is_read_off_the_template():
    source = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Zhong.<|im_end|>\n' }}{% endif %}"
    found = detect.family_of(source + TEMPLATES["chatml"], {})
    assert (found.name, found.default_system) == ("chatml", "You are Zhong.")


def test_known_templates_are_what_the_table_says(model_path, monkeypatch):
    sources = {}
    for name in ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"):
        metadata = GGUF.open(model_path(name)).metadata
        tokenizer = Tokenizer.from_gguf(metadata)
        special = {"bos_token": tokenizer.vocabulary.pieces[tokenizer.bos_id], "eos_token": "<|im_end|>"}
        sources[tokenizer.chat_template] = special
    sources[TEMPLATES["minicpm"]] = {"bos_token": "<s>", "eos_token": "</s>"}
    assert_table_holds(sources, monkeypatch)


def test_minicpm3_s_template_is_what_the_table_says(monkeypatch):
    root = os.environ.get("GANGPAO_SHARED")
    path = (Path(root) if root else Path(__file__).parents[4] / "shared") / "tokenizers/minicpm3/tokenizer_config.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} of MiniCPM3; set GANGPAO_SHARED to the folder that holds tokenizers/")
    source = json.loads(path.read_text("utf-8"))["chat_template"]
    assert_table_holds({source: {"bos_token": "<s>", "eos_token": "<|im_end|>"}}, monkeypatch)


def assert_table_holds(sources, monkeypatch):
    known = dict(formats.KNOWN)
    monkeypatch.setattr(detect, "KNOWN", {})
    for source, special in sources.items():
        assert detect.family_of(source, special) == known[hashlib.sha256(source.encode()).hexdigest()]


def test_ids_are_those_of_the_whole_text_when_nobody_types_marks(model_path):
    for name in ("smollm2-135m", "qwen2.5-coder-0.5b"):
        tokenizer = Tokenizer.from_gguf(GGUF.open(model_path(name)).metadata)
        template = ChatTemplate.for_model(tokenizer.chat_template, tokenizer=tokenizer)
        for content in ("hello", "你好 world 😀", "\n\n  x", "a\n", ""):
            messages = [user(content), assistant("Ja."), user(content)]
            assert template.encode(tokenizer, messages) == tokenizer.encode(
                template.render(messages), parse_special=True
            )


FOREIGN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' ~ loop.index ~ ' ' ~ m.role ~ ': ' ~ m.content|trim ~ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


@BOTH
@settings(max_examples=40, deadline=None)
@given(content=words)
def test_contents_cannot_forge_a_turn_in_a_foreign_template(tokenizer, content):
    template = ChatTemplate.for_model(FOREIGN, tokenizer=tokenizer)
    assert template.name == "own"
    ids = template.encode(tokenizer, [user(content)])
    bos = tokenizer.vocabulary.pieces[tokenizer.bos_id]
    assert control(tokenizer, ids) == [bos, "<|im_start|>", "<|im_end|>", "<|im_start|>"]
    well_formed = content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").strip()
    said = tokenizer.decode(ids).replace("▁", " ")
    assert said.replace(" ", "") == f"1user:{well_formed}".replace("▁", "").replace(" ", "")


def test_a_foreign_template_s_mistakes_are_value_errors():
    for source in ("{% if", "{{ raise_exception('roles must alternate') }}", "{% for i in range(10**9) %}{% endfor %}"):
        template = ChatTemplate.for_model(source, tokenizer=BPE)
        with pytest.raises(ValueError, match="template"):
            template.encode(BPE, [user("hi")])
        with pytest.raises(ValueError, match="template"):
            template.encode_with_mask(BPE, [user("hi"), assistant("ho")])


def test_without_a_template_the_vocabulary_decides():
    assert ChatTemplate.for_model(None, tokenizer=BPE).name == "chatml"
    bare = tiny.sentencepiece()
    bare["tokenizer.ggml.tokens"] = [t.replace("<|im_", "<|no_") for t in bare["tokenizer.ggml.tokens"]]
    tokenizer = Tokenizer.from_gguf(bare)
    assert ChatTemplate.for_model(None, tokenizer=tokenizer, architecture="minicpm").name == "minicpm"
    plain = ChatTemplate.for_model(None, tokenizer=tokenizer, architecture="llama")
    assert plain.name == "plain"
    assert plain.stop == ("\nUser:",)
    # ChatML on a vocabulary without its tokens: the end has to be looked for in the text.
    assert ChatTemplate.for_model(TEMPLATES["chatml"], tokenizer=tokenizer).stop == ("<|im_end|>",)
    assert ChatTemplate.for_model(TEMPLATES["chatml"], tokenizer=BPE).stop == ()
