"""One reader at one piece of work, in a process of its own: `readers.py JOB`, JSON in and out. `run.py` starts it.

A reader is a function that imports what it needs and returns how to open: imports are not timed, nor is anything else
but opening the archive, the work, and closing.
"""

import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

import archives
from archives import LARGE, SMALL, STREAM
from server import BUCKET

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TAIL = 1024 * 1024          # bytes of "one bare call": what s3zip opens with
STEP = 64 * 1024            # bytes of a read, as in shutil.copyfileobj
RANDOM_MEMBERS = 60


class Cannot(Exception):
    """The reader has no way to do this work."""


class Work:
    """What to do with an open archive; amount is what `do` must return, or something was left out."""

    def __init__(self, title, archive, do, amount):
        self.title, self.archive, self.do, self.amount = title, archive, do, amount


def _list(archive):
    return len(archive.infolist())


def _stream(name):
    def stream(archive):
        with archive.open(name) as member:
            return sum(map(len, iter(lambda: member.read(STEP), b"")))
    return stream


def _small(numbers):
    def small(archive):
        return sum(len(archive.read(archives.small_name(number))) for number in numbers)
    return small


def _in_turn(archive):
    amount, members = 0, [archive.open(name) for name in archives.TEXTS]
    while members:
        pieces = [member.read(STEP) for member in members]
        amount += sum(map(len, pieces))
        members = [member for member, piece in zip(members, pieces) if piece]
    return amount


def _one_after_another(archive):
    return sum(_stream(name)(archive) for name in archives.TEXTS)


_SOME = random.Random(3).sample(range(archives.SMALL_COUNT), RANDOM_MEMBERS)
_ALL = range(archives.SMALL_COUNT)

WORKS = {
    "list": Work("open and list", LARGE, _list, len(archives.TEXTS) + 2),
    "list-40000": Work("open and list 40 000 members", SMALL, _list, archives.SMALL_COUNT),
    "deflated-130m": Work("a deflated member of 130 MB", LARGE, _stream(archives.TEXTS[1]), archives.TEXT_SIZE),
    "deflated-1g": Work("a deflated member of 1 GB", LARGE, _stream(archives.BIG_TEXT), archives.BIG_TEXT_SIZE),
    "stored-1g": Work("a stored member of 1 GiB", LARGE, _stream(archives.STORED), archives.STORED_SIZE),
    "random-60": Work("60 random members of 40 KB out of 40 000", SMALL, _small(_SOME), RANDOM_MEMBERS * archives.SMALL_SIZE),
    "all-40000": Work("all 40 000 members in order", SMALL, _small(_ALL), archives.SMALL_COUNT * archives.SMALL_SIZE),
    "in-turn": Work("three members of 130 MB in turn", LARGE, _in_turn, len(archives.TEXTS) * archives.TEXT_SIZE),
    "one-by-one": Work("the same three one after another", LARGE, _one_after_another, len(archives.TEXTS) * archives.TEXT_SIZE),
    "stream-2g": Work("a stored member of 2 GiB", STREAM, _stream(archives.STREAMED), archives.STREAMED_SIZE),
}


class Job:
    """Where the archive is, as each reader names it."""

    def __init__(self, work, folder, endpoint, original):
        self.work, self.endpoint, self.original = work, endpoint, original
        self.key = WORKS[work].archive
        self.url = "s3://%s/%s" % (BUCKET, self.key)
        self.web = "%s/%s/%s" % (endpoint, BUCKET, self.key)
        self.path = os.path.join(folder, self.key)


def _s3zip(job, cache_size=None):
    sys.path.insert(0, ROOT)
    from s3zip import S3File
    return lambda: zipfile.ZipFile(S3File(job.url, cache_size=cache_size))


def _s3zip_1g(job):
    if job.work not in ("stored-1g", "stream-2g"):
        raise Cannot("makes a difference to large stored members only")
    return _s3zip(job, cache_size=1 << 30)


def _local(job):
    return lambda: zipfile.ZipFile(job.path)


def _smart_open(job):
    import boto3
    import smart_open
    return lambda: zipfile.ZipFile(smart_open.open(job.url, "rb", transport_params={"client": boto3.client("s3")}))


def _s3fs(job):
    import s3fs
    return lambda: zipfile.ZipFile(s3fs.S3FileSystem(endpoint_url=job.endpoint).open(job.url, "rb"))


def _remotezip(job):
    import remotezip
    return lambda: remotezip.RemoteZip(job.web)


