"""Damaged and lying archives, and servers that answer what they should not: right bytes or a clear error, at a bounded cost."""

import errno
import io
import random
import struct
import tracemalloc
import zipfile
import zlib

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
KINDS = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, OSError, struct.error)

SMALL = dict(CACHE_SIZE=512, _FIRST_WINDOW=512, _SMALLEST_RANGE=128, _BUFFER_SIZE=256, _HELD_BACK=64, _LOOK_EVERY=128, _POLL=0.001)


@pytest.fixture
def small(monkeypatch):
    """Sizes at which an archive of 6 KB takes several calls."""
    for name, value in SMALL.items():
        monkeypatch.setattr(s3zip, name, value)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of a small archive."""
    path = tmp_path_factory.mktemp("hostile") / "a.zip"
    archives.write_zip(str(path), {"stored": archives.noise(2000), "a": archives.text(10000), "b/c": archives.noise(1500, 1), "empty": b""},
                       comment=b"a comment")
    return path.read_bytes()


def outcome(file):
    """What comes of reading all of an archive: its content, or for each member the kind and text of its error."""
    try:
        with zipfile.ZipFile(file) as opened:
            return [read(opened, info) for info in opened.infolist()]
    except s3zip.S3Error:
        raise                                           # none of the archive's faults
    except KINDS as error:
        return told(error)


def read(opened, info):
    try:
        return info.filename, opened.read(info)
    except s3zip.S3Error:
        raise
    except KINDS as error:
        return info.filename, *told(error)


def told(error):
    """The kind and the text of an error; where they stem from a seek, the text has the file's name."""
    return type(error), error.errno if isinstance(error, OSError) else str(error)


def assert_same_outcome(stub, data):
    """As zipfile has it of a local file, in few calls."""
    before = stub.count
    url = stub.put("k", data)
    with open(str(stub.root / "bucket" / "k"), "rb") as local:
        expected = outcome(local)
    with s3zip.S3File(url, aws=stub.aws) as file:
        assert outcome(file) == expected
    assert stub.count - before <= 40
    return expected


def test_truncated_archives(stub, small, archive):
    """Costs no call of the real CLI, as all tests of damaged archives."""
    for length in [*range(0, len(archive), 211), len(archive) - 1, len(archive) - 9, len(archive) - 40]:
        assert_same_outcome(stub, archive[:length])


def test_flipped_bits(stub, small, archive):
    draw = random.Random(0)
    damaged = 0
    for number in range(60):
        data = bytearray(archive)
        data[-1 - draw.randrange(len(data) if number % 2 else 400)] ^= 1 << draw.randrange(8)       # half of them near the end
        expected = assert_same_outcome(stub, bytes(data))
        damaged += expected != outcome(io.BytesIO(archive))
    assert damaged > 20


@pytest.mark.parametrize("field, size", [("compressed size", 4), ("size", 4), ("name length", 2), ("extra length", 2), ("offset", 4)])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF, 0xFFFE, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
def test_directories_that_lie(stub, small, archive, field, size, value):
    at = {"compressed size": 20, "size": 24, "name length": 28, "extra length": 30, "offset": 42}[field] + archive.index(b"PK\1\2")
    assert_same_outcome(stub, archive[:at] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + archive[at + size:])


@pytest.mark.parametrize("field, at, size", [("count", 10, 2), ("size", 12, 4), ("offset", 16, 4), ("comment length", 20, 2)])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_ends_that_lie(stub, small, archive, field, at, size, value):
    at += archive.rindex(b"PK\5\6")
    assert_same_outcome(stub, archive[:at] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + archive[at + size:])


