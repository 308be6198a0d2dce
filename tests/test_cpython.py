"""The interpreter's own tests of zipfile and tarfile, with every archive that they read served through S3File.

They run in a process of their own, `python test_cpython.py MODULE`, with the stub as `aws`.
"""

import builtins
import bz2
import functools
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import types
import unittest
import zipfile

import pytest

import s3zip

# What does not apply, by a part of the test's name
NOT_APPLICABLE = {
    "test.test_zipfile": {
        "PyZipFileTests": "writes only",
        "CommandLineTest": "starts another interpreter, which has no S3File in it",
        "TestExecutablePrependedZip.test_execute": "runs an archive, with another interpreter",
        ".test_repr": "looks for the file that it gave in what ZipFile prints",
        ".test_truncated_zipfile": "cuts the archive off while it is open; test_faults does so with an object",
    },
    "test.test_tarfile": {},
}
READING = {     # of test_tarfile: the rest writes archives, or extracts to test what happens on disk
    "test.test_tarfile": ("ReadTest", "ListTest", "MemberReadTest", "Pax", "Detect", "LimitsTest", "Sparse", "Longname", "GNUReadTest"),
}


def run_tests(module):
    """Costs no call of the real CLI. Returns what the child says of the tests that ran."""
    done = subprocess.run([sys.executable, "-W", "ignore", os.path.abspath(__file__), module], stdout=subprocess.PIPE,
                          cwd=os.environ["TMPDIR"], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module, at_least", [("test.test_zipfile", 200), ("test.test_tarfile", 150)])
def test_the_interpreters_own_tests(stub, monkeypatch, record_property, module, at_least):
    if not importlib.util.find_spec("test") or not importlib.util.find_spec(module):
        pytest.skip("this Python came without its tests")
    monkeypatch.setenv("S3ZIP_AWS", " ".join(stub.aws))
    result = run_tests(module)
    figure = "%s: %d of %d passed, %d skipped by themselves, %d do not apply; %d archives in %d calls" % (
        module, result["run"] - len(result["failed"]) - result["skipped"], result["run"], result["skipped"], result["left_out"],
        result["served"], stub.count)
    record_property("figure", figure)
    assert not result["failed"]
    assert result["run"] >= at_least and result["served"] >= at_least


class Server:
    """Puts what is to be read where the stub finds it."""

    def __init__(self):
        self.served = 0

    def serve(self, data):
        self.served += 1
        key = hashlib.sha1(data).hexdigest()
        path = os.path.join(os.environ["STUB_AWS_ROOT"], "bucket", key)
        if not os.path.exists(path):
            with REAL_OPEN(path, "wb") as file:
                file.write(data)
        return s3zip.S3File("s3://bucket/" + key)

    def serve_file(self, file):
        """A path, or a file that is read from its beginning, as zipfile does."""
        if isinstance(file, (str, bytes, os.PathLike)):
            with REAL_OPEN(file, "rb") as opened:
                return self.serve(opened.read())
        file.seek(0)
        return self.serve(file.read())

    def patch_zipfile(self):
        """Have ZipFile read an S3File instead of what it is given; it looks the same from outside."""
        init, is_zipfile = zipfile.ZipFile.__init__, zipfile.is_zipfile

        @functools.wraps(init)
        def read_s3(archive, file, mode="r", *args, **kwargs):
            if mode != "r" or not is_plain(file):
                return init(archive, file, mode, *args, **kwargs)
            try:
                init(archive, self.serve_file(file), mode, *args, **kwargs)
            finally:
                if not isinstance(file, (str, bytes, os.PathLike)):
                    archive.filename = getattr(file, "name", None)
                elif archive.fp:
                    archive.filename, archive._filePassed = os.fspath(file), 0

        zipfile.ZipFile.__init__ = read_s3
        zipfile.is_zipfile = lambda file: is_zipfile(self.serve_file(file) if is_plain(file) else file)

    def patch_tarfile(self):
        """Have tarfile, and what it decompresses with, open an S3File where it opens a file to read it."""
        def opened(file, mode="r", *args, **kwargs):
            return self.serve_file(file) if mode == "rb" and is_plain(file) else REAL_OPEN(file, mode, *args, **kwargs)

        fake = types.SimpleNamespace(open=opened)
        tarfile.bltn_open = bz2._builtin_open = opened
        gzip.builtins = lzma.builtins = fake
        low_level_file = tarfile._LowLevelFile
        tarfile._LowLevelFile = lambda name, mode: opened(name, "rb") if mode == "r" else low_level_file(name, mode)


REAL_OPEN = builtins.open


def is_plain(file):
    """Whether a file can be read twice, and is there: what else the tests make up is for zipfile itself to deal with."""
    if isinstance(file, (str, bytes, os.PathLike)):
        return os.path.isfile(file)
    return type(file) in (io.BytesIO, io.BufferedReader, io.BufferedRandom) or hasattr(file, "file")


def main(module):
    server = Server()
    suite = unittest.TestSuite()
    left_out = 0
    (server.patch_zipfile if module == "test.test_zipfile" else server.patch_tarfile)()
    for test in flatten(unittest.defaultTestLoader.loadTestsFromName(module)):
        name = test.id()
        if any(part in name for part in NOT_APPLICABLE[module]) or not any(part in name for part in READING.get(module, [""])):
            left_out += 1
        else:
            suite.addTest(test)
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=1).run(suite)
    print(json.dumps({"run": result.testsRun, "skipped": len(result.skipped), "left_out": left_out, "served": server.served,
                      "failed": [test.id() for test, _ in result.failures + result.errors]}))


def flatten(suite):
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from flatten(each)
        else:
            yield each


if __name__ == "__main__":
    main(sys.argv[1])
