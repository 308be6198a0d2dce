"""Bodies that break off, objects that change while they are open, and full disks: done to the real CLI, through the proxy."""

import contextlib
import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
DATA = archives.noise(4 * MiB + 12345)
START = len(DATA) - MiB         # of what opening has fetched already

needs_mount = pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root can mount a small disk")


@pytest.fixture
def one_cli(isolated, monkeypatch):
    """An `aws`, for what does not depend on which."""
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)


@pytest.fixture(autouse=True)
def single_attempts(isolated, monkeypatch):
    """So that each failure of the server is one of a call; what the CLI tries by itself comes on top."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def starts(requests):
    return [int(re.fullmatch(r"bytes=(\d+)-\d+", request.range).group(1)) for request in requests]


def resumed_at(caplog):
    """The bytes at which reading went on, as the log has them."""
    said = [re.search(r"resuming bytes=(\d+)-\d+ of \S+ after (\d+) bytes: ", record.getMessage()) for record in resume_records(caplog)]
    return [int(each.group(1)) + int(each.group(2)) for each in said]


def test_bodies_that_break_off_are_resumed(cli, calls, proxy, put, caplog, record_property, assert_nothing_left):
    url = put("k", DATA)
    faults = [dict(after=500000), dict(after=400000, then="reset"), dict(after=300000, then="stall"), dict(status=503),
              dict(status=500, code=""), dict(after=200000, answer={"Content-Length": None})]       # the last with exit status 0
    with calls(8), s3zip.S3File(url, aws="aws --cli-read-timeout 2") as file:
        for fault in faults:
            proxy.inject(**fault)
        assert file.read() == DATA
        requests = proxy.requests[1:]
        assert {request.if_match for request in requests} == {file.ETag}
    begun = starts(requests)
    assert begun[0] == 0 and begun[1:] == resumed_at(caplog)
    for before, start, request in zip(begun, begun[1:], requests):
        assert before <= start <= before + request.sent
    assert begun[1] > 500000 - 128 * 1024 and begun[-1] == begun[-2] + 200000
    assert begun[3] == begun[4] == begun[5]             # nothing had come
    record_property("figure", "faults survived: %d of %d" % (len(faults), len(faults)))
    assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_killed_from_outside_is_resumed(cli, calls, proxy, put, caplog, number, assert_nothing_left):
    url = put("k", DATA)
    with calls(3), s3zip.S3File(url) as file:
        proxy.inject(rate=MiB)
        killer = threading.Thread(target=kill_in_the_middle, args=(proxy, calls, number))
        killer.start()
        assert file.read() == DATA
        killer.join()
        first, second = proxy.requests[1:]
        assert second.if_match == file.ETag
    assert [0] + resumed_at(caplog) == starts([first, second])
    assert 0 < resumed_at(caplog)[0] <= first.sent
    assert_nothing_left()


def kill_in_the_middle(proxy, calls, number):
    while len(proxy.requests) < 2 or proxy.requests[1].sent < 500000:
        time.sleep(0.01)
    os.kill(calls.pids[-1], number)


def test_opening_is_tried_again_when_its_body_breaks_off(one_cli, proxy, put):
    """Costs 2 calls."""
    url = put("k", DATA)
    proxy.inject(after=300000)
    with s3zip.S3File(url) as file:
        assert file.backcache == DATA[START:]
    assert len(proxy.requests) == 2


def test_five_tries_without_a_byte_give_up(one_cli, proxy, put, caplog, monkeypatch):
    """Costs 1 call to open, 10 that fail and 1 at last."""
    url = put("k", DATA)
    times = []
    noted = dict(when=lambda request: not times.append(time.time()))
    with s3zip.S3File(url) as file:
        proxy.inject(times=4, status=503, **noted)
        proxy.inject(after=100000, **noted)
        proxy.inject(times=4, status=503, **noted)
        proxy.inject(times=1, status=500, code="InternalError", **noted)
        with pytest.raises(s3zip.S3Error, match="InternalError") as raised:
            file.read()
        assert raised.value.code == "InternalError" and raised.value.errno == errno.EIO
        assert len(proxy.requests) == 11
        for number, (at, record) in enumerate(zip(times[1:5], resume_records(caplog))):
            assert at - record.created >= s3zip._PAUSE * 2 ** (number + 1)
        assert len(set(starts(proxy.requests[1:6]))) == 1 and len(set(starts(proxy.requests[6:]))) == 1
        monkeypatch.setattr(s3zip, "_PAUSE", 0)
        file.seek(0)
        assert file.read() == DATA              # the file is usable, and what came was kept
        assert starts(proxy.requests[-1:]) == starts(proxy.requests[10:11])
    assert len(proxy.requests) == 12


def resume_records(caplog):
    return [record for record in caplog.records if record.levelno == logging.WARNING]


def test_what_will_not_pass_is_not_tried_again(one_cli, proxy, put, caplog):
    """Costs 5 calls."""
    url = put("k", DATA)
    with s3zip.S3File(url) as file:
        for status, kind, number in (403, PermissionError, errno.EACCES), (404, s3zip.S3Error, errno.ESTALE), (
                412, s3zip.S3Error, errno.ESTALE):
            proxy.inject(times=None, status=status)
            with pytest.raises(kind) as raised:
                file.read(10)
            assert raised.value.errno == number
            proxy.clear()
        assert file.read() == DATA
        assert len(proxy.requests) == 1
    assert not caplog.records


def test_objects_that_change_while_open(one_cli, proxy, put, server):
    """Costs 1 call to open, 7 to find a change, and 1 to read at last."""
    url = put("k", DATA)
    changes = {"overwritten": DATA + b"more", "replaced by the same length": bytes(len(DATA)), "shrunk": DATA[:START + 1],
               "deleted": None}
    tried = 0
    with s3zip.S3File(url) as file:
        for ignores_if_match in False, True:
            for what, data in changes.items():
                put("k", data) if data is not None else server.delete("bucket", "k")
                proxy.inject(times=None, ask={"If-Match": None} if ignores_if_match else {})
                file.seek(0)
                with pytest.raises(s3zip.S3Error, match="has changed since it was opened") as raised:
                    file.read()
                assert raised.value.errno == errno.ESTALE, what
                proxy._faults.clear()
                tried += 1
        put("k", DATA)          # its ETag is its content's
        file.seek(0)
        assert file.read() == DATA
    assert len(proxy.requests) == 2 + tried


def test_small_reads_of_a_changed_object_where_if_match_is_ignored(one_cli, proxy, put):
    """No member of an archive comes out whole from another version. Costs 2 calls."""
    url = put("k", DATA)
    with s3zip.S3File(url) as file:
        put("k", bytes(len(DATA)))
        proxy.inject(times=None, ask={"If-Match": None})
        with pytest.raises(s3zip.S3Error) as raised:
            while file.tell() < START:
                assert file.read(10000)
        assert raised.value.errno == errno.ESTALE


def test_a_version_goes_on_being_read(one_cli, server, login):
    """Costs 3 calls."""
    login()
    server.create_bucket("versions-of-faults", versioned=True)
    version = server.put("versions-of-faults", "k", DATA)
    server.put("versions-of-faults", "k", b"newer")
    with s3zip.S3File("s3://versions-of-faults/k", version_id=version) as file:
        assert (file.version_id, file.length) == (version, len(DATA))
        assert file.read(MiB) == DATA[:MiB]
        server.put("versions-of-faults", "k", b"newest")
        server.delete("versions-of-faults", "k")
        file.seek(2 * MiB)
        assert file.read() == DATA[2 * MiB:]


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d" % size, "tmpfs", str(folder)], check=True)
    try:
        yield str(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_mount
def test_a_full_disk(one_cli, proxy, put, tmp_path, monkeypatch):
    """Costs 2 calls."""
    url = put("k", DATA)
    with small_disk(tmp_path / "disk", 2 * MiB) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        with s3zip.S3File(url, cache_size=1 << 30) as file:
            with pytest.raises(s3zip.S3Error) as raised:
                file.read()
            assert raised.value.errno == errno.ENOSPC
            assert folder in str(raised.value) and "cache_size" in str(raised.value)
            assert len(proxy.requests) == 2
            assert file.backcache == DATA[START:]


@needs_mount
def test_no_more_than_half_of_the_disk_is_used(stub, tmp_path, monkeypatch):
    """No call of the real CLI: 20 MiB in small ranges."""
    data = archives.noise(20 * MiB)
    url = stub.put("k", data)
    with small_disk(tmp_path / "disk", 8 * MiB) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        free = os.statvfs(folder).f_bavail
        used = []
        with s3zip.S3File(url, aws=stub.aws) as file:
            for at in range(0, len(data), 100000):
                assert file.read(100000) == data[at:at + 100000]
                used.append(free - os.statvfs(folder).f_bavail)
        assert 0 < max(used) <= free / 2
        assert stub.count > 20
        assert os.statvfs(folder).f_bavail == free


def test_a_full_disk_as_the_cli_tells_of_it(stub):
    url = stub.put("k", DATA)
    with s3zip.S3File(url, aws=stub.aws) as file:
        stub.then(after=100000, status=255, stderr="[Errno 28] No space left on device")
        with pytest.raises(s3zip.S3Error, match="cache_size") as raised:
            file.read()
        assert raised.value.errno == errno.ENOSPC and os.environ["TMPDIR"] in str(raised.value)
        assert stub.count == 2
        file.seek(0)
        assert file.read() == DATA


@pytest.mark.parametrize("cache_size", [0, 1, 100000])
def test_tiny_budgets(stub, cache_size):
    url = stub.put("k", DATA)
    with s3zip.S3File(url, aws=stub.aws, cache_size=cache_size) as file:
        while file.tell() < MiB:
            at = file.tell()
            assert file.read(10000) == DATA[at:at + 10000]
    assert stub.count <= 2 + MiB // (64 * 1024) * 2
