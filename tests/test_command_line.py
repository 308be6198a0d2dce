"""The command line through a real subprocess: on local archives, with the stub, and with a real CLI and a real server.

A test that says nothing of calls makes none of the real `aws`.
"""

import ast
import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import zipfile

import pytest

import archives
import s3zip
from s3zip import CACHE_SIZE

MiB = 1024 * 1024
MODULE = os.path.abspath(s3zip.__file__)
DATE = (2024, 2, 29, 12, 34, 56)
MEMBERS = {"a.txt": b"first\n" * 10, "data/x.csv": b"1,2\n" * 1000, "data/deep/y.csv": b"3,4\n", "data/": b"", "b[1].txt": b"brackets",
           "b1.txt": b"no brackets", "z.txt": b"last\n"}


class Ended:
    """A run of the command line: status, out, err."""

    def __init__(self, process, out, err):
        self.status, self.out, self.err = process.returncode, out, err.decode()

    def succeeded(self):
        assert (self.status, self.err) == (0, "")
        return self.out.decode()

    def failed(self, url, what, status=1):
        """It said what on one line."""
        assert re.fullmatch("s3zip: %s: .*%s.*\n" % (re.escape(url), what), self.err), self.err
        assert self.status == status


def start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs):
    return subprocess.Popen([sys.executable, MODULE, *words], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, **kwargs)


def run(*words, **kwargs):
    with start(*words, **kwargs) as process:
        return Ended(process, *process.communicate(timeout=100))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def write(path, members, compression=zipfile.ZIP_DEFLATED, date=DATE, modes=None):
    """Write an archive of {name: content} or of pairs, and return its path as text."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = zipfile.ZipInfo(name, date)
            info.compress_type, info._compresslevel = compression, 1
            info.external_attr = 0x20 | (modes or {}).get(name, 0o644) << 16     # zipfile would make 0o600 of 0
            archive.writestr(info, content)
    return str(path)


@pytest.fixture
def local(tmp_path):
    return write(tmp_path / "a.zip", MEMBERS)


def tree(folder):
    """{path: content} of the files, with None for folders, below a folder."""
    folder = str(folder)
    paths = [folder] + [os.path.join(parent, name) for parent, folders, files in os.walk(folder) for name in folders + files]
    return {os.path.relpath(path, folder): content(path) for path in paths}


def content(path):
    if os.path.isdir(path):
        return None
    with open(path, "rb") as file:
        return file.read()


# -- list


LISTING = """\
          Size     Compressed  Modified            Name
             6              8  2024-02-29 12:34:56 a.txt
           100            100  1999-12-31 23:59:58 folder/b
             0              0  1980-01-01 00:00:00 folder/
           106            108                      3 members
"""


@pytest.fixture
def listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt", DATE), b"abcabc", zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("folder/b", (1999, 12, 31, 23, 59, 58)), bytes(100))
        archive.writestr(zipfile.ZipInfo("folder/", (1980, 1, 1, 0, 0, 0)), b"")
    return str(tmp_path / "l.zip")


def test_list(listed):
    assert run("-l", listed).succeeded() == LISTING
    assert run("-l", listed, "*a*").succeeded().splitlines()[-1] == "             6              8                      1 member"


def test_as_a_module(listed):
    said = subprocess.run([sys.executable, "-m", "s3zip", "-l", listed], cwd=os.path.dirname(MODULE), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (said.returncode, said.stdout.decode(), said.stderr) == (0, LISTING, b"")


def test_list_in_archive_order(local):
    names = [line.split()[-1] for line in run("-l", local, "z*", "*.csv", "a.txt").succeeded().splitlines()[1:-1]]
    assert names == ["a.txt", "data/x.csv", "data/deep/y.csv", "z.txt"]


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path):
    """In the list, and in errors."""
    path = write(tmp_path / "a.zip", {"\x1b[2Jevil\r\n\x07\x9b1m\u202e": b"content" * 100}, zipfile.ZIP_STORED)
    line, = run("-l", path).succeeded().splitlines()[1:-1]
    assert line.endswith("\\x1b[2Jevil\\r\\n\\x07\\x9b1m\\u202e")
    damage(path)
    ended = run("-t", path, "-q")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", ended.err)
    assert "evil" in ended.err and ended.err.count("\n") == 1


def damage(path, name=None):
    """Change a byte in the middle of a member's data."""
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[0] if name is None else archive.getinfo(name)
    with open(path, "r+b") as file:
        file.seek(info.header_offset + 30 + len(info.filename.encode()) + info.compress_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))


