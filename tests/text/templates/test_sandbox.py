"""Hostile templates: none reaches anything, none takes long, and the worker serves the next one."""

import os
import subprocess
import sys
import time

import pytest

from gangpao.text.templates.sandbox_parent import TemplateError, TemplateWorker

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
# The limit is half a second of processor time; the rest is for a busy machine and a new start.
SECONDS = 4.0 if os.environ.get("CI") else 2.5

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ()|attr(['__cl','ass__']|join) }}",
    "{{ [].append.__self__.__class__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__closure__ }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ strftime_now.__globals__['sys'] }}",
    "{{ strftime_now.__self__ }}",
    "{{ range.__class__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ config }}{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{a.__init__.__globals__}'.format(a=raise_exception) }}",
    "{{ '%s'|format(raise_exception.__globals__) }}",
    "{{ ['{0.__class__}']|map('format', '')|list }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|sort(attribute='__init__.__globals__') }}",
    "{% set x = messages.append({'role': 'x'}) %}{{ x }}",
    "{% do messages.clear() %}",
    "{{ messages.pop() }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% from 'os' import environ %}{{ environ }}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os').environ }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum(n=100000) }}",
    "{{ ''.join.__self__.__class__.__bases__ }}",
    "{{ (1).__class__.__base__ }}",
    "{{ (messages|list).sort.__self__.__class__ }}",
    "{% for k in ().__class__.__base__.__subclasses__() %}{{ k }}{% endfor %}",
    "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}{{ m.__globals__ }}",
    "{{ loop.__init__.__globals__ }}{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{{ (x for x in messages).gi_frame }}",
    "{{ messages|tojson(default=raise_exception) }}{{ messages|tojson(cls=dict).__class__ }}",
]
GREEDY = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{{ i }}{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 'a' * 10**12 }}",
    "{{ 'a' * 2000000 }}",
    "{{ '中' * 500000 }}",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ [[0] * 10000] * 10000 }}",
    "{{ (2 ** 99999999) ** 9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ '%099999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'x'|center(999999999) }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ ('a' * 9999999)|replace('a', 'a' * 9999) }}",
    "{{ (['a'] * 9999999)|join('b' * 99) }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[0]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ range(99999)|map('string')|join|wordcount }}{% for i in range(99999) %}{{ 'ab ' * 999 | wordwrap(1) }}{% endfor %}",
    "{{ (('a' * 60) + '!')|urlize }}{{ (('<' * 99999)|striptags) * 99999 }}",
    "{{ strftime_now('%099999999d' * 999) }}",
    "{{ strftime_now('%c' * 9999999) }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{{ 1" + "+1" * 50_000 + " }}",
    "{% if 1 %}" * 500,
    "{{ messages" + "[0]" * 20_000 + " }}",
    "x" * 1_000_001,
    "{{ raise_exception('a' * 99999999) }}",
    "{{ undefined_thing.x.y }}",
    "{% break %}",
    "{%",
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """A worker with a secret in the environment of its parent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANGPAO_TEST_SECRET", "canary-7261")
        worker = TemplateWorker()
        yield worker
        worker.close()


@pytest.mark.parametrize("source", ESCAPES + GREEDY, ids=lambda s: s[:40])
def test_a_hostile_template_gets_nowhere(worker, source):
    worker.render("{{ 1 }}", {})  # a new start, if need be, does not count
    start = time.perf_counter()
    try:
        text = worker.render(source, {"messages": MESSAGES, "add_generation_prompt": True})
    except TemplateError as error:
        text = str(error)
        assert len(text) < 1_000
    assert time.perf_counter() - start < SECONDS
    assert len(text.encode()) <= 1_000_000
    for trace in (
        "<class",
        "<module",
        "<built-in",
        "subprocess",
        "root:",
        "canary-7261",
        "builtins",
        "<function",
        "PATH",
    ):
        assert trace not in text
    assert worker.render("{{ messages[0].content }}", {"messages": MESSAGES}) == "hi"


def test_the_child_has_no_environment_and_can_open_nothing(worker):
    """What an escape would find, if there were one: looked at from outside."""
    worker.render("", {})
    process = worker._process
    assert process is not None
    proc = f"/proc/{process.pid}"
    if not os.path.isdir(proc):
        pytest.skip("no /proc on this system")
    with open(f"{proc}/environ", "rb") as file:
        assert file.read() == b""
    with open(f"{proc}/limits") as file:
        limits = {line[:25].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max open files"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(256 << 20)] * 2
    assert sorted(os.listdir(f"{proc}/fd")) == ["0", "1", "2"]
    assert os.getpgid(process.pid) != os.getpgid(0)


def test_templates_say_what_hugging_face_templates_say(worker):
    render = worker.render
    assert render("{{ x | tojson }}", {"x": {"a": "é<", "b": [1, None]}}) == '{"a": "é<", "b": [1, null]}'
    assert render("{{ x | tojson(indent=1) }}", {"x": [1]}) == "[\n 1\n]"
    assert render("  {% if true %}\na\n  {% endif %}\nb", {}) == "a\nb"  # trim_blocks, lstrip_blocks
    assert render("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", {}) == "13"
    assert render("a{% generation %}b{% endgeneration %}", {}) == "ab"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}", {})) == 10
    assert render("{{ undefined_thing }}{% if tools is defined %}x{% endif %}", {}) == ""
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(ValueError, match="TemplateSyntaxError"):
        render("{% if %}", {})


def test_the_worker_is_kept_and_replaced_after_a_kill():
    worker = TemplateWorker()
    try:
        worker.render("{{ 1 }}", {})
        first = worker._process
        worker.render("{{ 2 }}", {})
        assert worker._process is first
        with pytest.raises(TemplateError, match="took too much"):
            worker.render(GREEDY[0], {})
        assert worker.render("{{ 3 }}", {}) == "3"
        second = worker._process
        assert second is not first
        second.kill()
        second.wait()
        assert worker.render("{{ 4 }}", {}) == "4"
    finally:
        worker.close()
    assert worker.render("{{ 5 }}", {}) == "5"
    worker.close()


def test_an_interrupt_does_not_mix_up_answers(monkeypatch):
    worker = TemplateWorker()
    worker.render("", {})
    read = TemplateWorker._read

    def interrupted(self, process, seconds):
        monkeypatch.setattr(TemplateWorker, "_read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(TemplateWorker, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.render("old", {})
    assert worker.render("new", {}) == "new"
    worker.close()


def test_a_child_without_processor_time_is_given_up():
    worker = TemplateWorker(wall_s=0.2)
    worker.render("", {})
    import signal

    worker._process.send_signal(signal.SIGSTOP)
    start = time.perf_counter()
    with pytest.raises(TemplateError, match="took too much"):
        worker.render("x", {})
    assert time.perf_counter() - start < 5
    worker.close()


def test_a_request_too_long_is_refused(worker):
    with pytest.raises(TemplateError, match="too long"):
        worker.render("x", {"messages": "a" * 17_000_000})


RESERVED = """
import mmap, sys
from gangpao.text.templates import sandbox_child
held = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=0)  # 0x4000: MAP_NORESERVE
sandbox_child.lock_down()
print(len(bytearray(50 << 20)))
try:
    bytearray(sandbox_child.MEMORY_BYTES + (1 << 20))
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_gigabytes_of_reserved_addresses_are_no_memory() -> None:
    """Android's allocator reserves them when a process starts."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", RESERVED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(50 << 20), "refused"], done.stderr
