"""Requests in other programs' words: empty is not missing, an unknown word in a list refuses nothing, and what restricts an answer
is kept to or refused by its name."""

import json
from dataclasses import replace

import pytest

from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import Marks

HI = {"role": "user", "content": "hi"}
EMPTY = ["", [], None, [{"type": "text", "text": ""}]]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def post(tiny_server, wire):
    """Ask; a whole answer of few tokens."""
    return sender(tiny_server, wire)


@pytest.fixture
def post_wide(wide_server, wire):
    """The same of a model with a long context."""
    return sender(wide_server, wire)


def sender(server, wire):
    def send(path, body, limit=2):
        name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        more = {"options": {"num_predict": limit}} if path.startswith("/api") else {name: limit}
        answer = wire.post(server.base_url + path, json={"stream": False, **more, **body})
        return answer.status_code, answer.json()

    return send


def tokens(path, body):
    """Prompt tokens of an answer."""
    if path.startswith("/api"):
        return body["prompt_eval_count"]
    if path == "/v1/messages":
        return body["usage"]["input_tokens"] + body["usage"]["cache_read_input_tokens"]
    return body["usage"]["prompt_tokens" if path == "/v1/chat/completions" else "input_tokens"]


def test_empty_messages_are_empty_turns(post, tiny_server):
    engine = tiny_server.engine
    count = lambda *roles: len(engine.template.encode(engine.tokenizer, [{"role": r, "content": c} for r, c in roles]))  # noqa: E731
    for empty in EMPTY:
        text = "" if isinstance(empty, list) else empty
        cases = [
            ("/v1/chat/completions", {"messages": [{"role": "system", "content": empty}, HI]}, [("system", ""), ("user", "hi")]),
            ("/v1/chat/completions", {"messages": [{"role": "developer", "content": empty}, HI]}, [("system", ""), ("user", "hi")]),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": empty}]}, [("user", "")]),
            ("/v1/messages", {"messages": [{"role": "user", "content": empty}]}, [("user", "")]),
            ("/v1/messages", {"messages": [HI, {"role": "assistant", "content": empty}, HI]},
             [("user", "hi"), ("assistant", ""), ("user", "hi")]),
            ("/v1/responses", {"input": [{"role": "system", "content": empty}, HI]}, [("system", ""), ("user", "hi")]),
            ("/v1/responses", {"input": [{"role": "user", "content": empty}]}, [("user", "")]),
            ("/api/chat", {"messages": [{"role": "system", "content": text}, HI]}, [("system", ""), ("user", "hi")]),
            ("/api/chat", {"messages": [{"role": "user", "content": text}]}, [("user", "")]),
        ]  # fmt: skip
        if empty is not None:
            cases.append(("/v1/messages", {"messages": [HI], "system": empty}, [("system", ""), ("user", "hi")]))
        for path, body, turns in cases:
            status, answer = post(path, body)
            assert status == 200, (path, body, answer)
            assert tokens(path, answer) == count(*turns), (path, body)
    assert post("/v1/responses", {"input": "", "instructions": ""})[0] == 200
    assert post("/api/generate", {"prompt": "a", "system": ""})[0] == 200


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("more", [{}, {"tool_calls": []}, {"refusal": "no"}, {"tool_calls": [CALL]}])
def test_an_empty_answer_or_result_in_the_history(post, empty, more):
    turns = [HI, {"role": "assistant", "content": empty, **more}]
    if more.get("tool_calls"):
        turns.append({"role": "tool", "tool_call_id": "c", "content": empty})
    for stream in (False, True):
        status, answer = post("/v1/chat/completions", {"messages": [*turns, HI]})
        assert status == 200, (stream, answer)
    text = empty if isinstance(empty, str) else ""
    ollama = {"role": "assistant", "content": text, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert post("/api/chat", {"messages": [HI, ollama, {"role": "tool", "content": text}, HI]})[0] == 200
    items = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
             {"type": "function_call_output", "call_id": "c", "output": empty}]  # fmt: skip
    assert post("/v1/responses", {"input": [HI, *items]})[0] == 200
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": empty}]}
    assert post("/v1/messages", {"messages": [HI, use, result]})[0] == 200


