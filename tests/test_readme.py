"""README.md: every block of code is run or held against what really comes out, against an S3 server that has what it speaks of.

The word after a block's language says what it is: `text output` is what the Python block before it prints. A block that no
test here knows fails `test_kinds_of_blocks`.
"""

import builtins
import collections
import errno
import gzip
import inspect
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import archives
import faults
import s3zip
import servers

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
URL = "s3://my-bucket/archive.zip"

DEMO = "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/python tests/demo.py"
TEST = "python3 -m venv .venv && .venv/bin/pip install -q '.[test,examples]' && .venv/bin/python -m pytest"
INSTALL = ("python3 -m pip install .", "pipx install .")

Block = collections.namedtuple("Block", "kind text output line")     # output: of a Python block; line: where it is


def _read_blocks(text):
    blocks = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        kind, content = match.groups()
        if kind == "text output":
            blocks[-1] = blocks[-1]._replace(output=content)
        else:
            blocks.append(Block(kind, content, "", text.count("\n", 0, match.start()) + 1))
    return blocks


with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as _file:
    README = _file.read()
BLOCKS = _read_blocks(README)


def _each(kind, leave_out=()):
    """A parametrization over the blocks of a kind."""
    blocks = [block for block in BLOCKS if block.kind == kind and block.text.strip() not in leave_out]
    return pytest.mark.parametrize("block", blocks, ids=["line%d" % block.line for block in blocks])


