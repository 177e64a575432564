"""Runs of a tiny model over small data: the same scores at every batch and after every crash, and nothing hidden."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.graders.instructions.follow import accuracies, follow
from gangpao.evaluate.graders.instructions.prompts import instructions_of, rows
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.harness import Harness, answer_key
from gangpao.evaluate.models.load import facts_of, load
from gangpao.evaluate.models.protocol import Generated, Group, Prompt, Usage
from gangpao.evaluate.results import read_items, read_run
from gangpao.evaluate.run import check_suites, evaluate, tasks_of
from gangpao.evaluate.settings import Settings
from gangpao.formats.adapters import write_peft
from tests.engine.adapters import random_adapter
from tests.engine.tiny import write_tiny
from tests.evaluate import samples
from tests.evaluate.test_peer import Memory

TASKS = ("hellaswag", "arc_easy", "winogrande", "lambada", "mmlu", "cmmlu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf", context=1024)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(samples.write(tmp_path_factory.mktemp("data")))


def model_of(path, context=1024, **options):
    return EngineModel(Engine.load(path, context=context, num_threads=1), facts_of("tiny", path), **options)


def run(model, data, out, tasks=TASKS, **options):
    try:
        return evaluate(model, Settings(tasks=tasks, data=data, **options), out, quiet=True)
    finally:
        model.close()


def scores_in(result):
    return [(t.task, t.metric, t.value, t.stderr, t.items) for t in result.tasks]


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """A run of all tasks, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    return run(model_of(tiny), data, folder), folder


def test_a_run_says_what_was_asked_and_what_came(whole, tiny):
    result, folder = whole
    assert read_run(folder) == result
    assert result.model.sha256 == facts_of("tiny", tiny).sha256
    by_name = {(t.task, t.metric): t for t in result.tasks}
    assert set(by_name) >= {("hellaswag", "acc_norm"), ("arc_easy", "acc"), ("lambada", "perplexity"), ("mmlu", "acc")}
    assert [t.task for t in result.tasks if t.main] == list(TASKS)
    mmlu = by_name["mmlu", "acc"]
    assert (mmlu.shots, mmlu.items, mmlu.of, set(mmlu.parts)) == (5, 12, 12, {"sailing", "maps"})
    assert mmlu.data.startswith("mmlu_test.jsonl, sha256 ")
    assert mmlu.value == pytest.approx(sum(mmlu.parts.values()) / 2)
    items = list(read_items(folder, "mmlu"))
    assert [item.scores["acc"] for item in items].count(1.0) == round(12 * mmlu.value)
    assert len(items[0].answers) == 4
    assert items[0].prompt.endswith("Answer:")
    assert model_of(tiny).engine.tokenizer.decode(items[0].ids) == items[0].prompt
    assert result.notes == []
    assert result.tokens["cached"] > 0
    assert result.yuan is not None


def test_the_scores_are_the_model_s_own(whole, tiny):
    """Choices one by one, without the scorer, lm-eval and the journal."""
    engine = model_of(tiny).engine
    for item in list(read_items(whole[1], "arc_easy"))[:5]:
        found = []
        for answer in item.answers:
            context = engine.tokenizer.encode(item.prompt)
            ids = engine.tokenizer.encode(item.prompt + answer.text)
            rows = engine.model.forward(ids[:-1], engine.model.new_cache(1024), all_logits=True)
            rows = rows.astype(float) - [[np.logaddexp.reduce(row.astype(float))] for row in rows]
            found.append(sum(rows[at - 1, ids[at]] for at in range(len(context), len(ids))))
        assert [answer.logprob for answer in item.answers] == pytest.approx(found, abs=1e-6)
        assert item.scores["acc"] == float(max(range(4), key=lambda i: found[i]) == item.target)
        lengths = [len(answer.text) - 1 for answer in item.answers]
        assert item.scores["acc_norm"] == float(max(range(4), key=lambda i: found[i] / lengths[i]) == item.target)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_batch_and_order_change_nothing(whole, tiny, data, tmp_path, batch):
    tasks = TASKS if batch % 4 else TASKS[::-1]
    result = run(model_of(tiny, batch=batch), data, tmp_path, tasks)
    assert sorted(scores_in(result)) == sorted(scores_in(whole[0]))


