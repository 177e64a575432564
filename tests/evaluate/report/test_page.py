"""The page says all that there is to say, in both languages, and marks what must not be taken for something else."""

import ast
import html
import inspect
import re
import string
from pathlib import Path

import pytest

from gangpao.evaluate.report import runs
from gangpao.evaluate.report.page import build, facts, items, pictures, scores, words
from gangpao.evaluate.report.page.document import Fold, Heading, Paragraph, Table, as_html, as_markdown
from gangpao.evaluate.report.page.given import Given
from gangpao.evaluate.report.published import load_published
from gangpao.evaluate.results import TaskResult, read_run
from tests.evaluate.report.makers import HOSTILE, TASKS, a_run, changed, copies, items_of, score_of, thinking


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    a_run(folder / "a", "smollm2-135m", 5)
    a_run(folder / "b", "large", 6, speed=40.0)
    return folder


@pytest.fixture
def folders(template, tmp_path):
    return copies(template, tmp_path)


def given(folders, keys=("minicpm-2b", "mistral-7b", "llama2-13b"), **over):
    return Given(runs.read(folders), load_published(), keys, **over)


def cells(table):
    return {row[0].split("\n")[0]: row for row in table.rows}


def texts(blocks):
    """All text of blocks, folded ones too."""
    out = []
    for block in blocks:
        if isinstance(block, Fold):
            out += [block.title, *texts(block.blocks)]
        elif isinstance(block, Table):
            out += [cell for row in block.rows for cell in row]
        elif isinstance(block, Heading | Paragraph):
            out.append(block.text)
        elif hasattr(block, "points"):
            out += block.points
    return out


# --- words


def test_both_languages_have_the_same_words_with_the_same_places():
    en, zh = words.WORDS["en"], words.WORDS["zh"]
    assert [*en] == [*zh]
    for name in en:
        places = [
            sorted(field for _, field, _, _ in string.Formatter().parse(text) if field) for text in (en[name], zh[name])
        ]
        assert places[0] == places[1], name


