"""Every operation of reading, in sequences that hypothesis makes up, held against io.BytesIO.

The sizes inside s3zip are made so small that a few hundred bytes cross every boundary, and `aws` is the stub: 20 ms a call.
The sequences are the same each time; with --model-operations N there are more of them, until N operations are compared.
"""

import collections
import io
import itertools
import pickle
import zipfile

import hypothesis
import pytest
from hypothesis import strategies as st

import archives
import s3zip

SIZES = dict(CACHE_SIZE=64, TEMP_DISK=4000, _BUFFER_SIZE=24, _FIRST_WINDOW=48, _SMALLEST_RANGE=16, _FIRST_SEGMENT=200,
             _SMALLEST_LIMIT=32, _JUMP=24, _HELD_BACK=8, _LOOK_EVERY=16, _POLL=0.001, _PAUSE=0)
EDGES = sorted({edge + step for edge in (0, 24, 64, 128, 112, 200, 248, 304, 400, 1000) for step in (-1, 0, 1)} - {-1})
SEQUENCE = 80           # steps in one example
BATCH = 20              # examples from one seed
KINDS = 4               # of examples: plain and ZIP, without and with faults

sizes = st.sampled_from(EDGES) | st.integers(0, 3000)
counts = st.sampled_from(EDGES) | st.integers(0, 80)
offsets = counts | st.integers(0, 3000) | counts.map(lambda offset: -offset)
handles = st.integers(0, 3)
operations = st.one_of(
    st.tuples(st.sampled_from(["read", "read1", "readinto", "readinto1", "readline", "peek", "readlines"]), handles, counts),
    st.tuples(st.sampled_from(["read_all", "readlines_all", "next", "tell", "frontcache", "backcache", "bad_whence", "reopen", "pickle"]),
              handles),
    st.tuples(st.just("seek"), handles, offsets, st.sampled_from([0, 1, 2])),
    st.tuples(st.just("jump"), handles, offsets, counts),
    st.tuples(st.just("read_on"), handles, st.integers(1, 30), counts))
sequences = st.lists(operations, min_size=SEQUENCE, max_size=SEQUENCE)
budgets = st.sampled_from([None, 0, 300, 1000, 10000])
numbers = st.integers(0, 10 ** 6)


class Pair:
    """A file in S3 and what it should be. A member of an archive is read through the same operations."""

    def __init__(self, data, open_file):
        self.data, self.open_file = data, open_file
        self.compared = collections.Counter()
        self.file, self.model = open_file(), io.BytesIO(data)

    def do(self, name, *arguments):
        getattr(self, name)(*arguments)
        self.compared[name] += name not in ("jump", "read_on", "reopen")        # which consist of others or compare nothing

    def reopen(self):
        self.file.close()
        self.file, self.model = self.open_file(), io.BytesIO(self.data)

    def read(self, count):
        assert self.file.read(count) == self.model.read(count)

    def read_all(self):
        assert self.file.read() == self.model.read()

    def read1(self, count):
        self._some(self.file.read1(count), count)

    def _some(self, got, count):
        """It may be less than was asked for, but not nothing before the end."""
        assert len(got) <= count and (got or not count or self._at_end())
        assert got == self.model.read(len(got))

    def _at_end(self):
        return self.model.tell() >= len(self.data)

    def readinto(self, count):
        buffer = bytearray(count)
        got = self.file.readinto(buffer)
        assert bytes(buffer[:got]) == self.model.read(count)

    def readinto1(self, count):
        buffer = bytearray(count)
        self._some(bytes(buffer[:self.file.readinto1(buffer)]), count)

    def readline(self, count):
        assert self.file.readline(count) == self.model.readline(count)

    def readlines(self, count):
        assert self.file.readlines(count) == self.model.readlines(count)

    def readlines_all(self):
        assert self.file.readlines() == self.model.readlines()

    def next(self):
        assert next(self.file, b"") == next(self.model, b"")

    def peek(self, count):
        got = self.file.peek(count)
        assert got or self._at_end()
        assert got == self.data[self.model.tell():][:len(got)]
        self.tell()

    def tell(self):
        assert self.file.tell() == self.model.tell()

    def seek(self, offset, whence):
        target = [0, self.model.tell(), len(self.data)][whence] + offset
        if target >= 0:
            assert self.file.seek(offset, whence) == self.model.seek(target) == self.file.tell()
        else:
            with pytest.raises(OSError):
                self.file.seek(offset, whence)
        self.tell()

    def jump(self, offset, count):
        self.do("seek", offset, 2 if offset < 0 else 0)
        self.do("read", count)

    def read_on(self, times, count):
        for _ in range(times):
            self.do("read", count)

    def bad_whence(self):
        with pytest.raises(ValueError):
            self.file.seek(0, 5)
        self.tell()

    def frontcache(self):
        assert self.file.frontcache == self.data[:s3zip.CACHE_SIZE]

    def backcache(self):
        assert self.file.backcache == self.data[max(0, len(self.data) - s3zip.CACHE_SIZE):]

    def pickle(self):
        copy = pickle.loads(pickle.dumps(self.file))
        self.file.close()
        self.file = copy

    def close(self):
        self.file.close()


