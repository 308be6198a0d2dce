"""What is asked for, when, and what of it is kept: the number of calls, the bytes, the processes and the disk; never the time.

Most tests use the stub, of which a thousand calls cost little, and sparse files as large archives. Those with `cli` use the
real one, and the slow ones say how fast each connection is.
"""

import ast
import contextlib
import functools
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib

import pytest

import archives
import s3zip
from s3zip import CACHE_SIZE, S3File, s3open

KiB, MiB = 1024, 1024 * 1024

EXTRA = 2 * MiB         # what may be fetched beside a member and the tail
END = b"the end."       # of each member of a sparse archive, whose other bytes are zeros

# -- archives that are as large as may be, but take no room


@functools.lru_cache(None)
def crc(size):
    """Of the content of a sparse member."""
    value, left = 0, max(0, size - len(END))
    while left:
        value = zlib.crc32(bytes(min(left, MiB)), value)
        left -= min(left, MiB)
    return zlib.crc32(END[:size], value)


def write_sparse(path, sizes, prefix=b"", junk=0, comment=b"", zip64=False, names="%06d", method=zipfile.ZIP_STORED):
    """Write an archive with a member of each size, with so many bytes of junk before each one; it says that they are deflated
    if method is."""
    entries = []
    with open(path, "wb") as file:
        file.write(prefix)
        for number, size in enumerate(sizes):
            file.write(b"junk" * (junk // 4))
            entries.append(_entry(names % number, size, file.tell() - len(prefix), zip64, method))
            file.write(_local_header(names % number, size, zip64))
            file.seek(max(0, size - len(END)), os.SEEK_CUR)
            file.write(END[:size])
        start = file.tell()
        file.write(b"".join(entries))
        _write_end(file, len(sizes), start - len(prefix), file.tell() - start, comment, zip64)
    return path


def _local_header(name, size, zip64):
    extra = struct.pack("<HHQQ", 1, 16, size, size) if zip64 else b""
    shown = 0xFFFFFFFF if zip64 else size
    return struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0x5821, crc(size), shown, shown, len(name), len(extra)) + name.encode() + extra


def _entry(name, size, offset, zip64, method):
    extra = struct.pack("<HHQQQ", 1, 24, size, size, offset) if zip64 else b""
    shown, offset = (0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (size, offset)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, method, 0, 0x5821, crc(size), shown, shown, len(name), len(extra), 0, 0, 0, 0,
                       offset) + name.encode() + extra


def _write_end(file, count, offset, size, comment, zip64):
    if zip64:
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1))
        count, offset, size = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, offset, len(comment)) + comment)


def place(stub, fill, *args, **kwargs):
    """Have fill(path, …) write an object of the stub's, and return its URL."""
    fill(str(stub.root / "bucket" / "a"), *args, **kwargs)
    return "s3://bucket/a"


def write_zeros(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


def read_through(file, step=256 * KiB):
    """Read to the end; the number of bytes. Zipfile checks the CRC there."""
    return sum(map(len, iter(lambda: file.read(step), b"")))


# -- what is asked for


def asked(stub):
    """The ranges [start, end) that the stub was asked for, but for those that are the object's end. In order, except that of
    two that were started together either may be the first."""
    log = stub.root / ".calls"
    lines = log.read_text().splitlines() if log.exists() else []
    options = [word for line in lines for word in ast.literal_eval(line) if word.startswith("--range=")]
    return [_half_open(option.partition("=")[2]) for option in options if "=-" not in option.partition("=")[2]]


def _half_open(http_range):
    first, last = http_range.partition("=")[2].split("-")
    return int(first), int(last) + 1


def size(ranges):
    return sum(end - start for start, end in ranges)


@contextlib.contextmanager
def asks(stub, most_calls, most_bytes):
    """Fails if the body asks for more than this."""
    before = len(asked(stub))
    yield
    ranges = asked(stub)[before:]
    assert len(ranges) <= most_calls, "%d calls: %s" % (len(ranges), ranges)
    assert size(ranges) <= most_bytes, "%d bytes, not %d: %s" % (size(ranges), most_bytes, ranges)


# -- what runs, and what is on disk

_SLOW = """
import sys, time
rate = float(sys.argv.pop(1))
sys.path.insert(0, %r)
import stub_aws

def copy(file, outfile, first, last, fault):
    file.seek(first)
    left, started, sent = last + 1 - first, time.monotonic(), 0
    with open(outfile, "wb", 0) as body:
        while left > sent:
            sent += body.write(file.read(min(left - sent, 64 * 1024)))
            time.sleep(max(0, started + sent / rate - time.monotonic()))

stub_aws.copy = copy
stub_aws.main(sys.argv[1:])
"""


@pytest.fixture
def slow(stub, compiled_stub, tmp_path):
    """A function: the stub with so many bytes per second and process, as `aws`."""
    def command(rate):
        path = tmp_path / "slow.py"
        path.write_text(_SLOW % os.path.dirname(compiled_stub))
        return [sys.executable, "-ISE", str(path), str(rate)]
    return command


def running():
    """How many of our processes are running a get-object."""
    return len(list(_running()))


def _running():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):    # it has ended meanwhile
            state, parent = _content("/proc/%s/stat" % pid).rpartition(b")")[2].split()[:2]
            if int(parent) == os.getpid() and state != b"Z" and b"\0get-object\0" in _content("/proc/%s/cmdline" % pid):
                yield pid