def test_every_word_is_used_and_every_use_is_there():
    source = "".join(Path(inspect.getfile(m)).read_text() for m in (build, facts, items, pictures, scores))
    names = {node.value for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    made = re.compile(r"(mark|mode|word|how|differ|reason)\.")
    assert [name for name in words.WORDS["en"] if name not in names and not made.match(name)] == []
    used = set(re.findall(r'say\("([\w.]+)"', source))
    assert used - {*words.WORDS["en"]} == set()


# --- the main table


def test_runs_stand_beside_published_rows(folders):
    _, table, *legend = scores.main_table(given(folders))
    found = cells(table)
    assert table.rows[0][1:] == [
        "smollm2-135m",
        "large",
        "MiniCPM-2B\npublished",
        "Mistral-7B\npublished",
        "Llama2-13B\npublished",
    ]
    assert found["HumanEval"][1].split("\n")[1] == "120 of 164"
    assert found["HellaSwag"][1] == "41.67 ± 4.52 ‡\n120 of 10,042"
    assert found["HellaSwag"][3:] == ["68.25 ± 0.46 †", "80.43 ± 0.40 *", "79.23 ± 0.40 *"]
    assert found["MMLU"][3] == "53.46 ± 0.42 †"
    assert found["PIQA"][3] == "–"
    said = " ".join(block.text for block in legend)
    assert [sign for sign in "‡†¶*§?" if sign in said] == ["‡", "†", "¶", "*"]


def test_a_whole_test_asked_the_same_way_has_no_marks(tmp_path):
    row = ("humaneval", "pass@1", "program", 0, 164, 0.06, 0.58)
    one = given([a_run(tmp_path / "a", "m", 6, (row,), count=164, limit=None)], ("minicpm-2b",))
    _, table, *legend = scores.main_table(one)
    assert (table.rows[1][1:], legend) == (["57.93 ± 3.87\n164 items", "50.00 ± 3.92"], [])
    assert facts.warnings(one) == []


def test_both_modes_and_the_larger_one(tmp_path):
    low, high = items_of("arc_easy", 0.4, 50, 5), items_of("arc_easy", 0.6, 50, 5)
    folder = a_run(tmp_path / "a", "m", 5, TASKS[1:2])
    tasks = [score_of(TASKS[1], high), score_of(TASKS[1], low, mode="generation", main=False)]
    one = given([changed(folder, tasks=tasks)], ("minicpm-2b", "llama2-13b"))
    rows = scores.main_table(one)[1].rows[1:]
    assert [row[0].split("\n")[1] for row in rows] == [
        "acc, perplexity mode, 0-shot", "acc, generated, 0-shot", "the larger of both modes, as the MiniCPM report took it",
    ]  # fmt: skip
    assert [row[1].split(" ")[0] for row in rows] == ["60.00", "40.00", "60.00"]
    assert rows[2][1].startswith("60.00 ± 7.00 ‡ *\n")
    assert [row[2] for row in rows] == ["–", "85.44 ± 0.72", "85.44 ± 0.72"]
    assert [row[3] for row in rows] == ["78.87 ± 0.84 *", "–", "78.87 ± 0.84 *"]


def test_a_score_out_of_ten_and_one_without_bounds(tmp_path):
    folder = a_run(tmp_path / "a", "m", 5, TASKS[:1])
    base = {"items": 80, "of": 80, "prompt_version": "1"}
    tasks = [
        TaskResult(task="mt_bench", metric="score", value=4.255, stderr=0.2, scale=10, mode="judge", **base),
        TaskResult(
            task="wikitext", metric="perplexity", value=17.12345, mode="perplexity", higher_is_better=False, **base
        ),
    ]
    one = given([changed(folder, tasks=tasks)], ("mt-bench-minicpm-2b",))
    found = cells(scores.main_table(one)[1])
    assert found["MT-Bench"] == ["MT-Bench\nscore, judged, of 10", "4.25 ± 0.20\n80 items", "7.25"]
    assert found["wikitext"] == ["wikitext\nperplexity, perplexity, lower is better", "17.12\n80 items", "–"]
    against = next(b for b in scores.to_published(one) if isinstance(b, Fold)).blocks[0].rows[1]
    assert against[1:6] == ["4.25 ± 0.20\n80 items", "7.25", "−3.00 ± 0.39", "0.20 °", "worse"]
    assert scores.average_table(one) == []


# --- averages and differences


def test_averages_are_over_what_both_have(folders):
    one = given(folders)
    found = scores.against_average(one, one.runs[0], "minicpm-2b")
    published = one.published
    tasks = found["all"].tasks
    assert len(tasks) == 7
    assert "piqa" not in tasks
    ours = {published.task_of(s.task): s.value for s in one.runs[0].result.tasks}
    assert found["all"].ours == pytest.approx(sum(ours[t] for t in tasks) / 7)
    assert found["all"].theirs == pytest.approx(sum(published.cell("minicpm-2b", t).value for t in tasks) / 7)
    assert found["zh"].tasks == ("cmmlu",)
    assert len(found["en"].tasks) == 6
    rows = scores.average_table(one)[2].rows
    assert [row[:2] for row in rows[1:]] == [
        ["smollm2-135m", "MiniCPM-2B (published)"], ["smollm2-135m", "Mistral-7B (published)"],
        ["smollm2-135m", "Llama2-13B (published)"], ["large", "smollm2-135m"], ["large", "MiniCPM-2B (published)"],
        ["large", "Mistral-7B (published)"], ["large", "Llama2-13B (published)"],
    ]  # fmt: skip
    assert rows[1][2].endswith("worse, 7 tasks")


def test_an_average_printed_otherwise_is_told(folders):
    blocks = scores.average_table(given(folders, ("phi-2-2b", "minicpm-2b")))
    assert blocks[-1].text.endswith("Phi-2-2B (en): printed 54.41, mean of the cells 54.416.")


def test_differences_have_an_interval_and_a_word(folders):
    _, title, table, *notes = scores.differences(given(folders))
    assert title.text == "large minus smollm2-135m"
    found = cells(table)
    assert found["GSM8K"][3:5] == ["+19.17 ± 7.07", "better"]
    assert found["PIQA"][4] == "cannot tell"
    assert "8 tasks" in notes[0].text


def test_settings_that_differ_are_told(folders):
    changed(folders[1], settings={"bos": "none", "chat_template": False, "seed": 1234})
    assert "bos (as the tokenizer / none)" in texts(scores.differences(given(folders)))[-1]


def test_the_table_of_our_own_model_says_how_it_was_measured(folders):
    one = given(folders[:1], ("minicpm-2b", "smollm2-135m"))
    _, _, run, measured, own, table, other = scores.to_published(one)
    assert (run.text, own.text[:9], other.title[:10]) == ("smollm2-135m", "SmolLM2-1", "MiniCPM-2B")
    hardware = "cpu a processor, cores 2, memory 25.3 GB, kernels avx2"
    assert (
        measured.text == f"sha256: {'5' * 64}; gangpao: 0.1.0 (abcdef0); harness: lm-eval 0.4.13; hardware: {hardware}"
    )
    assert [row[0].split("\n")[0] for row in table.rows[1:]] == ["ARC-Easy", "ARC-Challenge", "HellaSwag", "PIQA"]
    assert table.rows[3][1:4] == ["41.67 ± 4.52\n120 of 10,042", "42.99 ± 0.49", "−1.32 ± 8.91"]
    assert table.rows[3][4:] == ["4.55", "cannot tell", "1.00", "1", "items"]


# --- what must not be missed


def test_empty_answers_are_loud_from_five_percent_on(folders):
    score = read_run(folders[0]).tasks[6]
    for empty, loud in ((0.049, False), (0.05, True)):
        changed(folders[0], tasks=[score.model_copy(update={"thinking": thinking(empty)})])
        one = given(folders[:1])
        assert any("5% of the answers are empty" in block.text and block.loud for block in facts.warnings(one)) == loud
        assert cells(facts.thinking(one)[1])["smollm2-135m"][2:5] == ["100", "812", "21.0%"]


def test_what_was_left_out_is_counted(folders):
    score = read_run(folders[0]).tasks[0]
    changed(folders[0], tasks=[score.model_copy(update={"left_out": {"too_long": 40, "odd": 1}})])
    one = given(folders[:1])
    assert facts.left_out(one)[1].rows[1:] == [
        ["smollm2-135m", "HellaSwag", "prompt longer than the context", "40"], ["smollm2-135m", "HellaSwag", "odd", "1"],
    ]  # fmt: skip
    assert any("41 of 120 items are without" in block.text for block in facts.warnings(one))
    assert facts.left_out(given(folders[1:]))[1].text == "Nothing was left out."


def test_contaminated_items_are_told_with_the_score_without_them(folders):
    first, *others = read_run(folders[0]).tasks
    seen = first.model_copy(update={"contaminated": 20, "clean_value": 0.39})
    changed(folders[0], tasks=[seen, *(s.model_copy(update={"contaminated": 0}) for s in others)])
    points = facts.contamination(given(folders[:1]))[1].points
    said = "smollm2-135m, HellaSwag: 20 of 120 items stand in the training text; without them 39.00 instead of 41.67."
    assert (points[0], len(points)) == (said, 8)
    short = first.model_copy(update={"contaminated": 0, "not_searched": 3, "clean_value": 0.4})
    changed(folders[0], tasks=[short])
    said = "smollm2-135m, HellaSwag: 0 of 120 items stand in the training text; without them 40.00 instead of 41.67."
    assert facts.contamination(given(folders[:1]))[1].points == [
        f"{said} 3 are too short to be looked for, and are taken out too."
    ]
    assert "was checked" in facts.contamination(given(folders[1:]))[1].text


def test_empty_answers_without_a_thought_are_loud_too(folders):
    from gangpao.evaluate.results import write_items

    rows = items_of("gsm8k", 0.02, 120, 5, generated=True)
    write_items(
        folders[0],
        "gsm8k",
        [i.model_copy(update={"flags": ["empty_answer"]}) if n < 6 else i for n, i in enumerate(rows)],
    )
    assert any("GSM8K: 5% of the answers are empty" in block.text for block in facts.warnings(given(folders[:1])))
    assert not any("are empty" in block.text for block in facts.warnings(given(folders[1:])))


def test_prices(folders):
    from gangpao import cost

    one = given(folders, profile="mini-pc")
    per_million = cost.yuan_per_second(cost.get_profile("mini-pc")[1]) * 1e6 / 90
    assert facts.per_million(one, one.runs[0], 90) == pytest.approx(per_million)
    row = facts.prices(one)[1].rows[1]
    assert row[4] == "90.0"
    assert row[7] == f"{per_million:.3g}"
    assert row[9] == f"{1e6 / per_million:,.0f}"
    changed(folders[0], speed=None, yuan=None)
    assert facts.prices(given(folders[:1]))[1].rows[1][3:] == [*["–"] * 7, "12:34 min", "–"]


# --- items


def test_items_that_changed_are_shown_and_the_rest_counted(folders):
    one = given(folders, items=4)
    _, *folds = items.singles(one)
    hellaswag = folds[0]
    ours, theirs = (run.found(run.result.tasks[0]) for run in one.runs)
    differ = [n for n in ours if ours[n].score != theirs[n].score]
    assert hellaswag.title == f"HellaSwag: {len(differ)} of 120 items decided differently"
    shown = [block for block in hellaswag.blocks if isinstance(block, Fold)]
    assert len(shown) == 4
    assert {block.title.split()[1] for block in shown} <= set(differ)
    assert [b.text for b in shown[0].blocks if "acc_norm" in getattr(b, "text", "")] in (
        ["smollm2-135m: acc_norm 1", "large: acc_norm 0"], ["smollm2-135m: acc_norm 0", "large: acc_norm 1"],
    )  # fmt: skip
    assert items.singles(given(folders, items=0)) == []


def test_of_one_run_wrong_items_are_shown(folders):
    fold = items.singles(given(folders[:1], items=3))[1]
    assert fold.title == "HellaSwag: some of the worst items"
    assert sum("acc_norm 0" in getattr(b, "text", "") for one in fold.blocks for b in one.blocks) == 3


def test_long_texts_and_conversations_are_cut_and_told(folders):
    from gangpao.evaluate.results import Answer, Item, write_items

    messages = [
        {"role": "system", "content": "x" * 5000},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    item = Item(item="0", prompt=messages, answers=[Answer(text="y" * 3000)], scores={"acc_norm": 0.0})
    write_items(folders[0], "hellaswag", [item])
    page = as_html("t", items.singles(given(folders[:1])), "en")
    assert "more characters" in page
    assert "y" * 1201 not in page
    assert html.escape('user: [{"type": "text", "text": "hi"}]') in page


# --- the whole


def test_the_page_is_whole_and_holds_no_markup_of_others(folders, tmp_path):
    language = "zh"  # both are opened in a browser, by another test
    changed(folders[0], notes=[HOSTILE], model=read_run(folders[0]).model.model_copy(update={"name": HOSTILE}))
    page, text = build.write(given(folders, language=language), tmp_path / "out")
    source = page.read_text(encoding="utf-8")
    assert "<script" not in source
    assert re.findall(r"<img(?! alt=\"[^\"<>]*\" src=\"data:image/svg\+xml;base64,[\w+/=]+\">)", source) == []
    assert not re.search(r"https?://", re.sub(r"base64,[\w+/=]+", "", source))
    markdown = re.sub(r"^(`{3,})text$.*?^\1$", "", text.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert "<script" not in markdown
    assert "[x](" not in markdown
    for name in re.findall(r"\]\(([\w.-]+)\)", markdown):
        svg = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert "currentColor" in svg
        assert "<script" not in svg
    assert len(list((tmp_path / "out").glob(f"*.{language}.svg"))) == 3


def test_a_fence_is_longer_than_what_it_holds():
    from gangpao.evaluate.report.page.document import Verbatim

    assert as_markdown([Verbatim("a\n````\nb\x00")]) == "`````text\na\n````\nb\N{REPLACEMENT CHARACTER}\n`````\n"


def test_judged_categories_make_a_radar(folders):
    parts = {"writing": 4.0, "math": 2.0, "coding": 3.0}
    marks = TaskResult(task="mt_bench", metric="score", value=3, scale=10, mode="judge", items=3, of=3, parts=parts)
    changed(folders[0], tasks=[marks])
    names = [block.name for block in pictures.drawn(given(folders[:1], ())) if hasattr(block, "svg")]
    assert names == ["categories.en"]
    assert cells(facts.parts(given(folders[:1], ()))[1].blocks[0])["math"] == ["math", "2.00"]


def test_a_radar_leaves_out_published_rows_with_too_little(folders):
    both = given(folders, ("qwen2.5-coder-0.5b", "minicpm-2b"))
    names, series = pictures._around(*pictures._shares(both), 2)
    assert [label for label, *_ in series] == ["smollm2-135m", "large", "MiniCPM-2B"]
    assert len(names) == 7


def test_names_that_no_font_has_and_dollars_are_drawn(folders):
    bars = [("$x^$ 模型 \U0001f600", [1.0, None], [None, 0.5])]
    assert (
        "<svg" in pictures._picture(given(folders), "bars", "", lambda f: pictures._bars(f, ["$_", "任务"], bars)).svg
    )


def test_a_task_in_two_modes_counts_once_in_an_average(tmp_path):
    folders = []
    for name, column in (("a", 5), ("b", 6)):
        rows = items_of("arc_easy", 0.5, 40, column)
        tasks = [score_of(TASKS[1], rows), score_of(TASKS[1], rows, mode="generation", metric="exact_match")]
        folders.append(changed(a_run(tmp_path / name, name, column, TASKS[1:2]), tasks=tasks))
    one = given(folders)
    assert scores.between_average(one, *one.runs)["all"].tasks == ("arc_easy",)


def test_pictures_are_the_same_every_time(folders):
    one = given(folders[:1], ())
    first, second = (
        pictures._picture(one, "prices", "", lambda f: pictures._scatter(f, one, 3, [("a", 1, 2)])) for _ in range(2)
    )
    assert first == second
