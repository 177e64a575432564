"""Published scores are what the sources print, and a file of one's own is merged over them."""

import pytest

from gangpao.config import config_dir
from gangpao.evaluate.report import published as module
from gangpao.evaluate.report.published import ELEVEN, ROUNDING, load_published


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No file of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    module._load.cache_clear()
    yield
    module._load.cache_clear()


def own(text):
    config_dir().mkdir(parents=True, exist_ok=True)
    (config_dir() / "published.toml").write_text(text, encoding="utf-8")


def test_every_printed_average_is_the_mean_of_its_cells_but_two_that_were_cut_not_rounded():
    published, checked, odd = load_published(), 0, {}
    for key, row in published.rows.items():
        for group, printed in row.printed.items():
            tasks = {"all": ELEVEN, "zh": ELEVEN[:2], "en": ELEVEN[2:]}[group]
            if not row.scores:
                continue
            mean = sum(row.scores[t] for t in tasks) / len(tasks)
            assert published.mean(key, group) == pytest.approx(mean)
            checked += 1
            if abs(mean - printed) > ROUNDING:
                odd[row.model, group] = (printed, round(mean, 3))
    assert checked == 66
    assert odd == {("StableLM-Zephyr-3B", "en"): (46.31, 46.318), ("Phi-2-2B", "en"): (54.41, 54.416)}
    assert [line.split(" (")[0] for line in published.odd_averages()] == ["StableLM-Zephyr-3B", "Phi-2-2B"]


def test_the_three_tables_are_whole():
    rows = [row for row in load_published().rows.values() if row.source == "minicpm-readme"]
    count = {name: sum(name in row.tables for row in rows) for name in ("beyond-size", "same-size", "chat", "mt-bench")}
    assert count == {"beyond-size": 8, "same-size": 6, "chat": 9, "mt-bench": 11}
    assert sum(len(row.perplexity_mode) for row in rows) == 30


def test_a_cell_says_how_it_was_asked():
    published = load_published()
    star, plain = published.cell("mistral-7b", "hellaswag"), published.cell("minicpm-2b", "hellaswag")
    assert (star.value, star.mode, star.starred) == (pytest.approx(0.8043), "loglikelihood", True)
    assert (plain.mode, plain.shots, plain.metric) == ("generation", 0, "acc_norm")
    assert plain.stderr == pytest.approx((0.6825 * 0.3175 / 10041) ** 0.5)
    assert published.cell("minicpm-2b", "ceval").stderr is None
    assert published.cell("mt-bench-minicpm-2b", "mt_bench").value == pytest.approx(0.725)
    assert published.cell("mt-bench-minicpm-2b", "mmlu") is None
    assert published.cell("gemini-nano-3b", "gsm8k").own_report


def test_names_of_other_programs_are_ours():
    names = ["ceval-valid", "ARC_Easy", "minerva_math", "mt-bench", "my_task"]
    assert [load_published().task_of(n) for n in names] == ["ceval", "arc_easy", "math", "mt_bench", "my_task"]


def test_rows_are_chosen_by_key_or_model():
    published = load_published()
    assert published.chosen(["MiniCPM-2B"]) == ["minicpm-2b"]
    assert published.chosen(["smollm2-135m-instruct"]) == ["smollm2-135m", "smollm2-135m-card"]
    with pytest.raises(ValueError, match=r"--published 'x'.*minicpm-2b.*published\.toml"):
        published.chosen(["x"])


def test_a_file_of_one_s_own_is_merged_over_it():
    own(
        '[sources.mine]\ntitle = "Measured here"\n[rows.mine]\nmodel = "M"\nsource = "mine"\nscores = { mmlu = 30 }\n'
        "[rows.minicpm-2b.scores]\nmmlu = 53.5\n"
    )
    published = load_published()
    assert published.cell("mine", "mmlu").value == 0.3
    assert published.rows["minicpm-2b"].scores["mmlu"] == 53.5
    assert published.rows["minicpm-2b"].scores["cmmlu"] == 51.07


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[rows.minicpm-2b]\nscore = 1\n", r"published\.toml, line \d.*score: unknown key.*scores"),
        ('[rows.x]\nmodel = "M"\nsource = "nowhere"\n', r"rows\.x\.source: no source 'nowhere'"),
        ("[rows.minicpm-2b.scores]\nmlu = 3\n", r"rows\.minicpm-2b\.scores: unknown task 'mlu'"),
        ("[rows.minicpm-2b.scores]\nmmlu = 153.46\n", r"153\.46 is not within 0 and 100"),
        ('[rows.minicpm-2b]\nperplexity_mode = ["piqa"]\n', r"perplexity_mode: unknown task 'piqa'"),
        ('[sources.minicpm-readme]\ndate = "last year"\n', r"date"),
    ],
)
def test_a_wrong_file_says_what_and_where(text, match):
    own(text)
    with pytest.raises(ValueError, match=match):
        load_published()