def test_answers_are_the_same_at_every_batch(tiny):
    prompts = [Prompt(f"{n} and so", max_tokens=9 + n, stop=["z"]) for n in range(9)]
    prompts.append(Prompt("drawn", max_tokens=20, temperature=1.0, seed=5))
    made = []
    for batch in (1, 3, 8):
        model = model_of(tiny, batch=batch)
        made.append(dict(model.generate(prompts)))
        model.close()
    assert made[0] == made[1] == made[2]
    assert sorted(made[0]) == list(range(10))


def test_a_second_run_asks_nothing(whole, tiny, data, tmp_path):
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes((whole[1] / "journal.jsonl").read_bytes())
    model = model_of(tiny)
    result = run(model, data, folder)
    assert scores_in(result) == scores_in(whole[0])
    assert model.usage.prompt == 0
    more = run(model_of(tiny), data, folder, ("hellaswag",), limit=3)  # fewer items are no other run
    assert more.tasks[0].items == 3


def test_another_model_s_folder_is_refused(whole, tmp_path, data):
    other = write_tiny(tmp_path / "other.gguf", seed=3, context=1024)
    with pytest.raises(ValueError, match="holds answers of another run: model was"):
        run(model_of(other), data, whole[1])
    assert read_run(whole[1]) == whole[0]


CODE = """
import sys
sys.path.append(sys.argv[4])  # behind the installed package
from pathlib import Path
from tests.evaluate.test_run import model_of, run
model = model_of(Path(sys.argv[1]))
real = model.engine.model.step
def step(segments):
    print("step", flush=True)
    return real(segments)
model.engine.model.step = step
run(model, sys.argv[2], Path(sys.argv[3]), ("mmlu", "arc_easy", "hellaswag"))
"""


