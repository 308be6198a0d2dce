"""S3File is a file opened "rb": everything that a local one does, at a known number of calls of `aws`."""

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest

import archives
import s3zip
import servers
from s3zip import CACHE_SIZE, S3Error, S3File

pytest_plugins = ["recorder"]

MODULE = s3zip.__file__
SIZES = [0, 1, CACHE_SIZE - 1, CACHE_SIZE, CACHE_SIZE + 1, 3 * 1024 * 1024 + 7]
LARGE = SIZES[-1]
DATA = archives.noise(LARGE)


@pytest.fixture(scope="module")
def stored(server):
    """{size: URL} of objects that begin as DATA does."""
    server.create_bucket("sizes")
    for size in SIZES:
        server.put("sizes", "of/%d" % size, DATA[:size])
    return {size: "s3://sizes/of/%d" % size for size in SIZES}


@pytest.fixture
def urls(stored, login):
    login()
    return stored


def in_order(file, data):
    """What a file gives, read from its beginning to its end in all ways; data is what is in it."""
    half = bytearray(len(data) // 2)
    yield file.readinto(half)
    yield hashlib.md5(half).digest()
    yield file.tell()
    yield hashlib.md5(file.read(len(data) // 4)).digest()
    yield [file.readline() for _ in range(3)]
    yield file.readline(5)
    yield file.readlines(100)
    yield file.tell()
    yield hashlib.md5(file.read()).digest()
    yield file.tell()
    yield file.read(), file.read(1), file.read(-1), file.read(None), file.readline(), file.readinto(bytearray(9)), list(file)
    yield file.tell()


def anywhere(file, data):
    """What a file gives that is read here and there, past the end too."""
    draw = random.Random(len(data))
    reads = [lambda: file.read(0), lambda: file.read(7), lambda: file.read(5000), lambda: file.read(300000), file.tell,
             lambda: file.readline(), lambda: file.readlines(9), lambda: next(file, None)]
    for _ in range(200):
        at = draw.randrange(len(data) + 3)
        yield file.seek(*draw.choice([(at, 0), (at - file.tell(), 1), (at - len(data), 2)]))
        yield draw.choice(reads)()


@pytest.mark.parametrize("size, expected", list(zip(SIZES, [1, 1, 1, 1, 2, 3])))
@pytest.mark.one_cli
def test_reads_as_a_local_file(urls, calls, tmp_path, size, expected):
    data = DATA[:size]
    (tmp_path / "local").write_bytes(data)
    with calls(expected), S3File(urls[size]) as file, open(tmp_path / "local", "rb") as local:
        assert list(in_order(file, data)) == list(in_order(local, data))
        assert list(anywhere(file, data)) == list(anywhere(local, data))


@pytest.mark.parametrize("size, expected", [(0, 1), (LARGE, 3)])
@pytest.mark.one_cli
def test_iterates_as_a_local_file(urls, calls, size, expected):
    with calls(expected), S3File(urls[size]) as file:
        assert iter(file) is file
        assert list(file) == list(io.BytesIO(DATA[:size]))
        assert next(file, "nothing more") == "nothing more"


@pytest.mark.one_cli
def test_partial_reads(urls, calls):
    """read1, readinto1 and peek may give less than asked for, but something, and the right thing."""
    with calls(3), S3File(urls[LARGE]) as file:
        while file.tell() < LARGE:
            at = file.tell()
            peeked = file.peek(10)
            assert peeked and file.tell() == at and DATA.startswith(peeked, at)
            piece = file.read1(50000)
            assert 0 < len(piece) <= 50000 and DATA.startswith(piece, at) and file.tell() == at + len(piece)
            buffer = memoryview(bytearray(200000))
            count = file.readinto1(buffer)
            assert (count or file.tell() == LARGE) and DATA.startswith(buffer[:count], file.tell() - count)
            file.read(100000)
        assert (file.peek(), file.peek(5), file.read1(), file.read1(9), file.readinto1(bytearray(9))) == (b"", b"", b"", b"", 0)
        file.seek(LARGE - 10)
        assert file.read1() == file.read1(-1) + DATA[-10:] == DATA[-10:]


@pytest.mark.one_cli
def test_seek_tell_and_the_end(urls, calls):
    with calls(1), S3File(urls[LARGE]) as file:
        assert (file.tell(), file.seek(5), file.seek(5, 1), file.tell(), file.seek(0, 2), file.tell()) == (0, 5, 10, 10, LARGE, LARGE)
        assert (file.read(1), file.read(), file.readline(), file.peek()) == (b"", b"", b"", b"")
        assert (file.seek(10 ** 12), file.read(1), file.read(), file.tell()) == (10 ** 12, b"", b"", 10 ** 12)
        assert (file.seek(-7, io.SEEK_END), file.read()) == (LARGE - 7, DATA[-7:])
        for arguments in [(-1,), (-1, 0), (-LARGE - 1, 1), (-LARGE - 1, 2)]:
            file.seek(LARGE - 10)
            with pytest.raises(OSError) as caught:
                file.seek(*arguments)
            assert caught.value.errno == errno.EINVAL
            assert (file.tell(), file.read(3)) == (LARGE - 10, DATA[-10:-7])
        for whence in (-1, 3, 4, 99):
            with pytest.raises(ValueError):
                file.seek(0, whence)
        for wrong in ("1", 1.5, None):
            with pytest.raises(TypeError):
                file.seek(wrong)
        assert file.tell() == LARGE - 7


@pytest.mark.one_cli
def test_states(urls, calls, assert_nothing_left):
    url = urls[LARGE]
    with calls(1):
        file = S3File(url)
        assert isinstance(file, io.BufferedReader) and isinstance(file, io.BufferedIOBase)
        assert (file.readable(), file.seekable(), file.writable(), file.closed, file.isatty()) == (True, True, False, False, False)
        assert repr(file) == "<s3zip.S3File %r>" % url
        for refused in (file.fileno, file.truncate, lambda: file.write(b"x")):
            with pytest.raises(io.UnsupportedOperation):
                refused()
        file.flush()
        with file as entered:
            assert entered is file
        assert file.closed and repr(file) == "<s3zip.S3File %r closed>" % url
        file.close()
        for refused in (file.read, file.read1, file.readline, file.readlines, file.peek, file.tell, file.seekable, file.readable,
                        file.fileno, file.flush, file.truncate, file.isatty, file.__enter__, file.__iter__, lambda: file.seek(0),
                        lambda: file.readinto(bytearray(1)), lambda: next(file)):
            with pytest.raises(ValueError):
                refused()
        assert (file.name, file.mode, file.length, file.key) == (url, "rb", LARGE, "of/%d" % LARGE)
    assert_nothing_left()


@pytest.mark.one_cli
def test_closing_never_replaces_an_exception(urls, calls, assert_nothing_left):
    with calls(2), pytest.raises(ZeroDivisionError):
        with S3File(urls[LARGE]) as file:
            file.read(1)
            1 / 0
    assert_nothing_left()


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.one_cli
def test_attributes(urls, calls, size):
    with calls(1), S3File(urls[size], "rb") as file:
        assert (file.name, file.mode, file.bucket, file.key) == (urls[size], "rb", "sizes", "of/%d" % size)
        assert (file.url.scheme, file.url.netloc, file.url.path) == ("s3", "sizes", "/of/%d" % size)
        assert (file.url.query, file.url.fragment, file.url.params) == ("", "", "")
        assert (file.length, file.version_id) == (size, None)
        assert file.ETag == ('"%s"' % hashlib.md5(DATA[:size]).hexdigest() if size else None)
        for name in ("url", "bucket", "key", "length", "ETag", "version_id", "frontcache", "backcache", "name"):
            with pytest.raises(AttributeError):
                setattr(file, name, "other")


@pytest.mark.parametrize("size, expected", list(zip(SIZES, [0, 0, 0, 0, 1, 1])))
@pytest.mark.one_cli
def test_caches_are_there_and_cost_nothing(urls, calls, size, expected):
    data = DATA[:size]
    with calls(1):
        file = S3File(urls[size])
        assert file.backcache == data[-CACHE_SIZE:]
        start = max(0, size - CACHE_SIZE)
        assert (file.seek(start), file.read(), file.seek(start), file.read(10)) == (start, data[start:], start, data[start:start + 10])
    with calls(expected):
        assert file.frontcache == data[:CACHE_SIZE]
    with calls(0):
        assert (file.frontcache, file.backcache) == (data[:CACHE_SIZE], data[-CACHE_SIZE:])
        assert (file.seek(0), file.read(CACHE_SIZE)) == (0, data[:CACHE_SIZE])
        assert (file.seek(1), file.read(5)) == (1, data[1:6])
    file.close()


@pytest.mark.one_cli
def test_front_cache_stays_when_the_disk_is_needed(urls, calls):
    """What was read is evicted from a temp folder that is too small, the caches are not."""
    with calls(3), S3File(urls[LARGE], cache_size=0) as file:
        assert file.read(10) == DATA[:10]
        file.seek(CACHE_SIZE + 100000)
        assert file.read(10) == DATA[CACHE_SIZE + 100000:][:10]
    with S3File(urls[LARGE], cache_size=0) as file:
        assert file.frontcache == DATA[:CACHE_SIZE]
        file.seek(CACHE_SIZE + 100000)
        file.read(10)
        with calls(0):
            assert (file.frontcache, file.backcache) == (DATA[:CACHE_SIZE], DATA[-CACHE_SIZE:])
            assert (file.seek(500), file.read(10)) == (500, DATA[500:510])


def test_an_archive_is_opened_and_listed_in_one_call(put, calls, tmp_path):
    path = archives.write_zip(str(tmp_path / "a.zip"), {"stored%d" % number: archives.noise(2 << 20, number) for number in range(3)})
    url = put("a.zip", path)
    with calls(1):
        file = S3File(url)
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(path) as local:
            assert [(info.filename, info.CRC) for info in archive.infolist()] == [(info.filename, info.CRC) for info in local.infolist()]
        assert not file.closed
        assert zipfile.is_zipfile(file)
        file.close()
    with calls(2), zipfile.ZipFile(S3File(url)) as archive:
        assert archive.read("stored1") == archives.noise(2 << 20, 1)


@pytest.mark.one_cli
def test_consumers(put, calls, tmp_path):
    """What reads files reads these: csv and io, json, gzip, tarfile, shutil. Each small object costs the call that opens it."""
    table = "".join("%d;ä%d\r\n" % (number, number) for number in range(5000))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("member")
        info.size = 200000
        archive.addfile(info, io.BytesIO(DATA[:200000]))
    urls = {name: put("consumers/" + name, data) for name, data in {
        "csv": table.encode("latin-1"), "json": json.dumps({"ü": [1, 2]}).encode(), "gzip": gzip.compress(DATA[:300000]),
        "tar": packed.getvalue(), "any": DATA[:400000]}.items()}
    with calls(1), io.TextIOWrapper(S3File(urls["csv"]), "latin-1", newline="") as text:
        assert list(csv.reader(text, delimiter=";")) == [line.split(";") for line in table.splitlines()]
    with calls(1), S3File(urls["json"]) as file:
        assert json.load(file) == {"ü": [1, 2]}
    with calls(1), S3File(urls["gzip"]) as file, gzip.open(file) as unpacked:
        assert unpacked.read() == DATA[:300000]
        assert (unpacked.seek(1000), unpacked.read(5)) == (1000, DATA[1000:1005])
    with calls(1), S3File(urls["tar"]) as file, tarfile.open(fileobj=file) as archive:
        assert archive.getnames() == ["member"]
        assert archive.extractfile("member").read() == DATA[:200000]
    with calls(1), S3File(urls["any"]) as file, open(tmp_path / "copy", "wb") as copy:
        shutil.copyfileobj(file, copy)
    assert (tmp_path / "copy").read_bytes() == DATA[:400000]


@pytest.mark.one_cli
def test_the_original_example(put, calls, tmp_path, capsys):
    """What people wrote for the answer that this module grew from."""
    url = put("original.zip", archives.write_zip(str(tmp_path / "a.zip")))
    example = textwrap.dedent("""
        from s3zip import S3File, s3open
        import zipfile
        f = S3File(NAME)
        f.seek(-22, 2)
        assert f.tell() == f.length - 22
        assert f.read(4) == b"PK\\5\\6"
        f.seek(0)
        print(f.name, f.url.scheme, f.bucket, f.key, f.length, f.ETag, f)
        z = zipfile.ZipFile(f)
        with z.open("table.csv") as member:
            print(member.readline())
        f.close()
        with s3open(NAME + ".txt", "w") as out:
            out.write("ä line\\n")
        for line in s3open(NAME + ".txt"):
            print(line, end="")
        """)
    with calls(3):
        exec(compile(example, "example", "exec"), {"NAME": url})
    assert "s3 bucket original.zip" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["r", "w", "wb", "rb+", "r+b", "a", "br", "", "rt", None, 0])
@pytest.mark.one_cli
def test_wrong_modes(urls, calls, mode):
    with calls(0), pytest.raises(ValueError):
        S3File(urls[1], mode)


@pytest.mark.parametrize("arguments, error", [
    (dict(cache_size=-1), ValueError), (dict(aws=""), ValueError), (dict(aws=[]), ValueError), (dict(aws="aws 'x"), ValueError),
    (dict(options="'x"), ValueError), (dict(aws=5), TypeError), (dict(unknown=1), TypeError)])
@pytest.mark.one_cli
def test_wrong_arguments(urls, calls, arguments, error):
    with calls(0), pytest.raises(error):
        S3File(urls[1], **arguments)


def test_which_command_is_run(stub, recorder, tmp_path, monkeypatch):
    """The argument before the environment's S3ZIP_AWS before `aws` on PATH; split as a shell would if it is a string."""
    def words(**arguments):
        with S3File(url, **arguments) as file:
            assert file.read() == b"data"
        return recorder.argv[-1][:recorder.argv[-1].index("s3api")]

    url = stub.put("k", b"data")
    assert words() == []
    assert words(aws="aws --profile 'my prod' --region eu-west-1") == ["--profile", "my prod", "--region", "eu-west-1"]
    assert words(aws=["aws", "--profile", "my prod; touch x"]) == ["--profile", "my prod; touch x"]
    assert words(aws=("aws", "--no-sign-request")) == ["--no-sign-request"]
    moved = tmp_path / "an aws"
    shutil.copy(recorder.path, moved)
    monkeypatch.setenv("S3ZIP_AWS", "'%s' --profile env" % moved)
    recorder.path.unlink()
    assert words() == ["--profile", "env"]
    assert words(aws=[moved, "--debug"]) == ["--debug"]
    assert words(aws=shlex.quote(str(moved))) == []
    monkeypatch.setenv("S3ZIP_AWS", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    moved.rename(tmp_path / "aws")
    assert words() == []
    assert len(recorder.argv) == 8


def test_a_command_with_options_really_runs(server, put, calls, monkeypatch, tmp_path):
    """Both forms with the real CLI, in an environment that names neither credentials nor endpoint."""
    url = put("k", b"data")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials file").write_text(
        "[prod]\naws_access_key_id = %s\naws_secret_access_key = %s\n" % (servers.ADMIN.access_key, servers.ADMIN.secret_key))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials file"))
    options = ["--profile", "prod", "--region", "us-east-1", "--endpoint-url", server.url]
    with calls(2):
        assert S3File(url, aws=["aws", *options]).read() == b"data"
        assert S3File(url, aws="aws " + " ".join(options)).read() == b"data"


def test_endpoint_of_the_environment(stub, recorder, monkeypatch):
    """AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL, becomes an option, unless there is one or the user has them ignored."""
    def endpoint(**arguments):
        S3File(url, **arguments).close()
        given = [following for word, following in zip(recorder.argv[-1], recorder.argv[-1][1:]) if word == "--endpoint-url"]
        return given + [word.partition("=")[2] for word in recorder.argv[-1] if word.startswith("--endpoint-url=")]

    url = stub.put("k", b"data")
    assert endpoint() == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general")
    assert endpoint() == ["http://general"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert endpoint() == ["http://s3"]
    assert endpoint(aws=["aws", "--endpoint-url", "http://mine"]) == ["http://mine"]
    assert endpoint(aws="aws --endpoint-url=http://mine") == ["http://mine"]
    assert endpoint(options=["--endpoint-url", "http://mine"]) == ["http://mine"]
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert endpoint() == []


def test_endpoint_for_s3_wins_with_real_clis(server, put, calls, monkeypatch):
    url = put("k", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    with calls(1), S3File(url) as file:
        assert file.read() == b"data"


def test_environment_of_the_child(stub, recorder, monkeypatch):
    """What AWS_CLI.md says is pinned, what could break a CLI in Python is gone, and all else is passed on."""
    url = stub.put("k", b"data")
    gone = ["PYTHONHOME", "PYTHONPATH", "PYTHONINSPECT", "PYTHONWARNINGS", "PYTHONVERBOSE", "PYTHONSTARTUP", "PYTHONOPTIMIZE",
            "PYTHONDEVMODE", "PYTHONUTF8", "PYTHONIOENCODING"]
    for name in gone:
        monkeypatch.setenv(name, "0")
    pinned = {"AWS_CLI_AUTO_PROMPT": "off", "AWS_CLI_ERROR_FORMAT": "legacy", "AWS_PAGER": "", "LC_ALL": "C.UTF-8",
              "AWS_CLI_FILE_ENCODING": "UTF-8", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
    for name in pinned:
        monkeypatch.setenv(name, "wrong")
    monkeypatch.setenv("AWS_PROFILE", "mine\nand yours")
    S3File(url).close()
    environment, = recorder.environments
    assert {name: environment.get(name) for name in pinned} == pinned
    assert [name for name in gone if name in environment] == []
    assert (environment["AWS_PROFILE"], environment["HOME"]) == ("mine\nand yours", os.environ["HOME"])
    assert os.environ["AWS_PAGER"] == "wrong" and os.environ["PYTHONPATH"] == "0"
    assert "--output=json" in recorder.argv[0] or "json" in recorder.argv[0]


def test_a_hostile_environment_with_real_clis(put, calls, tmp_path, monkeypatch):
    url = put("ü", DATA)
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "config").write_text("[default]\noutput = text\ncli_auto_prompt = on\ncli_pager = false\n")
    for name, value in {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1",
                        "AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_DEFAULT_OUTPUT": "junk", "AWS_PAGER": "false",
                        "AWS_CLI_AUTO_PROMPT": "on", "AWS_CLI_FILE_ENCODING": "ascii", "LC_ALL": "C", "PAGER": "false",
                        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported"}.items():
        monkeypatch.setenv(name, value)
    with calls(2), S3File(url) as file:
        assert (file.length, file.read(10)) == (LARGE, DATA[:10])


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
@pytest.mark.one_cli
def test_a_parent_that_does_not_speak_utf8(put, calls, tmp_path, locale):
    """The key reaches S3 as UTF-8 whatever the encoding of our own command lines is."""
    url = put("ü/日本/é", "héllo\n".encode())
    if locale != "C":
        compiled = shutil.which("localedef") and subprocess.run(
            ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / locale)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if not compiled or not (tmp_path / locale).is_dir():
            pytest.skip("this machine cannot make a locale of Latin-1")
    script = ("import sys, s3zip; sys.stdout.write(sys.getfilesystemencoding() + ascii(s3zip.s3open(%s).read()))" % ascii(url))
    with calls(1):
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(
            os.environ, LOCPATH=str(tmp_path), LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
            PYTHONPATH=os.path.dirname(MODULE)))
    assert done.stdout == {"C": b"ascii", "en_US.ISO-8859-1": b"iso8859-1"}[locale] + br"'h\xe9llo\n'"


@pytest.fixture(scope="session")
def versioned(server):
    """The version ids of s3://versions/k, oldest first, whose content is V1 and V2."""
    server.create_bucket("versions", versioned=True)
    return [server.put("versions", "k", data) for data in (V1, V2)]


V1, V2 = DATA[:-5], DATA[5:]


def test_versions(versioned, login, server, calls):
    """The one asked for is read to its end, whatever is stored meanwhile; by default it is the latest."""
    login()
    first, second = versioned
    with calls(2), S3File("s3://versions/k", version_id=first) as file:
        assert (file.version_id, file.length, file.backcache) == (first, len(V1), V1[-CACHE_SIZE:])
        assert file.read(1000) == V1[:1000]
    with calls(1), S3File("s3://versions/k") as file:
        assert (file.version_id, file.backcache) == (second, V2[-CACHE_SIZE:])
    with calls(1), pytest.raises(S3Error) as caught:
        S3File("s3://versions/k", version_id="0" * 32)
    assert isinstance(caught.value, FileNotFoundError), caught.value


@pytest.mark.one_cli
def test_a_version_outlives_being_overwritten(login, server, calls):
    login()
    server.create_bucket("moving", versioned=True)
    first = server.put("moving", "k", V1)
    with calls(2), S3File("s3://moving/k", version_id=first) as file:
        server.put("moving", "k", V2)
        server.delete("moving", "k")
        assert file.read() == V1


def test_options_are_passed_on(stub, recorder):
    """In every call, as they are, before OUTFILE."""
    url = stub.put("k", DATA)
    for given, words in [(("--request-payer", "requester"), ["--request-payer", "requester"]),
                         ("--sse-customer-key 'a b' --checksum-mode=ENABLED", ["--sse-customer-key", "a b", "--checksum-mode=ENABLED"])]:
        with S3File(url, options=given) as file:
            file.read(1)
            assert [call[-len(words) - 1:-1] for call in recorder.argv[-2:]] == [words] * 2


def test_options_with_real_clis(put, calls, monkeypatch):
    url = put("k", b"data")
    with calls(1), S3File(url, options=("--request-payer", "requester")) as file:
        assert file.read() == b"data"


def test_one_place_starts_processes_and_without_a_shell():
    source = pathlib.Path(MODULE).read_text(encoding="utf-8").splitlines()
    assert sum("subprocess.Popen" in line or "subprocess.run" in line for line in source) in (1, 2)
    assert not [line for line in source if "shell=True" in line or "os.system" in line or "os.popen" in line]