class OwningZipFile(zipfile.ZipFile):
    """Closes its file with itself."""

    def __init__(self, file):
        super().__init__(file)
        self._file = file

    def close(self):
        super().close()
        self._file.close()


class MemberPair(Pair):
    """A member; what it cannot do is replaced by what it can. The archive is closed with it."""

    def __init__(self, data, archive, name):
        self.archive = archive
        super().__init__(data, lambda: archive.open(name))

    def close(self):
        super().close()
        self.archive.close()

    def seek(self, offset, whence):
        target = min(len(self.data), max(0, [0, self.model.tell(), len(self.data)][whence] + offset))     # zipfile does so
        assert self.file.seek(offset, whence) == self.model.seek(target)

    readinto1 = Pair.readinto
    frontcache = backcache = bad_whence = Pair.tell

    def pickle(self):
        self.reopen()

    def readinto(self, count):
        """zipfile's member is a BufferedIOBase: it may give less."""
        buffer = bytearray(count)
        self._some(bytes(buffer[:self.file.readinto(buffer)]), count)


def lines(size, seed):
    """Bytes of which every thirtieth ends a line."""
    return archives.noise(size, seed).translate(bytes(10 if each % 32 == 0 else each for each in range(256)))


def plain_pairs(stub, size, seed, cache_size):
    data = lines(size, seed)
    url = stub.put("plain", data)
    return [Pair(data, lambda: s3zip.S3File(url, aws=stub.aws, cache_size=cache_size)) for _ in range(4)]


def zip_pairs(stub, size, seed, cache_size):
    """Two files that are an archive as a whole, and two members of it that are read in turn through a third."""
    members = {"stored": lines(size, seed), "a": lines(size // 3, seed + 1), "empty": b"", "b": archives.text(10 * size, seed)}
    members.update(("small%d" % number, lines(20, number)) for number in range(seed % 8))
    archives.write_zip(str(stub.root / "archive"), members)
    data = (stub.root / "archive").read_bytes()
    url = stub.put("archive.zip", data)
    archive = OwningZipFile(s3zip.S3File(url, aws=stub.aws, cache_size=cache_size))
    names = sorted(members)
    return [Pair(data, lambda: s3zip.S3File(url, aws=stub.aws, cache_size=cache_size)) for _ in range(2)] + [
        MemberPair(members[name], archive, name) for name in (names[seed % len(names)], "b")]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("faults", [0, 150], ids=["well", "faulty"])        # of 1000 calls
@pytest.mark.parametrize("make_pairs", [plain_pairs, zip_pairs])
def test_every_operation_as_bytesio(stub, monkeypatch, record_property, model_operations, make_pairs, faults):
    """Costs no call of the real CLI."""
    compared = collections.Counter()
    for name, value in SIZES.items():
        monkeypatch.setattr(s3zip, name, value)

    @hypothesis.settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(sizes, numbers, budgets, sequences)
    def compare(size, number, cache_size, sequence):
        monkeypatch.delenv("STUB_AWS_RANDOM", raising=False)        # a call that fails while a file is opened is its error
        pairs = make_pairs(stub, size, number, cache_size)
        try:
            for name, handle, *arguments in sequence:
                monkeypatch.setenv("STUB_AWS_RANDOM", "%d,%d" % (number, 0 if name == "reopen" else faults))
                pairs[handle].do(name, *arguments)
        finally:
            for pair in pairs:
                pair.close()
                compared.update(pair.compared)

    for seed in itertools.count():
        hypothesis.seed(seed)(compare)()
        if sum(compared.values()) >= model_operations / KINDS:
            break
    figure = "%d operations of %d kinds compared with io.BytesIO, in %d calls" % (
        sum(compared.values()), len(+compared), stub.count)
    record_property("figure", figure)
