"""A short trial of the single file s3zip.py on any Python from 3.7, with nothing installed: python tests/smoke.py

The stand-in of stub_aws.py is its `aws`. Prints what it did on one line, or fails with a traceback.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import zipfile

TESTS = os.path.dirname(os.path.abspath(__file__))
MODULE = os.path.join(os.path.dirname(TESTS), "s3zip.py")

sys.dont_write_bytecode = True
sys.path[:0] = [os.path.dirname(MODULE)]

import s3zip    # noqa: E402: found by the line above

LINES = ["line %d, ü\n" % number for number in range(200000)]


def prepare(root):
    """Make a bucket with an archive and a text, and have s3zip find its `aws`."""
    os.makedirs(os.path.join(root, ".faults"))
    os.makedirs(os.path.join(root, "bucket"))
    with zipfile.ZipFile(os.path.join(root, "bucket", "a.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lines.txt", "".join(LINES))
        archive.writestr(zipfile.ZipInfo("noise"), os.urandom(3000000))
    with open(os.path.join(root, "bucket", "lines.txt"), "w", encoding="utf-8", newline="") as file:
        file.writelines(LINES)
    os.environ["STUB_AWS_ROOT"] = root
    os.environ["S3ZIP_AWS"] = '"%s" -ISE "%s"' % (sys.executable, os.path.join(TESTS, "stub_aws.py"))


def read_archive():
    with s3zip.S3File("s3://bucket/a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["lines.txt", "noise"]
        assert archive.testzip() is None
        with archive.open("lines.txt") as member:
            assert [line.decode() for line in member] == LINES


def read_pickled():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with s3zip.S3File("s3://bucket/a.zip") as file:
            file.seek(1000)
            with pickle.loads(pickle.dumps(file, protocol)) as copy:
                assert copy.tell() == 1000
                assert copy.read(100) == file.read(100)


def read_text():
    with s3zip.s3open("s3://bucket/lines.txt") as file:
        assert list(file) == LINES


def raise_errors():
    try:
        s3zip.S3File("s3://bucket/absent.zip")
    except FileNotFoundError as error:
        assert isinstance(error, s3zip.S3Error) and error.filename == "s3://bucket/absent.zip"
    else:
        raise AssertionError("an absent object was opened")


def run_commands():
    def run(*words):
        return subprocess.run([sys.executable, MODULE, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    assert b"lines.txt" in run("-l", "s3://bucket/a.zip")
    assert run("-p", "s3://bucket/a.zip", "lines.txt") == "".join(LINES).encode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        for trial in (read_archive, read_pickled, read_text, raise_errors, run_commands):
            trial()
    print("smoke passed on Python %d.%d.%d" % sys.version_info[:3])
