"""Uploads that fail and uploads that are given up: nothing is published and nothing is left, whatever the size."""

import os
import signal
import subprocess
import sys
import time

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
CHUNK = archives.noise(MiB)
SECONDS = 60            # in which an abort must be through on a busy machine; it takes about two


@pytest.fixture(autouse=True)
def few_attempts(isolated, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def write(file, size):
    for at in range(0, size, MiB):
        file.write(CHUNK[:size - at])


def assert_nothing_there(server, key="k"):
    assert server.list_keys("bucket") == [] and server.list_multipart_uploads("bucket") == []
    assert not server.object_exists("bucket", key)


def is_write(request):
    return request.method in ("PUT", "POST")


def is_part(request):
    return "partNumber" in request.target


def is_start(request):
    return request.target.endswith("?uploads")


def is_completion(request):
    return request.method == "POST" and "uploadId" in request.target


@pytest.mark.parametrize("size, fault, kind", [
    (1, dict(when=is_write, status=404, code="NoSuchBucket"), FileNotFoundError),
    (1, dict(when=is_write, status=403), PermissionError),
    (20 * MiB, dict(when=is_start, status=403), PermissionError),
    (20 * MiB, dict(when=is_part, status=403, code="QuotaExceeded"), s3zip.S3Error),
    (20 * MiB, dict(when=is_part, status=500, code="InternalError"), s3zip.S3Error),
    (20 * MiB, dict(when=is_completion, status=503), s3zip.S3Error),
], ids=["no bucket", "no permission", "no permission for parts", "quota", "half-way", "at the end"])
def test_failures_are_raised_once(cli, calls, proxy, server, size, fault, kind, assert_nothing_left):
    proxy.inject(times=None, **fault)
    with calls(1):
        file = s3zip.s3open("s3://bucket/k", "wb")
        with pytest.raises(kind) as raised:
            write(file, size)
            file.close()
        assert isinstance(raised.value, s3zip.S3Error) and raised.value.filename == "s3://bucket/k"
        assert raised.value.code == (fault.get("code") or {403: "AccessDenied", 503: "SlowDown"}[fault["status"]])
        assert raised.value.status and "s3 cp" in raised.value.command
        file.close()
        assert file.closed
    proxy.clear()
    assert_nothing_left()
    assert_nothing_there(server)


@pytest.mark.parametrize("size", [1, 20 * MiB])
def test_the_with_statement_raises_it_too(cli, proxy, server, size, assert_nothing_left):
    """Costs 1 call."""
    proxy.inject(times=None, when=is_write, status=404, code="NoSuchBucket")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        with s3zip.s3open("s3://bucket/k", "wb") as file:
            write(file, size)
    assert_nothing_left()


def test_the_server_goes_half_way(cli, proxy, server, assert_nothing_left):
    """Costs 1 call. What the server has of the upload stays there, since nobody can reach it."""
    file = s3zip.s3open("s3://bucket/k", "wb")
    with pytest.raises(ConnectionError) as raised:
        write(file, 20 * MiB)
        while proxy.sent < 1 and sum(request.received for request in proxy.requests) < 8 * MiB:
            time.sleep(0.01)
        proxy.go_away()
        write(file, 20 * MiB)
        file.close()
    assert isinstance(raised.value, s3zip.S3Error)
    file.close()
    assert_nothing_left()
    assert server.list_keys("bucket") == []


def test_the_cli_is_killed(cli, calls, proxy, server, assert_nothing_left):
    """Costs 1 call. The parts of a killed CLI stay, since nobody is left to abort them."""
    file = s3zip.s3open("s3://bucket/k", "wb")
    write(file, MiB)
    os.kill(calls.pids[-1], signal.SIGKILL)
    with pytest.raises(s3zip.S3Error, match="killed by signal 9"):
        write(file, 20 * MiB)
        file.close()
    file.close()
    assert_nothing_left()
    assert_nothing_there(server)


@pytest.mark.parametrize("size, error", [
    (1, ValueError), (1, KeyboardInterrupt), (20 * MiB, ValueError), (20 * MiB, KeyboardInterrupt), (200 * MiB, ValueError),
    (200 * MiB, KeyboardInterrupt)], ids=str)
def test_aborts_leave_nothing(cli, proxy, server, size, error, assert_nothing_left):
    """Costs 1 call, which may be given up before it has begun."""
    with pytest.raises(error, match="in the body"):
        with s3zip.s3open("s3://bucket/k", "wb") as file:
            write(file, size)
            began = time.monotonic()
            raise error("in the body")
    assert time.monotonic() - began < SECONDS
    assert file.closed
    assert_nothing_left()
    assert_nothing_there(server)


def test_an_abort_of_text(cli, bucket, server, assert_nothing_left):
    """Costs 1 call."""
    with pytest.raises(KeyboardInterrupt):
        with s3zip.s3open("s3://bucket/k", "w") as file:
            file.write("text")
            raise KeyboardInterrupt
    assert_nothing_left()
    assert_nothing_there(server)


def test_an_abort_while_the_server_stalls(cli, proxy, server, assert_nothing_left):
    """Costs 1 call. Bounded though no answer comes."""
    proxy.inject(times=None, when=is_part, delay=15)
    began = time.monotonic()
    with pytest.raises(ValueError):
        with s3zip.s3open("s3://bucket/k", "wb") as file:
            write(file, 9 * MiB)
            raise ValueError
    assert time.monotonic() - began < s3zip._ABORT_SECONDS + SECONDS
    assert_nothing_left()
    assert server.list_keys("bucket") == []


KILLED = """
import os, signal, sys
import s3zip

file = s3zip.s3open("s3://bucket/k", "wb")
for _ in range(int(sys.argv[1])):
    file.write(bytes(1 << 20))
file.write(b"x")
file.flush()
print("written", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed writer publishes what came")
@pytest.mark.parametrize("mebibytes", [0, 20])
def test_a_killed_writer_publishes_nothing(cli, calls, bucket, server, monkeypatch, mebibytes, assert_nothing_left):
    """Costs 1 call, killed once `aws` listens: before that, it would have nothing to read either."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(s3zip.__file__))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(mebibytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        time.sleep(2)
        process.kill()
    deadline = time.monotonic() + SECONDS
    while conftest._left()[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_nothing_left()
    assert_nothing_there(server)
