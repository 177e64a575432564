"""The cage from within: parent.py starts a Python that does `main(SETTINGS, TESTS, VERDICT)`, numbers of open files.

In this order: new namespaces, a root of its own that can only be read (the standard library, shared libraries, three devices, one
small temporary folder), an ordinary user without privileges, limits. Then inside.py takes over in two processes.

Needs Linux 5.14 or later with user namespaces. Run by root, it makes the mounts as root and goes on as nobody; run by anybody
else, or by the root of a container that may not, it makes them within a user namespace. A step that fails is reported by name on
VERDICT and nothing is run. Every module that is imported here costs each program its time, so there are few.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select

from gangpao.evaluate.graders.cage import inside

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to load than all the rest
    from collections.abc import Callable
    from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_RECURSIVE, _MNT_DETACH = 0x8000, 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SIGKILL = 9
_NOBODY = 65534
_SYS = {"x86_64": (155, 126), "aarch64": (41, 91)}  # pivot_root, capset
_SYS_MOUNT_SETATTR = 442  # the same number everywhere

_libc = ctypes.CDLL(None, use_errno=True)


class StepError(Exception):
    """A step of building the cage that the kernel refused."""


def call(step: str, function: Any, *arguments: Any) -> int:
    """Call a function of the C library. Raises StepError naming `step` where it returns -1."""
    ctypes.set_errno(0)
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise StepError(f"{step}: {os.strerror(number)} (errno {number})")
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2), with the step named after its target."""
    call(
        f"mount {target}", _libc.mount, _bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags),
        _bytes(options or None),
    )  # fmt: skip


def read_only(target: str, *, deep: bool) -> None:
    """Take from a mount, and with `deep` from all mounts below it, the right to write, to set ids and to be devices."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    call(
        f"make {target} read-only (Linux 5.12 or later)", _libc.syscall, ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(-100), _bytes(target), ctypes.c_uint(_AT_RECURSIVE if deep else 0), attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )  # fmt: skip


def _has_nobody() -> bool:
    """Whether user and group nobody exist in this user namespace; in a container there may be root alone."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            spans = [tuple(map(int, line.split())) for line in file]
        if not any(start <= _NOBODY < start + count for start, _, count in spans):
            return False
    return True


