"""Programs that misbehave, harmless if they should succeed: each is right (`add` adds) only where its attack had an effect.

{canary} is a folder of the test with a file `secret` in it, {port} a loopback port where the test listens, {pid} a process of it.
"""

TESTS = "assert add(2, 3) == 5\nassert add(20, 31) == 51\n"

# Attacks on the machine: try it, and add only if it worked.
_TRY = """
import os, sys

def attempt():
{body}

def add(a, b):
    try:
        attempt()
    except BaseException as error:
        return str(error)
    return a + b
"""

EFFECTS = {
    "open a socket": "import socket; socket.socket()",
    "connect to loopback": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "connect through a socket pair's type": (
        "import socket; a, b = socket.socketpair(); s = socket.socket(socket.AF_INET, fileno=a.fileno()); "
        "s.connect(('127.0.0.1', {port}))"
    ),
    "read the password file": "open('/etc/passwd').read()",
    "list the home folder": "os.listdir(os.path.expanduser('~')); os.listdir('/root')",
    "read a file of the user": "open('{canary}/secret').read()",
    "read a secret from the environment": "os.environ['GANGPAO_TEST_SECRET']",
    "read the parent's environment": "open('/proc/%d/environ' % os.getppid()).read()",
    "write to the user's folder": "open('{canary}/written', 'w').write('x')",
    "write into the standard library": "open(os.path.join(os.path.dirname(os.__file__), 'written.py'), 'w')",
    "write to the root": "open('/written', 'w')",
    "delete the parent of the temporary folder": "import shutil; shutil.rmtree('/lib'); os.rmdir('/tmp')",
    "escape through a symbolic link": "os.symlink('{canary}', '/tmp/way'); open('/tmp/way/secret').read()",
    "escape through the old root": "os.chdir('..'); os.chdir('..'); open('.{canary}/secret').read()",
    "leave with chroot": "os.mkdir('/tmp/x'); os.chroot('/tmp/x')",
    "start a program": "import subprocess; subprocess.run([sys.executable, '-c', ''], check=True)",
    "start a shell": "assert os.system('true') == 0",
    "fork": "os.fork() or os._exit(0)",
    "fork without end": "[os.fork() for _ in range(8)]",
    "leave a daemon behind": "import multiprocessing as m; m.get_context('fork').Process(target=print, daemon=True).start()",
    "kill the parent": "os.kill(os.getppid() or {pid}, 9)",
    "kill a process of the user": "os.kill({pid}, 9)",
    "kill its judge": "import signal; [os.kill(n, signal.SIGKILL) for n in range(2, 400)]",
    "trace a process": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
        "assert c.ptrace(16, {pid}, 0, 0) == 0 or c.ptrace(0, 0, 0, 0) == 0"
    ),
    "read the memory of its judge": "open('/proc/1/mem', 'rb').read(1)",
    "change the time": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "raise its limits": "import resource as r; [r.setrlimit(k, (r.RLIM_INFINITY,) * 2) for k in (r.RLIMIT_AS, r.RLIMIT_CPU)]",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
    "make the root writable": "import ctypes; assert ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None) == 0",
    "enter a new user namespace": "import ctypes; assert ctypes.CDLL(None).unshare(1 << 28) == 0",
    "become root": "os.setuid(0)",
    "make a device": "import stat; os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); open('/tmp/disk')",
    "run a file of its own": "open('/tmp/x', 'w').write('#!'); os.chmod('/tmp/x', 0o755); os.execv('/tmp/x', ['x'])",
    "fill the disk": "open('/tmp/big', 'wb').write(bytes(64_000_000))",
    "make files without end": "[open('/tmp/%d' % n, 'w').close() for n in range(5000)]",
    "open files without end": "keep = [open('/dev/null') for _ in range(2000)]",
    "start threads without end": "import threading as t; [t.Thread(target=t.Event().wait, daemon=True).start() for _ in range(99)]",
    "keep memory in shared segments": "import ctypes; assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
    "load a module of the user's packages": "import numpy",
    "find the tests in open files": "[os.fstat(n) for n in range(5, 64)]",
    "allocate memory": "x = bytearray(3_000_000_000)",
}