def test_zip64_records_that_lie(stub, small, tmp_path):
    data = open_bytes(archives.write_zip(str(tmp_path / "z.zip"), {"a": archives.text(5000)}, zip64=True))
    for magic, length in (b"PK\6\6", 56), (b"PK\6\7", 20):
        start = data.index(magic)
        for at in range(4, length - 7, 4):
            for value in 0, 1, (1 << 63) - 1, (1 << 64) - 1:
                assert_same_outcome(stub, data[:start + at] + value.to_bytes(8, "little") + data[start + at + 8:])


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_members_that_overlap_do_not_multiply_calls(stub, monkeypatch):
    """A thousand entries for the same bytes, as in a ZIP bomb, and a size that no object has: calls and memory stay small."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as opened:
        opened.writestr("stored", archives.noise(2 * MiB))
    data = body.getvalue()
    start = data.index(b"PK\1\2")
    entry = data[start:data.rindex(b"PK\5\6")]
    huge = entry[:20] + struct.pack("<L", 0xFFFFFFF0) + entry[24:]
    directory = entry * 1000 + huge * 1000
    lying = data[:start] + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2000, 2000, len(directory), start, 0)
    tracemalloc.start()
    try:
        with s3zip.S3File(stub.put("k", lying), aws=stub.aws) as file, zipfile.ZipFile(file) as opened:
            for info in opened.infolist()[::100]:
                with opened.open(info) as member:
                    assert member.read(1000) == archives.noise(2 * MiB)[:1000]
            assert tracemalloc.get_traced_memory()[1] < 40 * MiB
    finally:
        tracemalloc.stop()
    assert stub.count <= 10


DATA = archives.noise(3 * MiB)
LIES = {
    "more bytes": dict(resize=5),
    "another range": dict(ask={"Range": "bytes=7-1048582"}),
    "no ETag": dict(answer={"ETag": None}),
    "no Content-Range": dict(answer={"Content-Range": None}),
    "a Content-Range that makes no sense": dict(answer={"Content-Range": "bytes 5-3/x"}),
    "everything": dict(ask={"Range": None}),
    "fewer bytes": dict(resize=-5),
}


@pytest.fixture
def one_cli(isolated, monkeypatch):
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def test_servers_that_lie_to_an_open_file(one_cli, proxy, put):
    """Costs 1 call to open, 1 for each lie, and 2 for what was short and for the end."""
    with s3zip.S3File(put("k", DATA)) as file:
        for lie, fault in LIES.items():
            proxy.inject(**fault)
            file.seek(MiB)
            if lie == "fewer bytes":
                assert file.read(MiB) == DATA[MiB:2 * MiB]
            else:
                with pytest.raises(s3zip.S3Error) as raised:
                    file.read(MiB)
                assert raised.value.errno == errno.EIO and "server" in raised.value.strerror, lie
        file.seek(0)
        assert file.read() == DATA
    assert len(proxy.requests) <= 1 + len(LIES) + 2


def test_servers_that_lie_at_the_opening(one_cli, proxy, put):
    """Costs 2 calls for a tail that is short, otherwise 1 each."""
    url = put("k", DATA)
    for lie, fault in LIES.items():
        proxy.clear()
        proxy.inject(**fault)
        if lie == "fewer bytes":
            with s3zip.S3File(url) as file:
                assert file.backcache == DATA[2 * MiB:]
        else:
            with pytest.raises(s3zip.S3Error) as raised:
                s3zip.S3File(url)
            assert raised.value.errno == errno.EIO and "server" in raised.value.strerror, lie
        assert len(proxy.requests) == (2 if lie == "fewer bytes" else 1)


def test_a_server_without_ranges_is_not_listened_to_for_long(one_cli, proxy, put):
    """60 MB instead of the last MiB, at 20 MB/s: costs 1 call, which is ended early."""
    url = put("k", bytes(60 * MiB))
    proxy.inject(times=None, ask={"Range": None}, rate=20e6)
    with pytest.raises(s3zip.S3Error, match="more bytes than asked for"):
        s3zip.S3File(url)
    assert len(proxy.requests) == 1 and proxy.sent < 40 * MiB


def test_junk_instead_of_json(stub):
    url = stub.put("k", DATA)
    for junk in "", "[]", "null", "{}", '{"ContentRange": 5, "ETag": "x"}', '{"ContentRange": "bytes 0-1/2", "ETag": 7}', "\x00\xff":
        stub.then(stdout=junk)
        with pytest.raises(s3zip.S3Error):
            s3zip.S3File(url, aws=stub.aws)