def test_after_kill_9_the_rest_is_asked(whole, tiny, data, tmp_path):
    """Killed three times at other places; nothing that was answered is asked again."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-P", "-c", CODE, str(tiny), data, str(tmp_path), root]
    for steps in (2, 9, 3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(steps):
            process.stdout.readline()
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) > 1
    result = run(model_of(tiny), data, tmp_path, ("mmlu", "arc_easy", "hellaswag"))
    names = {t.task for t in result.tasks}
    assert scores_in(result) == [
        row for name in ("mmlu", "arc_easy", "hellaswag") for row in scores_in(whole[0]) if row[0] == name
    ]
    assert names == {"mmlu", "arc_easy", "hellaswag"}
    keys = [json.loads(line).get("key") for line in (tmp_path / "journal.jsonl").read_bytes().splitlines()[1:]]
    asked = [key for key in keys if key != "spent"]
    assert len(asked) == len(set(asked))


def test_what_does_not_fit_is_counted_and_wrong(tiny, data, tmp_path):
    result = run(model_of(tiny, context=320), data, tmp_path, ("mmlu", "arc_easy"))
    mmlu = next(t for t in result.tasks if t.task == "mmlu")
    assert mmlu.left_out == {"too_long": 12}
    assert mmlu.value == 0.0
    items = list(read_items(tmp_path, "mmlu"))
    assert all(item.flags == ["too_long"] and item.answers[0].logprob is None for item in items)
    assert next(t for t in result.tasks if t.task == "arc_easy").left_out == {}


def test_items_of_a_corpus_are_told(tiny, data, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    question = samples.rows()["hellaswag_val"][4]["ctx"]
    long = question + " and waits for a while until the water of the pot boils over, which it does at last"
    (tmp_path / "data").mkdir()
    rows = [row | {"ctx": long if i == 4 else row["ctx"]} for i, row in enumerate(samples.rows()["hellaswag_val"])]
    (tmp_path / "data" / "hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "a.jsonl").write_text(json.dumps({"text": f"Once {long.upper()} the end."}) + "\n")
    out = tmp_path / "out"
    result = run(model_of(tiny), str(tmp_path / "data"), out, ("hellaswag",), corpus=corpus)
    task = result.tasks[0]
    assert task.contaminated == 1
    kept = [item.scores["acc_norm"] for i, item in enumerate(read_items(out, "hellaswag")) if i != 4]
    assert task.clean_value == pytest.approx(sum(kept) / 9)
    with pytest.raises(ValueError, match="no files of text"):
        run(model_of(tiny), data, tmp_path / "o2", ("hellaswag",), corpus=tmp_path / "m")


def test_what_a_suite_cannot_ask_is_left_out_and_told(tiny, data, tmp_path):
    tasks = ("arc_easy", "ceval", "humaneval")
    result = run(model_of(tiny), data, tmp_path / "a", tasks, optional=frozenset(tasks), limit=2)
    assert [t.task for t in result.tasks if t.main] == ["arc_easy"]
    assert [note.partition(":")[0] for note in result.notes] == ["ceval was left out", "humaneval was left out"]
    with pytest.raises(ValueError, match=r"ceval .* is not there"):
        run(model_of(tiny), data, tmp_path / "b", tasks, limit=2)
    with pytest.raises(ValueError, match="humaneval was left out: humaneval runs programs"):
        run(model_of(tiny), data, tmp_path / "c", ("humaneval",), optional=frozenset(["humaneval"]))


def test_suites_and_single_tasks_are_asked_once():
    assert tasks_of(["math", "gsm8k", "arc_easy", "their_task"]) == ("gsm8k", "math", "arc_easy", "their_task")


class Recorder:
    """A model that answers with the number of the request."""

    def __init__(self, path):
        self.facts, self.asked = facts_of("tiny", path), []

    def score(self, groups):
        self.asked += groups
        raise AssertionError

    def generate(self, prompts):
        for i, prompt in enumerate(prompts):
            self.asked.append(prompt)
            yield i, Generated(f"answer {len(self.asked)}", "stop", 2)


def test_samples_of_one_prompt_differ_and_come_back(tiny, tmp_path):
    from lm_eval.api.instance import Instance

    from gangpao.evaluate.journal import Journal

    model = Recorder(tiny)
    options = {"until": ["x", ""], "do_sample": True, "temperature": 0.7, "max_gen_toks": 5}
    request = Instance("generate_until", {}, ("go", options), 0)
    with Journal(tmp_path, {}) as journal:
        harness = Harness(model, journal, lambda *_: None, seed=3)
        assert harness.generate_until([request] * 3) == ["answer 1", "answer 2", "answer 3"]
        seeds = [prompt.seed for prompt in model.asked]
        assert len(set(seeds)) == 3
        assert model.asked[0] == replace(model.asked[1], seed=seeds[0])
        assert (model.asked[0].stop, model.asked[0].max_tokens, model.asked[0].temperature) == (["x"], 5, 0.7)
        assert harness.generate_until([request] * 3) == ["answer 1", "answer 2", "answer 3"]
        assert len(model.asked) == 3
        greedy = Instance("generate_until", {}, ("go", {"until": "x"}), 0)
        harness.generate_until([greedy])
        assert (model.asked[3].temperature, model.asked[3].seed, model.asked[3].max_tokens) == (0.0, None, 256)


def test_a_server_gets_the_messages_and_scores_no_conversation(tiny, tmp_path):
    from lm_eval.api.instance import Instance

    model = Recorder(tiny)
    model.renders = False

    def none(messages):
        raise ValueError("renders conversations itself")

    model.prompt_of = none
    harness = Harness(model, Memory(), lambda *_: None)
    chat = harness.apply_chat_template([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}])
    assert harness.generate_until([Instance("generate_until", {}, (chat, {"until": []}), 0)]) == ["answer 1"]
    assert [m["content"] for m in model.asked[0].messages] == ["be brief", "hi"]
    with pytest.raises(ValueError, match="renders conversations itself"):
        harness.loglikelihood([Instance("loglikelihood", {}, (chat, " yes"), 0)])


def test_keys_of_answers_hold_all_that_changes_them():
    prompt = Prompt("a", max_tokens=3)
    others = [
        replace(prompt, text="b"), replace(prompt, max_tokens=4), replace(prompt, stop=["x"]), replace(prompt, think=True),
        replace(prompt, messages=[{"role": "user", "content": "a"}]), replace(prompt, temperature=1.0), replace(prompt, seed=1),
        replace(prompt, think_budget=5),
    ]  # fmt: skip
    assert len({answer_key(p) for p in [prompt, *others]}) == 9


def test_groups_that_have_no_ending_are_answered_too(tiny):
    model = model_of(tiny, context=64)
    found = dict(model.score([Group("x" * 200, ["a", "b"]), Group("x", ["a"])]))
    assert [score.fault for score in found[0]] == ["too_long", "too_long"]
    assert found[1][0].fault == ""


class Said:
    """A model that says what it is told to say, by what stands in the prompt."""

    def __init__(self, path, answers):
        self.facts, self.answers = facts_of("tiny", path), answers
        self.usage = Usage()
        self.renders = True
        self.settings = {}

    def prompt_of(self, messages):
        return messages[-1]["content"]

    def ids_of(self, prompt):
        return [7]

    def generate(self, prompts):
        for i, prompt in enumerate(prompts):
            found = [said for part, said in self.answers.items() if part in prompt.text]
            yield i, found[-1] if found else Generated("", "stop")

    def close(self):
        pass


def test_written_answers_are_graded_and_thoughts_counted(tiny, data, tmp_path):
    answers = {
        "Question: 0 + 2?\nAnswer:": Generated(" It is 2.\n#### 2", "stop", 9),
        "Question: 1 + 2?\nAnswer:": Generated(" so 4", "length", 9),
        "Question: 2 + 2?\nAnswer:": Generated("4", "stop", 30, thinking="2, 2", thinking_tokens=20),
        "Question: 3 + 2?\nAnswer:": Generated("", "length", 50, thinking="3, 2", thinking_tokens=50, in_thought=True),
    }
    result = run(Said(tiny, answers), data, tmp_path, ("gsm8k",))
    task = result.tasks[0]
    assert (task.metric, task.value, task.mode, task.shots) == ("exact_match", 0.5, "generation", 8)
    assert task.grader.startswith("gangpao-gsm8k ")
    assert (task.thinking.answers, task.thinking.mean_tokens) == (2, 35.0)
    assert (task.thinking.at_limit, task.thinking.empty) == (0.25, 0.25)
    items = list(read_items(tmp_path, "gsm8k"))
    assert [item.flags for item in items] == [[], ["at_limit"], [], ["at_limit_in_thought", "empty_answer"]]
    assert items[0].extra["extracted"] == "2"
    assert items[2].extra["thinking"] == "2, 2"


@pytest.mark.usefixtures("caged")
def test_programs_are_run_only_where_that_was_allowed(tiny, tmp_path):
    row = {
        "task_id": "T/0", "prompt": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
    }  # fmt: skip
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(row) + "\n")
    good = {"Twice x": Generated("\n    return 2 * x", "stop", 5)}
    with pytest.raises(ValueError, match="--run-code"):
        run(Said(tiny, good), str(tmp_path), tmp_path / "o1", ("humaneval",))
    result = run(Said(tiny, good), str(tmp_path), tmp_path / "o2", ("humaneval",), run_code=True)
    assert (result.tasks[0].metric, result.tasks[0].value) == ("pass@1", 1.0)
    bad = {"Twice x": Generated("\n    return 3 * x", "stop", 5)}
    assert run(Said(tiny, bad), str(tmp_path), tmp_path / "o3", ("humaneval",), run_code=True).tasks[0].value == 0.0
    fenced = {"Twice x": Generated("Here:\n```python\ndef double(x):\n    return x + x\n```", "stop", 5)}
    assert (
        run(Said(tiny, fenced), str(tmp_path), tmp_path / "o4", ("humaneval",), run_code=True, chat=True).tasks[0].value
        == 1.0
    )


def test_instructions_are_checked_by_programs(tiny, tmp_path):
    result = run(Said(tiny, {}), None, tmp_path, ("instructions",), limit=6)
    names = ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]
    assert [(t.metric, t.value, t.items) for t in result.tasks] == [(name, 0.0, 6) for name in names]
    assert set(result.tasks[0].parts) == {"en", "zh"}
    said = Said(tiny, {"": Generated("One line, in small letters.", "stop", 3)})
    result = run(said, None, tmp_path / "more", ("instructions",))
    answers = [follow("One line, in small letters.", instructions_of(row)) for row in rows()]
    wanted = accuracies(answers)
    for task in result.tasks:
        assert (task.value, task.stderr) == pytest.approx(wanted[task.metric])
    assert 0 < wanted["prompt_strict"][0] < wanted["instruction_strict"][0] < 1


def test_an_adapter_is_part_of_the_model_and_of_what_names_a_run(tiny, tmp_path):
    config = Engine.load(tiny, context=64, num_threads=1).model.config
    write_peft(tmp_path / "adapter", random_adapter(config, 1))
    adapters = {"a": (tmp_path / "adapter", 0.5)}
    options = EngineOptions(context=1024, threads=1)
    model = load(str(tiny), options, batch=2, adapters=adapters)
    assert model.settings["adapters"]["a"]["scale"] == 0.5
    assert len(model.settings["adapters"]["a"]["sha256"]) == 64
    plain = load(str(tiny), options, batch=2)
    assert "adapters" not in plain.settings
    group = Group("once upon a time", (" there", " was"))
    scores = [[score.logprob for score in next(one.score([group]))[1]] for one in (model, plain)]
    assert scores[0] != scores[1]
    model.close()
    plain.close()
    with pytest.raises(ValueError, match="--adapter: only our own engine"):
        load("http://127.0.0.1:1/v1", options, batch=2, adapters=adapters)


def test_a_last_word_behind_too_much_text_is_counted(tiny, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"context": "One of the", "continuation": "keys"}, {"context": "far " * 300, "continuation": "off"}]
    (tmp_path / "data" / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(model_of(tiny, context=320), str(tmp_path / "data"), tmp_path / "out", ("lambada",))
    by_name = {t.metric: t for t in result.tasks}
    assert (by_name["acc"].items, by_name["acc"].left_out) == (2, {"too_long": 1})
    assert by_name["perplexity"].items == 1
    said = [item.answers[0].logprob for item in read_items(tmp_path / "out", "lambada")]
    assert by_name["perplexity"].value == pytest.approx(np.exp(-said[0]))
    assert said[1] is None


def test_prompts_are_listed_whole(tiny, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"context": "word " * 5000 + "One of the", "continuation": "keys"}]
    (tmp_path / "data" / "lambada.jsonl").write_text(json.dumps(rows[0]) + "\n")
    run(model_of(tiny, context=320), str(tmp_path / "data"), tmp_path / "out", ("lambada",))
    assert next(read_items(tmp_path / "out", "lambada")).prompt == rows[0]["context"]


def test_both_beginnings_of_one_end_are_listed(whole):
    item = next(read_items(whole[1], "winogrande"))
    assert item.prompt == "The ball hit the vase so the ball\nThe ball hit the vase so the vase"


def test_what_a_killed_part_cost_is_kept(tiny, data, tmp_path):
    """And a second look at a finished run leaves its tokens as they are."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    slow = CODE.replace('print("step", flush=True)', 'print("step", flush=True); import time; time.sleep(0.1)')
    command = [sys.executable, "-P", "-c", slow, str(tiny), data, str(tmp_path), root]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    for _ in range(30):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    model = model_of(tiny)
    result = run(model, data, tmp_path, ("mmlu", "arc_easy", "hellaswag"))
    assert result.tokens["prompt"] > model.usage.prompt
    assert result.seconds >= 2.0
    again = run(model_of(tiny), data, tmp_path, ("mmlu", "arc_easy", "hellaswag"))
    assert again.tokens == result.tokens
    assert again.seconds >= result.seconds


