"""One S3File in several threads, in a forked child and its parent, and pickled into other processes."""

import concurrent.futures
import errno
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import zipfile

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
MEMBERS = {"stored%d" % number: archives.noise(MiB + number, number) for number in range(6)}


@pytest.fixture
def one_cli(isolated, monkeypatch):
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)


@pytest.fixture
def archive(tmp_path):
    """Its bytes."""
    archives.write_zip(str(tmp_path / "a.zip"), MEMBERS)
    return (tmp_path / "a.zip").read_bytes()


def test_threads_share_one_zipfile(one_cli, proxy, put, archive):
    """Costs 1 call to open and at most 3 for each member."""
    with s3zip.S3File(put("k", archive)) as file, zipfile.ZipFile(file) as opened:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for name, data in zip(MEMBERS, pool.map(lambda name: read_in_pieces(opened, name), MEMBERS)):
                assert data == MEMBERS[name]
    assert len(proxy.requests) <= 1 + 3 * len(MEMBERS)


def read_in_pieces(opened, name):
    pieces = []
    with opened.open(name) as member:
        while not pieces or pieces[-1]:
            pieces.append(member.read(10000))
    return b"".join(pieces)


def test_threads_share_one_file(stub):
    """What they read is theirs, whatever it is; no call of the real CLI."""
    data = archives.noise(3 * MiB)
    with s3zip.S3File(stub.put("k", data), aws=stub.aws, cache_size=100000) as file:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            pieces = [piece for some in pool.map(lambda _: list(iter(lambda: file.read(10000), b"")), range(8)) for piece in some]
        assert sorted(pieces) == sorted(data[at:at + 10000] for at in range(0, len(data), 10000))


FORK = """
import os, sys
import s3zip

with open(sys.argv[2], "rb") as local:
    data = local.read()
file = s3zip.S3File(sys.argv[1])
assert file.read(1500000) == data[:1500000]
running = [each for each in file.raw._segments if each.running()]
print("running", len(running), flush=True)
for leave in (sys.exit, os._exit):
    pid = os.fork()
    if not pid:
        assert file.tell() == 1500000
        assert file.read() == data[1500000:]
        file.seek(0)
        assert file.read(10) == data[:10]
        leave(0)
    assert os.waitpid(pid, 0) == (pid, 0)
pid = os.fork()                 # one that never reads, and one that goes on while we do
if not pid:
    sys.exit()
assert os.waitpid(pid, 0) == (pid, 0)
pid = os.fork()
assert file.read() == data[1500000:]
if not pid:
    sys.exit()
assert os.waitpid(pid, 0) == (pid, 0)
print("calls of the parent", file.raw.calls)
file.close()
"""


def test_fork(one_cli, proxy, put, tmp_path, monkeypatch):
    """Costs 2 or 3 calls of the parent, whose segment none of the children ends, and some of each child's own."""
    data = archives.noise(8 * MiB)
    (tmp_path / "data").write_bytes(data)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(s3zip.__file__))
    url = put("k", data)
    proxy.rate = 2 * MiB
    done = subprocess.run([sys.executable, "-X", "dev", "-c", FORK, url, str(tmp_path / "data")], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("calls of the parent") == 1
    assert not [each for each in conftest._left()[0] if "get-object" in each]


def test_pickle(stub):
    """In all protocols: 1 call of the stub to open, and for each copy 1 to open again and 1 to read."""
    data = archives.noise(3 * MiB)
    url = stub.put("k", data)
    with s3zip.S3File(url, aws=stub.aws, options=("--request-payer", "requester"), cache_size=10 ** 6) as file:
        file.seek(1234567)
        pickled = [pickle.dumps(file, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        assert stub.count == 1
        for each in pickled:
            with pickle.loads(each) as copy:
                assert type(copy) is s3zip.S3File
                assert (copy.tell(), copy.length, copy.ETag, copy.name) == (1234567, file.length, file.ETag, url)
                assert copy.raw.cache_size == 10 ** 6 and copy.raw.source.options == ["--request-payer", "requester"]
                assert copy.read(100) == data[1234567:1234667]
        assert file.tell() == 1234567
    assert stub.count == 1 + 2 * len(pickled)
    stub.put("k", data[::-1])
    for each in pickled:
        with pickle.loads(each) as copy, pytest.raises(s3zip.S3Error) as raised:
            copy.read(100)
        assert raised.value.errno == errno.ESTALE


def test_pickle_of_a_subclass_and_of_an_empty_object(stub):
    with Sub(stub.put("k", b""), aws=stub.aws) as file, pickle.loads(pickle.dumps(file)) as copy:
        assert type(copy) is Sub and copy.read() == b"" and copy.length == 0


class Sub(s3zip.S3File):
    pass


def read_member(file, name):
    with zipfile.ZipFile(file) as opened:
        return opened.read(name)


def read_rest(file):
    return file.read()


MULTIPROCESSING = """
import multiprocessing, sys
import s3zip

def put_answer(queue, file):
    queue.put(file.read(1000))
    file.close()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    queue = context.Queue()
    with s3zip.S3File(sys.argv[1]) as file:
        file.seek(2000000)
        process = context.Process(target=put_answer, args=(queue, file))
        process.start()
        sys.stdout.buffer.write(queue.get())
        process.join()
        sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing(one_cli, proxy, put, archive, method, tmp_path, monkeypatch):
    """Costs 1 call of the parent, 2 of the other process. A script, since what multiprocessing starts stays until the exit."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(s3zip.__file__))
    (tmp_path / "script.py").write_text(MULTIPROCESSING)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py"), put("k", archive), method], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, archive[2000000:][:1000], b"")
    assert len(proxy.requests) == 3


def test_a_process_pool(one_cli, proxy, put, archive, server):
    """Costs 1 call here, and in the pool 2 for each of two tasks, 1 for each of three that fail."""
    context = multiprocessing.get_context("spawn")
    with s3zip.S3File(put("k", archive)) as file, concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(read_member, file, "stored3").result() == MEMBERS["stored3"]
        put("k", archive[::-1])
        for task in pool.submit(read_member, file, "stored3"), pool.submit(read_rest, file):
            error = task.exception()
            assert isinstance(error, s3zip.S3Error) and error.errno == errno.ESTALE
            assert error.filename == "s3://bucket/k" and error.command and "--if-match" in error.command
        server.delete("bucket", "k")
        assert pool.submit(read_member, file, "stored3").exception().errno == errno.ESTALE
        put("k", archive)                               # the pool is not broken
        assert pool.submit(read_member, file, "stored4").result() == MEMBERS["stored4"]
        assert len(proxy.requests) == 1 + 2 + 2 + 3


def test_a_text_file_around_it_cannot_be_pickled_and_says_so(stub):
    with s3zip.s3open(stub.put("k", b"text"), aws=stub.aws) as file:
        assert isinstance(file, io.TextIOWrapper)
        with pytest.raises(TypeError):
            pickle.dumps(file)
