"""`gangpao train` as a person sees it: what a run says at its beginning and end, after a signal, and after a start that failed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import typer

from gangpao import cli, long_command
from gangpao.cost import CostProfile
from gangpao.train import memory, pretrain, run_file, summary
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import SaveConfig, load_train_config
from gangpao.train.progress import Report, read_metrics
from tests.child import ROOT, environment
from tests.train.conftest import CONFIGS
from tests.train.tiny import fit, job, losses

TINY = CONFIGS / "train-tiny.toml"


def command(out, overrides, *options):
    sets = [word for override in overrides for word in ("--set", override)]
    return ["train", str(TINY), "--out", str(out), *sets, *options]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configured):
    out = tmp_path_factory.mktemp("runs") / "mine"
    assert cli.main(command(out, configured())) == 0
    return out


def test_a_run_says_what_it_trains_on_what_and_what_became_of_it(tmp_path, configured, capsys):
    out = tmp_path / "mine"
    assert cli.main(command(out, configured())) == 0
    said, err = capsys.readouterr()
    assert re.search(r"mine: [\d,]+ parameters, 12 steps of 512 tokens \(stable 8, decay 4\)\n", err)
    assert re.search(r"1 thread \(--set threads=N changes it\), fp32 \(as configured\), \w+", err)
    assert re.search(r"decay 12/12  loss [\d.]+ .* tok/s .* left  [\d.]+ yuan\n", err)
    assert "  heldout_bpb " in err
    assert said.startswith(f"trained: {out}, 12 steps\n")
    assert re.search(r"6,144 tokens in \d+ s, [\d,]+ tok/s, 1 thread, fp32, [\d.]+ yuan", said)
    assert re.search(r"loss +[\d.]+ at the last step; held-out [\d.]+ nats a token, [\d.]+ bits a byte\n", said)
    assert re.search(r"talks +[\d.]+ nats a token\n", said)
    assert f"export    {out}/export (" in said
    assert all(f"gangpao {what}" in said for what in ("run -m", "chat -m", "export", "train plot"))


def test_a_finished_run_says_so_and_changes_nothing(finished, configured, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert cli.main(command(finished, configured())) == 0
    assert capsys.readouterr().out.startswith(f"finished already, nothing to train: {finished}, 12 steps\n")
    assert cli.main(command(finished, configured(), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["step"], found["begun"], found["steps"], found["tokens"]) == (True, 12, 12, 12, 6144)
    assert found["heldout"]["heldout_bpb"] > 0
    assert summary.text(found | {"branched": 8, "begun": 8}, finished).startswith(
        f"trained: {finished}, steps 9 to 12\n"
    )
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_what_comes_next_can_be_typed(finished, configured, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    assert cli.main(command(finished, configured())) == 0
    lines = re.findall(r"^  gangpao (.*?) {3}", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        assert cli.main(shlex.split(line)) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "mine.gguf").is_file()
    assert (tmp_path / "mine.png").is_file()


# --- signals


def started(out, overrides):
    """A run that would take hours, after its fourth step."""
    arguments = command(out, [*overrides, 'stages=[{name="stable", steps=900000}]', "save.every_steps=1000000"])
    child = subprocess.Popen(
        [sys.executable, "-m", "gangpao.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
    )  # fmt: skip
    end = time.monotonic() + 100
    while not (out / "metrics.jsonl").is_file() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 4:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return child


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_a_signal_says_what_is_saved_and_how_to_go_on(tmp_path, configured, number, code):
    child = started(tmp_path / "run", configured())
    child.send_signal(number)
    said, err = child.communicate(timeout=100)
    assert (child.returncode, said) == (code, "")
    step = checkpoint.step_of(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert "stopping: this step is finished and saved; once more stops at once" in err
    assert re.search(
        rf"stopped after step {step} of 900,000, saved in .*{checkpoint.name_of(step)}; the same command", err
    )
    assert step == max(losses(tmp_path / "run"))


def test_a_second_signal_stops_at_once_and_says_what_there_is(tmp_path, configured, capsys, monkeypatch):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(pretrain.Training, "_advance", interrupted)
    assert cli.main(command(tmp_path / "run", configured())) == 130
    assert "stopped at once, before anything of the run" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "checkpoints" / checkpoint.name_of(7)).mkdir(parents=True)
    assert "step-00000007, from which the same command goes on" in summary.interrupted(tmp_path)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_ctrl_c_waits_for_an_import_and_only_for_that(capsys):
    reached = []
    with pytest.raises(typer.Exit) as left, long_command.ctrl_c_later():
        reached.append(press_ctrl_c())
    assert reached
    assert left.value.exit_code == 130
    assert "stopped before anything began" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    other = threading.Thread(target=lambda: long_command.ctrl_c_later().__enter__())  # no signals there, and no error
    other.start()
    other.join()


# --- when it is evaluated


def evaluated_at(tmp_path, **fields):
    """Steps at which a job of 5 and 8 steps was evaluated, and its training."""
    heldout = iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    j = job(tmp_path, stages=(("stable", 5), ("decay", 8)), evaluate=lambda stop: {"heldout": next(heldout)}, **fields)
    training = fit(j)
    return [m["step"] for m in read_metrics(tmp_path) if "heldout" in m], training


def test_evaluation_is_at_its_own_steps_at_the_ends_of_stages_and_nowhere_else(tmp_path):
    save = SaveConfig(every_steps=2, keep_best=True)
    assert evaluated_at(tmp_path / "a", save=save, evaluate_every=3)[0] == [3, 5, 6, 9, 12, 13]
    assert evaluated_at(tmp_path / "b", save=save, evaluate_every=99)[0] == [5, 13]
    assert evaluated_at(tmp_path / "c", save=save, evaluate_every=99, evaluate_stages=False)[0] == [13]
    assert evaluated_at(tmp_path / "d", save=save, evaluate_every=6, evaluate_stages=False)[0] == [6, 12, 13]


def test_the_best_checkpoint_is_one_that_was_measured(tmp_path):
    """At step 3 the loss is 9, at 5 it is 1, the end of a stage; 4 and 6 are saved and not measured."""
    _, training = evaluated_at(tmp_path, save=SaveConfig(every_steps=2, keep_last=1), evaluate_every=3)
    assert training.best == (5, 1.0)


def test_a_signal_in_the_last_step_leaves_the_evaluation_to_the_next_call(tmp_path):
    def run():
        j = job(tmp_path, evaluate=lambda stop: {"heldout": 1.0}, evaluate_every=99)
        return j, pretrain.Training(j)

    j, training = run()
    last = training._advance

    def advance():
        if training.step == training.total - 1:
            training.signals.received = signal.SIGINT
        return last()

    training._advance = advance
    training.fit()
    j.report.close()
    assert not [m for m in read_metrics(tmp_path) if "heldout" in m]
    j, training = run()
    assert training.fit().begun == 12
    j.report.close()
    assert [m["step"] for m in read_metrics(tmp_path) if "heldout" in m] == [12]


# --- starts that fail


def run(out, overrides, **options):
    return pretrain.run(TINY, out, overrides, **options)


def test_a_start_that_saved_nothing_blocks_no_other(tmp_path, configured, monkeypatch):
    out = tmp_path / "run"

    def fails(error):
        def advance(self):
            self.job.report.write({"step": 1, "loss": 1.0})
            raise error

        return advance

    no_memory = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")
    for error, kind, words in [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (no_memory, ValueError, "--set micro_batch_size=2"),
        (torch.OutOfMemoryError("CUDA out of memory"), ValueError, "--set recompute=true"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(pretrain.Training, "_advance", fails(error))
            with pytest.raises(kind, match=words):
                run(out, configured("optimizer.lr=0.5"))
        assert (out / "run.json").is_file()
    (out / "run.json").write_text('{"config"')  # half of it, after a power cut
    with (tmp_path / "err").open("w+") as stream:
        assert run(out, configured("model.change.num_hidden_layers=2"), stream=stream).step == 12
    assert "an earlier start in this folder saved nothing: this one begins anew" in (tmp_path / "err").read_text()
    assert run_file.read_run(out)["config"]["optimizer"]["lr"] == 0.01
    assert sorted(losses(out)) == list(range(1, 13))


def test_what_is_saved_is_named_with_every_way_to_go_on(finished, configured):
    with pytest.raises(
        ValueError, match=r"holds the saved step 12 of a run with another model, optimizer, seed, stages"
    ) as error:
        run(finished, configured("optimizer.lr=0.5", "seed=3", "stages.0.steps=9", "model.change.head_dim=8"))
    said = str(error.value)
    assert "model.change.head_dim: 16 there, 8 now" in said
    assert "optimizer.lr: 0.01 there, 0.5 now" in said
    assert f"--set branch_from={finished}" in said
    assert f"rm -r {finished}" in said
    assert "and 1 more" in said
    assert "{" not in said


def test_a_run_goes_on_when_its_configuration_has_moved(finished, configured, tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    assert pretrain.run(tmp_path / "configs" / "train-tiny.toml", finished, configured()).step == 12
    known = run_file.read_run(finished)
    config = load_train_config(TINY, tuple(configured()))
    moved = {**known, "config": known["config"] | {"data": str(tmp_path / "gone.toml")}}
    assert run_file.same_run(config, moved, finished).seed == config.seed
    other = {**known, "config": known["config"] | {"data": str(CONFIGS / "data-nano.toml")}}
    with pytest.raises(ValueError, match=r"another data \(data: .*data-nano\.toml there, .*data-tiny\.toml now"):
        run_file.same_run(config, other, finished)


def test_less_memory_can_be_asked_of_a_run_that_began(finished, configured):
    assert run(finished, configured("recompute=true", "micro_batch_size=2")).step == 12


def test_ways_out_are_options_that_the_run_can_have(configured):
    config = load_train_config(TINY, tuple(configured("batch_tokens=384", "micro_batch_size=6")))
    assert "--set micro_batch_size=3," in memory.ways_out(config)
    assert "micro_batch_size" not in memory.ways_out(config.model_copy(update={"micro_batch_size": 1}))
    recomputing = memory.ways_out(config.model_copy(update={"recompute": True}))
    assert "recompute" not in recomputing
    assert "optimizer.kind=muon" in recomputing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("init_from=nowhere", "no config.json here: give a Hugging Face folder, or a run"),
        ("branch_from=nowhere", "there is no such folder"),
        ("model.preset=minicpm-9", "did you mean minicpm-9m"),
        ("data=nowhere.toml", "nowhere.toml: cannot be read"),
    ],
)
def test_wrong_names_say_what_there_is(configured, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", configured(change))


def test_data_that_is_not_there_is_said_with_options_of_this_command(tmp_path, configured):
    (tmp_path / "d.toml").write_text('[sources.a]\npath = "a.jsonl"\n[tokenizer.train]\nvocab_size = 300\n')
    with pytest.raises(ValueError, match=r"the data of this run, .*d\.toml: .*--set 'data_set=\[\"KEY=VALUE\"\]'"):
        run(tmp_path / "run", [f'data="{tmp_path}/d.toml"', f"data_set=['root=\"{tmp_path}\"']"])
    (tmp_path / "run").rename(tmp_path / "file")
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="a file is in the way"):
        run(tmp_path / "run", configured())
    with pytest.raises(ValueError, match=r"d\.toml: this describes data .*gangpao data build"):
        load_train_config(tmp_path / "d.toml")


def test_paths_in_the_changes_of_the_data_are_relative_to_the_file_of_the_run(tmp_path, monkeypatch):
    """So that a run goes on from wherever it is started; a --set of the whole list is relative to where it is typed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = TINY.read_text().replace('"data-tiny.toml"', f'"{CONFIGS}/data-tiny.toml"\ndata_set = ["root=text"]')
    (tmp_path / "run.toml").write_text(text)
    assert load_train_config(tmp_path / "run.toml").data_set == (f'root="{tmp_path}/text"',)
    typed = load_train_config(tmp_path / "run.toml", ('data_set=["root=text"]',))
    assert typed.data_set == (f'root="{tmp_path}/here/text"',)