def test_refusals_and_parts_of_any_type(post):
    part = {"type": "refusal", "refusal": "I will not."}
    turns = [HI, {"role": "assistant", "content": [part]}, HI]
    same = [HI, {"role": "assistant", "content": "I will not."}, HI]
    counts = [post("/v1/chat/completions", {"messages": m})[1]["usage"]["prompt_tokens"] for m in (turns, same)]
    assert counts[0] == counts[1]
    odd = [
        {"type": "input_audio", "input_audio": {"data": "AA"}},
        {"type": "from_2027", "text": "words"},
        {"type": "x", "source": 1, "content": {"a": [None]}, "text": {}},
    ]
    status, answer = post("/v1/chat/completions", {"messages": [{"role": "user", "content": odd}]})
    assert status == 200
    assert [note.partition(":")[0] for note in answer["gangpao"]["left_out"]] == [
        "messages.0.content.0",
        "messages.0.content.2",
    ]
    assert "gangpao" not in post("/v1/chat/completions", {"messages": [HI]})[1]


@pytest.mark.parametrize("role", ["robot", "latest_reminder", "model", "human", "function", "ipython"])
def test_roles_that_nobody_knows(post, role):
    for path, field in (("/v1/chat/completions", "messages"), ("/v1/responses", "input"), ("/v1/messages", "messages"),
                        ("/api/chat", "messages")):  # fmt: skip
        status, answer = post(path, {field: [HI, {"role": role, "content": "x", "name": "f"}, HI]})
        assert status == 200, (path, answer)
        assert ("gangpao" in answer) == (role in ("robot", "latest_reminder", "function", "ipython")), answer


def test_tools_that_a_server_would_run_are_left_out(post):
    chat = {"messages": [HI], "tools": [TOOL, {"type": "custom", "custom": {"name": "g"}}, {"type": "web_search"}]}
    status, answer = post("/v1/chat/completions", chat)
    assert status == 200
    assert len(answer["gangpao"]["left_out"]) == 2
    alone = post("/v1/chat/completions", {"messages": [HI], "tools": [TOOL]})[1]
    assert alone["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    for choice in ("required", {"type": "custom", "custom": {"name": "g"}}):
        status, answer = post(
            "/v1/chat/completions", {"messages": [HI], "tools": [{"type": "x"}], "tool_choice": choice}
        )
        assert (status, answer["error"]["param"]) == (400, "tool_choice")


def test_a_result_without_its_call_is_read_as_text(post):
    lost = {"role": "tool", "tool_call_id": "gone", "content": "12"}
    for path, body in [
        ("/v1/chat/completions", {"messages": [HI, lost, HI]}), ("/api/chat", {"messages": [lost]}),
        ("/v1/responses", {"input": [HI, {"type": "function_call_output", "call_id": "gone", "output": "12"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "gone", "content": "12"}, {"type": "text", "text": "So?"}]}]}),
    ]:  # fmt: skip
        status, answer = post(path, body)
        assert status == 200, (path, answer)
        assert "without its call" in answer["gangpao"]["left_out"][0]


def test_images_of_earlier_turns_lock_nothing(post):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    turns = [
        {"role": "user", "content": [picture, {"type": "text", "text": "see"}]},
        {"role": "assistant", "content": "A cat."},
    ]
    status, answer = post("/v1/chat/completions", {"messages": [*turns, HI]})
    assert (status, "images" in answer["gangpao"]["left_out"][0]) == (200, True)
    assert post("/v1/chat/completions", {"messages": turns[:1]})[0] == 400


def test_old_functions(post_wide, wire, wide_server):
    post = post_wide
    body = {"messages": [HI], "functions": [{"name": "f", "parameters": SCHEMA}], "function_call": {"name": "f"}}
    status, answer = post("/v1/chat/completions", body, 90)
    choice = answer["choices"][0]
    assert (status, choice["finish_reason"], choice["message"]["content"]) == (200, "function_call", None)
    assert choice["message"]["function_call"]["name"] == "f"
    assert json.loads(choice["message"]["function_call"]["arguments"])["a"] in (1, 2)
    raw = wire.post(f"{wide_server.base_url}/v1/chat/completions", json={**body, "max_tokens": 90, "stream": True}).text
    deltas = [json.loads(e[6:])["choices"][0]["delta"] for e in raw.split("\n\n") if e.startswith("data: {")]
    said = [d["function_call"] for d in deltas if "function_call" in d]
    assert said[0]["name"] == "f"
    assert json.loads("".join(f["arguments"] for f in said))["a"] in (1, 2)
    turns = [HI, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
             {"role": "function", "name": "f", "content": "2"}]  # fmt: skip
    status, answer = post("/v1/chat/completions", {"messages": turns, "functions": body["functions"]})
    assert (status, "gangpao" in answer) == (200, False)
    status, answer = post("/v1/chat/completions", {**body, "function_call": "none"})
    assert status == 200


