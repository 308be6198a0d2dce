"""s3open reads and writes as open() does; only what was written to its end becomes an object."""

import errno
import gc
import io
import os
import stat
import subprocess
import sys
import time
import warnings
import zipfile

import pytest

import archives
import s3zip
import servers
from s3zip import S3Error, S3File, s3open

pytest_plugins = ["recorder"]

MiB = 1 << 20
TEXT = "first ä\nsecond\r\nthird\rfourth €\n\n"
LARGE = archives.noise(20 * MiB)


def script(source, *words, options=(), **environment):
    """What a script prints, stdout and stderr, in an interpreter of its own; and that it ended well."""
    done = subprocess.run([sys.executable, *options, "-c", source, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(os.environ, PYTHONPATH=os.path.dirname(s3zip.__file__), **environment))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


# -- what opens at all

@pytest.mark.one_cli
@pytest.mark.parametrize("mode", ["", "b", "t", "a", "ab", "x", "xb", "r+", "w+", "rb+", "r+b", "rw", "wr", "rr", "rbb", "rbt", "U", "rU",
                                  "br+", "R", "rb "])
def test_wrong_modes(login, calls, mode):
    login()
    with calls(0), pytest.raises(ValueError):
        s3open("s3://bucket/k", mode)


@pytest.mark.one_cli
@pytest.mark.parametrize("arguments, error", [
    (dict(mode="rb", encoding="utf-8"), ValueError), (dict(mode="wb", encoding="utf-8"), ValueError),
    (dict(mode="rb", errors="strict"), ValueError), (dict(mode="wb", newline=""), ValueError), (dict(newline="x"), ValueError),
    (dict(mode="w", newline="x"), ValueError), (dict(encoding="no such"), LookupError), (dict(mode="w", encoding="no such"), LookupError),
    (dict(aws=""), ValueError), (dict(mode="w", aws=[]), ValueError), (dict(mode=None), (TypeError, ValueError)),
    (dict(mode=5), (TypeError, ValueError)), (dict(unknown=1), TypeError)])
def test_wrong_arguments(login, calls, arguments, error):
    login()
    with calls(0), pytest.raises(error):
        s3open("s3://bucket/k", **arguments)


@pytest.mark.one_cli
@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("key", ["folder/", "a//", "file:///"])
def test_a_key_that_ends_in_a_slash_is_not_written(server, bucket, calls, mode, key):
    """The CLI would write to another one, key/-."""
    with calls(0), pytest.raises(ValueError, match="slash"):
        s3open("s3://bucket/" + key, mode)
    assert server.list_keys(bucket) == []


# -- reading

@pytest.mark.one_cli
def test_reads_as_open_does(put, calls, tmp_path):
    for arguments in [{}, dict(mode="rt", newline=""), dict(newline="\r"), dict(newline="\r\n", encoding="utf-16"),
                      dict(encoding="ascii", errors="backslashreplace"), dict(mode="rb")]:
        data = TEXT.encode(arguments["encoding"] if arguments.get("encoding") == "utf-16" else "utf-8")
        (tmp_path / "local").write_bytes(data)
        url = put("text", data)
        local_arguments = arguments if "b" in arguments.get("mode", "") else {"encoding": "utf-8", **arguments}
        with calls(1), s3open(url, **arguments) as file, open(tmp_path / "local", **local_arguments) as local:
            assert list(file) == list(local)
            assert (file.read(), file.readline()) == (local.read(), local.readline())
            assert (file.seek(0), file.read(3), file.readline()) == (local.seek(0), local.read(3), local.readline())
            assert (file.mode, file.readable(), file.writable(), file.seekable()) == (local.mode, True, False, True)
            assert file.name == url
            for name in ("encoding", "errors"):
                assert getattr(file, name, None) == getattr(local, name, None)
        assert file.closed
        file.close()


@pytest.mark.one_cli
def test_reading_raises_as_open_does(put, login, calls):
    url = put("k", b"\xff")
    with calls(1), s3open(url) as file, pytest.raises(UnicodeDecodeError):
        file.read()
    with calls(1), s3open(url, "rb") as file:
        for refused in (lambda: file.write(b"x"), file.fileno, file.truncate):
            with pytest.raises(io.UnsupportedOperation):
                refused()
    for mode in ("r", "rb"):
        with calls(1), pytest.raises(FileNotFoundError) as caught:
            s3open("s3://bucket/absent", mode)
        assert isinstance(caught.value, S3Error)


@pytest.mark.one_cli
def test_a_download_that_fails_does_not_end_like_a_file(put, proxy, calls):
    url = put("k", LARGE[:3 * MiB])
    with calls(3), s3open(url, "rb") as file:
        proxy.inject(after=100000)
        proxy.inject(status=403)
        with pytest.raises(PermissionError):
            file.read()
    with s3open(url, "rt", encoding="latin-1", newline="") as file:
        proxy.inject(after=100000)
        proxy.inject(status=403)
        with pytest.raises(PermissionError):
            for line in file:
                pass


@pytest.mark.one_cli
def test_closing_a_reader_early_is_quick_and_quiet(put, proxy, calls, capfd, assert_nothing_left):
    """Here all of it would take a minute."""
    url = put("k", LARGE)
    for mode, first in ("rb", LARGE[:10]), ("r", LARGE[:10].decode("latin-1")):
        with calls(2):
            file = s3open(url, mode, **({} if mode == "rb" else dict(encoding="latin-1", newline="")))
            proxy.inject(rate=len(LARGE) / 60)
            assert file.read(10) == first
            started = time.monotonic()
            file.close()
            assert time.monotonic() - started < 5
            assert_nothing_left()
    assert capfd.readouterr() == ("", "")


# -- writing

@pytest.mark.one_cli
def test_writes_as_open_does(server, bucket, put, calls, tmp_path):
    for arguments in [{}, dict(mode="wt", newline="\r\n"), dict(encoding="utf-16", newline=""),
                      dict(encoding="ascii", errors="xmlcharrefreplace")]:
        url = put("text", b"old")
        arguments = {"mode": "w", **arguments}
        with calls(1), s3open(url, **arguments) as file, open(tmp_path / "local", **{"encoding": "utf-8", **arguments}) as local:
            assert (file.mode, file.readable(), file.writable()) == (local.mode, False, True)
            assert (file.encoding, file.errors, file.name) == (local.encoding, local.errors, url)
            for each in (file, local):
                assert each.write(TEXT) == len(TEXT)
                each.writelines(["a\n", "b\n"])
                each.flush()
                print("c", file=each)
        assert server.get(bucket, "text") == (tmp_path / "local").read_bytes()
        assert file.closed
        file.close()
        with pytest.raises(ValueError):
            file.write("x")


@pytest.mark.parametrize("size", [0, 1, 8 * MiB, len(LARGE)])
def test_writes_bytes(server, bucket, calls, size, assert_nothing_left):
    data = LARGE[:size]
    options = {} if size != 1 else dict(expected_size=1, options=["--content-type", "text/x-test"])
    with calls(1), s3open("s3://bucket/k", "wb", **options) as file:
        assert isinstance(file, io.BufferedIOBase)
        assert (file.mode, file.name, file.writable(), file.readable(), file.seekable()) == ("wb", "s3://bucket/k", True, False, False)
        assert file.write(data[:10]) == len(data[:10])
        assert file.write(memoryview(data)[10:]) == len(data[10:])
        for refused in (file.read, file.tell, file.truncate, file.fileno, lambda: file.seek(0)):
            with pytest.raises(io.UnsupportedOperation):
                refused()
        assert not server.object_exists(bucket, "k")
    assert server.get(bucket, "k") == data
    assert server.list_multipart_uploads(bucket) == []
    if size == 1:
        assert server.request("HEAD", "/bucket/k").headers["Content-Type"] == "text/x-test"
    assert_nothing_left()


@pytest.mark.one_cli
def test_the_end_of_a_writer(server, bucket, calls):
    """An object is there when close() has returned; closing again does nothing; a closed one takes nothing."""
    with calls(1):
        file = s3open("s3://bucket/k", "wb")
        file.write(b"data")
        file.close()
        assert server.get(bucket, "k") == b"data"
        file.close()
        assert file.closed
        for refused in (lambda: file.write(b"x"), file.flush, file.__enter__, lambda: file.raw.write(b"x")):
            with pytest.raises(ValueError):
                refused()
    assert server.get(bucket, "k") == b"data"


def test_a_zip_is_written_and_read(server, bucket, calls, tmp_path):
    with calls(1), s3open("s3://bucket/a.zip", "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise", LARGE[:MiB])
        with archive.open("text", "w") as member:
            member.write(b"text\n" * 100000)
    with calls(2), S3File("s3://bucket/a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert (archive.read("noise"), archive.read("text")) == (LARGE[:MiB], b"text\n" * 100000)


def test_expected_size_and_options_are_passed_on(recorder, stub):
    """For more than 80 GB, for which the CLI must choose larger parts."""
    for arguments, words in [
            (dict(expected_size=10 ** 12), ["--expected-size", "1000000000000"]), (dict(expected_size=0), ["--expected-size", "0"]),
            (dict(options="--storage-class 'STANDARD IA'"), ["--storage-class", "STANDARD IA"]), ({}, [])]:
        with pytest.raises(S3Error):                # the stand-in cannot upload
            with s3open("s3://bucket/a key", "wb", **arguments):
                pass
        given = recorder.argv[-1]
        assert given[given.index("s3"):] == ["s3", "cp", "-", "s3://bucket/a key", "--only-show-errors"] + words


# -- nothing but what was written to its end is published

@pytest.mark.parametrize("size", [0, 1, len(LARGE)])
def test_an_exception_publishes_nothing(server, bucket, calls, size, capfd, assert_nothing_left):
    """Neither an object nor a part of a multipart upload nor a process stays; what there was before does."""
    server.put(bucket, "old", b"old")
    for mode, key, seconds in ("wb", "new", 0), ("w", "old", 2):
        with pytest.raises(ZeroDivisionError):
            with s3open("s3://bucket/" + key, mode, **({} if mode == "wb" else {"encoding": "latin-1"})) as file:
                file.write(LARGE[:size] if mode == "wb" else LARGE[:size].decode("latin-1"))
                if size:
                    file.flush()
                time.sleep(seconds)             # it may just have been started, or be at work
                1 / 0
        assert file.closed
        file.close()
        assert_nothing_left(within=0)
    assert (server.list_keys(bucket), server.get(bucket, "old"), server.list_multipart_uploads(bucket)) == (["old"], b"old", [])
    assert calls.count in (1, 2)                # the first may have been interrupted before it could be counted
    assert capfd.readouterr() == ("", "")


@pytest.mark.one_cli
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, BrokenPipeError])
def test_any_exception_publishes_nothing(server, bucket, calls, error, assert_nothing_left):
    with pytest.raises(error):
        with s3open("s3://bucket/k", "w") as file:
            file.write("text")
            raise error
    assert calls.count <= 1
    assert (server.list_keys(bucket), server.list_multipart_uploads(bucket)) == ([], [])
    assert_nothing_left(within=0)


