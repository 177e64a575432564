"""Prose is told from code, and programs, tables and sums that differ in their signs are not duplicates."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.data.build import DataConfig, build
from gangpao.data.cleaning.dedup import jaccard
from gangpao.data.cleaning.kinds import SHARE, code_share, is_code
from gangpao.data.cleaning.ngrams import shingles, units
from tests.data import makers
from tests.data.cleaning.test_clean import CHINESE, PATCH, PROSE

OPERATORS = (("<", "+"), (">", "-"), ("<=", "*"), (">=", "//"), ("==", "%"), ("!=", "**"))
BODY = "".join(f"    step_{n} = total * {n} + limit\n" for n in range(30))


def program(i, compare, operator):
    return (
        f"def task_{i}(a, b, limit):\n    total = a {operator} b\n    if total {compare} limit:\n        return total\n"
        f"    return limit {operator} total\n\nfor x in range(10):\n    print(x, task_{i}(x, x {operator} 2, 5))\n"
    )


def left(tmp_path, texts, **options):
    """How many of these texts a build keeps."""
    makers.jsonl(tmp_path / "s.jsonl", [{"text": text} for text in texts])
    clean = {"min_chars": 1, "max_repeated_lines": 0, "min_compression": 0, "max_symbols": 1}
    source = {"path": "s.jsonl", "clean": clean, "heldout": 0, **options}
    settings = {"root": str(tmp_path), "sources": {"s": source}, "tokenizer": {"train": {"vocab_size": 600}}}
    return build(DataConfig.model_validate(settings), tmp_path / "out").train["s"].num_documents


SETS = {
    "programs": [program(i, c, o) for i in range(50) for c, o in OPERATORS],
    "one operator in a long program": [f"total = a {o} b\n{BODY}" for _, o in OPERATORS],
    "degrees": [
        "\n".join(f"day {day}: {sign}{(day * 7 + wind) % 30} degrees, wind {wind}" for day in range(20))
        for wind in range(40)
        for sign in ("", "-")
    ],
    "one minus in a table": [
        "\n".join(f"{day} | {'-' * (day == cold)}{day * 7 % 30} | {day % 4}" for day in range(40)) for cold in range(40)
    ],
    "formulas": [f"x = a {p} b {q} c  # {n}" for n in range(3) for p, q in itertools.product("+-*/", repeat=2)],
    "logic": [f"if (left[{i}] {sign} right[{i}]) return {i};\n" * 9 for i in range(9) for sign in ("&&", "||", "^")],
    "signs of logic": [f"p{i} {sign} q{i} = r{i}" for i in range(9) for sign in "∧∨⊕"],
    "brackets": ["y = (a + b) * c", "y = a + (b * c)", "y = a + b * c"],
    "degrees in sentences": [
        f"On day {d} it was {sign}{7 + d} degrees, people say." for d in range(5) for sign in ("", "-")
    ],
    "sums in sentences": [f"{PROSE}They had 12 {sign} 7 of them, and that is all." for sign in "+-*/"],
    "more sums in sentences": [
        f"Take a sheet of paper, compute {n + 3} {sign} {n % 7 + 2} in your head, and write down what comes out."
        for n in range(30)
        for sign in ("**", "%", "//", "*", "+", "-")
    ],
    "comparisons in sentences": [
        f"Look at the table and say whether {left} {sign} {right} holds in it."
        for left, right in (("x", "5"), ("5", "y"), ("x", "y"), ("7", "5"))
        for sign in ("<", ">", "<=", ">=", "==", "!=", "<>", "≠")
    ],
    "queries": [
        f"SELECT name, city FROM customers_{n} WHERE price {sign} {n * 3 + 10} ORDER BY name, city LIMIT 30;"
        for n in range(30)
        for sign in ("<", ">", "<=", ">=", "=", "<>")
    ],
    "emoji": [f"{PROSE}{emoji}" for emoji in ("", "😀", "😡", "❤", "❌", "✅")],
    "nothing but emoji": ["😀😀 ✅", "😡😡 ❌"],
}


@pytest.mark.parametrize("name", SETS)
def test_what_differs_in_signs_stays(tmp_path, name):
    assert left(tmp_path, SETS[name]) == len(set(SETS[name]))


def test_prose_and_formatted_copies_are_found_as_before(tmp_path):
    copies = [PROSE, PROSE.replace(", ", " - ").upper(), f"* **{PROSE.strip()}**", PROSE.replace(".", "!")]
    copies += [CHINESE, CHINESE.replace("，", "、")]
    assert left(tmp_path, copies) == 2
    code = program(1, "<", "+") + BODY
    formatted = code.replace("(a, b, limit)", "(\n    a,\n    b,\n    limit,\n)").replace("    ", "\t")
    assert left(tmp_path, [code, formatted, f"{code};\n", code + "print('done')\n"]) == 1


def test_a_source_may_name_its_kind(tmp_path):
    assert left(tmp_path, SETS["logic"], text_kind="prose") == 9
    prose = [PROSE, PROSE.replace("three towns", "(three) towns")]
    assert left(tmp_path, prose) == 1
    assert left(tmp_path, prose, text_kind="code") == 2


@pytest.mark.parametrize(
    "text",
    [
        program(3, "<", "+"), PATCH, "12 + 7 = 19\n3 * 4 = 12\n", "a + b * c", "SELECT a.id, COUNT(*) FROM a WHERE (b >= 3);",
        "| city | low | high |\n|-|-|-|\n| Oslo | -7 | 3 |\n", "a,b\n1,2\n3,4\n", '{"name": [1, 2], "x": {"y": null}}',
        "\\frac{a}{b} + \\sum_{i=0}^{n} x_i^2 = 0", "int main(void) { return 0; }", "<ul>\n<li>one</li>\n</ul>",
        "SELECT a, b FROM t WHERE price > 10 ORDER BY a LIMIT 30;", "UPDATE towns SET name = 'Oslo' WHERE size > 3;",
        "DELETE FROM towns WHERE name LIKE 'Oslo';", "∀x ∈ A: x ∧ y ≤ z", "第1行：12 + 30 = 42",
    ],
)  # fmt: skip
def test_code_is_code(text):
    assert is_code(text)
    assert not is_code(text, "prose")


@pytest.mark.parametrize(
    "text",
    [
        "", " \n", PROSE, CHINESE, "# A title\n\nHe said: \"No (never)!\" - and left.\n\n* one thing\n* another thing\n",
        "In 1969 the crew of 3 landed, and 600 million people watched; 12 more would follow by 1972.",
        "UPDATE: the shop is open again, and all who waited may come.", "SELECT COMMITTEE ON TRADE. A report on it follows.",
        "第八条　本法自2021年1月1日起施行，1998年12月29日通过的法律同时废止。", "x86 and w3 and mp3 are names of things",
    ],
)  # fmt: skip
def test_prose_is_prose(text):
    assert not is_code(text)
    assert is_code(text, "code")


@pytest.mark.parametrize(
    "text", ["one - two", "well-known", "don't - i say", "this / that", "and % of it", "1/2/2020", "5-7"]
)
def test_signs_of_prose_are_nothing(text):
    assert units(text, "few").tolist() == units(text).tolist()


@given(st.text(st.sampled_from("ab c\n\n12-+=()[]字→∑# *"), max_size=80))
@settings(max_examples=300, deadline=None)
def test_the_quick_look_never_overlooks_code(text):
    assert is_code(text) == (code_share(text) >= SHARE)


@pytest.mark.parametrize("signs", ["none", "few", "all"])
def test_signs_only_make_differences_larger(signs):
    """A text has the same number of units whether signs count or not, so no similarity becomes larger by counting them."""
    texts = [*SETS["programs"][:12], PROSE, f"{PROSE} 😀", *SETS["degrees"][:4]]
    for text in texts:
        assert len(units(text, signs)) == len(units(text))
    for a, b in itertools.combinations(texts, 2):
        plain = jaccard(shingles(units(a), 5), shingles(units(b), 5))
        assert jaccard(shingles(units(a, signs), 5), shingles(units(b, signs), 5)) <= plain + 1e-9
