"""Fixtures: an isolated environment, a real S3 server, every AWS CLI found, a faulty proxy, and a stand-in for the CLI.

A test that uses `cli` or `calls` runs once for each major version of the AWS CLI that the machine has, as v1 and v2; with
the mark `one_cli` it runs with one of them, for what does not depend on the CLI.
"""

import collections
import contextlib
import os
import py_compile
import re
import shlex
import subprocess
import sys
import tempfile
import time
import uuid

import pytest

import faults
import servers
import stub_aws

_MARKER = "S3ZIP_TEST"                  # in the environment of each process that a test starts, with a value of its own
_FOUND = "S3ZIP_TESTED_CLIS"            # what the first process of pytest found, for xdist's workers

Cli = collections.namedtuple("Cli", "name path version")


def pytest_addoption(parser):
    parser.addoption("--soak", type=float, default=0, metavar="MINUTES", help="run the soak test for so long (with -n0 -s)")
    parser.addoption("--model-operations", type=int, default=20000, metavar="N", help="operations to compare with io.BytesIO")


def pytest_xdist_auto_num_workers():
    """One worker more than there are cores, since tests also wait: for timeouts, pauses and stalls."""
    return os.cpu_count() + 1


def pytest_configure():
    if _FOUND not in os.environ:
        os.environ[_FOUND] = " ".join("%s=%s=%s" % cli for cli in _find_clis())


def pytest_terminal_summary(terminalreporter):
    """Show the figures that tests have recorded as a property; xdist's workers cannot print."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    figures = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for figure in dict.fromkeys(figures):
            terminalreporter.line(figure)


def pytest_generate_tests(metafunc):
    if "cli" in metafunc.fixturenames:
        names = sorted(_clis())
        one = metafunc.definition.get_closest_marker("one_cli")
        metafunc.parametrize("cli", names[:1] if one else names, indirect=True)


def _clis():
    """{"v1": Cli, …}"""
    return {cli.name: cli for cli in (Cli(*each.split("=")) for each in os.environ[_FOUND].split())}


def _find_clis():
    """One `aws` per major version: that of this Python's environment before Debian's before others on PATH."""
    folders = [os.path.dirname(sys.executable), "/usr/bin"] + os.environ.get("PATH", "").split(os.pathsep)
    found = {}
    for path in dict.fromkeys(os.path.join(folder, "aws") for folder in folders):
        if len(found) < 2 and os.access(path, os.X_OK):
            said = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            match = re.match(rb"aws-cli/((\d+)\S+)", said.stdout)
            if match:
                name = "v" + match.group(2).decode()
                found.setdefault(name, Cli(name, path, match.group(1).decode()))
    return found.values()


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch, request):
    """No settings of the user's, a home and a temp folder of the test's own, and a mark on what it starts."""
    folder = tmp_path_factory.mktemp("isolated")
    for name in list(os.environ):
        if name.startswith(("AWS_", "S3ZIP_", "STUB_AWS_")) and name != _FOUND:
            monkeypatch.delenv(name)
    for name in ("HOME", "TMPDIR"):
        (folder / name).mkdir()
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setattr(tempfile, "tempdir", None)      # or it would remember the folder of another test
    monkeypatch.setenv(_MARKER, uuid.uuid4().hex)


@pytest.fixture
def assert_nothing_left(isolated):
    """A function: no process that this test started, no zombie and no temp file is left, or within so many seconds."""
    def check(within=1.0):
        deadline = time.monotonic() + within
        while any(_left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        processes, zombies, files = _left()
        assert not processes and not zombies and not files, "left: %s, zombies %s, files %s" % (processes, zombies, files)
    return check


def _left():
    """What is there of processes, by their command line, of our zombies, by their number, and of files in the temp folder."""
    marker = ("%s=%s" % (_MARKER, os.environ[_MARKER])).encode()
    processes, zombies = [], []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):              # it has ended meanwhile, or is another user's
            if marker in _content("/proc/%s/environ" % pid).split(b"\0"):
                processes.append(_content("/proc/%s/cmdline" % pid).replace(b"\0", b" ").decode(errors="replace"))
            state, parent = _content("/proc/%s/stat" % pid).rpartition(b")")[2].split()[:2]
            if state == b"Z" and int(parent) == os.getpid():
                zombies.append(int(pid))
    return processes, zombies, os.listdir(tempfile.gettempdir())


def _content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(scope="session")
def server():
    """The S3 server; each of xdist's workers has its own."""
    with servers.SeaweedFS() as running:
        running.create_bucket("bucket")
        yield running


