"""Which model a command means: positional names, hubs, what is installed, questions before downloads, what cannot run."""

import hashlib
import io
import json

import pytest
import typer

from gangpao import catalog, cli
from gangpao.commands.model import find
from gangpao.commands.run import model_and_prompt
from tests.engine.tiny import write_tiny
from tests.formats.gguf_maker import random_model
from tests.pull.fakes import Hub


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty store; catalogs in which `tiny` and `other` are files on this machine, and `alien` is none of ours."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    for name in ("GANGPAO_SOURCES", "GANGPAO_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    alien = tmp_path / "alien.gguf"
    alien.write_bytes(write_tiny(tmp_path / "x.gguf").read_bytes().replace(b"llama", b"gemma"))
    files = {
        "tiny": write_tiny(tmp_path / "tiny.gguf"),
        "other": write_tiny(tmp_path / "other.gguf", seed=1),
        "alien": alien,
    }
    text = 'defaults = ["tiny", "other"]\n'
    for name, path in files.items():
        text += (
            f'[models.{name}]\ntitle = "{name.title()}"\nfamily = "x"\nfile = "{name}.gguf"\n'
            f"engine = {str(name != 'alien').lower()}\n"
            f'licence = "none"\nnote = "About {name}."\nquestion = "What is {name}?"\nbytes = {path.stat().st_size}\n'
            f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"\nsources = [{{ kind = "file", path = "{path}" }}]\n'
        )
    (tmp_path / "config" / "gangpao").mkdir(parents=True)
    (tmp_path / "config" / "gangpao" / "catalog.toml").write_text(text)
    catalog._load.cache_clear()
    return tmp_path


@pytest.fixture
def hub(home, monkeypatch):
    """A hub with o/good (llama) and o/alien (gemma), both Q4_K_M by their names."""
    hub = Hub()
    for repo, source in (("good", "tiny"), ("alien", "alien")):
        body = (home / f"{source}.gguf").read_bytes()
        hub.files[f"/o/{repo}/resolve/main/m-Q4_K_M.gguf"] = body
        lfs = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
        row = {"type": "file", "path": "m-Q4_K_M.gguf", "size": len(body), "oid": "0" * 40, "lfs": lfs}
        hub.files[f"/api/models/o/{repo}/tree/main?recursive=true"] = json.dumps([row]).encode()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