def test_init_from_takes_a_run(finished):
    assert pretrain._folder_with_weights(finished) == pretrain._folder_with_weights(finished / "export")


# --- progress


def test_progress_fits_a_terminal_of_80_columns_and_a_pipe_has_everything(tmp_path):
    line = {
        "stage": "stable",
        "loss": 1.2345,
        "lr": 0.00944,
        "grad_norm": 0.279,
        "tok_s": 17190.0,
        "mfu": 0.33,
        "yuan": 0.00183,
    }
    report = Report(None, profile=CostProfile(title="t", rent_yuan_per_hour=1.0, source="s"))
    report._total = 100_000
    assert report._text(99_000, line).split("  ") == [
        "stable 99000/100000", "loss 1.2345", "lr 0.00944", "norm 0.279", "17,190 tok/s", "mfu 33 %", "0 s left", "0.0018 yuan",
    ]  # fmt: skip
    report._width = 80 - 11
    text = report._text(99_000, line)
    assert len(text) <= 69
    for part in ("stable 99000/100000", "loss 1.2345", "17,190 tok/s", "left", "yuan"):
        assert part in text


# --- the documentation, as a newcomer types it


def typed(page):
    """Commands of the first and of the last indented block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    gangpao .*\n)+", text, re.MULTILINE)
    return [line.strip().removeprefix("gangpao ") for block in (blocks[0], blocks[-1]) for line in block.splitlines()]


def test_the_documented_way_from_training_to_asking(tmp_path, monkeypatch, capsys, configured):
    """In miniature: the shape and the steps are smaller, the commands are the documented ones. `serve` would not end."""
    assert typed("training.md") == typed("training.zh.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    (tmp_path / "configs").symlink_to(CONFIGS)
    small = [word for override in configured() for word in ("--set", override)]
    done = []
    for line in typed("training.md"):
        words = shlex.split(line)
        if words[0] != "serve":
            code = cli.main([*words, *(small if words[1].endswith(".toml") else [])])
            said = capsys.readouterr()
            assert (code, bool(said.out.strip())) == (0, True), said.err
            done.append(words[0])
    assert done == ["train", "run", "train", "run", "run", "run", "chat"]
    assert (tmp_path / "tiny.png").is_file()