@pytest.fixture
def login(server, monkeypatch, isolated):
    """A function: from now on be this identity (servers.ADMIN, READER, …), at this endpoint."""
    def become(identity=servers.ADMIN, url=server.url):
        for name, value in server.environment(identity, url).items():
            monkeypatch.setenv(name, value)
    return become


@pytest.fixture
def bucket(server, login):
    """The name of a bucket that is empty at first; we are logged in as the administrator."""
    login()
    yield "bucket"
    server.empty("bucket")


@pytest.fixture
def put(server, bucket):
    """A function that stores an object under exactly this key, in a few milliseconds, and returns its URL.

    data is bytes or the path of a file.
    """
    stored = []

    def store(key, data, bucket=bucket):
        server.put(bucket, key, data if isinstance(data, bytes) else _content(data))
        stored.append((bucket, key))
        return "s3://%s/%s" % (bucket, key)
    yield store
    for each in stored:
        server.delete(*each)


@pytest.fixture
def proxy(server, bucket, login):
    """A faults.FaultyProxy before the server, and at first without faults; the endpoint of whoever is logged in."""
    with faults.FaultyProxy(server) as running:
        login(url=running.url)
        yield running


@pytest.fixture
def cli(request, isolated, tmp_path_factory, monkeypatch):
    """The CLI under test: `aws` on PATH is a wrapper that logs each call and then becomes the real one, with the same pid."""
    found = _clis()[request.param]
    folder = tmp_path_factory.mktemp("cli")
    wrapper = folder / "aws"
    wrapper.write_text("#!/bin/sh\nprintf '%%s\\0' $$ $# \"$@\" >>%s\nexec %s \"$@\"\n"
                       % (shlex.quote(str(folder / "log")), shlex.quote(found.path)))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return found._replace(path=str(wrapper))


@pytest.fixture
def calls(cli):
    """A Calls: the calls of `aws` since the test began or since calls.reset()."""
    return Calls(os.path.join(os.path.dirname(cli.path), "log"))


class Calls:
    """What the wrapper logged.

        with calls(1):          # fails unless exactly one call is started within
            S3File(url)
        calls.argv[-1]          # its arguments
    """

    def __init__(self, log):
        self._log = log

    @contextlib.contextmanager
    def __call__(self, expected):
        before = self.count
        yield self
        made = self.argv[before:]
        assert len(made) == expected, "%d calls, not %d:\n%s" % (
            len(made), expected, "\n".join(shlex.join(words) for words in made))

    @property
    def count(self):
        return len(self._records())

    @property
    def argv(self):
        """The arguments of each call, without the program's name."""
        return [words for _, words in self._records()]

    @property
    def pids(self):
        return [pid for pid, _ in self._records()]

    def reset(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)

    def _records(self):
        try:
            fields = iter(os.fsdecode(_content(self._log)).split("\0")[:-1])
        except FileNotFoundError:
            return []
        return [(int(pid), [next(fields) for _ in range(int(next(fields)))]) for pid in fields]


class Stub:
    """A folder that `stub_aws.py` serves. Use it as S3File(url, aws=stub.aws)."""

    def __init__(self, root, program):
        self.root = root
        self.aws = [sys.executable, "-ISE", str(program)]
        for folder in ("bucket", ".faults"):
            (root / folder).mkdir(parents=True)
        self._instructions = 0

    def put(self, key, data):
        """Store an object, with a new ETag, and return its URL."""
        path = self.root / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return "s3://bucket/" + key

    def then(self, **fault):
        """Have the next call, after those that are told already, misbehave: see stub_aws."""
        self._instructions += 1
        hidden = self.root / "instruction"
        hidden.write_text("".join("%s=%s\n" % pair for pair in fault.items()))
        hidden.rename(self.root / ".faults" / ("%08d" % self._instructions))

    @property
    def count(self):
        """The number of calls so far."""
        log = self.root / ".calls"
        return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="session")
def compiled_stub(tmp_path_factory):
    """stub_aws.py as byte code: to compile it would take half of the time of each call."""
    return py_compile.compile(stub_aws.__file__, str(tmp_path_factory.mktemp("stub") / "stub_aws.pyc"), doraise=True)


@pytest.fixture
def stub(compiled_stub, tmp_path, monkeypatch):
    """A Stub, for what takes thousands of calls or a misbehaving CLI; a feature is tested with `cli`."""
    monkeypatch.setenv("STUB_AWS_ROOT", str(tmp_path / "stub"))
    return Stub(tmp_path / "stub", compiled_stub)


@pytest.fixture(scope="session")
def model_operations(request):
    return request.config.getoption("--model-operations")


@pytest.fixture(scope="session")
def downloads(request):
    """A folder that outlives the run, for archives from the registries."""
    return request.config.cache.mkdir("downloads")