def _content(path):
    with open(path, "rb") as file:
        return file.read()


def temp_disk():
    """Bytes on disk of the files without a name that we have open."""
    return sum(each.st_blocks * 512 for each in map(_stat_fd, os.listdir("/proc/self/fd")) if each and each.st_nlink == 0
               and stat.S_ISREG(each.st_mode))


def _stat_fd(number):
    try:
        return os.fstat(int(number))
    except OSError:             # the listing's own
        return None


@contextlib.contextmanager
def at_most_on_disk(limit):
    """Gives a function that looks; fails if it has seen more than limit."""
    before, seen = temp_disk(), [0]
    yield lambda: seen.append(temp_disk() - before)
    assert max(seen) <= limit, "%d bytes on disk, not %d" % (max(seen), limit)


# -- one member

LAYOUTS = {
    "plain": {}, "prefixed": dict(prefix=b"#!/bin/sh\n" * 70000), "zip64": dict(zip64=True), "comment": dict(comment=b"c" * 65535),
    "junk": dict(junk=300000), "zip64, prefixed, comment": dict(zip64=True, prefix=b"x" * 5000, comment=b"c" * 100),
    "large directory": dict(names="%0200d", more=8000), "large directory, zip64": dict(names="%0200d", more=8000, zip64=True)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_one_member_costs_its_bytes(stub, layout):
    """Beside the opening: 1 call for small ones, and at most 3 for one of 60 MB."""
    layout = dict(layout)
    more = layout.pop("more", 0)
    url = place(stub, write_sparse, [300, 20 * MiB, 300, 5 * MiB, 60 * MiB, 300, 1] + [0] * more, **layout)
    for number in (0, 4, 6 + more) if more else range(7):
        with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
            info = archive.infolist()[number]
            with asks(stub, 1 if info.file_size <= 20 * MiB else 3, info.compress_size + EXTRA), archive.open(info) as member:
                assert read_through(member) == info.file_size


@pytest.mark.parametrize("zip64", [False, True])
def test_a_huge_member_costs_its_bytes_and_few_calls(stub, zip64):
    """At most 6 calls for 300 MB, whose neighbours are not fetched, nor it for theirs' sake."""
    url = place(stub, write_sparse, [300, 300 * MiB, 300, 3 * MiB], zip64=zip64)
    for number, calls in ((0, 1), (1, 6), (2, 1)):
        with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
            info = archive.infolist()[number]
            with asks(stub, calls, info.compress_size + EXTRA), archive.open(info) as member:
                assert read_through(member) == info.file_size


@pytest.mark.parametrize("number, calls", [(0, 1), (1, 5), (3, 1)])
def test_a_deflated_member_costs_its_bytes_and_few_calls(stub, number, calls):
    """As one that is stored, though less is fetched ahead."""
    url = place(stub, write_sparse, [2 * MiB, 200 * MiB, 300, 5 * MiB, 300], method=zipfile.ZIP_DEFLATED)
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        info = archive.infolist()[number]
        with asks(stub, calls, info.compress_size + EXTRA):
            file.seek(info.header_offset)
            left = len(_local_header(info.filename, info.file_size, False)) + info.compress_size
            while left:
                left -= len(file.read(min(left, 64 * KiB)))


def test_the_same_file_reads_members_here_and_there(stub):
    """1 call for each of them, backwards and with one S3File, and none again for what is there."""
    url = place(stub, write_sparse, [MiB] * 30)
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        for number in range(25, 0, -4):
            with asks(stub, 1, MiB + EXTRA):
                assert len(archive.read("%06d" % number)) == MiB
        with asks(stub, 0, 0):
            assert len(archive.read("%06d" % 25)) == len(archive.read("%06d" % 1)) == MiB


def test_a_part_of_a_member_does_not_cost_the_rest(stub, slow):
    """Its first lines come while the rest is still on its way, and closing stops that. 2 calls."""
    url = place(stub, write_sparse, [300, 40 * MiB, 300])
    with S3File(url, aws=slow(4 * MiB)) as file, zipfile.ZipFile(file) as archive, archive.open("000001") as member:
        assert len(member.read(100 * KiB)) == 100 * KiB
        assert running() >= 1
        assert file.raw.stats()[1] < 20 * MiB
    assert running() == 0


def test_the_first_bytes_of_each_member(stub, slow):
    """As `file` looks at them. A slow server has not sent much of them when they are left. 1 call each."""
    url = place(stub, write_sparse, [30 * MiB] * 6)
    with S3File(url, aws=slow(16 * MiB)) as file, zipfile.ZipFile(file) as archive:
        for number, info in enumerate(archive.infolist()):
            with archive.open(info) as member:
                assert member.read(100) == bytes(100)
            assert running() <= 3
            assert file.raw.stats()[1] < CACHE_SIZE + (number + 1) * 4 * MiB
        assert stub.count <= 1 + 6 * 2


@pytest.mark.parametrize("count, calls", [(1000, 0), (9000, 0), (20000, 1)])
def test_opening_and_listing(stub, count, calls):
    """1 call up to some 10 000 members, else 2: the tail and the rest of the directory."""
    url = place(stub, write_sparse, [0] * count, names="folder/of/many/files/%010d")
    with asks(stub, calls, 3 * MiB), S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        assert len(archive.infolist()) == count


# -- many members


@pytest.fixture(scope="session")
def small_members(tmp_path_factory):
    """The path of an archive of 40 000 members of 40 KB."""
    return write_sparse(str(tmp_path_factory.mktemp("small") / "a.zip"), [40000] * 40000, names="photos/%05d.jpg")


def test_all_members_in_order(stub, small_members):
    """At most 40 calls for 1.6 GB, in windows that grow, nothing twice."""
    url = place(stub, functools.partial(os.symlink, small_members))
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            assert len(archive.read(info)) == 40000
        assert stub.count <= 40
    sizes = [end - start for start, end in sorted(asked(stub))[:-1]]        # without the directory
    assert max(sizes) > 20 * MiB
    assert sizes[0] <= EXTRA
    assert sum(sizes) <= os.path.getsize(small_members) + EXTRA


def test_random_members(stub, small_members):
    """1 call each, beside 2 for opening; each costs its bytes."""
    url = place(stub, functools.partial(os.symlink, small_members))
    numbers = random.Random(1).sample(range(40000), 60)
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        for number in numbers:
            with asks(stub, 1, 40000 + EXTRA):
                assert len(archive.read("photos/%05d.jpg" % number)) == 40000
    assert stub.count <= 62
    assert size(asked(stub)) <= 4 * MiB + 60 * (40000 + 200 * KiB)


def test_every_third_member_in_order(stub):
    """Skipping a little still is reading on: at most 20 calls for 100 of 300 members of 100 KB."""
    url = place(stub, write_sparse, [100000] * 300)
    with asks(stub, 20, 32 * MiB), S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist()[::3]:
            assert len(archive.read(info)) == 100000


# -- objects that are no archive


def test_random_reads_of_a_plain_object(stub):
    """1 call each, of little."""
    url = place(stub, write_zeros, 900 * MiB)
    draw = random.Random(2)
    with S3File(url, aws=stub.aws) as file:
        for _ in range(40):
            file.seek(draw.randrange(CACHE_SIZE, 890 * MiB))
            with asks(stub, 1, EXTRA):
                assert len(file.read(100)) == 100


def test_sequential_reads_of_a_plain_object(stub):
    """At most 14 calls for 300 MB, in windows that begin small and grow."""
    url = place(stub, write_zeros, 300 * MiB)
    with S3File(url, aws=stub.aws) as file:
        assert read_through(file, 10000) == 300 * MiB
    sizes = [end - start for start, end in sorted(asked(stub))]
    assert len(sizes) <= 14
    assert sizes[0] <= EXTRA
    assert sizes[:-1] == sorted(sizes[:-1])
    assert sum(sizes) == 299 * MiB


@pytest.mark.parametrize("count, calls", [(200 * KiB, 1), (5 * MiB, 1), (30 * MiB, 1), (150 * MiB, 4)])
def test_what_is_read_at_once_is_asked_for_at_once(stub, count, calls):
    """1 call up to 30 MiB, and at most 4 for 150 MiB."""
    url = place(stub, write_zeros, 300 * MiB)
    for offset in 0, 77 * MiB:
        with S3File(url, aws=stub.aws) as file, asks(stub, calls, count + EXTRA):
            file.seek(offset)
            assert len(file.read(count)) == count


def test_reading_the_rest_at_once(stub):
    """At most 5 calls for 150 MiB, by read() as by read(n)."""
    url = place(stub, write_zeros, 200 * MiB)
    with S3File(url, aws=stub.aws) as file, asks(stub, 5, 150 * MiB):
        file.seek(50 * MiB)
        assert len(file.read()) == 150 * MiB


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_s3open(stub, mode):
    """At most 3 calls for 60 MB, nothing twice; 1 for what fits the tail."""
    line = b"%0999d\n"
    path = stub.root / "bucket" / "a"
    path.write_bytes(b"".join(line % number for number in range(60000)))
    with asks(stub, 2, 60 * MiB), s3open("s3://bucket/a", mode, aws=stub.aws) as file:
        assert [int(each) for each in file] == list(range(60000))
    assert size(asked(stub)) == 60000000 - CACHE_SIZE
    path.write_bytes(line % 1 * 1000)
    with asks(stub, 0, 0), s3open("s3://bucket/a", mode, aws=stub.aws) as file:
        assert len(file.readlines()) == 1000


# -- directories that lie

CONTENT = {"stored-%d" % number: archives.noise(500000, number) for number in range(6)}


def patch(path, field, value, which=None, magic=b"PK\1\2"):
    """Overwrite a field, (offset, struct), of the records with this magic: of all or of one."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        at, number = data.rfind(b"PK\5\6") if magic != b"PK\1\2" else data.find(magic, len(data) - 5000), 0
        at = data.rfind(magic) if magic != b"PK\1\2" else at
        while at >= 0:
            if which in (None, number):
                struct.pack_into(field[1], data, at + field[0], value(number) if callable(value) else value)
            at, number = data.find(magic, at + 4), number + 1
        file.seek(0)
        file.write(data)


SIZE, FULL_SIZE, EXTRA_LENGTH, OFFSET = (20, "<L"), (24, "<L"), (30, "<H"), (42, "<L")
END_SIZE, END_OFFSET, END64_SIZE, END64_OFFSET = (12, "<L"), (16, "<L"), (40, "<Q"), (48, "<Q")
LIES = {
    "all in one place": lambda path: patch(path, OFFSET, 0),
    "overlapping": lambda path: patch(path, OFFSET, lambda number: number * 1000),
    "backwards": lambda path: patch(path, OFFSET, lambda number: (5 - number) * 500038),
    "beyond the end": lambda path: patch(path, OFFSET, 0x7FFFFFFF),
    "far beyond the end": lambda path: patch(path, OFFSET, 0xFFFFFFFE),
    "in the tail": lambda path: patch(path, OFFSET, 2900000),
    "huge sizes": lambda path: patch(path, SIZE, 0xFFFFFFF0),
    "sizes of 0": lambda path: patch(path, SIZE, 0),
    "small sizes": lambda path: patch(path, SIZE, 10),
    "zip64 without a field": lambda path: patch(path, OFFSET, 0xFFFFFFFF),
    "zip64 sizes without a field": lambda path: patch(path, SIZE, 0xFFFFFFFF),
    "extra fields that are not there": lambda path: patch(path, EXTRA_LENGTH, 0xFFFF),
    "a directory that is larger": lambda path: patch(path, END_SIZE, 2000000, magic=b"PK\5\6"),
    "a directory that is smaller": lambda path: patch(path, END_SIZE, 100, magic=b"PK\5\6"),
    "a directory of 4 GB": lambda path: patch(path, END_SIZE, 0xFFFFFFFE, magic=b"PK\5\6"),
    "a directory elsewhere": lambda path: patch(path, END_OFFSET, 5, magic=b"PK\5\6"),
    "a directory beyond the end": lambda path: patch(path, END_OFFSET, 0xFFFFFFF0, magic=b"PK\5\6"),
}
LIES64 = {
    "a zip64 directory of 2**64": lambda path: patch(path, END64_SIZE, 2 ** 64 - 1, magic=b"PK\6\6"),
    "a zip64 directory elsewhere": lambda path: patch(path, END64_OFFSET, 2 ** 63, magic=b"PK\6\6"),
    "zip64 offsets of 2**40": lambda path: patch(path, (46 + 8 + 4 + 16, "<Q"), 2 ** 40),
    "zip64 sizes of 2**64": lambda path: patch(path, (46 + 8 + 4, "<Q"), 2 ** 64 - 1),
    "a zip64 field that is cut": lambda path: patch(path, (46 + 8 + 2, "<H"), 8),
    "a zip64 field that is longer": lambda path: patch(path, (46 + 8 + 2, "<H"), 64000),
    "a zip64 field of an odd length": lambda path: patch(path, (46 + 8 + 2, "<H"), 3),
}


def outcome(file):
    """All that can be had of an archive by zipfile and by plain reads: content, or the errors."""
    found = []
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:
            found.append(_described(error))
        else:
            found.extend(_read_member(archive, info) for info in archive.infolist())
        for offset in 0, 2999000, 1500000, 600, 1400000:
            file.seek(offset)
            found.append(file.read(1000))
        file.seek(0)
        return found + [file.read()]


def _read_member(archive, info):
    try:
        return archive.read(info)
    except Exception as error:
        return _described(error)


def _described(error):
    return (type(error), None if isinstance(error, OSError) else str(error))


def same_as_local(stub, path, calls):
    url = place(stub, functools.partial(shutil.copy, path))
    before = stub.count
    with S3File(url, aws=stub.aws) as file:
        assert outcome(file) == outcome(open(path, "rb"))
    assert stub.count - before <= calls


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_directories_that_lie(stub, tmp_path, lie):
    """What is read is right, in at most 20 calls for 6 members and 6 places."""
    path = archives.write_zip(str(tmp_path / "a.zip"), CONTENT)
    lie(path)
    same_as_local(stub, path, 20)


@pytest.mark.parametrize("lie", LIES64.values(), ids=list(LIES64))
def test_zip64_directories_that_lie(stub, tmp_path, lie):
    path = write_sparse(str(tmp_path / "a.zip"), [500000] * 6, zip64=True, names="stored-%d")
    lie(path)
    same_as_local(stub, path, 20)


@pytest.mark.parametrize("zip64", [False, True])
def test_damaged_directories(stub, tmp_path, zip64):
    """Random bytes of the directory changed, 15 times: read right in at most 25 calls."""
    for seed in range(15):
        path = write_sparse(str(tmp_path / "a.zip"), [400000, 700000, 500000, 600000], zip64=zip64)
        draw, length = random.Random(seed), os.path.getsize(path)
        with open(path, "r+b") as file:
            for _ in range(1 + seed // 3):
                file.seek(length - draw.randrange(1, 400))
                file.write(bytes([draw.choice([0, 1, 127, 255])]))
        same_as_local(stub, path, 25)


def test_a_large_directory_that_lies(stub, tmp_path):
    """One that does not fit the tail, and is all in one place."""
    path = write_sparse(str(tmp_path / "a.zip"), [500000] * 4 + [0] * 20000, names="%080d")
    with open(path, "r+b") as file:
        file.seek(-CACHE_SIZE, os.SEEK_END)
        data = file.read().replace(b"PK\1\2", b"PK\1\3", 1)
        file.seek(-CACHE_SIZE, os.SEEK_END)
        file.write(data)
    same_as_local(stub, path, 20)


# -- segments ahead


def test_the_number_running_follows_need(stub, slow):
    """Several while the network is waited for, one ahead of the one that is read when it is not; at most 5."""
    url = place(stub, write_sparse, [200 * MiB])
    with S3File(url, aws=slow(8 * MiB), cache_size=16 * MiB) as file, zipfile.ZipFile(file) as archive:
        with archive.open("000000") as member:
            waiting = [len(member.read(MiB)) and running() for _ in range(80)]
            busy = []
            for _ in range(7 * 8):
                time.sleep(0.125)       # 4 MiB/s
                busy.append(len(member.read(512 * KiB)) and running())
    assert 3 <= max(waiting) <= 5
    assert max(busy) <= 5 and max(busy[-10:]) <= 2


def test_reading_on_does_not_wait_for_a_start(stub, slow):
    """Each segment but the first has been asked for before the reader comes to it."""
    url = place(stub, write_sparse, [300, 60 * MiB])
    with S3File(url, aws=slow(20 * MiB), cache_size=32 * MiB) as file, zipfile.ZipFile(file) as archive:
        with archive.open("000001") as member:
            known = {}                  # where the reader was when a range had been asked for
            for position in range(0, 60 * MiB, 64 * KiB):
                assert len(member.read(64 * KiB)) == 64 * KiB
                for start, _ in asked(stub):
                    known.setdefault(start, position)
    first, *others = sorted(known)
    assert len(others) >= 5
    assert [start for start in others if known[start] > start - MiB] == []


BUDGETS = [(None, 512 * MiB, 700 * MiB), (32 * MiB, 32 * MiB, 160 * MiB), (MiB, MiB, 12 * MiB), (0, 0, 2 * MiB)]


@pytest.mark.parametrize("cache_size, budget, length", BUDGETS)
def test_disk_stays_under_the_budget(stub, cache_size, budget, length):
    """And one segment, which is a quarter of it, more. The smallest segment is 64 KiB."""
    url = place(stub, write_sparse, [length])
    with S3File(url, aws=stub.aws, cache_size=cache_size) as file, zipfile.ZipFile(file) as archive:
        with archive.open("000000") as member, at_most_on_disk(budget * 5 // 4 + MiB) as look:
            for position in range(0, length, 512 * KiB):
                assert len(member.read(512 * KiB)) == 512 * KiB
                look()
                assert position % (length // 16) or running() <= 5


def test_disk_stays_under_the_budget_here_and_there(stub):
    """Members in turn, then others at random, then plain reads; at most 10 processes."""
    url = place(stub, write_sparse, [4 * MiB] * 20)
    with S3File(url, aws=stub.aws, cache_size=32 * MiB) as file, zipfile.ZipFile(file) as archive:
        with at_most_on_disk(40 * MiB + MiB) as look:
            for _ in range(2):      # the second time is after others
                members = [archive.open(info) for info in archive.infolist()[::5]]
                for _ in range(4 * MiB // (256 * KiB)):
                    for member in members:
                        assert len(member.read(256 * KiB)) == 256 * KiB
                        look()
                assert running() <= 10
                for number in random.Random(3).sample(range(20), 10):
                    archive.read("%06d" % number)
                    look()
            for offset in 0, 30 * MiB, 15 * MiB:
                file.seek(offset)
                file.read(15 * MiB)
                look()


def in_turn(archive, infos, step=64 * KiB):
    members = [archive.open(info) for info in infos]
    while members:
        members = [member for member in members if member.read(step)]       # the CRC is checked at the end


def compare_in_turn(url, aws, numbers):
    """At most 1.5 times the calls of one after another."""
    counts = []
    for read in (lambda archive, infos: [read_through(archive.open(info), 64 * KiB) for info in infos]), in_turn:
        with S3File(url, aws=aws) as file, zipfile.ZipFile(file) as archive:
            read(archive, [archive.infolist()[number] for number in numbers])
            counts.append(file.raw.stats()[0])
    assert counts[1] <= 1.5 * counts[0], counts


@pytest.mark.parametrize("sizes, numbers", [([130 * MiB] * 3, (0, 1, 2)), ([300] + [45 * MiB] * 9, (7, 1, 4)), ([3 * MiB] * 6, (1, 3, 5))])
def test_three_members_in_turn(stub, sizes, numbers):
    compare_in_turn(place(stub, write_sparse, sizes), stub.aws, numbers)


def test_three_members_in_turn_slowly(stub, slow):
    compare_in_turn(place(stub, write_sparse, [300] + [30 * MiB] * 4), slow(40 * MiB), (1, 2, 4))


def test_eight_members_in_turn(stub):
    """The bytes of each are fetched once."""
    url = place(stub, write_sparse, [10 * MiB] * 9)
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        in_turn(archive, archive.infolist()[:8], 16 * KiB)
        assert stub.count <= 1 + 24
        assert file.raw.stats()[1] <= 90 * MiB + EXTRA


def test_threads(stub):
    """Five threads read a member each, at most 3 calls for each of 20 MiB, and nothing much twice."""
    url = place(stub, write_sparse, [300] + [20 * MiB] * 5 + [300])
    with S3File(url, aws=stub.aws) as file, zipfile.ZipFile(file) as archive:
        read = []

        def run(number):
            with archive.open("%06d" % number) as member:
                read.append(read_through(member, 64 * KiB))
        threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read == [20 * MiB] * 5
        assert stub.count <= 1 + 15
        assert file.raw.stats()[1] <= CACHE_SIZE + 5 * (20 * MiB + EXTRA)


# -- leaving


@pytest.mark.parametrize("leave", ["member", "start", "far", "close"])
def test_what_is_hardly_read_is_stopped(stub, slow, leave):
    """When another member or another place is read, or on close. Little of the 60 MB has come then."""
    url = place(stub, write_sparse, [3 * MiB, 60 * MiB, 300, 3 * MiB])
    with S3File(url, aws=slow(6 * MiB)) as file, zipfile.ZipFile(file) as archive:
        with archive.open("000001") as member:
            member.read(64 * KiB)
        left = list(_running())
        assert left
        if leave == "member":
            archive.read("000002")
        elif leave == "start":
            file.seek(0)
            file.read(10)
        elif leave == "far":
            file.seek(58 * MiB)         # of the same range
            file.read(10)
        else:
            file.close()
            assert running() == 0
        assert set(left).isdisjoint(_running())
        assert file.raw.stats()[1] < CACHE_SIZE + 20 * MiB


@pytest.mark.parametrize("call_seconds, calls", [(0.2, 1), (5, 0)])
def test_a_jump_ahead_waits_if_that_is_sooner(stub, slow, call_seconds, calls):
    """The rest of the range takes a second or two; what has come of it is still there if it is given up."""
    url = place(stub, write_sparse, [40 * MiB, 3 * MiB])
    with open(str(stub.root / "bucket" / "a"), "r+b") as local:
        begin = local.read(64 * KiB)
        local.seek(30 * MiB)
        local.write(b"ten bytes!")
    with S3File(url, aws=slow(20 * MiB)) as file, zipfile.ZipFile(file) as archive, archive.open("000000") as member:
        assert len(member.read(MiB)) == MiB
        file.raw._call_seconds = call_seconds
        before = stub.count
        file.seek(30 * MiB)
        assert file.read(10) == b"ten bytes!"
        assert stub.count - before == calls
        file.seek(0)
        assert file.read(64 * KiB) == begin
        assert stub.count - before == calls


def test_what_has_arrived_stays_usable(stub, slow):
    """Going back costs no call, neither to a member that has been read nor to the part of one that was left."""
    url = place(stub, write_sparse, [3 * MiB, 60 * MiB, 3 * MiB, 3 * MiB])
    with S3File(url, aws=slow(8 * MiB)) as file, zipfile.ZipFile(file) as archive:
        assert len(archive.read("000002")) == 3 * MiB
        with archive.open("000001") as member:
            assert len(member.read(2 * MiB)) == 2 * MiB
        archive.read("000000")
        with asks(stub, 0, 0):
            assert len(archive.read("000002")) == 3 * MiB
            with archive.open("000001") as member:
                assert len(member.read(MiB)) == MiB
            assert len(archive.read("000000")) == 3 * MiB


def test_the_oldest_is_evicted_first(stub):
    """With a budget of 16 members, 30 are read: the last 8 are there without a call, the first are not; ends always are."""
    url = place(stub, write_sparse, [2 * MiB] + [MiB] * 61 + [2 * MiB])
    numbers = random.Random(4).sample(range(1, 60, 2), 30)
    with S3File(url, aws=stub.aws, cache_size=16 * MiB) as file, zipfile.ZipFile(file) as archive:
        front, back = file.frontcache, file.backcache
        for number in numbers:
            archive.read("%06d" % number)
        with asks(stub, 0, 0):
            for number in numbers[-8:]:
                assert len(archive.read("%06d" % number)) == MiB
            file.seek(0)
            assert file.read(CACHE_SIZE) == front == file.frontcache
            file.seek(-CACHE_SIZE, os.SEEK_END)
            assert file.read() == back == file.backcache
        before = stub.count
        for number in numbers[:4]:
            archive.read("%06d" % number)
        assert stub.count - before == 4


# -- small costs


def test_waiting_takes_no_cpu(stub):
    """Below 3 % of a core while nothing comes."""
    url = place(stub, write_zeros, 30 * MiB)
    with S3File(url, aws=stub.aws) as file:
        stub.then(after=300000, pause=3)
        file.seek(5 * MiB)
        started, used = time.monotonic(), time.process_time()
        assert len(file.read(5 * MiB)) == 5 * MiB       # the stub sends less than was asked for: the rest is asked for again
        waited, used = time.monotonic() - started, time.process_time() - used
    assert waited >= 3
    assert used < 0.03 * waited


_STREAM = """
import sys, zipfile
from s3zip import S3File
with S3File("s3://bucket/a", aws=sys.argv[1:]) as file, zipfile.ZipFile(file) as archive, archive.open("000000") as member:
    assert sum(map(len, iter(lambda: member.read(256 * 1024), b""))) == 500 * 1024 * 1024
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")][0])
"""


def test_memory(stub):
    """A process that streams 500 MiB stays under 80 MiB."""
    place(stub, write_sparse, [500 * MiB])
    root = os.path.dirname(os.path.abspath(s3zip.__file__))
    said = subprocess.run([sys.executable, "-c", _STREAM, *stub.aws], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    assert int(said) < 80 * 1024        # kB; not ru_maxrss, which a child inherits from pytest


def test_import_brings_nothing_heavy():
    """What only the command line or the caller needs is not imported."""
    code = "import sys; sys.path.insert(0, %r); import s3zip; print(' '.join(sys.modules))"
    root = os.path.dirname(os.path.abspath(s3zip.__file__))
    loaded = subprocess.run([sys.executable, "-ISc", code % root], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    heavy = {"argparse", "zipfile", "http", "http.client", "email", "xml", "asyncio", "concurrent", "multiprocessing", "ssl",
             "unittest", "inspect", "dataclasses", "typing", "ctypes", "sqlite3", "boto3", "botocore", "pdb", "html", "csv"}
    assert heavy.isdisjoint(loaded)


# -- the same with the real CLI and a real server


@pytest.fixture
def real_archive(put):
    """The URL and the infos of an archive with a large member between small ones."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in (("first", b"1" * 300), ("pad", bytes(3 * MiB)), ("middle", b"2" * 300), ("large", archives.noise(40 * MiB)),
                              ("pad 2", bytes(3 * MiB)), ("last", b"3" * 300), ("pad 3", bytes(2 * MiB))):
            archive.writestr(name, content)
    return put("real.zip", data.getvalue()), zipfile.ZipFile(data)