YES = {"yes", "no"}
HONOURED = {
    "guided_json": ({"guided_json": SCHEMA}, lambda t: json.loads(t)["a"] in (1, 2)),
    "guided_json as a text": ({"guided_json": json.dumps(SCHEMA)}, lambda t: json.loads(t)["a"] in (1, 2)),
    "json_schema": ({"json_schema": SCHEMA}, lambda t: json.loads(t)["a"] in (1, 2)),
    "guided_choice": ({"guided_choice": ["yes", "no"]}, YES.__contains__),
    "guided_regex": ({"guided_regex": r"[ab]/\d{2}"}, lambda t: t[0] in "ab" and t[1] == "/" and t[2:].isdigit()),
    "guided_grammar": ({"guided_grammar": 'start: "yes" | "no"'}, YES.__contains__),
    "grammar": ({"grammar": 'root ::= "yes" | "no"'}, YES.__contains__),
    "structured json": ({"structured_outputs": {"json": SCHEMA}}, lambda t: json.loads(t)["a"] in (1, 2)),
    "structured choice": ({"structured_outputs": {"choice": ["yes", "no"]}}, YES.__contains__),
    "structured regex": ({"structured_outputs": {"regex": "(yes|no)"}}, YES.__contains__),
    "structured grammar": ({"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}}, YES.__contains__),
}


@pytest.mark.parametrize("name", HONOURED)
def test_forms_in_other_servers_words(post, name):
    more, fits = HONOURED[name]
    status, answer = post("/v1/chat/completions", {"messages": [HI], "temperature": 2, **more}, 40)
    assert status == 200, answer
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert fits(choice["message"]["content"]), choice
    field, text = ("output", None), None
    status, answer = post("/v1/responses", {"input": "hi", **more}, 40)
    text = answer[field[0]][0]["content"][0]["text"]
    assert (status, fits(text)) == (200, True)
    status, answer = post("/v1/messages", {"messages": [HI], **more}, 40)
    assert (status, fits(answer["content"][0]["text"])) == (200, True)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"guided_json": "no schema"}, "guided_json"), ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_choice": "yes"}, "guided_choice"), ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"grammar": "root ::= ("}, "grammar"), ({"grammar": 3}, "grammar"), ({"grammar": "x" * 30_000}, "grammar"),
        ({"structured_outputs": [1]}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_regex"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_choice"),
        ({"guided_choice": ["a"], "tools": [TOOL]}, "guided_choice"), ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["a"]}, "bad_words"), ({"prompt_logprobs": 1}, "prompt_logprobs"), ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"), ({"stop_token_ids": "1"}, "stop_token_ids"), ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"min_tokens": -1}, "min_tokens"), ({"min_tokens": 2, "guided_choice": ["a"]}, "min_tokens"),
        ({"ignore_eos": "yes"}, "ignore_eos"), ({"ignore_eos": True, "tools": [TOOL]}, "ignore_eos"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_its_name(post, more, field):
    status, answer = post("/v1/chat/completions", {"messages": [HI], **more})
    assert (status, answer["error"]["param"]) == (400, field), answer
    assert answer["error"]["message"].startswith(f"{field}: ")


def test_settings_are_blamed_by_the_apis_own_names(post):
    for path, body, words in [
        ("/v1/chat/completions", {"messages": [HI], "max_tokens": 0}, "max_tokens: must"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 0}, "max_output_tokens: must"),
        ("/api/chat", {"messages": [HI], "format": "xml"}, "format: must"),
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "xml"}}}, "text.format: type"),
    ]:
        status, answer = post(path, body)
        error = answer["error"]
        assert (status, (error if isinstance(error, str) else error["message"])[: len(words)]) == (400, words), answer


