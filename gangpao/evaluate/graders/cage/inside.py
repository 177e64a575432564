"""The two processes in the cage, forked by child.py: the one that runs the tests decides, the one that runs the program answers.

They speak lines of JSON over two pipes. A request names a function (or an object that came back earlier) and has plain values
as arguments; a reply has a plain value, the name of an object that stays where it is, or an error. Whatever the program does to
its own process, all that can arrive is data; the verdict is written by the other process, which has no line of the program in it.

Values cross as what they are: None, bool, int, float, complex, str, bytes, lists, tuples, sets, dicts, decimals, fractions,
dates; a subclass of one of these arrives as the plain type. An object of any other type stays with the program: it can be called,
its attributes read and set, and it is equal to itself alone.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import json
import os
import select
import signal
import sys
import types
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in child.py
    from collections.abc import Callable
    from typing import Any, NoReturn

MAX_REPLY = 16_000_000  # bytes of one reply
MAX_DEPTH = 200
_MAX_ITEMS = 1_000_000  # of an iterator that has no length
_TOLD = 300  # characters of a message

# --- values


class ForeignError(Exception):
    """A value that cannot cross."""


def _numbers(value: Any, depth: int) -> Any:
    """What a number of another library holds, or None."""
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
        return encode(value.item(), None, depth + 1)
    return None


def _standard(value: Any) -> Any:
    """A value of the standard library by the text that makes it again, or None. Only of modules that are loaded anyway."""
    for module, name, text in (("decimal", "Decimal", str), ("fractions", "Fraction", str)):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(value, kind):
            return {"t": name, "v": text(value)}
    datetime = sys.modules.get("datetime")
    if datetime is not None:
        for name in ("datetime", "date", "time"):
            if isinstance(value, getattr(datetime, name)):
                return {"t": name, "v": value.isoformat()}
        if isinstance(value, datetime.timedelta):
            return {"t": "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    return None


def _scalar(value: Any) -> Any:
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        value = int(value)
        return value if -(2**53) < value < 2**53 else {"t": "int", "v": hex(value)}
    if isinstance(value, float):
        return {"t": "float", "v": float.hex(float(value))}
    if isinstance(value, complex):
        return {"t": "complex", "v": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {"t": type(value).__name__ if type(value) in (bytes, bytearray) else "bytes", "v": bytes(value).hex()}
    return None


def encode(value: Any, keep: Callable[[Any], Any] | None, depth: int = 0) -> Any:
    """A value as JSON. keep: gives a name to an object that has to stay here. Raises ForeignError."""
    if depth > MAX_DEPTH:
        raise ForeignError(f"a value is nested more than {MAX_DEPTH} deep")
    if value is None:
        return None
    found = _scalar(value)
    if found is not None:
        return found
    if isinstance(value, Remote):
        return {"t": "object", "v": object.__getattribute__(value, "_place")}
    if isinstance(value, dict):
        pairs = [[encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in dict.items(value)]
        return {"t": "dict", "v": pairs}
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            items = [encode(item, keep, depth + 1) for item in kind.__iter__(value)]
            return items if kind is list else {"t": kind.__name__, "v": items}
    name = str(getattr(value, "__name__", ""))
    if type(value) is type and vars(builtins).get(name) is value:
        return {"t": "type", "v": name}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    found = _standard(value)
    found = _numbers(value, depth) if found is None else found
    if found is None and isinstance(value, Iterator | type({}.keys()) | type({}.values()) | type({}.items())):
        found = {"t": "iterator", "v": _drawn(value, keep, depth)}
    if found is None and keep is None:
        raise ForeignError(f"a {type(value).__name__} cannot be given to the program")
    return keep(value) if found is None and keep is not None else found


def _drawn(value: Any, keep: Callable[[Any], Any] | None, depth: int) -> list[Any]:
    items: list[Any] = []
    for item in value:
        if len(items) >= _MAX_ITEMS:
            raise ForeignError(f"an iterator gave more than {_MAX_ITEMS} values")
        items.append(encode(item, keep, depth + 1))
    return items


def _type(name: str) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise ForeignError("not a type")
    return found


def _decimal(text: str) -> Any:
    import decimal

    return decimal.Decimal(text)


def _fraction(text: str) -> Any:
    import fractions

    return fractions.Fraction(text)


def _date(kind: str, parts: Any) -> Any:
    import datetime

    return datetime.timedelta(*parts) if kind == "timedelta" else getattr(datetime, kind).fromisoformat(parts)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(float.fromhex(parts[0]), float.fromhex(parts[1])),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda parts: range(*parts),
    "type": _type,
    "Decimal": _decimal,
    "Fraction": _fraction,
    "timedelta": lambda parts: _date("timedelta", parts),
    "datetime": lambda text: _date("datetime", text),
    "date": lambda text: _date("date", text),
    "time": lambda text: _date("time", text),
}
_BOXES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}


def decode(value: Any, place: Callable[[Any], Any]) -> Any:
    """JSON -> the value. place: an object by its name. Raises ForeignError, ValueError, TypeError on what no encoder wrote."""
    if isinstance(value, list):
        return [decode(item, place) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value.get("t"), value.get("v")
    if kind == "object":
        return place(inner)
    if kind == "dict" and isinstance(inner, list):
        return {decode(k, place): decode(v, place) for k, v in inner}
    if kind in _BOXES and isinstance(inner, list):
        return _BOXES[kind]([decode(item, place) for item in inner])
    if kind in _PLAIN:
        return _PLAIN[kind](inner)
    raise ForeignError(f"no such type: {kind!r:.40}")


# --- source text


class _Source(importlib.machinery.SourceFileLoader):
    """A module from text in memory."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, f"<{name}>")
        self._text = text

    def get_data(self, path: str) -> bytes:
        return self._text.encode("utf-8", "surrogatepass")

    def path_stats(self, path: str) -> Any:
        raise OSError


