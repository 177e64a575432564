"""Which system calls a caged program is refused: a classic BPF program for seccomp, built from a table.

Namespaces and limits already hold a program; this takes away what it has no use for, so that a fault of the kernel behind one of
these calls is out of reach too. A program cannot start processes: it has threads.
"""

from __future__ import annotations

import struct

EPERM, ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_PR_SET_PDEATHSIG = 1
_X32 = 0x40000000  # bit of the second numbering of system calls on x86-64

# name: (x86-64, arm64); None where an architecture has no such call. From the kernel's own tables.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "socket": (41, 198),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "acct": (163, 89), "quotactl": (179, 60),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "mbind": (237, 235), "migrate_pages": (256, 238), "move_pages": (279, 239), "vhangup": (153, 58),
}  # fmt: skip
_CLONE, _CLONE3, _PRCTL = (56, 220), (435, 435), (157, 167)
_AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # machine: (column of the tables, AUDIT_ARCH_...)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _refuse(errno: int) -> bytes:
    return _step(_RETURN, _ERRNO | errno)


def program(machine: str) -> bytes:
    """struct sock_filter[] for `machine` as platform.machine() names it; empty where the table has no such machine."""
    if machine not in _AUDIT:
        return b""
    column, architecture = _AUDIT[machine]
    steps = [
        _step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _refuse(EPERM),
        _step(_LOAD, _NUMBER), _step(_AT_LEAST, _X32, 0, 1), _refuse(EPERM),
        _step(_EQUAL, _CLONE3[column], 0, 1), _refuse(ENOSYS),  # the C library then calls clone
    ]  # fmt: skip
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            steps += [_step(_EQUAL, number, 0, 1), _refuse(EPERM)]
    steps += [
        _step(_EQUAL, _CLONE[column], 0, 4), _step(_LOAD, _FIRST_ARGUMENT), _step(_ANY_BIT, _CLONE_THREAD, 1, 0),
        _refuse(EPERM), _step(_RETURN, _ALLOW),
        _step(_EQUAL, _PRCTL[column], 0, 3), _step(_LOAD, _FIRST_ARGUMENT), _step(_EQUAL, _PR_SET_PDEATHSIG, 0, 1),
        _refuse(EPERM), _step(_RETURN, _ALLOW),
    ]  # fmt: skip
    return b"".join(steps)
