"""A checkpoint folder scores and writes as transformers does, and with the same bits in any company."""

import random

import pytest

torch = pytest.importorskip("torch")

from gangpao.deploy.gguf import export  # noqa: E402
from gangpao.engine.generate import Engine  # noqa: E402
from gangpao.engine.memory import EngineOptions  # noqa: E402
from gangpao.evaluate.models.checkpoint import CHUNK, Checkpoint, CheckpointModel  # noqa: E402
from gangpao.evaluate.models.gguf import EngineModel  # noqa: E402
from gangpao.evaluate.models.load import load  # noqa: E402
from gangpao.evaluate.models.protocol import Group, Prompt  # noqa: E402
from gangpao.evaluate.results import ModelFacts  # noqa: E402
from gangpao.model import weights  # noqa: E402
from gangpao.model.config import RopeScaling  # noqa: E402
from gangpao.model.transformer import Transformer  # noqa: E402
from tests.model.tiny import tiny  # noqa: E402
from tests.text.hf_folder import byte_level, save  # noqa: E402

torch.set_num_threads(1)  # more of them spin in each other's way beside other tests


def folder_of(path, kind, **fields):
    """A random model with a tokenizer, as a folder. Its weights are large enough for answers that are no repetition."""
    model = Transformer.build(tiny(kind, **fields), seed=3)
    weights.save(path, model.config, weights.state(model))
    return save(path, byte_level(), generation={"eos_token_id": 1})


