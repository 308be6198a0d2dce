"""Every error that S3, the network, the AWS CLI and this machine are good for, each provoked for real."""

import errno
import logging
import os
import pickle
import signal
import stat
import threading
import time
import zipfile

import pytest

import archives
import s3zip
import servers
from s3zip import CACHE_SIZE, S3Error, S3File, s3open

DATA = archives.noise(CACHE_SIZE + 300000)


def check(error, kind, number, url, says=(), status=(1, 2, 252, 253, 254, 255), code=None):
    """An S3Error as it should be: type, errno, URL, code, command, status, stderr and text, and all of it after pickling."""
    assert isinstance(error, S3Error) and isinstance(error, OSError) and isinstance(error, kind)
    assert type(error) is S3Error or kind is not S3Error
    assert (error.errno, error.filename, error.code) == (number, url, code)
    assert error.status in status
    assert "s3api get-object" in error.command or "s3 cp - " in error.command
    text = str(error)
    for part in (url, error.command, str(error.status), error.strerror, *says):
        assert part in text or repr(part)[1:-1] in text, text
    assert code is None or code in error.strerror
    assert "\n" not in error.strerror
    check_pickling(error)


def check_pickling(error):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error) and str(copy) == str(error) and copy.args == error.args
        for name in ("errno", "strerror", "filename", "code", "command", "status", "stderr"):
            assert getattr(copy, name) == getattr(error, name)


def fails_to_open(calls, url, **arguments):
    """The error that opening an object costs, with one call."""
    with calls(1), pytest.raises(S3Error) as caught:
        S3File(url, **arguments)
    return caught.value