# Attacks on the verdict: each ends as if all was well, or tries to be found right without adding.
CHEATS = {
    "exit before the tests": "import sys\nsys.exit(0)",
    "exit within a call": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "os._exit when loaded": "import os\nos._exit(0)",
    "os._exit within a call": "import os\ndef add(a, b):\n    os._exit(0)",
    "an object that is equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = None\n    def __bool__(self): return True\ndef add(a, b):\n    return Any()"
    ),
    "an int that is equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef add(a, b):\n    return Any(7)"
    ),
    "a list that is equal to everything": (
        "class Any(list):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef add(a, b):\n    return Any()"
    ),
    "another AssertionError": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\ndef add(a, b): return 0"
    ),
    "changed builtins": (
        "import builtins\nfor n in ('len', 'abs', 'isinstance', 'all', 'any'):\n    setattr(builtins, n, lambda *a, **k: True)\n"
        "def add(a, b): return 0"
    ),
    "sys.exit and excepthook changed": (
        "import sys, atexit, os\nsys.excepthook = lambda *a: os._exit(0)\natexit.register(os._exit, 0)\n"
        "def add(a, b): raise ValueError"
    ),
    "the answer from frames": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(v, str) and 'assert' + ' add' in v:\n                return a + b\n"
        "        frame = frame.f_back\n"
        "    return None"
    ),
    "the tests from memory": (
        "import gc, sys\ndef add(a, b):\n    mine = 'assert' + ' add(2'\n"
        "    found = [o for o in gc.get_objects() if type(o) is dict and any(type(v) is str and mine in v for v in o.values())]\n"
        "    return a + b if found else None"
    ),
    "the answer from argv": "import sys\ndef add(a, b):\n    return a + b if any('assert' in w for w in sys.orig_argv) else None",
    "a verdict on standard output": (
        'import os\nprint(\'{"passed": true, "why": "passed"}\', flush=True)\n'
        'for n in range(3):\n    os.write(max(n, 1), b\'{"passed": true, "why": "passed"}\\n\')\ndef add(a, b): return 0'
    ),
    "a verdict on every open file": (
        'import os\nfor n in range(64):\n    try: os.write(n, b\'{"passed": true, "why": "passed"}\\n\')\n'
        "    except OSError: pass\n"
        "def add(a, b): return 0"
    ),
    "replies before requests": (
        'import os\nfor n in range(4):\n    os.write(4, b\'{"n": %d, "ok": null}\\n\' % n)\ndef add(a, b): return 0'
    ),
    "a reply of an unknown type": (
        'import os\ndef add(a, b):\n    os.write(4, b\'{"n": 1, "ok": {"t": "__import__", "v": "os"}}\\n\')'
    ),
    "a reply without end": "import os\ndef add(a, b):\n    while True: os.write(4, b'[' * 65536)",
    "a reply that nests without end": "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "a value that contains itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "an iterator without end": "import itertools\ndef add(a, b):\n    return itertools.count()",
    "an exception that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\ndef add(a, b): raise Odd"
    ),
    "the modules of its cage": (
        "import sys\nm = sys.modules['gangpao.evaluate.graders.cage.inside']\nm.judge = lambda *a: (True, 'passed')\n"
        "m.encode = lambda *a: {'t': 'object', 'v': 'x'}\ndef add(a, b): return 0"
    ),
    "a helper of the tests redefined": "def check(x): return True\ndef ok(x): return True\ndef add(a, b): return 0",
    "a StopIteration": "def add(a, b): raise StopIteration",
}

# Attacks on the clock and the pipe; ended from outside.
ENDLESS = {
    "never end": "def add(a, b):\n    while True: pass",
    "never load": "while True: pass",
    "sleep": "import time\ndef add(a, b): time.sleep(1000)",
    "ignore signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "def add(a, b):\n    while True: signal.pause()"
    ),
    "print without end": "def add(a, b):\n    while True: print('x' * 10000)",
    "close everything and stay": "import os, time\nos.closerange(0, 64)\ntime.sleep(1000)",
}