def _table(heading):
    """The rows of the first table below a heading, each a list of cells, without its own heading."""
    section = README.split("\n## %s\n" % heading)[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


# -- what README.md takes to be there

def _csv(year, rows):
    lines = ["%d-%02d-%02d,%d,%.1f" % (year, 1 + row * 12 // rows, 1 + row % 28, row % 1000, row * row % 451 / 10 - 10)
             for row in range(rows)]
    return "\n".join(["day,station,temperature", *lines, ""]).encode()


def _archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("data/2023.csv", _csv(2023, 250000)), ("data/2024.csv", _csv(2024, 300000)),
                           ("map.png", archives.noise(10000000)), ("notes.txt", b"Measured by hand.\n")):
            info = zipfile.ZipInfo(name, (2025, 1, 31, 12, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return file.getvalue()


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("etc/hosts")
        info.size = 20
        archive.addfile(info, io.BytesIO(b"127.0.0.1 localhost\n"))
    return file.getvalue()


def _parquet():
    """A table of four columns, a to d, in four groups of rows."""
    import pyarrow
    import pyarrow.parquet

    rows = 1000000
    column = pyarrow.Array.from_buffers(pyarrow.int64(), rows, [None, pyarrow.py_buffer(archives.noise(8 * rows))])
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({name: column for name in "abcd"}), file, row_group_size=rows // 4)
    return file.getvalue()


@pytest.fixture(scope="session")
def my_bucket(server):
    """README's bucket and the objects in it. Its examples add others."""
    server.create_bucket("my-bucket")
    for key, make in (("archive.zip", _archive), ("backup.tar.gz", _tar), ("table.parquet", _parquet),
                      ("server.log.gz", lambda: gzip.compress(b"one line\n" * 2000))):
        server.put("my-bucket", key, make())


@pytest.fixture
def shell(my_bucket, login, tmp_path, monkeypatch):
    """A function that runs a command in a folder of its own, where `s3zip`, `python3` and `aws` are as in an active venv.

    It returns what the command wrote to both, stdout and stderr, and its exit status.
    """
    login()
    programs = tmp_path / "bin"
    programs.mkdir()
    beside = os.path.join(os.path.dirname(sys.executable), "aws")
    for name, words in (("python3", [sys.executable]), ("s3zip", [sys.executable, "-m", "s3zip"]),
                        ("aws", [beside if os.path.exists(beside) else shutil.which("aws")])):
        (programs / name).write_text('#!/bin/sh\nexec %s "$@"\n' % shlex.join(words))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "folder"
    folder.mkdir()

    def run(command):
        return _run(["sh", "-eu", "-c", command], cwd=folder)
    return run


def _run(words, **options):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                          encoding="utf-8", **options)
    return done.stdout, done.returncode


def assert_alike(got, expected):
    """Compare word by word; but not seconds, and large numbers, which depend on zlib's version, not to the last digit."""
    got_words, expected_words = got.split(), expected.split()
    seconds = {at for at, word in enumerate(expected_words[1:]) if word in ("s", "s,")}
    alike = len(got_words) == len(expected_words) and all(
        at in seconds or _are_alike(*pair) for at, pair in enumerate(zip(got_words, expected_words)))
    assert alike, "came:\n%s\nbut README.md has:\n%s" % (got, expected)


def _are_alike(got, expected):
    if not all(re.fullmatch(r"[\d,]*\d", word) for word in (got, expected)):
        return got == expected
    number, expected_number = (int(word.replace(",", "")) for word in (got, expected))
    return abs(number - expected_number) <= (expected_number / 20 if expected_number > 10000 else 0)


# -- the blocks

def test_kinds_of_blocks():
    assert README.count("```") == 2 * len(re.findall(r"^```\S", README, re.MULTILINE)) and "~~~" not in README
    assert not re.search(r"\n\n    \S", README)     # code by indentation, which nothing here would find
    assert {block.kind for block in BLOCKS} == {"python", "sh", "console", "json", "text demo", "text picture"}
    assert {block.kind for block in BLOCKS if block.output} == {"python"}


@_each("python")
def test_python(block, shell, tmp_path):
    """A script, which prints what README.md says, and nothing if it says nothing."""
    (tmp_path / "script.py").write_text(block.text, encoding="utf-8")
    said, status = shell("python3 -W always::ResourceWarning %s" % shlex.quote(str(tmp_path / "script.py")))
    assert status == 0, said
    assert_alike(said, block.output)


@_each("sh", leave_out=(DEMO, TEST, *INSTALL))
def test_shell(block, shell):
    said, status = shell(block.text)
    assert status == 0, said


@_each("console")
def test_console(block, shell):
    """What follows "$ " is typed, one after another in the same folder; the rest is what comes."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
        said, status = shell(command)
        assert status == 0, said
        assert_alike(said.replace("optional arguments:", "options:"), expected)     # as argparse said before Python 3.10


@_each("json")
def test_json(block):
    """The policy allows what the text says, and nothing else."""
    allowed = [statement["Action"] for statement in json.loads(block.text)["Statement"]]
    assert allowed == ["s3:GetObject", ["s3:PutObject", "s3:AbortMultipartUpload"]]


@_each("text picture")
def test_picture(block, my_bucket, login, caplog):
    """The picture's ranges are those of the first example."""
    login()
    caplog.set_level(logging.DEBUG, "s3zip")
    with s3zip.S3File(URL) as file, zipfile.ZipFile(file) as archive, archive.open("data/2024.csv") as member:
        member.read()
    ranges = [record.args[0] for record in caplog.records if record.name == "s3zip"]
    assert_alike(*(" ".join(re.findall(r"bytes=|\d+", " ".join(each)))
                   for each in (ranges, re.findall(r"bytes=[\d-]+", block.text))))


def test_calls_of_parquet(my_bucket, login):
    """No more than README.md says. How many it is depends on which comes first, the data or the next look."""
    import pyarrow.parquet

    login()
    with s3zip.S3File("s3://my-bucket/table.parquet") as file:
        pyarrow.parquet.read_table(file, columns=["a"])
        assert 5 <= file.raw.stats()[0] <= int(re.search(r"4 pieces, and at most (\d+) calls", README).group(1))


@_each("text demo")
def test_demo(block):
    """2 calls to read a member; this is also the demo's own test. The first line has the version, the last column seconds."""
    said, status = _run([sys.executable, os.path.join(TESTS, "demo.py")])
    assert status == 0, said
    got, expected = ([line.split() for line in text.splitlines()] for text in (said, block.text))
    assert got[0][0].startswith("aws-cli/") and got[0][1:] == expected[0][1:]
    assert_alike(*("\n".join(" ".join(words[:-1]) for words in lines[1:]) for lines in (got, expected)))


def test_set_up_commands():
    """Both are there, once, and CI runs the second as it stands; the first is tested in its parts."""
    shown = [block.text for block in BLOCKS if block.kind == "sh"]
    assert (shown.count(DEMO + "\n"), shown.count(TEST + "\n")) == (1, 1)
    with open(os.path.join(ROOT, ".ci", "run")) as file:
        assert TEST in file.read()


def test_install_commands(tmp_path, monkeypatch):
    """In a copy of the checkout and in a fresh environment, with pipx."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    for name, value in (("PIPX_HOME", "pipx"), ("PIPX_BIN_DIR", "pipx-bin"), ("PIPX_MAN_DIR", "pipx-man")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    said, status = _run([programs / "python3", "-m", "pip", "install", "-q", "pipx"])
    assert status == 0, said
    assert [block.text.strip() for block in BLOCKS if block.kind == "sh" and "install ." in block.text] == list(INSTALL)
    for command, program in zip(INSTALL, (programs / "s3zip", tmp_path / "pipx-bin" / "s3zip")):
        said, status = _run(["sh", "-c", command], cwd=checkout)
        assert status == 0, said
        assert _run([program, "--help"], cwd=tmp_path)[1] == 0


# -- the rest of the text

def test_first_line():
    """It says what this is and for whom: it is a sentence, not a title."""
    first = README.splitlines()[0]
    assert not first.startswith("#") and "is for people who" in first


def test_contents():
    """They are all the chapters, in order, and fit a screen."""
    chapters = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert chapters[0] == "Contents"
    assert re.findall(r"^- \[(.*)\]\(#", README, re.MULTILINE) == chapters[1:]
    assert len(chapters) <= 20


def test_links_inside():
    anchors = {re.sub(r"[^\w -]", "", chapter.lower()).replace(" ", "-") for chapter in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    links = re.findall(r"\]\(#(.*?)\)", README)
    assert len(links) > 15 and set(links) <= anchors


def test_signatures():
    for function in (s3zip.S3File, s3zip.s3open):
        assert "`%s%s`" % (function.__name__, str(inspect.signature(function)).replace("'", '"')) in README


def test_figures():
    """Those of the text that are constants of the module."""
    running, first = s3zip._MOST_RUNNING, s3zip._FIRST_SEGMENT // s3zip.MiB
    further = s3zip.TEMP_DISK // 4 // s3zip.MiB     # as in _ObjectReader._limit
    for text in ("the first and the last `CACHE_SIZE` bytes (%d MiB)" % (s3zip.CACHE_SIZE // s3zip.MiB),
                 "At most %d for a file that is read in one place, and %d" % (running, max(running, s3zip._MOST_RUNS + 1)),
                 "| read a member of up to %d MiB (compressed) | 1 |" % first, "1 for each further %d MiB |" % further,
                 "| %d MiB, then %d MiB each |" % (first, further), "ranges of 1, 4, 16, 64 and %d MiB" % further,
                 "by default %d MiB or three eighths" % (s3zip.TEMP_DISK // s3zip.MiB), "After %d tries in a row" % s3zip._TRIES):
        assert text in README


def test_table_of_errors():
    for _, kind, numbers in _table("Errors"):
        assert issubclass(getattr(builtins, kind, None) or getattr(s3zip, kind), OSError)
        assert all(hasattr(errno, number) for number in numbers.split(", "))


# -- troubleshooting

LIST = "s3zip -l " + URL

_CHANGING = """
from s3zip import S3File, s3open

def write(byte):
    with s3open("s3://my-bucket/changing", "wb") as file:
        file.write(byte * 3000000)

write(b"a")
with S3File("s3://my-bucket/changing") as file:
    write(b"b")
    file.read(1)
"""

Provocation = collections.namedtuple("Provocation", "command identity environment fault")


def _by(command=LIST, identity=servers.ADMIN, fault=None, **environment):
    return Provocation(command, identity, environment, fault)


# What is said, and how to have it said; `fault` is the server's, of a kind that this server has not
PROVOCATIONS = {
    "install the AWS CLI, or name it in S3ZIP_AWS": _by(S3ZIP_AWS="no-such-aws"),
    "Unable to locate credentials": _by("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; " + LIST),
    "The config profile (prod) could not be found": _by(LIST + " --aws 'aws --profile prod'"),
    "An error occurred (ExpiredToken)": _by(fault=dict(status=400, code="ExpiredToken")),
    "An error occurred (InvalidAccessKeyId)": _by(identity=servers.STRANGER),
    "An error occurred (SignatureDoesNotMatch)": _by(identity=servers.FORGER),
    "An error occurred (AccessDenied)": _by(identity=servers.NOBODY),
    "An error occurred (NoSuchKey)": _by("s3zip -l s3://my-bucket/archive"),
    "An error occurred (NoSuchBucket)": _by("s3zip -l s3://no-such-bucket/archive.zip"),
    "the bucket is in another region or at another endpoint": _by(fault=dict(status=400, code="AuthorizationHeaderMalformed")),
    "the object is archived (Glacier) and must be restored first": _by(fault=dict(status=403, code="InvalidObjectState")),
    "the object has changed since it was opened": _by("python3 -c " + shlex.quote(_CHANGING)),
    "Could not connect to the endpoint URL": _by(AWS_ENDPOINT_URL="http://127.0.0.1:9"),
    "SSL validation failed": _by('AWS_ENDPOINT_URL="https${AWS_ENDPOINT_URL#http}" ' + LIST),
    "An error occurred (SlowDown)": _by(fault=dict(times=None, status=503)),
    "no room in the temp folder": _by("unshare -rm sh -c 'mount -t tmpfs -o size=300k none $TMPDIR && exec timeout 60 %s'" % LIST),
    "Unknown options: --nonsense": _by(LIST + " --aws 'aws --nonsense'"),
    "the server did not answer with a range and an ETag, as S3 does": _by(fault=dict(answer={"ETag": None})),
    "the AWS CLI cannot write a key that ends in a slash": _by("python3 -c 'import s3zip; s3zip.s3open(\"s3://my-bucket/a/\", \"w\")'"),
    "not an s3://BUCKET/KEY URL": _by("s3zip -l s3://my-bucket"),
    "File is not a zip file": _by("s3zip -l s3://my-bucket/server.log.gz"),
    "no member matches 'data/*.tsv'": _by("s3zip -p %s 'data/*.tsv'" % URL),
}


def test_all_messages_can_be_provoked():
    assert [row[0] for row in _table("Troubleshooting")] == ["`%s`" % message for message in PROVOCATIONS]


@pytest.mark.parametrize("message", PROVOCATIONS)
def test_message(message, shell, server, login, monkeypatch):
    provocation = PROVOCATIONS[message]
    with faults.FaultyProxy(server) as proxy:
        login(provocation.identity, **({"url": proxy.url} if provocation.fault else {}))
        if provocation.fault:
            proxy.inject(**provocation.fault)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for name, value in provocation.environment.items():
            monkeypatch.setenv(name, value)
        said, status = shell(provocation.command)
    assert status == 1 and message in said, said