def test_names_that_the_terminal_cannot_show(tmp_path):
    path = write(tmp_path / "a.zip", {"日本ü": b""})
    out = run("-l", path, env={**os.environ, "PYTHONIOENCODING": "ascii"}).succeeded()
    assert out.splitlines()[1].endswith("\\u65e5\\u672c\\xfc")


# -- print


def test_print_in_the_order_asked(local):
    """And within a pattern in that of the archive; each once; no folders."""
    assert run("-p", local, "z.txt", "data/*", "*.csv", "a.txt").succeeded().encode() == b"".join(
        MEMBERS[name] for name in ("z.txt", "data/x.csv", "data/deep/y.csv", "a.txt"))


@pytest.mark.parametrize("pattern, names", [
    ("b[1].txt", ["b[1].txt", "b1.txt"]), ("b[[]1].txt", ["b[1].txt"]), ("b?.txt", ["b1.txt"]),
    ("*.csv", ["data/x.csv", "data/deep/y.csv"]),
    ("data/?.csv", ["data/x.csv"]), ("[az].txt", ["a.txt", "z.txt"])])
def test_patterns(local, pattern, names):
    """A name is found even if it could be a pattern; * matches slashes as well."""
    assert run("-p", local, pattern).succeeded().encode() == b"".join(MEMBERS[name] for name in names)


def test_case_counts(local):
    run("-p", local, "A.TXT").failed(local, "no member matches 'A.TXT'")


@pytest.mark.parametrize("verb", [["-l"], ["-p"], ["-t"], ["-e"]])
def test_a_pattern_that_matches_nothing_is_an_error(local, tmp_path, verb):
    """Before anything is done."""
    folder = [str(tmp_path / "out")] if verb == ["-e"] else []
    ended = run(*verb, local, *folder, "a.txt", "absent*")
    ended.failed(local, r"no member matches 'absent\*'")
    assert ended.out == b"" and not (tmp_path / "out").exists()


def test_print_is_binary_and_streamed(tmp_path):
    """The first bytes can be read while the rest is still to come; a reader that has enough is no error."""
    path = write(tmp_path / "a.zip", [("zeros", bytes(30 * MiB)), ("bytes", bytes(range(256)))])
    assert run("-p", path, "bytes").out == bytes(range(256))
    with start("-p", path, "*") as process:
        assert process.stdout.read(100) == bytes(100)
        assert process.poll() is None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_list_that_nobody_reads_on(tmp_path):
    path = write(tmp_path / "a.zip", {"%0100d" % number: b"" for number in range(3000)})
    with start("-l", path) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# -- extract


def test_extract(local, tmp_path):
    run("-e", local, str(tmp_path / "out")).succeeded()
    expected = {"a.txt", "data", "data/x.csv", "data/deep", "data/deep/y.csv", "b[1].txt", "b1.txt", "z.txt", "."}
    assert tree(tmp_path / "out") == {name: MEMBERS.get(name) for name in expected}


def test_extract_some(local, tmp_path):
    run("-e", local, str(tmp_path / "new" / "out"), "*.csv", "b[1].txt").succeeded()
    written = {name for name, data in tree(tmp_path / "new" / "out").items() if data}
    assert written == {"data/x.csv", "data/deep/y.csv", "b[1].txt", "b1.txt"}


