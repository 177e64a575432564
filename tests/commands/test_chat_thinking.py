"""Thoughts in a conversation of the terminal: a budget, a switch, and what is said where nothing else came."""

from gangpao.text.thoughts import KNOWN
from tests.commands.test_chat import chat_of


def test_a_thought_without_an_answer_says_so(capsys):
    chat = chat_of("<think>" + "hm " * 40, max_tokens=30)
    chat.conversation.engine.template.thoughts = KNOWN[0]
    chat.command("/think -1")
    chat.answer("q")
    out = capsys.readouterr().out
    assert "thought for" in out
    assert "(cut off: max_tokens is 30, /set max_tokens changes it; nothing but a thought came" in out
    assert chat.conversation.turns == []


def test_think_is_a_command(capsys):
    chat = chat_of("<think>\n" + "hm " * 60 + "</think>\n\nYes." + "!" * 99, max_tokens=100)
    chat.conversation.engine.template.thoughts = KNOWN[0]
    chat.command("/think 40")
    chat.command("/think")
    assert capsys.readouterr().out == "thinking: at most 40 tokens\n" * 2
    chat.answer("q")
    assert 0 < len(chat.thoughts) < 40
    assert len(chat.conversation.turns) == 2
    chat.command("/no_think")
    chat.command("/think much")
    out = capsys.readouterr().out
    assert "thinking: off" in out
    assert "on, off, default" in out
    chat.answer("q")
    assert chat.thoughts == ""
    chat.command("/think default")
    assert "the model's own choice" in capsys.readouterr().out