def test_an_empty_schema_is_any_json(post):
    for name in ("guided_json", "json_schema"):
        status, answer = post("/v1/chat/completions", {"messages": [HI], name: {}}, 1)
        assert status == 200
        assert answer["choices"][0]["message"]["content"][0] in '{["-0123456789tfn'


def test_ends(post, tiny_server):
    ends = {"logit_bias": {"258": 100}, "temperature": 0, "messages": [HI]}  # the model's end, at once
    path = "/v1/chat/completions"
    assert post(path, ends, 9)[1]["usage"]["completion_tokens"] == 0
    assert post(path, {**ends, "min_tokens": 4}, 9)[1]["usage"]["completion_tokens"] == 4
    answer = post(path, {**ends, "ignore_eos": True}, 9)[1]
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (9, "length")
    plain = post(path, {"messages": [HI], "temperature": 0, "logit_bias": {"65": 100}}, 9)[1]["choices"][0]
    letter = plain["message"]["content"][0]
    assert plain["message"]["content"] == letter * 9
    answer = post(path, {"messages": [HI], "temperature": 0, "logit_bias": {"65": 100}, "stop_token_ids": [65]}, 9)[1]
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["message"]["content"]) == ("stop", 65, letter)
    nothing = {
        "ignore_eos": False,
        "min_tokens": 0,
        "stop_token_ids": [],
        "guided_json": None,
        "best_of": 1,
        "echo": False,
    }
    assert post(path, {"messages": [HI], **nothing})[0] == 200


def test_repeat_penalty_and_no_limit(tiny_server, wire, monkeypatch):
    scheduler, seen = tiny_server.server.models.loaded()["tiny"].scheduler, []
    submit = scheduler.submit
    monkeypatch.setattr(scheduler, "submit", lambda r, e: seen.append(r.params) or submit(r, e))
    body = {"messages": [HI], "repeat_penalty": 1.5, "n_predict": -1, "min_tokens": 0, "logit_bias": {"258": 100}}
    assert wire.post(f"{tiny_server.base_url}/v1/chat/completions", json=body).status_code == 200
    assert (seen[0].repetition_penalty, seen[0].max_tokens) == (1.5, tiny_server.engine.context)
    for name in ("max_tokens", "max_completion_tokens"):
        body = {"messages": [HI], name: -1, "n_predict": 5, "logit_bias": {"258": 100}}
        assert wire.post(f"{tiny_server.base_url}/v1/chat/completions", json=body).status_code == 200
    assert [p.max_tokens for p in seen[1:]] == [tiny_server.engine.context] * 2
    seen.pop()
    wire.post(f"{tiny_server.base_url}/v1/completions", json={"prompt": "a", "repeat_penalty": 1.5, "max_tokens": 1})
    assert seen[-1].repetition_penalty == 1.5


