"""What is not given: each API's own defaults, and the model's where the API says so."""

import pytest

from gangpao.engine.sample import SamplingParams
from gangpao.engine.transformer import greedy
from tests.llama_oracle import LlamaOracle

TABLE = "```\nid,name,ok\n" + "".join(f"{i},0,0\n" for i in range(1, 7)) + "```"
ASKS = [
    f"Repeat this CSV exactly, nothing else:\n{TABLE}",
    'Write this JSON again with the key name changed to title: {"name": "a", "pages": 3}',
    "Count from 1 to 20, one number a line.",
]


def of_chat(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("ask", ASKS)
def test_temperature_0_is_the_largest_logit_at_every_step(live_server, wire, reference, ask):
    """No penalty that nobody asked for: what repeats may be repeated."""
    messages = [{"role": "user", "content": ask}]
    answer = wire.post(
        f"{live_server.base_url}/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 24}
    )
    said = answer.json()
    ids = greedy(reference.engine.model, reference.prompt(messages), said["usage"]["completion_tokens"])
    assert of_chat(said) == reference.engine.tokenizer.decode(ids, start=True)


@pytest.mark.slow
@pytest.mark.parametrize("ask", [ASKS[0], ASKS[2]])  # the other has two first tokens that are equally likely
def test_greedy_text_is_that_of_llama_cpp(live_server, wire, reference, model_path, ask):
    messages = [{"role": "user", "content": ask}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 60}
    ours = of_chat(wire.post(f"{live_server.base_url}/v1/chat/completions", json=body).json())
    with LlamaOracle(model_path("smollm2-135m"), n_ctx=512) as oracle:
        assert ours == oracle.greedy(reference.prompt(messages), 60)


def test_each_api_has_its_own_defaults(live_server, wire, reference):
    """OpenAI's three and Anthropic's change nothing; Ollama's are the model's, and so are ours where they are asked for."""
    messages = [{"role": "user", "content": "Tell me a story."}]
    plain = reference.text(messages, SamplingParams(seed=5, max_tokens=12))
    models = reference.text(messages, live_server.engine.recommended(seed=5, max_tokens=12))
    assert plain != models
    base = {"seed": 5, "max_tokens": 12}

    def ask(path, **body):
        answer = wire.post(live_server.base_url + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert of_chat(ask("/v1/chat/completions", messages=messages, **base)) == plain
    assert of_chat(ask("/v1/chat/completions", messages=messages, model_defaults=True, **base)) == models
    options = {"seed": 5, "num_predict": 12}
    chat = ask("/api/chat", messages=messages, options=options, stream=False)
    assert chat["message"]["content"] == models
    generate = ask("/api/generate", prompt="Tell me a story.", options=options, stream=False)
    assert generate["response"] == models
    mild = ask(
        "/api/chat", messages=messages, options={**options, "temperature": 1.0, "top_p": 1.0, "top_k": 0}, stream=False
    )
    assert mild["message"]["content"] == plain