@pytest.mark.one_cli
def test_text_that_cannot_be_encoded_publishes_nothing(server, bucket, calls, assert_nothing_left):
    with pytest.raises(UnicodeEncodeError):
        with s3open("s3://bucket/k", "w", encoding="ascii") as file:
            file.write("fine\n")
            file.write("ä\n")
    assert calls.count <= 1
    assert server.list_keys(bucket) == []
    assert_nothing_left(within=0)


@pytest.mark.one_cli
def test_a_zip_that_fails_publishes_nothing(server, bucket, calls, assert_nothing_left):
    """zipfile writes its directory while the exception is on its way."""
    with pytest.raises(ZeroDivisionError):
        with s3open("s3://bucket/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("noise", LARGE[:100000])
            1 / 0
    assert calls.count <= 1
    assert (server.list_keys(bucket), server.list_multipart_uploads(bucket)) == ([], [])
    assert_nothing_left(within=0)


@pytest.mark.parametrize("url, identity, kind, number, code", [
    ("s3://no-such-bucket/k", servers.ADMIN, FileNotFoundError, errno.ENOENT, "NoSuchBucket"),
    ("s3://bucket/k", servers.READER, PermissionError, errno.EACCES, "AccessDenied"),
    ("s3://bucket/k", servers.FORGER, PermissionError, errno.EACCES, "SignatureDoesNotMatch")])
def test_upload_errors(server, bucket, login, calls, url, identity, kind, number, code, assert_nothing_left):
    """They come with the last byte at the latest, whatever the size, and are S3's."""
    login(identity)
    for size in (1, len(LARGE)):
        with calls(1), pytest.raises(kind) as caught:
            with s3open(url, "wb") as file:
                for at in range(0, size, 100000):
                    file.write(LARGE[at:min(size, at + 100000)])
        error = caught.value
        assert isinstance(error, S3Error) and (error.errno, error.filename, error.code) == (number, url, code)
        assert "s3 cp - " in error.command and code in str(error) and error.status == 1
        assert file.closed
        file.close()
        assert_nothing_left(within=0)
    assert (server.list_keys(bucket), server.list_multipart_uploads(bucket)) == ([], [])


@pytest.mark.one_cli
def test_upload_errors_of_text_and_of_close(login, calls, assert_nothing_left):
    login()
    with calls(1):
        file = s3open("s3://no-such-bucket/k", "w")
        file.write("text")
        with pytest.raises(FileNotFoundError):
            file.close()
        assert file.closed and file.buffer.closed
        file.close()
    assert_nothing_left(within=0)


def test_an_upload_that_the_server_refuses_half_way(server, proxy, calls, monkeypatch, assert_nothing_left):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.inject(status=403, when=lambda request: request.method == "PUT" and "partNumber=2" in request.target)
    with calls(1), pytest.raises(PermissionError):
        with s3open("s3://bucket/k", "wb") as file:
            file.write(LARGE)
    assert (server.list_keys("bucket"), server.list_multipart_uploads("bucket")) == ([], [])
    assert_nothing_left(within=0)


@pytest.mark.one_cli
def test_a_writer_whose_command_ends_early(login, calls, tmp_path, assert_nothing_left):
    """Writing on raises what it said, and closing then has nothing to add."""
    login()
    program = tmp_path / "aws"
    program.write_text("#!/bin/sh\necho 'it has given up' >&2\nexit 3\n")
    program.chmod(stat.S_IRWXU)
    file = s3open("s3://bucket/k", "wb", aws=[program])
    with pytest.raises(S3Error, match="it has given up") as caught:
        for _ in range(1000):
            file.write(LARGE[:MiB])
    assert caught.value.status == 3
    file.close()
    assert_nothing_left(within=0)


# -- what is not closed

@pytest.mark.one_cli
@pytest.mark.parametrize("mode, data", [("wb", LARGE[:MiB]), ("w", TEXT)])
def test_a_writer_that_is_dropped(server, bucket, calls, mode, data, assert_nothing_left):
    """Closed as a local file would be: published, with a warning."""
    with calls(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = s3open("s3://bucket/k", mode)
        file.write(data)
        del file
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning] and "s3://bucket/k" in str(caught[0].message)
    assert server.get(bucket, "k") == (data if mode == "wb" else data.encode())
    assert_nothing_left(within=0)


@pytest.mark.one_cli
@pytest.mark.parametrize("mode, data", [("wb", "b'x' * 100000"), ("w", "'x' * 100000")])
def test_a_writer_that_is_dropped_where_warnings_are_errors(server, bucket, calls, mode, data):
    """All of it is published or nothing, but not a part."""
    server.put(bucket, "k", b"old")
    with calls(1):
        script("import s3zip\nfile = s3zip.s3open('s3://bucket/k', %r)\nfile.write(%s)\ndel file" % (mode, data),
               options=["-W", "error"])
    assert server.get(bucket, "k") in (b"old", b"x" * 100000)


@pytest.mark.one_cli
@pytest.mark.parametrize("mode, data", [("wb", "b'x' * 100000"), ("w", "'x' * 100000")])
def test_exit_without_close(server, bucket, calls, mode, data, assert_nothing_left):
    """At the interpreter's end as well: published whole, with a warning where they are shown, and no other noise."""
    with calls(1):
        out, noise = script("import s3zip\nfile = s3zip.s3open('s3://bucket/k', %r)\nfile.write(%s)" % (mode, data), options=["-X", "dev"])
    assert server.get(bucket, "k") == b"x" * 100000
    assert "ResourceWarning" in noise and "s3://bucket/k" in noise
    assert "Traceback" not in noise and "Exception ignored" not in noise and out == ""
    assert_nothing_left(within=0)


@pytest.mark.one_cli
def test_readers_that_are_not_closed_are_quiet(put, proxy, calls, assert_nothing_left):
    """Dropped or left to the interpreter's end, with a call still running."""
    url = put("k", LARGE)
    proxy.inject(times=None, when=lambda request: request.range and not request.range.startswith("bytes=-"), rate=len(LARGE) / 60)
    source = """if True:
        import gc, sys, s3zip
        dropped, kept = s3zip.s3open(sys.argv[1], "rb"), s3zip.s3open(sys.argv[1], "r", encoding="latin-1")
        dropped.read(10), kept.read(10)
        del dropped
        gc.collect()
        """
    started = time.monotonic()
    with calls(4):
        assert script(source, url, options=["-X", "dev", "-W", "error"]) == ("", "")
    assert time.monotonic() - started < 50
    assert_nothing_left()


@pytest.mark.one_cli
def test_ordinary_use_is_quiet(put, calls):
    """No warning, no file left to the collector, in development mode."""
    put("out", b"")
    url = put("in.zip", LARGE[:MiB * 2])
    source = """if True:
        import gc, sys, s3zip
        with s3zip.S3File(sys.argv[1]) as file:
            file.read(10)
        with s3zip.s3open(sys.argv[1], "rb") as file:
            file.read(10)
        for mode in "w", "wb":
            with s3zip.s3open("s3://bucket/out", mode) as file:
                file.write("text" if mode == "w" else b"text")
            try:
                with s3zip.s3open("s3://bucket/new", mode) as file:
                    raise KeyError
            except KeyError:
                pass
            try:
                with s3zip.s3open("s3://no-such-bucket/new", mode) as file:
                    pass
            except s3zip.S3Error:
                pass
        try:
            s3zip.S3File("s3://bucket/absent")
        except s3zip.S3Error:
            pass
        gc.collect()
        """
    assert script(source, url, options=["-X", "dev", "-W", "error"]) == ("", "")
    assert 9 <= calls.count <= 11                   # two may have been interrupted before they could be counted


# -- size

STREAM = """
import resource, sys
from s3zip import s3open

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

url, blocks, block = sys.argv[1], int(sys.argv[2]), bytes(range(256)) * 4096
before = peak()
with s3open(url, "wb") as file:
    for _ in range(blocks):
        file.write(block)
print(peak() - before < 30)
count, good = 0, True
with s3open(url, "rb") as file:
    while True:
        data = file.read(len(block))
        if not data:
            break
        count, good = count + len(data), good and data == block
print(count == blocks * len(block), good, peak() - before < 30)
"""


@pytest.mark.one_cli
def test_large_objects_are_streamed_in_bounded_memory(server, bucket, put, calls, assert_nothing_left):
    """More than a hundred MB through tens; MB of both, written and read, each at few calls."""
    url = put("large", b"")
    out, noise = script(STREAM, url, "120")
    assert (out.split(), noise) == (["True"] * 4, "")
    assert [words for words in calls.argv if "cp" in words] == calls.argv[:1]
    assert calls.count <= 8
    assert_nothing_left()