def _boto3(job):
    import boto3
    if WORKS[job.work].do is _list:
        raise Cannot("gets ranges, knows no archives")
    index = {info.filename: (_data_start(job.path, info), info) for info in zipfile.ZipFile(job.path).infolist()}
    return lambda: _KnownMembers(boto3.client("s3"), job.key, index)


def _original(job):
    if not job.original:
        raise Cannot("not given (`--original`)")
    if job.work not in ("list", "list-40000", "deflated-130m", "random-60"):
        raise Cannot("not tried: a call for each read")
    spec = importlib.util.spec_from_file_location("original", job.original)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.S3File.seekable = lambda self: True      # zipfile of Python 3.7 and later opens no member without
    return lambda: zipfile.ZipFile(module.S3File(job.url))


def _cp(job):
    def download():
        path = os.path.join(tempfile.gettempdir(), job.key)
        _aws(job, "s3", "cp", job.url, path, "--only-show-errors")
        return zipfile.ZipFile(path)
    return download


def _bare(job):
    def calls():
        for _ in range(RANDOM_MEMBERS if job.work == "random-60" else 1):     # as long as what is held against it
            _aws(job, "s3api", "get-object", "--bucket", BUCKET, "--key", job.key, "--range", "bytes=-%d" % TAIL, os.devnull)
    return calls


READERS = {
    "s3zip": ("s3zip", _s3zip),
    "s3zip-1g": ("s3zip, 1 GiB of temp disk", _s3zip_1g),
    "local": ("zipfile, a local file", _local),
    "smart_open": ("smart_open", _smart_open),
    "s3fs": ("s3fs", _s3fs),
    "remotezip": ("remotezip, presigned URL", _remotezip),
    "boto3": ("boto3 get_object, offsets known", _boto3),
    "original": ("the original answer", _original),
    "cp": ("`aws s3 cp` to disk, then zipfile", _cp),
    "bare": ("bare calls: get-object of the tail", _bare),
}


def _aws(job, *words):
    subprocess.run(("aws", "--endpoint-url", job.endpoint) + words, stdout=subprocess.DEVNULL, check=True)


def _data_start(path, info):
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        return info.header_offset + 30 + sum(struct.unpack("<26x2H", file.read(30)))


class _KnownMembers:
    """What boto3 alone allows: one get_object for each member whose place is known beforehand."""

    def __init__(self, client, key, index):
        self._client, self._key, self._index = client, key, index

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._client.close()

    def open(self, name):
        start, info = self._index[name]
        http_range = "bytes=%d-%d" % (start, start + info.compress_size - 1)
        return _KnownMember(self._client.get_object(Bucket=BUCKET, Key=self._key, Range=http_range)["Body"], info)

    def read(self, name):
        with self.open(name) as member:
            return member.read(None)


class _KnownMember:
    """The same work as zipfile's: inflating and a checksum."""

    def __init__(self, body, info):
        self._body, self._info, self._crc = body, info, 0
        self._inflate = zlib.decompressobj(-15).decompress if info.compress_type == zipfile.ZIP_DEFLATED else bytes

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._body.close()
        if self._crc != self._info.CRC:
            raise zipfile.BadZipFile("bad CRC-32")

    def read(self, size):
        data, piece = b"", b"any"
        while piece and not data:
            piece = self._body.read(size)
            data = self._inflate(piece)
        self._crc = zlib.crc32(data, self._crc)
        return data


def _do(work, opener):
    """Time the work; a reader that opens nothing has done all of its work by then."""
    began, cpu = time.monotonic(), _cpu()
    archive = opener()
    opened = time.monotonic() - began
    if archive:
        with archive:
            amount = work.do(archive)
        if amount != work.amount:
            raise RuntimeError("%d instead of %d came" % (amount, work.amount))
    seconds = time.monotonic() - began
    return {"seconds": seconds, "opened": opened, "cpu": _cpu() - cpu, "memory": _peak_memory()}


def _cpu():
    """Seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _peak_memory():
    """Bytes; not getrusage's ru_maxrss, which begins with what the parent had when it forked."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def main():
    job = json.loads(sys.argv[1])
    reader = READERS[job.pop("reader")][1]
    try:
        result = _do(WORKS[job["work"]], reader(Job(**job)))
    except Cannot as reason:
        result = {"cannot": str(reason)}
    except ImportError as error:
        result = {"cannot": "not installed (%s)" % error.name}
    except Exception as error:
        result = {"cannot": "%s: %s" % (type(error).__name__, error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