@pytest.fixture(scope="module", params=["llama", "minicpm"])
def pair(request, tmp_path_factory):
    """Ours, and transformers' Llama of the same weights (MiniCPM's scales are multiplied into them)."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("models") / request.param
    ours = Checkpoint.load(folder_of(path, request.param))
    plain = path
    if request.param == "minicpm":
        folded = weights.fold_to_llama(ours.model.config, weights.state(ours.model))
        plain = weights.save(path.with_name("folded"), *folded)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager")
    return ours, theirs.eval()


def ids_of(count, seed):
    return random.Random(seed).choices(range(5, 320), k=count)


def items(lengths=(1, 7, 40, CHUNK, CHUNK + 1, 170)):
    """Contexts, some of which begin alike, with endings of one to nine ids, more than go together in one pass."""
    head = ids_of(CHUNK + 3, 99)
    contexts = [ids_of(n, n) for n in lengths] + [head + ids_of(n, n) for n in (5, 6, 20)]
    endings = [[ids_of(1 + (3 * i + k) % 9, 100 * i + k) for k in range(2 + 3 * i % 11)] for i in range(len(contexts))]
    return contexts, endings


def expected(theirs, context, ending):
    with torch.no_grad():
        logits = theirs(torch.tensor([context + ending[:-1]])).logits[0, len(context) - 1 :]
    targets = torch.tensor(ending)
    logprobs = logits.double().log_softmax(-1).gather(-1, targets[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == targets).all())


def test_scores_equal_those_of_transformers(pair):
    ours, theirs = pair
    contexts, endings = items()
    with torch.no_grad():  # one ending that greedy decoding would have said, of three tokens
        said = ours.generate([contexts[2]], 3)[0].ids
    endings[2].append(said)
    found = ours.score(contexts, endings)
    assert found[2][-1][1]
    for context, those, scores in zip(contexts, endings, found, strict=True):
        for ending, (logprob, greedy) in zip(those, scores, strict=True):
            logprob_hf, greedy_hf = expected(theirs, context, ending)
            assert logprob == pytest.approx(logprob_hf, abs=1e-5 * len(ending))
            assert greedy == greedy_hf


def test_scores_have_the_same_bits_in_any_company(pair):
    ours, _ = pair
    contexts, endings = items()
    together = ours.score(contexts, endings)
    fresh = [Checkpoint(ours.model, ours.tokenizer, ours.limit) for _ in contexts]
    alone = [one.score([c], [e])[0] for one, c, e in zip(fresh, contexts, endings, strict=True)]
    assert together == alone
    order = random.Random(0).sample(range(len(contexts)), len(contexts))
    again = ours.score([contexts[i] for i in order], [endings[i] for i in order])
    assert again == [together[i] for i in order]
    for size in (1, 2, 4, 8):
        parts = [range(len(contexts))[at : at + size] for at in range(0, len(contexts), size)]
        found = [row for part in parts for row in ours.score([contexts[i] for i in part], [endings[i] for i in part])]
        assert found == together


def test_a_common_beginning_is_computed_once(pair):
    model = Checkpoint(pair[0].model, pair[0].tokenizer, pair[0].limit)
    head = ids_of(CHUNK, 1)
    model.score([[*head, 5], [*head, 6, 7], head], [[[8]], [[9]], [[10]]])
    # All of the first; behind the shared piece of the second; the third needs the row behind its last id.
    assert (model.computed, model.cached) == (CHUNK + 1 + 2 + CHUNK, CHUNK)


def test_only_scored_rows_meet_the_head(pair, monkeypatch):
    ours, _ = pair
    rows, logits = [], ours.model.logits
    monkeypatch.setattr(ours.model, "logits", lambda h: rows.append(h.numel() // h.shape[-1]) or logits(h))
    ours.score([ids_of(50, 1)], [[[5, 6, 7], [8], [9, 10]]])
    assert sum(rows) == 1 + 2 + 1


def test_greedy_answers_equal_those_of_transformers(pair):
    ours, theirs = pair
    prompts = [ids_of(n, n) for n in (1, 9, CHUNK, 200)]
    found = ours.generate(prompts, 24)
    for prompt, answer in zip(prompts, found, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=24, eos_token_id=sorted(ours.tokenizer.end_ids), pad_token_id=0,
        )  # fmt: skip
        assert answer.ids == out[0, len(prompt) :].tolist()
        assert answer.finish == ("stop" if answer.ids[-1] in ours.tokenizer.end_ids else "length")
    assert ours.generate(prompts[::-1], 24) == found[::-1]


def test_draws_follow_the_seed_and_stop_strings_end(pair):
    ours, _ = pair
    prompt = ids_of(12, 5)
    one, other = (ours.generate([prompt] * 2, 30, temperature=1.0, seed=seed) for seed in (1, 2))
    assert one[0] == one[1] == ours.generate([prompt], 30, temperature=1.0, seed=1)[0]
    assert one[0].ids != other[0].ids
    text = one[0].text
    stop = text[5:7]
    stopped = ours.generate([prompt], 30, [stop], temperature=1.0, seed=1)[0]
    assert (stopped.text, stopped.finish) == (text[: text.index(stop)], "stop")
    assert len(stopped.ids) < len(one[0].ids)


def test_an_answer_fills_the_context_and_not_more(pair):
    ours, _ = pair
    prompt = ids_of(ours.limit - 3, 5)
    answer = ours.generate([prompt], 99, temperature=1.0, seed=4)[0]
    assert (len(answer.ids), answer.finish) == (4, "length")  # nothing is computed behind the last


@pytest.mark.parametrize("kind", ["qwen3", "moe", "mla"])
def test_every_architecture_of_the_lab(kind, tmp_path):
    """Scores in pieces behind a cache are those of one pass."""
    ours = Checkpoint.load(folder_of(tmp_path / "m", kind))
    contexts, endings = items((3, CHUNK + 5))
    for context, those, scores in zip(contexts, endings, ours.score(contexts, endings), strict=True):
        for ending, (logprob, _) in zip(those, scores, strict=True):
            assert logprob == pytest.approx(in_one_pass(ours, context, ending), abs=2e-5 * len(ending))


def in_one_pass(ours, context, ending):
    with torch.no_grad():
        hidden = ours.model(torch.tensor([context + ending[:-1]])).hidden[0, len(context) - 1 :]
        return float(ours.model.logits(hidden).log_softmax(-1).gather(-1, torch.tensor(ending)[:, None]).sum())


def test_angles_that_depend_on_the_length(tmp_path):
    """longrope: what is short is scored with the short factors, whatever stands beside it."""
    half = 8
    scaling = RopeScaling(
        rope_type="longrope", short_factor=[1.0] * half, long_factor=[3.0] * half, original_max_position_embeddings=64
    )
    ours = Checkpoint.load(folder_of(tmp_path / "m", "minicpm", rope_scaling=scaling))
    contexts = [ids_of(60, 1), ids_of(62, 1), ids_of(140, 1), ids_of(20, 1)]
    endings = [[[5, 6], [7]], [[5, 6, 7, 8, 9]], [[5, 6]], [[9, 8, 7]]]
    found = ours.score(contexts, endings)
    for context, those, scores in zip(contexts, endings, found, strict=True):
        for ending, (logprob, _) in zip(those, scores, strict=True):
            assert logprob == pytest.approx(in_one_pass(ours, context, ending), abs=1e-4)
    assert [ours.score([c], [e])[0] for c, e in zip(contexts, endings, strict=True)] == found


def test_mistakes_are_said(pair, tmp_path):
    ours, _ = pair
    for context, ending, match in (
        ([], [5], "item 1: an empty context"), ([5], [], "item 1: an empty ending"), ([5], [320], "id 320 does not exist"),
        ([-1], [5], "id -1"), ([5] * 250, [5] * 8, "item 1: 257 ids, and the context holds 256"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            ours.score([[5], context], [[[5]], [ending]])
    assert ours.score([[5] * 250], [[[5] * 7]])  # as many as fit
    assert ours.score([[5], [6]], [[], [[7]]])[0] == []
    with pytest.raises(ValueError, match="the prompt: 257 ids"):
        ours.generate([[5] * 257], 3)
    path = folder_of(tmp_path / "m", "llama")
    with pytest.raises(ValueError, match="--context 999: this model knows 1 to 256"):
        Checkpoint.load(path, context=999)
    with pytest.raises(ValueError, match="dtype 'int3'"):
        Checkpoint.load(path, dtype="int3")
    assert Checkpoint.load(path, context=100, dtype="bfloat16", device="cpu").score([[5]], [[[6]]])[0][0][0] < 0
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no model\.safetensors"):
        Checkpoint.load(path)


def test_a_training_run_is_its_export(tmp_path):
    folder_of(tmp_path / "run/export", "llama")
    (tmp_path / "run/run.json").write_text("{}")
    assert Checkpoint.load(tmp_path / "run").limit == 256


# --- as a Model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of weights in torch, and the same weights as a GGUF file in our engine."""
    folder = folder_of(tmp_path_factory.mktemp("both") / "small", "llama")
    ours = CheckpointModel.load(folder, EngineOptions(), batch=4)
    path = folder.with_name("small.gguf")
    export(folder, path, "F32")
    engine = Engine.load(path)
    return ours, EngineModel(engine, ModelFacts(name="small", kind="gguf")), folder


