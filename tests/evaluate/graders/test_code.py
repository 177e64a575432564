"""Programs cut out of answers, problems of two data sets run, and pass@k."""

import itertools
import random
from math import isclose, sqrt

import pytest

from gangpao.evaluate.graders import code
from gangpao.evaluate.graders.cage import parent as cage

PROMPT = (
    "from typing import List\nimport math\n\n\ndef half(x: float) -> float:\n    return x / 2\n\n\n"
    'def halves(xs: List[float]) -> List[float]:\n    """ Half of each.\n    >>> halves([2])\n    [1.0]\n    """\n'
)
TEST = "\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([2, 4]) == [1, 2]\n    assert candidate([]) == []\n"
BODY = "    return [half(x) for x in xs]\n"
WHOLE = "def halves(xs):\n    return [half(x) for x in xs]\n"

CHAT = {
    "one block": f"Sure! Here it is:\n\n```python\n{WHOLE}```\nIt halves each.",
    "no language": f"```\n{WHOLE}```",
    "py": f"```py\n{WHOLE}\n```",
    "Python 3 with attributes": f'```python3 title="x.py"\n{WHOLE}```',
    "tildes": f"~~~python\n{WHOLE}~~~",
    "four marks around three": f"````python\n{WHOLE}# ```\n````",
    "not closed": f"Here:\n```python\n{WHOLE}",
    "closed by the token limit in the middle of prose": f"```python\n{WHOLE}```\n\nThis function ```",
    "in a list": "1. Do it:\n\n   ```python\n   def halves(xs):\n       return [x / 2 for x in xs]\n   ```\n",
    "windows": f"Here:\r\n```python\r\n{WHOLE}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
    "after a shell command": f"```bash\npip install x\n```\n```python\n{WHOLE}```",
    "helper first": "```python\nimport operator\n\ndef two(x):\n    return operator.truediv(x, 2)\n```\nThen:\n"
    "```python\ndef halves(xs):\n    return [two(x) for x in xs]\n```",
    "use after": f"```python\n{WHOLE}```\nUse:\n```python\nprint(halves([3]))\n```",
    "use first": f"Use:\n```python\nprint(halves([3]))\n```\nCode:\n```python\n{WHOLE}```",
    "with examples": f"```python\n{WHOLE}\nprint(halves([2]))\nassert halves([2]) == [3]\n"
    "if __name__ == '__main__':\n    x = input()\n```",
    "the whole prompt again": f"```python\n{PROMPT}{BODY}```",
    "body alone": f"```python\n{BODY}```",
    "body alone at the margin": "```python\nreturn [half(x) for x in xs]\n```",
    "body without a fence": BODY,
    "no fence": f"Here is the function:\n\n{WHOLE}\nIt takes a list and halves it.\n\nGood luck!",
    "no fence, nothing else": WHOLE,
    "no fence, examples": f"{WHOLE}\nprint(halves([3]))\n\nThe output is [1.5].",
    "two versions": f"```python\n{WHOLE}```\nOr shorter:\n```python\nhalves = lambda xs: list(map(half, xs))\n```",
    "a lambda": "```python\nhalves = lambda xs: [x / 2 for x in xs]\n```",
    "in Chinese": f"好的，代码如下：\n```python\n{WHOLE}```\n这个函数把每个数减半。",
    "an async helper": f"```python\nasync def other():\n    pass\n\n{WHOLE}```",
    "a thought before": f"<think>\n```python\ndef halves(xs): return xs\n```\n</think>\n```python\n{WHOLE}```",
    "a session": "```python\n>>> def halves(xs):\n...     return [x / 2 for x in xs]\n>>> halves([2])\n[1.0]\n```",
    "a main that asks": f"```python\n{WHOLE}\ndef main():\n    print(halves(input()))\n\nmain()\n```",
    "its examples cut off": f"```python\n{WHOLE}\nprint(halves([3]))\nprint(halves(['a",
    "cut off in another function": f"```python\n{WHOLE}\ndef other(xs):\n    return [x for",
    "invalid escape": "```python\ndef halves(xs):\n    '\\d'\n    return [x / 2 for x in xs]\n```",
}


@pytest.mark.usefixtures("caged")
def test_a_program_is_found_in_a_chat_answer() -> None:
    programs = [code.humaneval(answer, PROMPT, TEST, "halves", chat=True) for answer in CHAT.values()]
    found = dict(zip(CHAT, code.grade_all(programs, run_code=True), strict=True))
    assert {n: (g.why, g.extracted) for n, g in found.items() if not g.correct} == {}


WRONG = {
    "nothing": ("", "defines no halves"),
    "a refusal": ("I am sorry, I cannot help with that.", "SyntaxError"),
    "another name": ("```python\ndef halve(xs):\n    return [x / 2 for x in xs]\n```", "defines no halves"),
    "syntax": ("```python\ndef halves(xs):\n    return [half(x for x in xs\n```", "SyntaxError"),
    "cut off": ("```python\ndef halves(xs):\n    return [half(x) for", "SyntaxError"),
    "wrong": ("```python\ndef halves(xs):\n    return xs\n```", "AssertionError"),
    "no helper of its own": ("```python\ndef halves(xs):\n    return [third(x) for x in xs]\n```", "NameError"),
    "a null byte": ("```python\ndef halves(xs):\n    return '\0'\n```", "does not load"),
}


