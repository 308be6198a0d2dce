"""Whatever way a reader ends, nothing is left of it: done to a script of its own, with the real CLI through a slow proxy."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
DATA = archives.noise(8 * MiB)
RATE = MiB                          # bytes per second: a segment takes seconds
SECONDS = 5 * 8                     # that a segment may take on a busy machine

SCRIPT = """
import gc, os, sys, time
import s3zip

def children():
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) or "running"
    except ChildProcessError:
        return None

file = s3zip.S3File(sys.argv[1])
how = sys.argv[2]
while file.tell() < 1300000:        # where the next range is running, for seconds
    file.read(100000)
print("children:", children(), flush=True)
if how == "end":
    file.read()
    file.close()
elif how == "with":
    with file:
        raise ValueError("in the body")
elif how == "collected":
    del file
elif how == "cycle":
    file.me = file
    del file
    gc.collect()
elif how == "exit":
    sys.exit()
elif how == "signal":
    while file.read(10000):
        pass
print("children:", children(), flush=True)
time.sleep(1)
"""


@pytest.fixture
def slow(proxy, isolated, monkeypatch):
    """A proxy, and the CLI that uses it: which one makes no difference."""
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(s3zip.__file__))
    proxy.inject(times=1)                               # opening is as fast as it can be
    proxy.inject(times=None, rate=RATE)
    return proxy


def start(script, *words, **kwargs):
    return subprocess.Popen([sys.executable, "-X", "dev", "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True, **kwargs)


def aws_processes():
    return [each for each in conftest._left()[0] if "get-object" in each]


def finish(process):
    """Wait for the end of a script; no temp file is to be seen before it. Returns what it said.

    tempfile itself looks whether it can write to a folder: what it writes has a name of eight characters, without a prefix.
    """
    while process.poll() is None:
        assert not [name for name in os.listdir(os.environ["TMPDIR"]) if not re.fullmatch("[a-z0-9_]{8}", name)]
        time.sleep(0.01)
    return process.communicate()


def assert_soon(condition, seconds=1.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("how", ["end", "with", "collected", "cycle", "exit"])
def test_ends_of_its_own(slow, put, how):
    """Costs 3 calls or, to the end, 4; the last is interrupted."""
    with start(SCRIPT, put("k", DATA), how) as process:
        stdout, stderr = finish(process)
    assert stdout.startswith("children: running\n")
    if how in ("end", "collected", "cycle"):
        assert stdout == "children: running\nchildren: None\n"      # neither running ones nor zombies
    if how == "with":
        assert re.fullmatch(r"Traceback \(most recent call last\):\n(  .*\n)+ValueError: in the body\n", stderr)
    elif how == "cycle":        # whose order of finalization is Python's: development mode may tell of files that nobody closed
        assert [line for line in stderr.splitlines() if "ResourceWarning: " not in line] == []
    else:
        assert stderr == ""
    assert process.returncode == (1 if how == "with" else 0)
    assert_soon(lambda: not aws_processes())
    assert os.listdir(os.environ["TMPDIR"]) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ends_by_signals(slow, put, number):
    """Costs 3 calls, of which the last is interrupted, or ends by itself."""
    with start(SCRIPT, put("k", DATA), "signal") as process:
        assert process.stdout.readline() == "children: running\n"
        assert_soon(aws_processes, SECONDS)
        process.send_signal(number)
        stdout, stderr = finish(process)
    assert process.returncode == -number
    if number == signal.SIGINT:
        assert stderr.endswith("KeyboardInterrupt\n") and "Exception ignored" not in stderr
        assert_soon(lambda: not aws_processes())
    else:
        assert stderr == ""
        asked = len(slow.requests) + len(aws_processes())
        assert_soon(lambda: not aws_processes(), SECONDS)
        assert len(slow.requests) <= asked
    assert os.listdir(os.environ["TMPDIR"]) == []


INTERACTIVE = """
import sys, time
import s3zip

file = s3zip.S3File(sys.argv[1])
print("opened", flush=True)
try:
    file.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
file.seek(0)
with open(sys.argv[2], "rb") as local:
    print(file.read() == local.read(), flush=True)
file.close()
"""


@pytest.mark.parametrize("of_the_group", [False, True], ids=["alone", "as a terminal does"])
def test_an_interrupted_read(slow, put, tmp_path, of_the_group):
    """Ctrl-C in the interactive interpreter: at once, though nothing comes, and the file goes on. Costs 3 calls."""
    (tmp_path / "data").write_bytes(DATA)
    slow.clear()
    slow.inject(times=1)
    slow.inject(after=100000, then="stall")
    with start(INTERACTIVE, put("k", DATA), str(tmp_path / "data"), stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == "opened\n"
        assert_soon(lambda: len(slow.requests) == 2 and slow.requests[1].sent == 100000, SECONDS)
        time.sleep(0.2)
        began = time.monotonic()
        (os.killpg if of_the_group else os.kill)(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - began < 5
        if not of_the_group:
            for pid in stalled():
                os.kill(pid, signal.SIGKILL)        # or it would be waited for, as is right
        stdout, stderr = process.communicate("\n")
    assert (stdout, stderr) == ("True\n", "")
    assert_soon(lambda: not aws_processes())


def stalled():
    """The processes of the calls that this test has running."""
    marker = os.environ[conftest._MARKER].encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker in conftest._content("/proc/%s/environ" % pid) and b"get-object" in conftest._content("/proc/%s/cmdline" % pid):
                yield int(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass                                    # it has ended meanwhile, or is another user's