def test_names_are_made_safe_as_zipfile_does(tmp_path):
    path = write(tmp_path / "a.zip", {
        "../up": b"1", "/absolute": b"2", "a/../../b": b"3", "./c": b"4", "d//e": b"5", "..": b"6", "f/..g": b"7", "C:/h": b"8",
        "i\\..\\j": b"9", "../../k/": b"", "l/m/./n": b"10", "~/o": b"11", "-e": b"12"})
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name != ".."]
        archive.extractall(str(tmp_path / "1" / "2" / "zipfile"), names)
    run("-e", path, str(tmp_path / "1" / "2" / "s3zip"), *names[:8], *names[8:-1]).succeeded()
    run("-e", path, str(tmp_path / "1" / "2" / "s3zip"), "?e").succeeded()
    assert tree(tmp_path / "1" / "2" / "s3zip") == tree(tmp_path / "1" / "2" / "zipfile")
    assert sorted(os.listdir(tmp_path / "1")) == ["2"] and sorted(os.listdir(tmp_path / "1" / "2")) == ["s3zip", "zipfile"]
    run("-e", path, str(tmp_path / "out")).failed(path, "a member's name leaves nothing to extract to: '..'")


def test_times_and_modes(tmp_path):
    """Folders too, though their content came after them."""
    modes = {"run": 0o755, "private": 0o600, "setuid": 0o4755, "unknown": 0, "dir/": 0o40750, "dir/f": 0o640}
    path = write(tmp_path / "a.zip", {name: b"" if name.endswith("/") else b"x" for name in modes}, modes=modes)
    run("-e", path, str(tmp_path / "out"), umask=0o022).succeeded()
    stats = {name: os.stat(tmp_path / "out" / name) for name in modes}
    assert {name: each.st_mode & 0o7777 for name, each in stats.items()} == {
        "run": 0o755, "private": 0o600, "setuid": 0o755, "unknown": 0o644, "dir/": 0o750, "dir/f": 0o640}
    assert {each.st_mtime for each in stats.values()} == {time.mktime(DATE + (0, 0, -1))}