def module_of(name: str, text: str, names: dict[str, Any]) -> types.ModuleType:
    """Run text as the body of a module that has `names` already."""
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    _Source(name, text).exec_module(module)
    return module


def told(error: BaseException) -> str:
    """An exception in one line of printable characters."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return "".join(c if c.isprintable() else "?" for c in text)[:_TOLD].rstrip(": ")
    except BaseException:  # its own __str__ failed
        return "an exception that cannot be shown"


# --- the process of the program


class _Objects:
    """Objects that stay in the program's process, by number."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self.program: types.ModuleType | None = None

    def keep(self, value: Any) -> Any:
        """Its name as JSON."""
        self._all.append(value)
        return {"t": "object", "v": len(self._all) - 1}

    def at(self, place: Any) -> Any:
        """The object with that number, or the global of the program with that name."""
        if isinstance(place, int):
            return self._all[place]
        if not hasattr(self.program, place):
            raise NameError(f"the program defines no {place}")
        return getattr(self.program, place)


def _obey(request: dict[str, Any], objects: _Objects) -> Any:
    target = objects.at(request["on"])
    what, name = request["do"], request.get("name", "")
    given = [decode(a, objects.at) for a in request.get("args", [])]
    if what == "get":
        return getattr(target, name)
    if what == "set":
        return setattr(target, name, given[0])
    named = {key: decode(value, objects.at) for key, value in request.get("named", {}).items()}
    return target(*given, **named)


def answer(requests: int, replies: int, program: str) -> NoReturn:
    """Run the program, then do what the tests ask of it until they are done. Whatever it raises is data, too."""
    objects, lines, out = _Objects(), open(requests, "rb"), open(replies, "wb")  # noqa: SIM115
    number: Any = 0
    request: dict[str, Any] | None = None
    while True:
        reply: dict[str, Any] = {"n": number}
        try:
            if request is None:
                objects.program = module_of("program", program, {})
                reply["ok"] = None
            else:
                reply["ok"] = encode(_obey(request, objects), objects.keep)
        except BaseException as error:  # SystemExit, KeyboardInterrupt: the program's own doing
            reply = {"n": number, "error": [type(error).__name__, told(error)]}
        out.write(json.dumps(reply).encode() + b"\n")
        out.flush()
        line = lines.readline()
        if not line:
            os._exit(0)
        request = json.loads(line)
        number = request["n"]