@pytest.fixture
def once(monkeypatch):
    """The CLI does not try again what will not change."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.mark.parametrize("url, code", [("s3://bucket/absent", "NoSuchKey"), ("s3://no-such-bucket/k", "NoSuchBucket")])
def test_not_found(bucket, calls, url, code):
    with calls(1), pytest.raises(FileNotFoundError) as caught:
        S3File(url)
    check(caught.value, FileNotFoundError, errno.ENOENT, url, ["when calling the GetObject operation"], (254, 255), code)


@pytest.mark.parametrize("identity, code, hint", [
    (servers.NOBODY, "AccessDenied", "s3:ListBucket"), (servers.WRITER, "AccessDenied", "a key that does not exist"),
    (servers.STRANGER, "InvalidAccessKeyId", ""), (servers.FORGER, "SignatureDoesNotMatch", "")])
def test_refused(server, put, login, calls, identity, code, hint):
    url = put("k", b"data", bucket=servers.READABLE_BUCKET)
    login(identity)
    with calls(1), pytest.raises(PermissionError) as caught:
        S3File(url)
    check(caught.value, PermissionError, errno.EACCES, url, [hint], (254, 255), code)
    assert identity.secret_key not in str(caught.value) + caught.value.stderr


def test_get_object_is_the_only_permission_needed(put, login, calls):
    url = put("k", DATA, bucket=servers.READABLE_BUCKET)
    login(servers.READER)
    with calls(2), S3File(url) as file:
        assert file.read() == DATA


@pytest.mark.parametrize("answer, kind, number, says", [
    (dict(status=404, code=""), FileNotFoundError, errno.ENOENT, ["(404)"]),
    (dict(status=403, code=""), PermissionError, errno.EACCES, ["(403)", "s3:ListBucket"]),
    (dict(status=400, code="ExpiredToken"), PermissionError, errno.EACCES, ["injected", "renew the credentials"]),
    (dict(status=403, code="InvalidObjectState"), S3Error, errno.EBUSY, ["injected", "archived", "Glacier", "restored", "restore-object"]),
    (dict(status=400, code="IllegalLocationConstraintException"), S3Error, errno.EREMOTE, ["injected", "another region", "--region"]),
    (dict(status=400, code="SomethingNew"), S3Error, errno.EIO, ["injected"]),
    (dict(status=503, code="SlowDown"), S3Error, errno.EIO, ["injected"])])
def test_what_s3_answers(put, proxy, calls, once, answer, kind, number, says):
    url = put("k", b"data")
    proxy.inject(times=None, **answer)
    check(fails_to_open(calls, url), kind, number, url, says, (254, 255), answer["code"] or str(answer["status"]))


def test_no_credentials(put, calls, monkeypatch):
    url = put("k", b"data")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = fails_to_open(calls, url)
    check(error, PermissionError, errno.EACCES, url, ["Unable to locate credentials", "aws configure"], (253, 255))


def test_unknown_profile(put, calls):
    url = put("k", b"data")
    error = fails_to_open(calls, url, aws="aws --profile nobodys")
    check(error, PermissionError, errno.EACCES, url, ["nobodys", "could not be found", "aws configure"], (255,))


def test_unreachable(put, proxy, calls, once):
    url = put("k", b"data")
    proxy.go_away()
    with calls(1), pytest.raises(ConnectionError) as caught:
        S3File(url)
    check(caught.value, ConnectionError, errno.ECONNREFUSED, url, ["Could not connect to the endpoint URL", proxy.url], (255,))


def test_tls_and_proxy_failures(put, server, calls, once, monkeypatch):
    url = put("k", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))       # which does not speak TLS
    check(fails_to_open(calls, url), ConnectionError, errno.ECONNREFUSED, url, ["SSL"], (255,))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    check(fails_to_open(calls, url), ConnectionError, errno.ECONNREFUSED, url, ["proxy"], (255,))


def test_timeout(put, proxy, calls, once):
    url = put("k", b"data")
    proxy.inject(times=None, after=0, then="stall")
    error = fails_to_open(calls, url, options="--cli-read-timeout=1")
    check(error, ConnectionError, errno.ETIMEDOUT, url, ["timeout"], (255,))


def test_usage_error(put, calls):
    url = put("k", b"data")
    error = fails_to_open(calls, url, options="--no-such-option x")
    check(error, S3Error, errno.EINVAL, url, ["Unknown options", "--no-such-option"], (2, 252, 255))


def test_killed(put, proxy, calls, assert_nothing_left):
    """While it waits for the first byte, which is in time enough for whoever opens to be told."""
    url = put("k", b"data")
    proxy.inject(after=0, then="stall")

    def kill():
        while not proxy.requests:
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(calls.pids[0], signal.SIGKILL)
    killer = threading.Thread(target=kill)
    killer.start()
    error = fails_to_open(calls, url)
    killer.join()
    check(error, S3Error, errno.EIO, url, ["killed by signal 9"], (-9,))
    assert_nothing_left()


def test_no_such_program(login, monkeypatch, tmp_path, assert_nothing_left):
    login()
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments, command in [({}, "'aws'"), ({"aws": "/no/such/aws --profile x"}, "/no/such/aws")]:
        for opened in (lambda: S3File("s3://bucket/k", **arguments), lambda: s3open("s3://bucket/k", "wb", **arguments),
                       lambda: s3open("s3://bucket/k", "w", **arguments)):
            with pytest.raises(S3Error) as caught:
                opened()
            error = caught.value
            assert (error.errno, error.filename, error.code, error.status) == (errno.ENOENT, "s3://bucket/k", None, None)
            assert command in str(error) and "install" in str(error) and "S3ZIP_AWS" in str(error)
            check_pickling(error)
    assert_nothing_left()


def test_not_a_program(login, monkeypatch, tmp_path, assert_nothing_left):
    """A file that may not be run, a folder, and a file that is no program."""
    login()
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "junk").write_bytes(b"\x7fELFjunk")
    (tmp_path / "junk").chmod(stat.S_IRWXU)
    for name, number in ("plain", errno.EACCES), ("", errno.EACCES), ("junk", errno.ENOEXEC):
        with pytest.raises(S3Error) as caught:
            S3File("s3://bucket/k", aws=[tmp_path / name])
        assert (caught.value.errno, caught.value.filename) == (number, "s3://bucket/k")
        assert "install" in str(caught.value) and "S3ZIP_AWS" in str(caught.value)
        check_pickling(caught.value)
    assert_nothing_left()


@pytest.mark.parametrize("output", ["", "junk", "[1]", "null", '"text"', "{", "{}", '{"ContentRange": "bytes 0-3/4"}',
                                    '{"ContentRange": "x", "ETag": "e"}', '{"ContentRange": 5, "ETag": "e"}',
                                    '{"ContentRange": "bytes 0-3/4", "ETag": ["e"]}'])
def test_output_that_means_nothing(stub, output):
    """By a program that ends well but is not the AWS CLI, or another version of it."""
    url = stub.put("k", b"data")
    stub.then(stdout=output, stderr="a warning")
    with pytest.raises(S3Error) as caught:
        S3File(url, aws=stub.aws)
    check(caught.value, S3Error, errno.EIO, url, status=(0,))
    assert stub.count == 1


def test_an_unknown_failure_tells_what_was_said_last(login, tmp_path):
    login()
    program = tmp_path / "aws"
    program.write_text("#!/bin/sh\nprintf 'noise\\n\\n first\\nlast\\n\\n' >&2\nexit 77\n")
    program.chmod(stat.S_IRWXU)
    with pytest.raises(S3Error) as caught:
        S3File("s3://bucket/k", aws=[program])
    check(caught.value, S3Error, errno.EIO, "s3://bucket/k", ["first / last"], (77,))
    assert "noise" not in str(caught.value) and caught.value.stderr.startswith("noise")


def test_overwritten_after_opening(put, calls):
    """An error, never a mix; also when only the length or only the content differs."""
    for other in (archives.noise(len(DATA), 1), DATA + b"x"):
        url = put("k", DATA)
        with S3File(url) as file:
            file.seek(len(DATA) - 10)
            assert file.read() == DATA[-10:]
            put("k", other)
            for _ in range(2):
                file.seek(0)
                with calls(1), pytest.raises(S3Error) as caught:
                    file.read()
                check(caught.value, S3Error, errno.ESTALE, url, ["has changed", "open it again"], (254, 255), "PreconditionFailed")
            assert (file.seek(len(DATA) - 10), file.read(5)) == (len(DATA) - 10, DATA[-10:-5])


def test_deleted_after_opening(server, put, calls):
    url = put("k", DATA)
    with S3File(url) as file:
        server.delete("bucket", "k")
        with calls(1), pytest.raises(S3Error) as caught:
            file.read(1)
    check(caught.value, S3Error, errno.ESTALE, url, ["has changed"], (254, 255), "NoSuchKey")
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.one_cli
def test_a_server_that_does_not_hold_to_if_match(put, proxy, calls):
    """The ETag and the length of each answer are compared here as well."""
    for other in (archives.noise(len(DATA), 1), DATA + b"x", DATA[:-1]):
        url = put("k", DATA)
        with S3File(url) as file:
            put("k", other)
            proxy.inject(ask={"If-Match": None})
            with calls(1), pytest.raises(S3Error) as caught:
                file.read()
            check(caught.value, S3Error, errno.ESTALE, url, ["has changed"], (0,))


@pytest.mark.one_cli
def test_permission_lost_while_open(put, login, proxy, calls):
    url = put("k", DATA)
    with S3File(url) as file:
        proxy.inject(status=403)
        with calls(1), pytest.raises(PermissionError) as caught:
            file.read(1)
        check(caught.value, PermissionError, errno.EACCES, url, ["s3:ListBucket"], (254, 255), "AccessDenied")
        with calls(1):
            assert file.read() == DATA


@pytest.mark.one_cli
def test_zipfile_lets_errors_through(put, proxy, calls, tmp_path):
    """An error while a member is read is not made a bad archive of."""
    url = put("a.zip", archives.write_zip(str(tmp_path / "a.zip"), {"stored": archives.noise(2 << 20)}))
    with S3File(url) as file, zipfile.ZipFile(file) as archive:
        proxy.inject(status=403)
        with calls(1), pytest.raises(PermissionError), archive.open("stored") as member:
            member.read()
    with pytest.raises(FileNotFoundError):
        zipfile.ZipFile(S3File("s3://bucket/absent.zip"))


def test_an_empty_object(put, calls):
    url = put("k", b"")
    with calls(1), S3File(url) as file:
        assert (file.length, file.read(), file.frontcache, file.backcache, file.ETag) == (0, b"", b"", b"", None)


@pytest.mark.one_cli
def test_a_temp_folder_that_is_full_or_missing(put, calls, monkeypatch, tmp_path):
    url = put("k", b"data")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with calls(0), pytest.raises(OSError) as caught:
        S3File(url)
    assert caught.value.errno == errno.ENOENT and str(tmp_path) in str(caught.value)


def test_the_classes():
    assert issubclass(S3Error, OSError)
    for kind in FileNotFoundError, PermissionError, ConnectionError:
        assert any(issubclass(each, kind) for each in S3Error.__subclasses__())
    error = S3Error(errno.EIO, "it broke", "s3://b/k")
    assert (error.errno, error.filename, error.code, error.command, error.status, error.stderr) == (
        errno.EIO, "s3://b/k", None, "", None, "")
    assert str(error) == "[Errno %d] it broke: 's3://b/k'" % errno.EIO
    check_pickling(error)


SECRET = "c2VjcmV0IGtleSBvZiB0aGlydHktdHdvIGJ5dGVzISE="
MD5 = "bWQ1IG9mIHRoZSBzZWNyZXQga2V5"


@pytest.mark.parametrize("arguments", [
    dict(options=["--sse-customer-algorithm", "AES256", "--sse-customer-key", SECRET, "--sse-customer-key-md5", MD5]),
    dict(options="--sse-customer-algorithm AES256 --sse-customer-key=%s --sse-customer-key-md5=%s" % (SECRET, MD5)),
    dict(aws=["env", "AWS_SECRET_ACCESS_KEY=" + SECRET, "AWS_SESSION_TOKEN=" + MD5, "aws"])])
def test_secrets_are_not_shown(login, calls, proxy, caplog, arguments):
    """Not in the text, the repr, the attributes, the pickle or the log of an error, be it the CLI that repeats them."""
    login(url=proxy.url)
    with caplog.at_level(logging.DEBUG):
        error = fails_to_open(calls, "s3://bucket/absent", **arguments)
    shown = "%s %r %s" % (error, error, vars(error))
    assert "***" in error.command
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        shown += pickle.dumps(error, protocol).decode("latin-1")
    shown += caplog.text
    assert SECRET not in shown and MD5 not in shown
    assert any(SECRET in word for words in calls.argv for word in words) or "aws" in arguments


def test_secrets_that_the_cli_repeats_are_not_shown(login, calls, caplog):
    login()
    with caplog.at_level(logging.DEBUG):
        error = fails_to_open(calls, "s3://bucket/absent", options="--sse-customer-key=%s --no-such %s" % (SECRET, SECRET))
    assert SECRET not in "%s %r %s %s" % (error, error, vars(error), caplog.text)


@pytest.mark.parametrize("options", [["--sse-c", "AES256", "--sse-c-key", SECRET], ["--sse-c=AES256", "--sse-c-key=" + SECRET]])
@pytest.mark.one_cli
def test_secrets_of_an_upload_are_not_shown(login, calls, options):
    login()
    with calls(1), pytest.raises(S3Error) as caught:
        with s3open("s3://no-such-bucket/k", "wb", options=options) as file:
            file.write(b"data")
    error = caught.value
    assert SECRET not in "%s %r %s" % (error, error, vars(error))


@pytest.mark.one_cli
def test_secrets_of_an_endpoint_are_not_shown(login, calls, once, monkeypatch):
    """Some proxies want a password in their address."""
    login(url="http://user:%s@127.0.0.1:9" % SECRET.strip("="))
    error = fails_to_open(calls, "s3://bucket/k")
    assert SECRET.strip("=") not in "%s %r %s" % (error, error, vars(error))


@pytest.mark.one_cli
def test_the_log(put, calls, caplog, proxy):
    """Calls at level DEBUG and nothing above it, as long as all is well."""
    url = put("k", DATA)
    with caplog.at_level(logging.DEBUG, "s3zip"), calls(2), S3File(url) as file:
        file.read()
    assert {record.name for record in caplog.records} == {"s3zip"}
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 2
    assert url in caplog.text and "bytes=-%d" % s3zip.CACHE_SIZE in caplog.text