def test_a_second_command_adds_its_tasks(tiny, data, tmp_path):
    first = run(model_of(tiny), data, tmp_path, ("arc_easy",), suite="one")
    both = run(model_of(tiny), data, tmp_path, ("lambada",), suite="two")
    assert {t.task for t in both.tasks} == {"arc_easy", "lambada"}
    assert [t for t in both.tasks if t.task == "arc_easy"] == first.tasks
    assert (both.suite, both.notes) == ("one two", ["Of an earlier command into this folder: arc_easy."])
    assert read_run(tmp_path) == both
    again = run(model_of(tiny), data, tmp_path, ("arc_easy", "lambada"), suite="one")
    assert [t.task for t in again.tasks if t.main] == ["arc_easy", "lambada"]
    assert again.notes == []
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(ValueError, match=r"scores of another run, with another seed: choose another --out"):
        run(model_of(tiny), data, tmp_path, ("lambada",), seed=4)
    assert read_run(tmp_path) == again


def test_suites_that_are_none_are_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"'nosuch': there is no such suite. There are minicpm, quick"):
        check_suites(["quick", "nosuch"])
    with pytest.raises(ValueError, match=r"it is a task: --task piqa"):
        check_suites(["piqa"])


def test_answers_of_a_wrong_form_are_asked_again(whole, tiny, data, tmp_path):
    lines = (whole[1] / "journal.jsonl").read_text().splitlines(keepends=True)
    broken = [line for line in lines if "hell" not in line]
    kept = json.loads(broken[3])
    broken[3] = json.dumps({"key": kept["key"], "answer": {"x": 1}}) + "\n"
    broken[5] = json.dumps({"key": "abc"}) + "\n"
    broken[7] = "\x00garbage\n"
    (tmp_path / "journal.jsonl").write_text("".join(broken))
    result = run(model_of(tiny), data, tmp_path)
    assert scores_in(result) == scores_in(whole[0])
    assert result.notes == [
        "journal.jsonl has damaged lines: 3. They are not used, and what they answered is asked again."
    ]