GROUPS = [
    Group("def f(x):", [" return x", " x + 1", ""]),
    Group("", ["hello world", "你好"]),
    Group("hello world and", []),
    Group("hello " * 100, [" again", " brown" * 300]),
]


def test_texts_are_scored_as_in_the_engine(models):
    """The same ids, faults and counts; log-probabilities as near as eight-bit activations come."""
    ours, engine, _ = models
    mine, theirs = dict(ours.score(GROUPS)), dict(engine.score(GROUPS))
    assert mine.keys() == theirs.keys() == set(range(len(GROUPS)))
    for i in mine:
        assert [(s.tokens, s.fault) for s in mine[i]] == [(s.tokens, s.fault) for s in theirs[i]]
        assert [s.logprob for s in mine[i]] == pytest.approx([s.logprob for s in theirs[i]], rel=0.02)
    faults = [[s.fault for s in mine[i]] for i in range(len(GROUPS))]
    assert faults == [["", "", "empty_choice"], ["", ""], [], ["", "too_long"]]
    text = "The quick brown fox; naïve café 1234 " * 12  # more than one window
    (_, mine_rolled), (_, theirs_rolled) = next(ours.roll([text])), next(engine.roll([text]))
    assert mine_rolled == pytest.approx(theirs_rolled, rel=0.02)


def test_prompts_are_answered(models):
    ours, _, folder = models
    prompts = [
        Prompt("def f(x):", max_tokens=12), Prompt("hello " * 300), Prompt("def f(x):", max_tokens=12, temperature=1.0, seed=3),
        Prompt(messages=[{"role": "user", "content": "hello"}], max_tokens=5),
    ]  # fmt: skip
    found = dict(ours.generate(prompts))
    ids = ours.checkpoint.tokenizer.encode("def f(x):")
    greedy = ours.checkpoint.generate([ids], 12)[0]
    assert (found[0].text, found[0].finish, found[0].prompt_tokens) == (greedy.text, greedy.finish, len(ids))
    assert found[1].finish == "too_long"
    assert found[2] == dict(ours.generate(prompts))[2]
    assert 0 < found[3].tokens <= 5
    stop = found[2].text[4:6]
    cut = dict(ours.generate([Prompt("def f(x):", max_tokens=12, temperature=1.0, seed=3, stop=[stop])]))[0]
    assert (cut.text, cut.finish) == (found[2].text.partition(stop)[0], "stop")
    assert ours.usage.completion > 0
    assert ours.usage.cached == 0
    assert ours.prompt_of([{"role": "user", "content": "hello"}])
    facts = ours.facts
    assert (facts.name, facts.kind, facts.architecture, facts.quantization) == (
        "small",
        "checkpoint",
        "llama",
        "float32",
    )
    assert facts.parameters == sum(p.numel() for p in ours.checkpoint.model.parameters())
    assert (facts.context, len(facts.sha256)) == (256, 64)
    assert facts.bytes == (folder / "model.safetensors").stat().st_size
    assert ours.settings["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    ours.close()
    assert load(str(folder), EngineOptions(), batch=1, torch=True).facts == facts


def test_a_long_ending_is_scored_in_pieces(pair):
    ours, theirs = pair
    context, ending = ids_of(3, 1), ids_of(2 * CHUNK - 3, 2)
    short = ids_of(5, 3)
    found = ours.score([context], [[ending, short]])[0]
    for those, score in zip((ending, short), found, strict=True):
        assert score[0] == pytest.approx(expected(theirs, context, those)[0], abs=1e-5 * len(those))