def test_modes_of_other_systems_are_not_taken(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("f", DATE)
        info.create_system, info.external_attr = 0, 0o600 << 16
        archive.writestr(info, b"x")
    run("-e", str(tmp_path / "a.zip"), str(tmp_path / "out"), umask=0o022).succeeded()
    assert os.stat(tmp_path / "out" / "f").st_mode & 0o777 == 0o644


def test_what_is_complete_is_left_alone(stub, tmp_path):
    """By size and CRC: 1 call if all is there, and the fetch of one member if that has been changed."""
    write_noise(stub, "abcd", 2 * MiB)
    words = "-e", "s3://bucket/a.zip", str(tmp_path / "out"), "--aws", " ".join(stub.aws)
    run(*words).succeeded()
    before = tree(tmp_path / "out")
    inodes = {name: os.stat(tmp_path / "out" / name).st_ino for name in "abcd"}
    (tmp_path / "out" / "b").write_bytes(before["b"][:-1] + b"?")
    count = stub.count
    run(*words).succeeded()
    assert tree(tmp_path / "out") == before
    assert stub.count == count + 2
    start_of_b = 2 * MiB + 31
    assert asked(stub)[-1] == (start_of_b, 2 * start_of_b)
    run(*words).succeeded()
    assert stub.count == count + 3
    assert {name for name in "abcd" if os.stat(tmp_path / "out" / name).st_ino != inodes[name]} == {"b"}


def write_noise(stub, names, size=MiB):
    return write(stub.root / "bucket" / "a.zip", {name: archives.noise(size, number) for number, name in enumerate(names)},
                 zipfile.ZIP_STORED)


def asked(stub):
    """The ranges [start, end) that the stub was asked for, but for those that are the object's end."""
    words = [word for line in (stub.root / ".calls").read_text().splitlines() for word in ast.literal_eval(line)]
    ranges = [re.fullmatch(r"--range=bytes=(\d+)-(\d+)", word) for word in words]
    return [(int(each.group(1)), int(each.group(2)) + 1) for each in ranges if each]


def test_a_name_that_is_there_twice(tmp_path):
    """The last one wins, as with zipfile, also when it runs again."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write(tmp_path / "a.zip", [("f", b"old"), ("g", b"other"), ("f", b"new")])
    for _ in range(3):
        run("-e", path, str(tmp_path / "out")).succeeded()
        assert (tmp_path / "out" / "f").read_bytes() == b"new"


def test_members_are_fetched_in_archive_order(stub, tmp_path):
    """Whatever the order asked; what lies side by side in one call, and nothing else."""
    with zipfile.ZipFile(write_noise(stub, "012345678")) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
    run("-e", "s3://bucket/a.zip", str(tmp_path / "out"), "6", "5", "1", "2", "--aws", " ".join(stub.aws)).succeeded()
    assert asked(stub) == [(offsets[1], offsets[3]), (offsets[5], offsets[7])]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_not_extracted(tmp_path, compression):
    """Nor is a part of it, and what was there before stays."""
    path = write(tmp_path / "a.zip", {"good": b"1" * 1000, "bad": archives.text(300000), "other": b"2" * 1000}, compression)
    damage(path, "bad")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bad").write_bytes(b"before")
    run("-e", path, str(tmp_path / "out")).failed(path, "")
    assert tree(tmp_path / "out") == {".": None, "good": b"1" * 1000, "bad": b"before"}


def test_a_folder_in_the_way(local, tmp_path):
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    run("-e", local, str(tmp_path / "out")).failed(local, "directory")
    assert tree(tmp_path / "out") == {".": None, "a.txt": None}
    run("-e", local, local).failed(local, "exists")


# -- test

BROKEN = {      # the status, and what is wrong with each member
    "good": (0, {"a": "", "b": ""}),
    "empty": (1, {}),
    "folder": (0, {"d/": ""}),
    "bad": (2, {"a": "", "b": "damaged"}),
    "no header": (2, {"a": "headless", "b": ""}),
    "encrypted": (82, {"a": "encrypted", "b": "encrypted"}),
    "some encrypted": (1, {"a": "encrypted", "b": ""}),
    "folder and encrypted": (1, {"d/": "", "a": "encrypted"}),
    "unsupported": (81, {"a": "unsupported"}),
    "some unsupported": (81, {"a": "unsupported", "b": ""}),
    "encrypted and unsupported": (82, {"a": "encrypted", "b": "unsupported"}),
    "bad and encrypted": (2, {"a": "encrypted", "b": "damaged"}),
    "bad and unsupported": (2, {"a": "unsupported", "b": "damaged"}),
    "all": (2, {"a": "", "b": "damaged", "c": "encrypted", "d": "unsupported"}),
    "all but bad": (81, {"a": "", "c": "encrypted", "d": "unsupported"})}


def write_broken(path, hows):
    """Write an archive of members that are damaged, encrypted, … as {name: how} tells."""
    write(path, {name: b"" if name.endswith("/") else b"content of %s" % name.encode() * 50 for name in hows}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.start_dir
        for info in archive.infolist():
            for header in info.header_offset + 6, entry + 8:
                if hows[info.filename] == "encrypted":      # 12 bytes that the password is checked with, then the data
                    struct.pack_into("<H", data, header, 1)
                    struct.pack_into("<L", data, header + 16, info.file_size - 12)
                if hows[info.filename] == "unsupported":
                    struct.pack_into("<H", data, header + 2, 99)
            if hows[info.filename] == "damaged":
                data[info.header_offset + 100] ^= 255
            if hows[info.filename] == "headless":
                data[info.header_offset] ^= 255
            entry += 46 + len(info.filename)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("status, hows", BROKEN.values(), ids=list(BROKEN))
def test_statuses_are_those_of_unzip(tmp_path, status, hows):
    """A line for each member that is not good, and a summary."""
    path = write_broken(tmp_path / "a.zip", hows)
    ended = run("-t", path)
    bad = [member for member, how in hows.items() if how]
    assert ended.out.decode() == "%d members tested, %d with errors\n" % (len(hows), len(bad))
    assert [line.split(": ")[:3] for line in ended.err.splitlines()] == [["s3zip", path, member] for member in bad]
    assert ended.status == status


@pytest.mark.skipif(not shutil.which("unzip"), reason="Info-ZIP's unzip is not installed")
@pytest.mark.parametrize("status, hows", BROKEN.values(), ids=list(BROKEN))
def test_statuses_of_unzip(tmp_path, status, hows):
    """The table above is true."""
    command = ["unzip", "-P", "wrong", "-tq", write_broken(tmp_path / "a.zip", hows)]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert said.returncode == status, said.stdout


def test_test_some(tmp_path):
    path = write_broken(tmp_path / "a.zip", BROKEN["all"][1])
    assert run("-t", path, "a").succeeded() == "1 members tested, 0 with errors\n"
    assert run("-t", path, "[ac]", "-q").status == 1


def test_quiet(tmp_path):
    """No summary, but errors."""
    path = write_broken(tmp_path / "a.zip", BROKEN["bad"][1])
    ended = run("-tq", path)
    assert (ended.out, ended.status) == (b"", 2)
    assert re.fullmatch("s3zip: .*: b: .*CRC.*\n", ended.err)


# -- the other options


def test_the_calls_and_what_they_took(stub, tmp_path):
    """-v shows each call of aws; --stats counts them, and the bytes."""
    write_noise(stub, "01234")
    ended = run("-tv", "s3://bucket/a.zip", "1", "3", "--stats", "--aws", " ".join(stub.aws))
    assert (ended.status, stub.count) == (0, 3)
    assert len(re.findall("get-object .*s3://bucket/a.zip", ended.err)) == 3
    stats = re.fullmatch(r"s3zip: 3 requests, (\d+) bytes fetched, (\d+) of them not needed, \d+\.\d s", ended.err.splitlines()[-1])
    assert int(stats.group(1)) == CACHE_SIZE + sum(end - start for start, end in asked(stub))
    assert int(stats.group(2)) < 1000
    ended = run("-t", "s3://bucket/a.zip", "1", "--stats", "--aws", " ".join(stub.aws))
    assert re.fullmatch(r"s3zip: 2 requests, .*\n", ended.err)


def test_stats_of_a_local_archive(local):
    assert re.fullmatch(r"s3zip: 0 requests, 0 bytes fetched, 0 of them not needed, \d+\.\d s\n", run("-t", local, "--stats").err)


def test_another_aws(stub, local):
    """By the option, else by the environment variable."""
    stub.put("a.zip", content(local))
    words = "-p", "s3://bucket/a.zip", "z.txt"
    assert run(*words, "--aws", " ".join(stub.aws), env={**os.environ, "S3ZIP_AWS": "absent"}).succeeded() == "last\n"
    assert run(*words, env={**os.environ, "S3ZIP_AWS": " ".join(stub.aws)}).succeeded() == "last\n"
    run(*words, "--aws", "absent-aws --profile p").failed("s3://bucket/a.zip", "cannot run 'absent-aws'.*install the AWS CLI")


@pytest.mark.parametrize("words", [
    [], ["-l"], ["-x", "a.zip"], ["-l", "-p", "a.zip", "b"], ["-p", "a.zip"], ["-e", "a.zip"], ["a.zip"], ["-l", "a.zip", "--unknown"]])
def test_wrong_usage(words):
    ended = run(*words)
    assert (ended.status, ended.out) == (2, b"")
    assert ended.err.startswith("usage: s3zip") and "Traceback" not in ended.err


def test_help():
    """One screen, with examples and all options."""
    lines = run("--help", env={**os.environ, "COLUMNS": "80"}).succeeded().splitlines()
    assert sum(1 + max(0, len(line) - 1) // 80 for line in lines) <= 40
    assert sum(line.startswith("  s3zip -") for line in lines) >= 4
    told = ("-l", "-p", "-e", "-t", "--aws", "--stats", "-v", "-q")
    assert [each for each in told if each not in " ".join(lines)] == []


def test_options_and_patterns_in_any_order(local):
    assert run("--stats", "-p", local, "a.txt", "-q", "z.txt").out == MEMBERS["a.txt"] + MEMBERS["z.txt"]


# -- errors


@pytest.mark.parametrize("make, what", [
    (lambda path: None, "No such file or directory"), (lambda path: path.mkdir(), "[Dd]irectory"),
    (lambda path: path.write_bytes(b""), "not a zip"), (lambda path: path.write_bytes(bytes(3 * MiB)), "not a zip"),
    (lambda path: path.write_bytes(b"PK\5\6" + b"\xff" * 18), "")], ids=["absent", "folder", "empty", "zeros", "an end"])
def test_what_is_no_archive(tmp_path, make, what):
    """One line, and a traceback with -v only."""
    path = tmp_path / "a.zip"
    make(path)
    run("-l", str(path)).failed(str(path), what)
    ended = run("-lv", str(path))
    assert ended.status == 1 and ended.err.startswith("Traceback") and re.search(what, ended.err)


def test_errors_of_s3(stub):
    url, aws = "s3://bucket/a.zip", ["--aws", " ".join(stub.aws)]
    run("-l", url, *aws).failed(url, "An error occurred \\(NoSuchKey\\).*does not exist")
    ended = run("-lv", url, *aws)
    assert ended.status == 1 and "Traceback" in ended.err and "S3NotFoundError" in ended.err
    run("-l", "s3://bucket", *aws).failed("s3://bucket", "not an s3://BUCKET/KEY URL")
    stub.put("empty.zip", b"")
    run("-l", "s3://bucket/empty.zip", *aws).failed("s3://bucket/empty.zip", "not a zip")
    stub.put("a.zip", b"data")
    stub.then(status=255, stderr="Unable to locate credentials. You can configure them")
    run("-l", url, *aws).failed(url, "Unable to locate credentials.*aws configure")


def test_an_object_that_changes_is_no_damaged_member(stub):
    """-t ends, and tells what happened."""
    write_noise(stub, "0123")
    stub.then()
    stub.then(etag='"other"')
    run("-t", "s3://bucket/a.zip", "--aws", " ".join(stub.aws)).failed("s3://bucket/a.zip", "the object has changed")


def test_printing_what_cannot_be_read(tmp_path):
    """What comes before is printed."""
    path = write_broken(tmp_path / "a.zip", BROKEN["all"][1])
    ended = run("-p", path, "a", "c")
    ended.failed(path, "c.* is encrypted, password required")
    assert ended.out == b"content of a" * 50
    run("-p", path, "d").failed(path, "compression method is not supported")
    run("-p", path, "b").failed(path, "Bad CRC-32 for file 'b'")


def test_output_that_cannot_be_written(local):
    with open("/dev/full", "wb") as full:
        run("-p", local, "data/x.csv", stdout=full).failed(local, "No space left on device")
        run("-l", local, stdout=full).failed(local, "No space left on device")


def test_an_interrupt(tmp_path):
    """As Ctrl-C: 130, and nothing is said."""
    path = write(tmp_path / "a.zip", {"zeros": bytes(30 * MiB)})
    with start("-p", path, "zeros") as process:
        assert process.stdout.read(1) == b"\0"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=100)[1] == b""
    assert process.returncode == 130


# -- the progress line


class Terminal:
    """A pseudo-terminal of so many columns, and what was written to it, when."""

    def __init__(self, columns):
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.writes = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):      # EIO: nobody has the other end any more
            while True:
                self.writes.append((time.monotonic(), os.read(self._master, 100000)))

    def close(self):
        os.close(self.slave)
        self._thread.join()
        os.close(self._master)

    @property
    def text(self):
        return b"".join(data for _, data in self.writes).decode()

    @property
    def screen(self):
        """The lines that a person sees at the end: text, carriage returns, and erasing to the end of the line."""
        lines, column = [""], 0
        for char in re.findall("\033\\[K|.", self.text, re.DOTALL):
            if char == "\033[K":
                lines[-1] = lines[-1][:column]
            elif char == "\r":
                column = 0
            elif char == "\n":
                lines.append("")
            else:
                lines[-1] = lines[-1][:column].ljust(column) + char + lines[-1][column + 1:]
                column += 1
        return lines


@pytest.fixture
def terminal():
    made = Terminal(60)
    yield made
    with contextlib.suppress(OSError):      # closed in the test, as a rule
        made.close()


def frames(terminal):
    """Each drawing of the line."""
    return [frame.rpartition("\033[K")[0] for frame in terminal.text.split("\r") if "MB" in frame]


@pytest.fixture
def zeros(tmp_path):
    return write(tmp_path / "a.zip", [("long/name of a member of zeros", bytes(100 * MiB)), ("second\x1b[2J", bytes(20 * MiB))])


def print_slowly(terminal, path, *options, seconds=2.0):
    """-p, read in so many seconds."""
    with start("-p", path, "*", *options, stderr=terminal.slave) as process:
        started, left = time.monotonic(), 120 * MiB
        while left:
            left -= len(process.stdout.read(MiB))
            time.sleep(max(0, started + seconds * (1 - left / (120 * MiB)) - time.monotonic()))
        assert process.stdout.read() == b""
    terminal.close()
    assert process.returncode == 0
    return time.monotonic() - started


def test_progress(terminal, zeros):
    """Member, bytes, rate and time left, at most 5 times a second, on one line of the terminal, and gone at the end."""
    seconds = print_slowly(terminal, zeros)
    lines = frames(terminal)
    assert 3 <= len(lines) <= 5 * seconds + 1
    for line in lines:
        assert re.match(r"\d+ of 125 MB, \d+\.\d MB/s, \d+:\d\d left: [ls]", line), line
        assert len(line) < 60
    assert "\n" not in terminal.text
    assert terminal.screen == [""]
    done = [int(line.split()[0]) for line in lines]
    assert done == sorted(done) and 0 <= done[0] < done[-1] <= 125
    assert re.findall("\x1b(?!\\[K)", terminal.text) == []


def test_no_progress_when_quiet(terminal, zeros):
    print_slowly(terminal, zeros, "-q", seconds=0.5)
    assert terminal.text == ""


def test_no_progress_without_a_terminal(zeros):
    assert run("-t", zeros).succeeded() == "2 members tested, 0 with errors\n"


def test_no_progress_among_what_is_printed(terminal, zeros):
    with start("-p", zeros, "second*", stdout=terminal.slave, stderr=terminal.slave) as process:
        process.wait()
    terminal.close()
    assert "MB/s" not in terminal.text


def test_progress_and_a_summary(terminal, tmp_path):
    """A line of an error does not mix with that of the progress; what stays is what a file would have got."""
    path = write(tmp_path / "a.zip", [("zeros", bytes(300 * MiB)), ("bad", archives.text(300000)), ("more", bytes(300 * MiB))])
    damage(path, "bad")
    with start("-t", path, stdout=terminal.slave, stderr=terminal.slave) as process:
        process.wait()
    terminal.close()
    assert process.returncode == 2
    assert len(frames(terminal)) >= 1
    error, summary, rest = terminal.screen
    assert re.fullmatch("s3zip: .*: bad: .*", error)
    assert (summary, rest) == ("3 members tested, 1 with errors", "")


# -- with a real CLI and a real server


@pytest.mark.one_cli
def test_every_verb(calls, put, local, tmp_path):
    """As with the same archive on disk. 1 call for what is in the tail, whatever the verb: 6 calls."""
    url = put("a b#?.zip", local)
    with calls(6):
        assert run("-l", url).succeeded() == run("-l", local).succeeded()
        assert run("-p", url, "*.csv").succeeded() == run("-p", local, "*.csv").succeeded()
        assert run("-t", url).succeeded() == run("-t", local).succeeded()
        for _ in range(2):
            run("-e", url, str(tmp_path / "out")).succeeded()
        run("-l", url + "x").failed(url + "x", "NoSuchKey")
    run("-e", local, str(tmp_path / "local")).succeeded()
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


def test_each_cli(cli, calls, put, local):
    """With its own options. 1 call."""
    url = put("a.zip", local)
    with calls(1):
        assert run("-p", url, "z.txt", "--aws", "aws --region us-east-1 --cli-connect-timeout=5").succeeded() == "last\n"
    assert "--region" in calls.argv[0]


def _noise_archive(path, count, size):
    """An archive of stored members, and one more that fills the tail."""
    members = {"%d" % number: archives.noise(size, number) for number in range(count)}
    return write(path, {**members, "end": bytes(CACHE_SIZE + 1000)}, zipfile.ZIP_STORED), members


@pytest.mark.one_cli
def test_head_ends_quickly(calls, proxy, put, tmp_path, assert_nothing_left):
    """A slow server does not send much more than what was wanted. At most 3 calls."""
    path, members = _noise_archive(tmp_path / "a.zip", 2, 20 * MiB)
    url = put("a.zip", path)
    proxy.inject(times=None, rate=6 * MiB, when=lambda request: request.range != "bytes=-%d" % CACHE_SIZE)
    with start("-p", url, "0", "1") as process:
        assert process.stdout.read(100) == members["0"][:100]
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    assert_nothing_left()
    assert proxy.sent < 24 * MiB
    assert calls.count <= 3


def stop_by_interrupt(process, proxy):
    """As Ctrl-C does, which the whole group gets."""
    os.killpg(process.pid, signal.SIGINT)


def stop_by_kill(process, proxy):
    process.kill()


def stop_by_dropping_the_link(process, proxy):
    proxy.go_away()


@pytest.mark.one_cli
def test_an_extraction_goes_on_where_it_stopped(calls, proxy, put, tmp_path, monkeypatch, assert_nothing_left):
    """Three times interrupted; no byte of a finished member is fetched twice. Some 15 calls, of which 5 find no server."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    path, members = _noise_archive(tmp_path / "a.zip", 8, 2 * MiB)
    url, out = put("a.zip", path), tmp_path / "out"
    with zipfile.ZipFile(path) as archive:
        spans = {info.filename: (info.header_offset, info.header_offset + 31 + info.compress_size) for info in archive.infolist()}
    proxy.rate = 4 * MiB
    finished, refetched, messages = set(), [], []
    for stop, after, status in ((stop_by_interrupt, "1", 130), (stop_by_kill, "3", -signal.SIGKILL),
                                (stop_by_dropping_the_link, "5", 1), (None, "end", 0)):
        before = len(proxy.requests)
        with start("-e", url, str(out), start_new_session=True) as process:
            wait_until((out / after).exists)
            if stop:
                assert not (out / "7").exists()
                stop(process, proxy)
            messages.append(process.communicate(timeout=100)[1].decode())
        assert process.returncode == status
        if stop is stop_by_dropping_the_link:
            proxy.come_back()
        refetched += [name for name in finished for request in list(proxy.requests)[before:] if overlaps(request, spans[name])]
        finished = {name for name in spans if (out / name).exists()}
        assert all((out / name).read_bytes() == members[name] for name in finished & set(members))
    assert finished == set(spans)
    assert refetched == []
    assert sorted(os.listdir(out)) == sorted(spans)
    assert_nothing_left(within=20)
    assert (messages[0], messages[1], messages[3]) == ("", "", "")
    assert re.fullmatch("s3zip: %s: Could not connect .*\n" % re.escape(url), messages[2])


def overlaps(request, span):
    """Whether something of span has been sent; the tail does not count."""
    asked_for = re.fullmatch(r"bytes=(\d+)-\d+", request.range or "")
    if not asked_for:
        return False
    first = int(asked_for.group(1))
    return first < span[1] and span[0] < first + request.sent