def test_real_members_cost_their_bytes(cli, calls, proxy, real_archive):
    """1 call to open and list, then 1 for each member, as the server sees it. 5 calls."""
    url, local = real_archive
    with calls(1):
        file = S3File(url)
        archive = zipfile.ZipFile(file)
        assert archive.namelist() == local.namelist()
    assert proxy.sent == CACHE_SIZE
    with file, archive:
        for name in "large", "middle", "first", "last":
            proxy.clear()
            with calls(1):
                assert archive.read(name) == local.read(name)
            assert proxy.sent <= local.getinfo(name).compress_size + EXTRA


@pytest.mark.one_cli
def test_real_reading_while_it_comes_and_leaving(calls, proxy, real_archive, assert_nothing_left):
    """A slow server: bytes are read while the rest is on its way, which is stopped when the reader goes elsewhere. 3 calls."""
    url, local = real_archive
    proxy.inject(times=None, rate=8 * MiB, when=lambda request: request.range != "bytes=-%d" % CACHE_SIZE)
    with S3File(url) as file, zipfile.ZipFile(file) as archive:
        with archive.open("large") as member:
            assert member.read(64 * KiB) == archives.noise(40 * MiB)[:64 * KiB]
        left = list(_running())
        assert left
        assert archive.read("last") == b"3" * 300
        assert not set(left) & set(_running())
        assert calls.count == 3
    assert_nothing_left()
    assert proxy.sent < 24 * MiB


@pytest.mark.one_cli
def test_real_segments_ahead(calls, proxy, put):
    """A slow server, and little disk: several connections at a time, all bytes once. At most 9 calls for 30 MiB."""
    url = put("big.zip", _stored(big=archives.noise(30 * MiB)))
    proxy.inject(times=None, rate=2 * MiB, when=lambda request: request.range != "bytes=-%d" % CACHE_SIZE)
    most = 0
    with S3File(url, cache_size=20 * MiB) as file, zipfile.ZipFile(file) as archive, archive.open("big") as member:
        while member.read(256 * KiB):
            most = max(most, running())
        assert calls.count <= 9
    assert 3 <= most <= 5
    assert proxy.sent <= 30 * MiB + 2 * EXTRA


@pytest.mark.one_cli
def test_real_members_in_turn(calls, proxy, put):
    """At a slow server too, 64 KiB at a time cost at most half as many calls more. About 9 calls."""
    members = {name: archives.noise(8 * MiB, number) for number, name in enumerate("abcd")}
    url = put("turn.zip", _stored(**members))
    proxy.inject(times=None, rate=10 * MiB)
    compare_in_turn(url, None, (0, 1, 3))


def _stored(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()