# --- the process of the tests


# An AssertionError is the tests' own word; the others cannot be made from a message alone.
_NOT_RAISED = (
    AssertionError,
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
    BaseExceptionGroup,
    ExceptionGroup,
)


class EndedError(Exception):
    """The program's process is gone, or says what no protocol has."""


class Remote:
    """A function or object of the program. Calls and attributes go there; equality is identity."""

    def __init__(self, line: Line, place: int | str) -> None:
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_place", place)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return object.__getattribute__(self, "_line").ask(self, "call", "", args, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object.__getattribute__(self, "_line").ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_line").ask(self, "set", name, (value,))


class Line:
    """The tests' end of the pipes: replies come from one open file, requests go to another."""

    def __init__(self, replies: int, requests: int) -> None:
        self._lines, self._out, self._number = open(replies, "rb"), open(requests, "wb"), 0  # noqa: SIM115

    def _remote(self, place: Any) -> Remote:
        if type(place) not in (int, str):
            raise ForeignError("an object without a number")
        return Remote(self, place)

    def ask(
        self, on: Remote, what: str, name: str, args: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """One request and its reply. Raises what the program raised, where that is an ordinary exception of Python's own."""
        self._number += 1
        request = {
            "n": self._number, "on": object.__getattribute__(on, "_place"), "do": what, "name": name,
            "args": [encode(a, None) for a in args], "named": {k: encode(v, None) for k, v in (named or {}).items()},
        }  # fmt: skip
        try:
            self._out.write(json.dumps(request).encode() + b"\n")
            self._out.flush()
        except OSError:
            raise EndedError from None
        return self.reply()

    def reply(self) -> Any:
        """The reply to the last request, or to the start of the program."""
        try:
            line = self._lines.readline(MAX_REPLY)
            reply = json.loads(line)
            if type(reply) is not dict or reply.get("n") != self._number or type(reply["n"]) is not int:
                raise ForeignError("not a reply")
            if "error" not in reply:
                return decode(reply["ok"], self._remote)
            kind, message = map(str, reply["error"])
        except (OSError, ValueError, TypeError, KeyError, ForeignError, RecursionError, AttributeError) as error:
            raise EndedError from error
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception) and known not in _NOT_RAISED:
            raise known(message.removeprefix(kind).removeprefix(": ")[:_TOLD])
        raise RuntimeError(message[:_TOLD])


def _how_it_ended(child: int, cpu_seconds: int) -> str:
    """Why the program's process is gone, in words."""
    for _ in range(20):
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        select.select([], [], [], 0.01)
    else:
        return "the program answered with what is no answer"
    if os.WIFEXITED(status):
        return f"the program ended by itself (exit code {os.WEXITSTATUS(status)}) before its tests did"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and used.ru_utime + used.ru_stime > cpu_seconds - 0.5:
        return f"the program used more than {cpu_seconds} s of processor time"
    return f"the program was ended by a signal: {signal.strsignal(number) or number}"


def _where(error: BaseException) -> str:
    """The line of the tests at which an exception came up."""
    place, at = error.__traceback__, ""
    while place is not None:
        if place.tb_frame.f_code.co_filename == "<tests>":
            at = f" (line {place.tb_lineno} of the tests)"
        place = place.tb_next
    return at


def judge(line: Line, child: int, asked: dict[str, Any]) -> tuple[bool, str]:
    """Run prelude and tests against the program; whether all went through, and if not, why."""
    try:
        line.reply()
    except EndedError:
        return False, _how_it_ended(child, asked["cpu_seconds"])
    except Exception as error:
        return False, f"the program does not load: {told(error)}"
    try:
        module = module_of("prelude", asked["prelude"], {})
        names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
        names |= {name: Remote(line, name) for name in asked["names"]}
        module_of("tests", asked["tests"], names)
    except EndedError:
        return False, _how_it_ended(child, asked["cpu_seconds"])
    except BaseException as error:
        return False, told(error) + _where(error)
    return True, "passed"