class Keyboard(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """terminal(text): what is typed, at a terminal."""

    def type_(text):
        monkeypatch.setattr("sys.stdin", Keyboard(text))
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    return type_


# --- what was installed comes first, then a question


def test_what_is_installed_is_taken_before_a_download(home, capsys):
    assert cli.main(["pull", "other"]) == 0
    name, path = find.find_model(None)
    assert (name, path) == ("other", catalog.path_of("other"))
    err = capsys.readouterr().err
    assert (
        "model: other, the best of the installed models. About other. Better for talk: gangpao pull tiny (368 kB)."
        in err
    )
    assert cli.main(["pull", "tiny"]) == 0
    assert find.find_model(None)[0] == "tiny"
    assert "Better" not in capsys.readouterr().err


def test_what_cannot_run_is_not_taken_though_it_is_installed(home, capsys):
    assert cli.main(["pull", "--yes", "alien"]) == 0
    with pytest.raises(ValueError, match=r"No installed model|no model here yet"):
        find.find_model(None)
    assert find.usable() == {}


@pytest.mark.parametrize(
    ("typed", "comes"), [("y\n", True), ("YES\n", True), ("是\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_download_is_asked_for_first(home, terminal, capsys, typed, comes):
    terminal(typed)
    if comes:
        assert find.find_model(None)[0] == "tiny"
    else:
        with pytest.raises(typer.Exit) as left:
            find.find_model(None)
        assert left.value.exit_code == 1
    err = capsys.readouterr().err
    for words in (
        "no model here yet",
        "tiny, the best default model",
        "licence none",
        "368 kB to download",
        "free in",
        "[y/N]",
    ):
        assert words in err
    assert ("tiny" in catalog.installed()) == comes
    assert ("Nothing was downloaded. Later: gangpao pull tiny" in err) == (not comes)


@pytest.mark.parametrize("command", [["chat"], ["run", "hi"], ["serve", "--port", "0"]])
def test_without_a_terminal_it_is_said_what_to_type(home, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: There is no model here yet")
    assert err.count("\n") == 1
    assert "type `gangpao pull tiny`, or give --yes" in err
    assert catalog.installed() == {}


def test_yes_downloads_and_the_question_suits_the_model(home, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["chat", "--yes", "--max-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert "> What is tiny?" in out
    assert "368 kB to download" in err
    assert cli.main(["chat", "other", "--max-tokens", "3"]) == 0  # named: that is asking for it
    assert "> What is other?" in capsys.readouterr().out


@pytest.fixture
def bundled(home, monkeypatch):
    """`own`, which gangpao brings itself, behind a default that no source has any more."""
    monkeypatch.setattr(catalog, "BUNDLED", home / "bundled")
    (home / "bundled").mkdir()
    path = write_tiny(home / "bundled" / "own.gguf", seed=2)
    (home / "other.gguf").rename(home / "other.away")
    (home / "tiny.gguf").rename(home / "tiny.away")
    with (home / "config" / "gangpao" / "catalog.toml").open("a") as file:
        file.write(
            f'[models.own]\ntitle = "Own"\nfamily = "x"\nfile = "own.gguf"\nengine = true\nbytes = {path.stat().st_size}\n'
            f'note = "It knows little."\nsha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"\n'
            'sources = [{ kind = "bundled", file = "own.gguf" }]\n'
        )
    text = (home / "config" / "gangpao" / "catalog.toml").read_text()
    (home / "config" / "gangpao" / "catalog.toml").write_text(text.replace('"other"]', '"other", "own"]', 1))
    catalog._load.cache_clear()
    return home


def test_where_nothing_can_be_had_the_model_that_gangpao_brings_answers(bundled, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert find.find_model(None) == ("own", catalog.path_of("own"))  # nobody is asked: nothing is downloaded
    err = capsys.readouterr().err
    assert "no source of tiny answers" in err
    assert "own, which gangpao brings itself. It knows little." in err
    assert "[y/N]" not in err
    assert catalog.path_of("own").read_bytes() == (bundled / "bundled" / "own.gguf").read_bytes()


def test_a_download_that_fails_ends_with_the_model_that_gangpao_brings(bundled, capsys):
    (bundled / "tiny.gguf").write_bytes(b"another file")  # it is there, so it is offered, and then it is refused
    assert find.find_model(None, yes=True)[0] == "own"
    err = capsys.readouterr().err
    assert "tiny: could not be had" in err
    assert "until then own" in err
    with pytest.raises(ValueError, match="tiny: could not be had"):
        find.find_model("tiny")  # who names a model gets that one or the reason


def test_the_model_that_gangpao_brings_is_no_reason_to_stay_with_it(bundled):
    assert find.find_model("own")[0] == "own"
    assert "own" in catalog.installed()
    (bundled / "other.away").rename(bundled / "other.gguf")
    assert find.find_model(None, yes=True)[0] == "other"


def test_without_a_file_to_bring_the_first_error_stands(home, monkeypatch):
    monkeypatch.setattr(catalog.Entry, "bundled", property(lambda self: False))
    (home / "tiny.gguf").write_bytes(b"another file")
    with pytest.raises(ValueError, match="tiny: could not be had"):
        find.find_model(None, yes=True)


def test_offline_takes_what_is_there_and_names_it(home, monkeypatch, capsys):
    monkeypatch.setenv("GANGPAO_OFFLINE", "1")
    assert cli.main(["pull", "other"]) == 0
    assert find.find_model(None)[0] == "other"
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["run", "-m", "hf.co/o/good", "hi"]) == 2
    err = capsys.readouterr().err
    assert "GANGPAO_OFFLINE" in err
    assert "installed here: other" in err


# --- names where Ollama's users write them


@pytest.mark.parametrize(
    ("words", "option", "model", "prompt"),
    [
        ([], None, None, None),
        (["hi"], None, None, "hi"),
        (["hi there"], None, None, "hi there"),
        (["tiny"], None, "tiny", None),
        (["tiny", "hi"], None, "tiny", "hi"),
        (["tiny", "hi", "there"], None, "tiny", "hi there"),
        (["tiny", "-"], None, "tiny", "-"),
        (["tiny"], "other", "other", "tiny"),
        (["a", "b"], "other", "other", "a b"),
        (["./x.gguf", "hi"], None, "./x.gguf", "hi"),
        (["hf.co/o/r:Q8_0", "hi"], None, "hf.co/o/r:Q8_0", "hi"),
        (["hf.co/o/r"], None, "hf.co/o/r", None),
        (["o/r", "hi"], None, "o/r", "hi"),
        (["and/or"], None, None, "and/or"),
        (["hello"], None, None, "hello"),
        (["24/7"], None, None, "24/7"),
        (["owner/X-GGUF"], None, "owner/X-GGUF", None),
        (["qwen3:0.6b"], "other", "other", "qwen3:0.6b"),
        (["-"], None, None, "-"),
        ([""], None, None, ""),
    ],
)
def test_the_model_may_stand_before_the_prompt(home, words, option, model, prompt):
    assert model_and_prompt(words, option) == (model, prompt)


def test_a_prompt_without_quotes_and_a_slip_in_a_name_are_explained(home):
    with pytest.raises(ValueError, match=r"'what': no such model.*in quotes"):
        model_and_prompt(["what", "is", "this"], None)
    with pytest.raises(ValueError, match="Did you mean other"):
        model_and_prompt(["othr", "hi"], None)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("qwen3:0.6b", "Did you mean qwen3-0.6b"), ("llama3.2", "Did you mean"), ("smollm2-1.7b", "Did you mean smollm2-135m"),
        ("owner/model-7b", ""), ("unknown:latest", ""),
    ],
)  # fmt: skip
def test_a_lone_word_that_looks_like_a_model_is_no_prompt(home, capsys, word, near):
    assert cli.main(["run", word]) == 2
    err = capsys.readouterr().err
    assert f"'{word}': no such model.{f' {near}' if near else ''}" in err
    assert f"If it is a prompt: gangpao run -m MODEL {word}" in err


def test_run_chat_and_serve_take_a_name(home, monkeypatch, capsys):
    assert cli.main(["run", "tiny", "--json", "--max-tokens", "3", "hello", "there"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    assert cli.main(["run", "tiny", "--json", "--max-tokens", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] > 4
    from gangpao.commands import serve

    seen = {}
    monkeypatch.setattr(serve, "_run", lambda server, *rest: seen.update(server.settings.models))
    assert cli.main(["serve", "tiny", "other", "--port", "0"]) == 0
    assert list(seen) == ["tiny", "other"]
    assert cli.main(["chat", "tiny", "-m", "other"]) == 2
    assert "two models" in capsys.readouterr().err


def test_run_with_a_name_at_a_terminal_is_a_conversation(home, terminal, monkeypatch, capsys):
    from gangpao.commands import chat as chat

    talks = []
    monkeypatch.setattr(chat, "converse", talks.append)
    terminal("")
    assert cli.main(["run", "tiny", "--system", "Be kind."]) == 0
    assert (talks[0].engine.name, talks[0].system) == ("tiny", "Be kind.")


def test_a_folder_that_is_no_model_says_what_one_has(home, capsys):
    (home / "export").mkdir()
    assert cli.main(["chat", str(home / "export")]) == 2
    assert "a run has run.json and export/, a Hugging Face folder config.json and weights" in capsys.readouterr().err


# --- what cannot run


def test_pull_asks_before_what_cannot_run(home, terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["pull", "alien"]) == 2
    assert (
        "alien cannot run here: About alien. 368 kB to download, so it is not pulled; --yes" in capsys.readouterr().err
    )
    terminal("n\n")
    assert cli.main(["pull", "alien"]) == 1
    assert catalog.installed() == {}
    terminal("y\n")
    assert cli.main(["pull", "alien"]) == 0
    assert cli.main(["pull", "alien"]) == 0  # here already: no question
    assert cli.main(["rm", "alien"]) == 0


def test_a_model_of_a_hub_is_pulled_run_shown_listed_and_removed(hub, capsys):
    assert cli.main(["run", "hf.co/o/good", "--json", "--max-tokens", "3", "hi"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "o--good--q4_k_m"
    assert "pulling Q4_K_M, 368 kB, as o--good--q4_k_m" in err
    hub.log.clear()
    assert cli.main(["run", "o/good:q4_k_m", "--json", "--max-tokens", "3", "hi"]) == 0
    assert cli.main(["pull", "hf.co/o/good"]) == 0
    assert hub.log == []  # it is here
    capsys.readouterr()
    assert cli.main(["list", "--json"]) == 0
    row = next(r for r in json.loads(capsys.readouterr().out) if r["name"] == "o--good--q4_k_m")
    assert (row["title"], row["quantization"], row["state"]) == ("o/good", "Q4_K_M", "untested")
    assert cli.main(["show", "hf.co/o/good"]) == 0
    out = capsys.readouterr().out
    for words in ("o/good", "huggingface o/good/m-Q4_K_M.gguf", "architecture   llama", "sha256", "F32 100%"):
        assert words in out
    assert cli.main(["rm", "hf.co/O/good:Q4_K_M"]) == 0
    assert catalog.installed() == {}
    assert cli.main(["rm", "hf.co/o/good"]) == 2
    assert "not on this machine" in capsys.readouterr().err


def test_an_architecture_that_is_not_ours_is_refused_before_it_is_fetched(hub, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["run", "hf.co/o/alien", "hi"]) == 2
    assert "does not run the architecture gemma (it runs gemma3, llama" in capsys.readouterr().err
    assert cli.main(["pull", "hf.co/o/alien"]) == 2
    assert "cannot run here" in capsys.readouterr().err
    assert all("bytes=0-65535" in str(headers) for _, path, headers in hub.log if path.endswith(".gguf"))
    assert cli.main(["pull", "--yes", "hf.co/o/alien"]) == 0
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    assert "o--alien--q4_k_m" in (line := next(x for x in capsys.readouterr().out.splitlines() if "o--alien" in x))
    assert "cannot run" in line
    assert cli.main(["show", "o--alien--q4_k_m"]) == 0
    assert "architecture 'gemma' is not supported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architecture", "quantization", "words"),
    [
        ("llama", "Q4_K_M", ""),
        ("", "", ""),
        ("gemma3", "Q4_K_M", ""),
        ("gemma2", "Q4_K_M", "gemma2"),
        ("llama", "IQ4_XS", ""),
        ("llama", "IQ4_NL", ""),
        ("llama", "IQ3_M", "IQ3_M"),
        ("llama", "MXFP4", "MXFP4"),
        ("qwen3", "UD-IQ2_M", "IQ2_M"),
    ],
)
def test_what_speaks_against_a_file_is_said(architecture, quantization, words):
    reason = find.cannot_run(architecture, quantization)
    assert words in reason
    assert bool(words) == bool(reason)


# --- show and ps


def test_show_says_how_many_weights_of_experts_a_token_meets(tmp_path, capsys):
    path = random_model(tmp_path / "m.gguf", "llama", experts=(8, 2))
    assert cli.main(["show", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["experts"] == "2 of 8"
    assert facts["parameters"] - facts["active"] == 6 * 3 * 64 * 96 * 2  # experts, matrices, two layers
    assert cli.main(["show", str(path)]) == 0
    assert "experts        2 of 8" in capsys.readouterr().out


def test_show_says_what_is_known(home, capsys):
    assert cli.main(["show", "tiny"]) == 0
    out = capsys.readouterr().out
    for words in (
        "state          untested",
        "installed      no",
        "368 kB",
        "About tiny.",
        "next           gangpao pull tiny",
    ):
        assert words in out
    assert cli.main(["show", "--json", str(home / "tiny.gguf")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["architecture"], facts["context_length"], facts["types"]) == (
        "llama",
        512,
        {"F32": facts["parameters"]},
    )
    assert cli.main(["show", "tinny"]) == 2
    assert "Did you mean tiny" in capsys.readouterr().err
    assert cli.main(["show", "/no/such.gguf"]) == 2
    assert "/no/such.gguf" in capsys.readouterr().err


def test_ps_asks_the_server(live_server, capsys):
    assert cli.main(["ps", live_server.base_url]) == 0
    out = capsys.readouterr().out
    assert "smollm2-135m" in out
    assert "2048" in out
    assert cli.main(["ps", "http://127.0.0.1:9"]) == 2
    assert "no server answers there" in capsys.readouterr().err
