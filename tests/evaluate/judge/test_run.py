"""Whole runs with a stand-in judge over HTTP: single marks, pairs, arenas; broken judges; kill -9 and on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.judge import prompts, questions
from gangpao.evaluate.judge.command import judge, table
from gangpao.evaluate.judge.questions import read_answers
from gangpao.evaluate.judge.run import Settings, run
from gangpao.evaluate.judge.talk import Manner
from gangpao.evaluate.models.endpoint import Endpoint
from gangpao.evaluate.models.load import load
from gangpao.evaluate.models.price import Price
from gangpao.evaluate.models.protocol import Generated
from gangpao.evaluate.results import read_items, read_run
from gangpao.progress import Progress
from tests.child import ROOT, environment
from tests.commands.fake_server import answer, fake
from tests.evaluate.judge.stand_in import Rule, Talker, judge_at, judged_text, part
from tests.serve.conftest import tiny_path, tiny_server  # noqa: F401

SAMPLE = questions.load(None)
OWN = prompts.load()


@pytest.fixture(autouse=True)
def no_key_and_one_picture(monkeypatch, request):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if request.node.name != "test_single_marks":  # matplotlib takes its time
        monkeypatch.setattr("gangpao.evaluate.judge.radar.draw", lambda *_: None)


def judged(out, rule=None, talker=None, chosen=SAMPLE, settings=None, **options):
    with judge_at(rule or Rule()) as judging:
        return run(talker or Talker(), [judging], chosen, OWN, settings or Settings(), out, quiet=True, **options)


def test_single_marks(tmp_path):
    rule, talker = Rule(), Talker()
    result = judged(tmp_path, rule, talker, settings=Settings(price=Price(2, 8)))
    assert read_run(tmp_path) == result
    main = result.tasks[0]
    said = read_answers(tmp_path)
    marks = {name: [len(text) % 10 + 1 for text in turns] for name, turns in said.items()}
    assert (main.task, main.metric, main.mode, main.scale) == ("judge_sample", "score", "judge", 10)
    assert main.value == pytest.approx(sum(map(sum, marks.values())) / 16)
    assert (main.items, main.of, main.left_out) == (16, 16, {})
    by_category = {q.category: sum(marks[q.id]) / 2 for q in SAMPLE.questions}
    assert main.parts == by_category
    assert [t.metric for t in result.tasks] == ["score", "score_turn_1", "score_turn_2"]
    assert len(rule.answered) == len(set(rule.answered)) == 16
    items = list(read_items(tmp_path, "judge_sample"))
    assert [i.item for i in items[:3]] == ["1/1", "1/2", "2/1"]
    assert items[1].scores == {"score": marks["1"][1]}
    assert items[1].prompt in [p.messages for p in talker.asked]
    assert "<right_answer>" in items[4].extra["judgments"][0]["prompt"][-1]["content"]
    assert (tmp_path / "radar.svg").read_text().startswith("<?xml")
    assert any("no substitute" in note for note in result.notes)
    assert "0.0045 yuan" in result.notes[-1]  # 1,600 tokens at 2 and 160 at 8
    assert "judge_sample" in table(result)
    assert "sk-" not in (tmp_path / "results.json").read_text()


def test_temperatures_and_turns_are_the_published(tmp_path):
    talker = Talker()
    judged(tmp_path, talker=talker, settings=Settings(manner=Manner(seed=5, max_tokens=77)))
    wanted = {q.turns[0]: questions.TEMPERATURES[q.category] for q in SAMPLE.questions}
    assert {p.messages[0]["content"]: p.temperature for p in talker.asked} == wanted
    assert {(p.seed, p.max_tokens, p.think) for p in talker.asked} == {(5, 77, None)}
    second = [p for p in talker.asked if len(p.messages) == 3]
    assert len(second) == 8
    assert {p.messages[1]["content"] for p in second} == {turns[0] for turns in read_answers(tmp_path).values()}


def test_a_missing_mark_is_asked_for_once_more_and_then_counted(tmp_path):
    stubborn = SAMPLE.questions[0].turns[0]
    seen = []

    def say(prompt):
        seen.append(prompt)
        if prompt == OWN.again.mark:
            return "[[6]]" if len([s for s in seen if s == prompt]) != 2 else "I would rather not. [[12]]"
        if part(prompt, "question") in (stubborn, SAMPLE.questions[1].turns[0]):
            return "A fine answer [3], 9 of 10."
        return "Mark: [[4]]"

    with judge_at(Rule(say)) as judging:
        result, again = (run(Talker(), [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True) for _ in range(2))
    main = result.tasks[0]
    assert (main.items, main.left_out) == (15, {"no_verdict": 1})
    assert main.value == pytest.approx((14 * 4 + 6) / 15)
    assert any("15 of 16 judgments hold a verdict; 2 were asked for twice" in note for note in result.notes)
    # A second run asks for the missing one alone, from its first question on.
    assert len(seen) == 20
    assert (again.tasks[0].items, again.tasks[0].left_out) == (16, {})
    assert again.tasks[0].value == pytest.approx((14 * 4 + 6 + 6) / 16)
    assert not any(item.flags for item in read_items(tmp_path, "judge_sample"))


def test_a_judge_that_was_repaired_is_asked_again(tmp_path):
    rule, talker = Rule(lambda _: "Nice."), Talker()
    with judge_at(rule) as judging:
        with pytest.raises(ValueError, match=r"none of 16 judgments"):
            run(talker, [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True)
        rule.say = lambda _: "Mark: [[4]]"
        result = run(talker, [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True)
        again = run(talker, [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True)
    assert (result.tasks[0].value, result.tasks[0].left_out) == (4, {})
    assert again.tasks == result.tasks
    assert (len(talker.asked), len(rule.answered)) == (16, 16 + 16 + 16)


def test_a_judge_that_never_marks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"judge one.*none of 16 judgments.*the first says 'Nice\.'"):
        judged(tmp_path, Rule(lambda _: "Nice."))


def test_a_rough_judge_is_borne(tmp_path):
    calls = []

    def before(asked):
        calls.append(asked)
        number = len(calls)
        if number == 2:
            return answer(429, {"error": {"message": "slow down"}}, Retry_After_Ms="50")
        if number == 3:
            return [None]  # hangs up
        if number == 4:
            return answer(200, b'{"choices": [')
        if number == 5:
            time.sleep(0.2)
        return answer(503, b"", Retry_After="0") if number == 6 else None

    result = judged(tmp_path, Rule(before=before))
    assert result.tasks[0].items == 16
    assert len(calls) == 20


def test_a_further_judge_costs_its_own_requests_only(tmp_path):
    first, second, talker = Rule(), Rule(lambda p: f"[[{min(10, len(judged_text(p)) % 10 + 2)}]]"), Talker()
    judged(tmp_path, first, talker)
    asked = len(talker.asked)
    with fake(first) as a, fake(second) as b:
        ends = [Endpoint(server.url, concurrency=2) for server in (a, b)]
        result = run(talker, ends, SAMPLE, OWN, Settings(), tmp_path, quiet=True)
        for end in ends:
            end.close()
    assert len(talker.asked) == asked
    found = {t.metric: t for t in result.tasks}
    assert found["agreement_within_1"].value == 1
    assert found["agreement_exact"].value < 0.5
    assert 0.8 < found["agreement_spearman"].value <= 1
    assert found["score_second_judge"].value > found["score"].value
    assert not found["score_second_judge"].main
    assert len({j["judge"] for j in next(read_items(tmp_path, "judge_sample")).extra["judgments"]}) == 2


def longer(prompt):
    """The longer answer is better."""
    texts = [part(part(prompt, x), "second_answer") or part(prompt, f"answer_of_{x}") for x in "AB"]
    return "[[C]]" if len(texts[0]) == len(texts[1]) else "[[A]]" if len(texts[0]) > len(texts[1]) else "[[B]]"


def test_pairs(tmp_path):
    judged(tmp_path / "short")
    long = Talker(lambda p: Generated("a much longer answer than the other one, to whatever was asked " * 2, "stop", 9))
    long.facts = long.facts.model_copy(update={"name": "long", "sha256": "1" * 64})
    baseline = read_answers(tmp_path / "short")
    rule = Rule(longer)
    result = judged(tmp_path / "long", rule, long, settings=Settings(kind="pair"), baseline=baseline)
    found = {t.metric: t.value for t in result.tasks}
    assert (found["win_rate"], found["wins"], found["order_agreement"], found["first_preferred"]) == (1, 1, 1, 0.5)
    assert len(rule.answered) == 32
    first = judged(tmp_path / "first", Rule(lambda _: "[[A]]"), long, settings=Settings(kind="pair"), baseline=baseline)
    found = {t.metric: t.value for t in first.tasks}
    assert (found["win_rate"], found["ties"], found["order_agreement"], found["first_preferred"]) == (0.5, 1, 0, 1)
    assert any("win rate from 0.500 to 0.500" in note for note in first.notes)
    item = next(read_items(tmp_path / "long", "judge_sample"))
    assert item.extra["baseline"] == baseline["1"][0]
    assert [j["swapped"] for j in item.extra["judgments"]] == [False, True]
    with pytest.raises(ValueError, match="baseline has no answer, or not to every turn, for 1 of 8 questions: 1"):
        judged(tmp_path / "x", talker=long, settings=Settings(kind="pair"), baseline=baseline | {"1": ("a",)})
    with pytest.raises(ValueError, match="--arena is for single prompts"):
        judged(tmp_path / "y", talker=long, settings=Settings(kind="arena"), baseline=baseline)


def test_an_arena(tmp_path):
    file = tmp_path / "hard.jsonl"
    file.write_text("".join(json.dumps({"uid": f"q{n}", "prompt": f"Do {n}."}) + "\n" for n in range(6)))
    chosen = questions.load(file)
    rule = Rule(lambda p: "[[A>>B]]" if part(p, "answer_of_A").startswith("1 at") else "[[B>A]]")
    result = judged(
        tmp_path / "run",
        rule,
        chosen=chosen,
        settings=Settings(kind="arena"),
        baseline={f"q{n}": ("no",) for n in range(6)},
    )
    assert result.tasks[0].value == 1
    assert (result.tasks[0].task, result.tasks[0].items, result.tasks[0].of) == ("hard", 12, 12)
    assert not (tmp_path / "run" / "radar.svg").exists()


def test_thoughts_are_counted_and_not_judged(tmp_path):
    def think(prompt):
        if len(prompt.messages) == 3:
            return Generated("", "length", 9, 5, "endless", 9, in_thought=True)
        return Generated("Yes.", "stop", 9, 5, "secret thought", 6)

    seen = []
    result = judged(tmp_path, Rule(lambda p: seen.append(p) or "[[5]]"), Talker(think))
    thinking = result.tasks[0].thinking
    assert (thinking.answers, thinking.mean_tokens, thinking.at_limit, thinking.empty) == (16, 7.5, 0.5, 0.5)
    assert not any("secret" in prompt for prompt in seen)
    assert set(list(read_items(tmp_path, "judge_sample"))[1].flags) == {"at_limit", "in_thought", "empty_answer"}


def test_what_did_not_fit_is_asked_again_with_more_room(tmp_path):
    room = [1]

    def say(prompt):
        return Generated("A text.", "stop", 3) if len(prompt.messages) <= room[0] else Generated("", "too_long")

    talker = Talker(say)
    judged(tmp_path, talker=talker)
    assert len([i for i in read_items(tmp_path, "judge_sample") if "too_long" in i.flags]) == 8
    room[0] = 3
    judged(tmp_path, talker=talker)
    assert not any(i.flags for i in read_items(tmp_path, "judge_sample"))
    assert len(talker.asked) == 16 + 8


def test_equal_questions_are_asked_once(tmp_path):
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps({"uid": f"q{n}", "prompt": "Same."}) + "\n" for n in range(5)))
    talker, rule = Talker(), Rule()
    result = judged(tmp_path / "run", rule, talker, chosen=questions.load(file))
    assert (len(talker.asked), len(rule.answered), result.tasks[0].items) == (1, 1, 5)


def test_progress_says_what_is_left_and_what_it_costs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {**Progress.__init__.__kwdefaults__, "line_seconds": 0.0})
    with judge_at(Rule()) as judging:
        run(Talker(), [judging], SAMPLE, OWN, Settings(price=Price(2, 8)), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"answers: 1 of 16 \(6 %\), .*/s, .* left, 7 \+ 5 tokens$", lines[0])
    assert re.match(r"judgments by one: 16 of 16 .*, 1,600 \+ 160 tokens, 0.0045 yuan$", lines[-1])


def test_another_model_does_not_write_into_a_run(tmp_path):
    judged(tmp_path)
    other = Talker()
    other.facts = other.facts.model_copy(update={"sha256": "2" * 64})
    with pytest.raises(ValueError, match="holds answers of another run"):
        judged(tmp_path, talker=other)


def test_our_engine_and_our_server_say_the_same(tiny_path, tiny_server, tmp_path):  # noqa: F811
    short = replace(SAMPLE, questions=SAMPLE.questions[:2])
    settings = Settings(manner=Manner(max_tokens=8, seed=3))
    engine = load(str(tiny_path), EngineOptions(), batch=4)
    server = load(tiny_server.base_url, EngineOptions(), batch=4)
    try:
        judged(tmp_path / "engine", talker=engine, chosen=short, settings=settings)
        judged(tmp_path / "server", talker=server, chosen=short, settings=settings)
    finally:
        engine.close()
        server.close()
    answers = [read_answers(tmp_path / name) for name in ("engine", "server")]
    assert answers[0] == answers[1]
    assert all(text for turns in answers[0].values() for text in turns)
    assert read_run(tmp_path / "engine").model.sha256


# --- kill -9

COMMAND = """
import sys, typer
from gangpao.evaluate.judge.command import judge
app = typer.Typer()
app.command()(judge)
app(standalone_mode=False)
"""


def start(url, out, *more):
    words = ["-m", url, "--server-model", "one", "--judge", url, "--judge-model", "two", "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=ROOT, env=environment(OPENAI_API_KEY="sk-very-secret"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_after_kill_nothing_is_asked_twice(tmp_path):
    stops = [21, 1000]  # all answers and some judgments, everything
    given = threading.Semaphore(0)
    let_go = threading.Event()

    def hold(_):
        if given.acquire(blocking=False):
            return None
        let_go.wait(60)
        return [None]

    rule = Rule(lambda p: f"Well. [[{len(p) % 10 + 1}]]", before=hold)
    out = tmp_path / "run"
    with fake(rule, models={"data": [{"id": "one"}, {"id": "two"}]}) as server:
        for before, whole in zip([0, *stops], stops, strict=False):
            given.release(whole - before)
            child = start(server.url, out)
            if whole < 1000:
                killed_at(child, out / "journal.jsonl", whole)
                let_go.set()
                time.sleep(0.1)
                let_go.clear()
                assert len(rule.answered) == whole
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert len(rule.answered) == len(set(rule.answered)) == 32
    assert re.search(r"judge_sample +score +\d\.\d\d ± \d\.\d\d  over 16 of 16", said)
    assert "no substitute" in said
    assert "sk-very-secret" not in said + "".join(f.read_text("utf-8") for f in out.iterdir() if f.is_file())


def killed_at(child, journal, whole):
    """kill -9 when the journal has so many answers."""
    deadline = time.monotonic() + 60
    while (
        not journal.exists() or journal.read_bytes().count(b'{"key":"') - journal.read_bytes().count(b"seconds") < whole
    ):
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairwise"], "--baseline goes with"),
        (["--pairwise", "--arena", "--baseline", "x"], "take one of them"),
        (["--judge-price", "dear"], "write IN,OUT"),
        (["--questions", "none.jsonl"], "there is no such file"),
        ([], "nothing answers at http://127.0.0.1:9/v1"),
    ],
)
def test_the_command_checks_its_options(tmp_path, words, said):
    app = typer.Typer()
    app.command()(judge)
    result = CliRunner().invoke(app, ["-m", "x", "--judge", "127.0.0.1:9", "--out", str(tmp_path / "run"), *words])
    assert said in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_every_option_is_explained():
    app = typer.Typer()
    app.command()(judge)
    options = typer.main.get_command(app).params
    assert [p.name for p in options if not (p.help or "").strip()] == []
    assert {"model", "judge", "judge_model", "second_judge", "questions", "baseline", "limit", "out"} <= {
        p.name for p in options
    }


def test_a_key_of_the_environment_goes_to_the_judge_only(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-judge")
    app = typer.Typer()
    app.command()(judge)
    with fake(Rule(lambda _: "An answer.")) as model, fake(Rule(lambda _: "[[5]]")) as judging, fake(Rule()) as other:
        words = ["-m", model.url, "--judge", judging.url, "--second-judge", other.url, "--second-judge-key", "sk-other"]
        result = CliRunner().invoke(app, [*words, "--limit", "1", "--out", str(tmp_path / "run")])
    assert result.exception is None, result.output
    keys = [{a.headers.get("authorization") for a in server.asked} for server in (model, judging, other)]
    assert keys == [{None}, {"Bearer sk-of-the-judge"}, {"Bearer sk-other"}]
    assert "at http" in result.output  # two judges of one name


def test_a_damaged_answer_is_asked_again_and_told(tmp_path):
    rule, talker = Rule(), Talker()
    with judge_at(rule) as judging:
        first = run(talker, [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True)
        path = tmp_path / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = json.dumps({"key": json.loads(lines[1])["key"], "answer": {"text": 1}}).encode() + b"\n"
        path.write_bytes(b"".join(lines))
        again = run(talker, [judging], SAMPLE, OWN, Settings(), tmp_path, quiet=True)
    assert again.tasks == first.tasks
    assert len(talker.asked) == 17
    assert again.notes[-1].startswith("journal.jsonl has damaged lines: 1.")
