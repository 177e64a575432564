"""Docs to the text that a model sees: the question, and worked examples in front of it.

The words of a prompt belong to its version (`table.py`): whoever changes one here gives the task another version, since scores of
two prompts are not comparable. Multiple choice by likelihood follows lm-eval's prompts to the letter, and by a written answer those
that the MiniCPM report used (UltraEval, February 2024: a letter in brackets).
"""

from __future__ import annotations

from collections.abc import Sequence

from gangpao.evaluate.tasks.docs import LETTERS, Doc


def question(doc: Doc) -> str:
    """ARC and PIQA as lm-eval asks them."""
    return f"Question: {doc['query']}\nAnswer:"


def query(doc: Doc) -> str:
    """Nothing but the text."""
    return str(doc["query"])


def _lettered(doc: Doc, form: str) -> str:
    return "".join(form.format(letter, choice) for letter, choice in zip(LETTERS, doc["choices"], strict=False))


def mmlu(doc: Doc) -> str:
    """lm-eval's."""
    return f"{doc['query'].strip()}\n{_lettered(doc, '{}. {}' + chr(10))}Answer:"


def mmlu_head(doc: Doc) -> str:
    """In front of the examples of a subject."""
    subject = " ".join(str(doc.get("subject", "")).split("_"))
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


def cmmlu(doc: Doc) -> str:
    """CMMLU and C-Eval, lm-eval's."""
    return f"{doc['query'].strip()}\n{_lettered(doc, '{}. {}' + chr(10))}答案："


def cmmlu_head(doc: Doc) -> str:
    """In front of the examples of a subject."""
    return f"以下是关于{doc.get('subject', '')}的单项选择题，请直接给出正确答案的选项。\n\n"


def letter(doc: Doc) -> str:
    """The right one."""
    return LETTERS[doc["gold"]]


def written_choice(doc: Doc) -> str:
    """An English question whose answer is written: a letter in brackets."""
    options = _lettered(doc, "({}) {}\n")
    return (
        f"Question:\n{doc['query'].strip()}\nRequirement:\nChoose and respond with the letter of the correct answer, "
        f"including the parentheses.\nOptions:\n{options}Answer:\n"
    )


def written_choice_zh(doc: Doc) -> str:
    """The same in Chinese."""
    options = _lettered(doc, "({}) {}\n")
    return f"问题：{doc['query'].strip()}\n要求：从以下选项中选择并回答正确答案的选项字母，包括左右括号。\n选项：\n{options}答案："


def bracketed(doc: Doc) -> str:
    """The right letter as such a question wants it."""
    return f"({letter(doc)})"


def gsm8k(doc: Doc) -> str:
    """lm-eval's and the report's."""
    return f"Question: {doc['query']}\nAnswer:"


def gsm8k_answer(doc: Doc) -> str:
    """Reasoning and the number behind ####."""
    return f" {doc['reasoning']}\n#### {doc['target']}"


def maths(doc: Doc) -> str:
    """A problem in the form that is known as Minerva's."""
    return f"Problem:\n{doc['query']}\n\nSolution:"


def maths_answer(doc: Doc) -> str:
    """A worked solution with its final answer."""
    return f" {doc['solution']}\nFinal Answer: The final answer is ${doc['target']}$. I hope it is correct."


# Ours, so that no set's own items stand in front of its questions.
MATHS_EXAMPLES: Sequence[Doc] = (
    {
        "query": "A rectangle is twice as long as it is wide, and its perimeter is $42$. What is its area?",
        "solution": "If the width is $w$, the perimeter is $2(w + 2w) = 6w = 42$, so $w = 7$ and the length is $14$. "
        "The area is $7 \\cdot 14 = 98$.",
        "target": "98",
    },
    {
        "query": "Write $\\frac{3}{4} - \\frac{1}{6}$ as a fraction in lowest terms.",
        "solution": "With the common denominator $12$ this is $\\frac{9}{12} - \\frac{2}{12} = \\frac{7}{12}$.",
        "target": "\\frac{7}{12}",
    },
    {
        "query": "For which real numbers $x$ is $x^2 - 5x + 6 < 0$?",
        "solution": "The polynomial is $(x - 2)(x - 3)$. It is below zero where exactly one factor is, which is between the "
        "roots.",
        "target": "(2,3)",
    },
    {
        "query": "Two fair coins and a fair die are thrown. What is the probability of two heads and an even number?",
        "solution": "Two heads come with probability $\\frac14$ and an even number with $\\frac12$; the throws do not depend on "
        "one another, so both come with $\\frac14 \\cdot \\frac12 = \\frac18$.",
        "target": "\\frac{1}{8}",
    },
)


def bbh(doc: Doc) -> str:
    """One question, its answer open."""
    return f"Q: {doc['query']}\nA:"


def bbh_steps(doc: Doc) -> str:
    """The same with a step by step answer."""
    return f"Q: {doc['query']}\nA: Let's think step by step.\n"


def bbh_first_examples(text: str, count: int) -> str:
    """A kind's text with the first of its worked examples. Raises ValueError where there are fewer."""
    head, *parts = text.strip().split("\n\nQ: ")
    if len(parts) < count:
        raise ValueError(f"{count} examples wanted and {len(parts)} there: lower --shots")
    return "\n\nQ: ".join([head, *parts[:count]])


def bbh_direct_examples(text: str) -> str:
    """A kind's worked examples without their work: question, answer."""
    head, *parts = text.strip().split("\n\nQ: ")
    out = [head]
    for part in parts:
        asked, _, answer = part.partition("\nA: ")
        out.append(f"Q: {asked}\nA: {answer.rpartition('So the answer is ')[2].strip().removesuffix('.')}")
    return "\n\n".join(out)


def mbpp(doc: Doc) -> str:
    """The sentence and its tests, as the set's authors ask."""
    tests = "\n".join(doc["tests"])
    task = f"You are an expert Python programmer, and here is your task: {doc['query']}"
    return f"{task} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"


def mbpp_answer(doc: Doc) -> str:
    """A solution between its marks."""
    return f"{doc['target'].strip()}\n[DONE]"


def humaneval(doc: Doc) -> str:
    """The head, stripped as the report has it."""
    return str(doc["query"]).strip()


def humaneval_chat(doc: Doc) -> str:
    """For a model that answers rather than goes on."""
    head = doc["query"].strip()
    return f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{head}\n```"