@pytest.mark.usefixtures("caged")
def test_wrong_programs_are_wrong_and_say_why() -> None:
    programs = [code.humaneval(answer, PROMPT, TEST, "halves", chat=True) for answer, _ in WRONG.values()]
    found = dict(zip(WRONG, code.grade_all(programs, run_code=True), strict=True))
    assert {n: g.why for n, g in found.items() if g.correct or WRONG[n][1] not in g.why} == {}


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "\ndef other():\n    return 1 +",
        "\nprint(halves([1]))",
        "\n# next\n)",
        "\n```\nprose",
        "\nif __name__ == 'x':\n    (",
    ],
)
@pytest.mark.usefixtures("caged")
def test_a_completion_ends_at_a_stop_string(rest: str) -> None:
    assert code.grade(code.humaneval(BODY + rest, PROMPT, TEST, "halves", chat=False), run_code=True).correct


def test_a_completion_keeps_what_only_looks_like_one() -> None:
    body = "    if not xs:\n        return []\n    # a comment\n"
    body += "    def class_(x):\n        return half(x)\n    return [class_(x) for x in xs]"
    assert code.cut(body, code.STOPS["humaneval"]) == body
    assert code.cut("a[DONE]b\nprint", code.STOPS["mbpp"]) == "a"


MBPP = [
    # reference, tests, setup, what a model might say
    ("def mul(a, b):\r\n  return a * b", ["assert mul(2, 3) == 6", "assert mul(0, 1) == 0"], "",
     "def mul(a, b):\n  return a*b\n[DONE]\nx("),
    ("def sum(a, b):\r\n  return a + b", ["assert sum(2, 3) == 5"], "", "def sum(a, b):\n    return b + a\n"),
    (
        "class Node:\r\n  def __init__(self, v):\r\n    self.v = v\r\n    self.next = None\r\n"
        "def depth(n):\r\n  return 1 + depth(n.next) if n else 0",
        ["assert depth(root) == 2", "assert (depth(root.next)) == 1"],
        "root = Node(1) \r\nroot.next = Node(2) \r\n",
        "class Node:\n  def __init__(self, v):\n    self.v, self.next = v, None\n"
        "def depth(n):\n  return 1 + depth(n.next) if n else 0\n",
    ),
    ("import sys\r\ndef size(t):\r\n  return sys.getsizeof(t)", ["assert size((1, 2)) == sys.getsizeof((1, 2))"], "",
     "import sys\ndef size(t):\n    return sys.getsizeof(t)\n"),
    ("def kind(x, t):\r\n  return isinstance(x, t)", ["assert kind(1, int)", "assert not kind(1, str)"], "",
     "def kind(x, t):\n    return type(x) is t\n"),
]  # fmt: skip


@pytest.mark.usefixtures("caged")
def test_problems_of_mbpp() -> None:
    programs = [
        code.mbpp(text, reference, tests, setup, chat=chat)
        for reference, tests, setup, answer in MBPP
        for chat, text in ((False, answer), (True, f"```python\n{code.cut(answer, ['[DONE]'])}```"), (False, reference))
    ]
    assert [g.why for g in code.grade_all(programs, run_code=True)] == ["passed"] * len(programs)
    assert [p.names for p in programs[::3]] == [("mul",), ("sum",), ("depth", "Node"), ("size",), ("kind",)]


def test_a_damaged_row_is_named() -> None:
    with pytest.raises(ValueError, match="the tests are not Python"):
        code.mbpp("", "def f(): pass", ["assert f( =="], chat=False)
    with pytest.raises(ValueError, match="the reference is not Python"):
        code.mbpp("", "def f( pass", ["assert f()"], chat=False)


def test_pass_at_k_is_the_share_of_draws() -> None:
    for samples, passed in itertools.product(range(1, 7), range(7)):
        for k in range(1, samples + 1):
            if passed <= samples:
                draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
                assert isclose(code.pass_at_k(samples, passed, k), sum(map(any, draws)) / len(draws), abs_tol=1e-12)
    assert isclose(code.pass_at_k(200, 1, 100), 0.5)


def test_the_mean_has_a_standard_error() -> None:
    value, error = code.pass_at_k_mean([(1, 1), (1, 0), (1, 1), (1, 1)], 1)
    assert value == 0.75
    assert error is not None
    assert isclose(error, sqrt(0.25 / 4))
    assert code.pass_at_k_mean([(10, 5)], 1) == (0.5, None)
    draw = random.Random(0)
    trials = [code.pass_at_k_mean([(1, draw.random() < 0.3) for _ in range(50)], 1) for _ in range(2000)]
    spread = sqrt(sum((v - 0.3) ** 2 for v, _ in trials) / len(trials))
    assert isclose(spread, sum(e for _, e in trials if e) / len(trials), rel_tol=0.05)


@pytest.mark.parametrize(("samples", "passed", "k"), [(1, 0, 2), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        code.pass_at_k(samples, passed, k)


def test_programs_are_not_run_unasked() -> None:
    with pytest.raises(ValueError, match="--run-code"):
        code.grade_all([cage.Program("", "", ())], run_code=False)