SWITCHES = {
    "chat": ("/v1/chat/completions", {"messages": [HI]}, {
        True: [{"enable_thinking": True}, {"reasoning_effort": "low"}, {"thinking": {"type": "enabled"}},
               {"reasoning": {"enabled": True}}, {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}],
        False: [{"enable_thinking": False}, {"reasoning_effort": "none"}, {"reasoning_effort": "minimal"}, {"thinking": False},
                {"thinking": {"type": "disabled"}}, {"reasoning": {"effort": "none"}},
                {"chat_template_kwargs": {"enable_thinking": False}}]}),
    "responses": ("/v1/responses", {"input": "hi"}, {
        True: [{"reasoning": {"effort": "high", "summary": "auto"}}], False: [{"reasoning": {"effort": "none"}}]}),
    "messages": ("/v1/messages", {"messages": [HI]}, {
        True: [{"thinking": {"type": "enabled", "budget_tokens": 1024}}], False: [{"thinking": {"type": "disabled"}}],
        None: [{"thinking": {"type": "adaptive"}}]}),
    "ollama": ("/api/chat", {"messages": [HI]}, {True: [{"think": True}, {"think": "high"}], False: [{"think": False}]}),
    "generate": ("/api/generate", {"prompt": "hi"}, {True: [{"think": True}], False: [{"think": False}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_thinking_is_on_off_or_unset(post_wide, wide_server, name):
    path, body, switches = SWITCHES[name]
    engine = wide_server.engine

    def prompt(**variables):
        return len(engine.template.encode(engine.tokenizer, [HI], variables=variables))

    assert tokens(path, post_wide(path, body)[1]) == prompt()
    for on, ways in switches.items():
        for way in ways:
            status, answer = post_wide(path, {**body, **way})
            variables = {} if on is None else {"enable_thinking": on}
            effort = way.get("reasoning_effort") or (way.get("reasoning") or {}).get("effort") or way.get("think")
            variables |= {"reasoning_effort": effort} if isinstance(effort, str) else {}
            assert (status, tokens(path, answer)) == (200, prompt(**variables)), way


def test_a_prompt_that_is_too_long_is_said_in_the_words_that_clients_look_for(post, tiny_server):
    text, limit = "x" * 600, tiny_server.engine.context
    long = [{"role": "user", "content": text}]
    status, answer = post("/v1/chat/completions", {"messages": long})
    error = answer["error"]
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {limit} tokens" in error["message"]
    assert "--context" in error["message"]
    status, answer = post("/v1/responses", {"input": text})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    message = post("/v1/messages", {"messages": long})[1]["error"]["message"]
    assert message.startswith("prompt is too long: ")
    assert f"tokens > {limit} maximum" in message
    assert "--context" in message
    message = post("/api/chat", {"messages": long})[1]["error"]
    assert "input length exceeds the context length" in message
    assert "--context" in message


def test_an_answer_that_was_begun_is_continued(post, tiny_server):
    engine = tiny_server.engine
    begun = [HI, {"role": "assistant", "content": "It is"}]
    count = len(engine.template.encode(engine.tokenizer, begun, continue_final=True))
    closed = len(engine.template.encode(engine.tokenizer, begun))
    assert count < closed
    for path, body in [
        ("/v1/chat/completions", {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}),
        ("/v1/chat/completions", {"messages": begun, "add_generation_prompt": False}),
        ("/v1/chat/completions", {"messages": [HI, {**begun[1], "prefix": True}]}),
        ("/v1/messages", {"messages": begun}),
        ("/api/chat", {"messages": begun}),
    ]:
        status, answer = post(path, body)
        assert (status, tokens(path, answer)) == (200, count), (path, answer)
    assert tokens("/v1/chat/completions", post("/v1/chat/completions", {"messages": begun})[1]) == closed
    status, answer = post("/v1/chat/completions", {"messages": [HI], "continue_final_message": True})
    assert (status, answer["error"]["param"]) == (400, "continue_final_message")


@pytest.fixture
def spoken(wide_server):
    """Lets the model have another chat template, and gives its prompts as texts."""
    engine, scheduler = wide_server.engine, wide_server.server.models.loaded()["wide"].scheduler
    before, submit, seen = engine.template, scheduler.submit, []

    def use(template):
        engine.template = template
        return seen

    def spy(request, on_event):
        seen.append(engine.tokenizer.decode(request.prompt_ids, keep_special=True))
        return submit(request, on_event)

    scheduler.submit = spy
    yield use
    engine.template, scheduler.submit = before, submit


def test_orders_that_a_template_does_not_have(post_wide, spoken):
    turns = [{"role": "system", "content": "S"}, {"role": "system", "content": ""}, {"role": "user", "content": "1"},
             {"role": "system", "content": "2"}, {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"},
             {"role": "assistant", "content": "5"}, {"role": "user", "content": "6"}]  # fmt: skip
    joined = [
        {"role": "user", "content": "1\n\n2\n\n3"},
        {"role": "assistant", "content": "4\n\n5"},
        {"role": "user", "content": "6"},
    ]
    for name, messages in (
        ("chatml", turns),
        ("gemma-3", [turns[0], *joined]),
        ("mistral", [{"role": "user", "content": "S\n\n1\n\n2\n\n3"}, *joined[1:]]),
    ):
        template = ChatTemplate.named(name)
        prompts = spoken(template)
        for path, field in (
            ("/v1/chat/completions", "messages"),
            ("/v1/responses", "input"),
            ("/v1/messages", "messages"),
        ):
            assert post_wide(path, {field: turns})[0] == 200, (name, path)
            assert prompts[-1].strip() == template.render(messages).strip(), (name, path)


def test_a_thought_that_was_begun_goes_on_as_one(post_wide, spoken):
    marks = Marks("<think>", "</think>")
    spoken(replace(ChatTemplate.named("chatml"), thoughts=marks))
    body = {"continue_final_message": True, "temperature": 0}
    for begun, key in (("<think>Hm", "reasoning_content"), ("<think>Hm</think>So", "content"), ("So", "content")):
        turns = [HI, {"role": "assistant", "content": begun}]
        message = post_wide("/v1/chat/completions", {**body, "messages": turns}, 5)[1]["choices"][0]["message"]
        assert message[key], begun
        assert ("reasoning_content" in message) == (key == "reasoning_content")


ANSWER = {"role": "assistant", "content": "a"}
NOWHERE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}, {"type": "text", "text": "x"}]}
ELSEWHERE = {"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}
FOREIGN = {"type": "builtin_function", "function": {"name": "$web"}}
NAMELESS = {"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}
LISTED = {"type": "function", "name": "f", "parameters": []}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
HALF = [
    (CHAT, {"messages": [NOWHERE, ANSWER, HI]}, "messages.0: an image"),
    (CHAT, {"messages": [HI], "tools": [FOREIGN, None, TOOL]}, "tools.0: a tool of type"),
    (CHAT, {"messages": [HI], "tools": [TOOL, None]}, "tools.1: null is left out"),
    (CHAT, {"messages": [HI, {**ANSWER, "tool_calls": [None]}, HI]}, "a call without a function's name"),
    (CHAT, {"messages": [{"role": "user", "content": ["x", {"x": 1}]}]}, "a part of type 'none'"),
    (RESPONSES, {"input": [ELSEWHERE, ANSWER, HI]}, "messages.0: an image"),
    (RESPONSES, {"input": [{"type": "function_call", "arguments": {"a": 1}}, HI]}, "a function_call without a name"),
    (RESPONSES, {"input": [HI], "tools": [{"type": "function"}, LISTED]}, "tools.0: a tool without a name"),
    ("/v1/messages", {"messages": [NAMELESS, HI]}, "a tool_use block without a name"),
]


@pytest.mark.parametrize(("path", "body", "note"), HALF, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_half_there_is_left_out_and_said(post, path, body, note):
    status, answer = post(path, body)
    assert status == 200, answer
    assert any(note in found for found in answer["gangpao"]["left_out"]), answer


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/messages", "/api/chat"])
def test_parts_without_a_type_are_what_they_look_like(post, path):
    name = "input" if path == RESPONSES else "messages"
    counts = []
    for content in ("hello you", ["hello you"], [{"text": "hello you"}], [{"type": None, "text": "hello you"}]):
        status, answer = post(path, {name: [{"role": "user", "content": content}]})
        assert status == 200, answer
        counts.append(tokens(path, answer))
    assert len(set(counts)) == 1


def test_items_without_type_id_or_role_are_read(post):
    items = [
        {"type": None, "role": "user", "content": "x"}, {"content": "y"},
        {"type": "function_call", "name": "f", "arguments": {"a": 1}}, {"type": "function_call_output", "output": "1"}, HI,
    ]  # fmt: skip
    status, answer = post("/v1/responses", {"input": items, "instructions": []})
    assert status == 200, answer
    status, answer = post(
        "/v1/responses", {"input": None, "instructions": [{"type": "input_text", "text": "Be brief."}]}
    )
    assert status == 200, answer
    assert answer["instructions"] == [{"type": "input_text", "text": "Be brief."}]


def test_an_image_of_nothing_in_the_latest_question_is_refused(post):
    status, answer = post("/v1/responses", {"input": [ELSEWHERE]})
    assert (status, answer["error"]["param"]) == (400, "input")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_an_empty_form_is_no_form_of_any(post, path):
    body = (
        {"text": {"format": {}}, "input": "x"} if path == "/v1/responses" else {"response_format": {}, "messages": [HI]}
    )
    assert post(path, body)[0] == 400