def new_namespaces() -> bool:
    """Processes, network, mounts, host name and shared memory of our own; whether as root, or else within a user namespace."""
    kinds = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    if os.geteuid() == 0 and _has_nobody():
        try:
            call("new namespaces", _libc.unshare, ctypes.c_int(kinds))
            return True
        except StepError:  # root of a container that may not
            pass
    user, group = os.geteuid(), os.getegid()
    call("new namespaces", _libc.unshare, ctypes.c_int(kinds | _NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return False


def new_root(folders: list[str], links: dict[str, str], masks: list[str], megabytes: int) -> None:
    """A root that holds `folders` read-only, without what is in `masks`, and /tmp; nothing else of the machine is left."""
    call("keep mounts to ourselves", _libc.mount, None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    flags = os.O_PATH | os.O_CLOEXEC
    # Opened before the stage covers /tmp: a library may lie below it.
    sources = {folder: os.open(folder, flags | os.O_DIRECTORY) for folder in folders}
    devices = {f"/dev/{name}": os.open(f"/dev/{name}", flags) for name in ("null", "zero", "urandom")}
    stage = "/tmp"
    mount("cage", stage, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for folder, source in sources.items():
        os.makedirs(stage + folder, exist_ok=True)
        mount(f"/proc/self/fd/{source}", stage + folder, None, _MS_BIND | _MS_REC)
        read_only(stage + folder, deep=True)
    for link, target in links.items():
        os.symlink(target, stage + link)
    os.mkdir(stage + "/dev")
    for device, source in devices.items():
        os.close(os.open(stage + device, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(f"/proc/self/fd/{source}", stage + device, None, _MS_BIND)
    small = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for mask in masks:
        mount("cage", stage + mask, "tmpfs", small, "size=4k,nr_inodes=1,mode=755")
        read_only(stage + mask, deep=False)
    os.mkdir(stage + "/tmp")
    mount("cage", stage + "/tmp", "tmpfs", small, f"size={megabytes}m,nr_inodes=1024,mode=1777")
    enter(stage)


def enter(stage: str) -> None:
    """Make `stage` the root, let go of the old one, and forbid to write to the new one."""
    pivot_root, _ = _SYS[os.uname().machine]
    os.chdir(stage)
    call("pivot_root", _libc.syscall, ctypes.c_long(pivot_root), b".", b".")  # the old root now lies over the new one
    call("let go of the old root", _libc.umount2, b".", ctypes.c_int(_MNT_DETACH))
    os.chdir("/")
    read_only("/", deep=False)
    os.chdir("/tmp")


def control(step: str, option: int, value: int | Any = 1) -> None:
    """prctl(2)."""
    zero = ctypes.c_ulong(0)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    second = ctypes.c_ulong(2) if option == _PR_SET_SECCOMP else argument
    third = argument if option == _PR_SET_SECCOMP else zero
    call(step, _libc.prctl, ctypes.c_int(option), second, third, zero, zero)


def become_nobody() -> None:
    """From root to an ordinary user, in a user namespace of its own, where processes are counted from zero."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    call("a user namespace", _libc.unshare, ctypes.c_int(_NEWUSER))


def without_privileges() -> None:
    """No capabilities, and no way to get any."""
    control("no new privileges", _PR_SET_NO_NEW_PRIVS)
    _, capset = _SYS[os.uname().machine]
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call("give up capabilities", _libc.syscall, ctypes.c_long(capset), header, nothing)


def limit(limits: dict[str, int]) -> None:
    """setrlimit(2), soft and hard alike, so that no program can raise them."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def refuse_calls(program: bytes) -> None:
    """Install a seccomp filter (syscalls.py); nothing where the machine has none."""
    if not program:
        return
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    filters = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    control("the filter of system calls", _PR_SET_SECCOMP, ctypes.byref(filters))


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends."""
    control("die with the parent", _PR_SET_PDEATHSIG, _SIGKILL)


def read_all(file: int) -> bytes:
    """What is in an open file in memory, from its start; the file is closed."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return data


def new_processes() -> None:
    """What is forked from now on sees no process but its own children."""
    call("a namespace of processes", _libc.unshare, ctypes.c_int(_NEWPID))


def seal(settings: dict[str, Any]) -> None:
    """Limits and refusals of this process, from here to its end."""
    without_privileges()
    limit(settings["limits"])
    refuse_calls(bytes.fromhex(settings.pop("filter")))


def decide(settings: dict[str, Any], tests: int, verdict: int) -> None:
    """Fork the program's process, run the tests against it, write {"passed", "why"} to `verdict`."""
    asked, replied = os.pipe(), os.pipe()
    new_processes()
    child = os.fork()
    if child == 0:
        os.dup2(asked[0], 200)
        os.dup2(replied[1], 201)
        os.dup2(200, 3)
        os.dup2(201, 4)
        os.closerange(5, 256)
        os.environ.clear()
        seal(settings)
        inside.answer(3, 4, settings.pop("program"))
    os.close(asked[0])
    os.close(replied[1])
    nothing = os.open("/dev/null", os.O_RDWR)
    for output in (0, 1, 2):
        os.dup2(nothing, output)
    seal(settings)
    os.write(verdict, b"\n")  # from here on the clock of the program runs
    passed, why = inside.judge(inside.Line(replied[0], asked[1]), child, json.loads(read_all(tests)))
    os.write(verdict, json.dumps({"passed": passed, "why": why}).encode())


def start(settings: dict[str, Any], decide: Callable[[], None]) -> int:
    """Build the cage and fork the process that calls `decide`; its number. Raises StepError or OSError."""
    as_root = new_namespaces()
    new_root(settings["folders"], settings["links"], settings["masks"], settings["temporary_mb"])
    if as_root:
        become_nobody()
    die_with_parent()  # again: another user's number takes it away
    alive, ours = os.pipe()
    child = os.fork()
    if child:
        without_privileges()
        return child
    os.close(ours)
    die_with_parent()
    if not select.select([alive], [], [], 0)[0]:  # the end of that pipe: the parent went before the kernel was told
        decide()
    os._exit(0)


def main(settings_file: int, tests: int, verdict: int) -> int:
    """Build the cage, have the tests decide in it, wait for them."""
    die_with_parent()
    os.umask(0o022)  # the folders of the new root are for another user
    settings = json.loads(read_all(settings_file))
    if os.getppid() != settings["parent"]:
        return 1
    try:
        child = start(settings, lambda: decide(settings, tests, verdict))
    except (StepError, OSError) as error:
        os.write(verdict, json.dumps({"broken": str(error)}).encode())
        return 1
    for file in (tests, verdict, 0, 1, 2):  # their ends tell the parent that the cage is empty
        os.close(file)
    os.waitpid(child, 0)
    return 0
