"""What s3zip does, seen at work on an S3 server of its own: python tests/demo.py

Takes about half a minute, 1 GB of temp disk, and nothing but what `pip install '.[test]'` has installed.
"""

import os
import subprocess
import sys
import time
import zipfile

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(TESTS))      # this checkout's s3zip, installed or not

import servers                                  # noqa: E402: needs the line above, as the next does
from s3zip import S3File, s3open                # noqa: E402

URL = "s3://demo/archive.zip"
PICTURE = os.urandom(1000000)                   # does not compress, like most of what makes archives large
ROWS = 2000000


def use(server):
    """Be that server's administrator, with the `aws` beside this Python and no settings of the user's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3ZIP_"))]:
        del os.environ[name]
    os.environ.update(server.environment(), AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)


def write_archive():
    with s3open(URL, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        write_pictures(archive, "2023")
        with archive.open("table.csv", "w") as member:
            for start in range(0, ROWS, 1000):
                member.write(b"".join(b"%07d,%d,a value\n" % (row, row * row % 9973) for row in range(start, start + 1000)))
        write_pictures(archive, "2024")


def write_pictures(archive, year):
    for number in range(200):
        archive.writestr("pictures/%s/%03d.jpg" % (year, number), PICTURE, zipfile.ZIP_STORED)


def show(what, started, file=None):
    """Print a line of the table; file is what was read, if something was."""
    calls, fetched, _ = file.raw.stats() if file else (1, 0, 0)
    print("%-40s %9d %14s %8.1f" % (what, calls, format(fetched, ","), time.monotonic() - started), flush=True)


def main():
    with servers.SeaweedFS() as server:
        use(server)
        server.create_bucket("demo")
        version = subprocess.run(["aws", "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout
        print("%-40s aws calls  bytes fetched  seconds" % version.decode().split()[0], flush=True)

        started = time.monotonic()
        write_archive()
        show("wrote %s" % URL, started)

        started = time.monotonic()
        with S3File(URL) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            show("listed %d members in %s bytes" % (len(names), format(file.length, ",")), started, file)

        started = time.monotonic()
        with S3File(URL) as file, zipfile.ZipFile(file) as archive, archive.open("table.csv") as member:
            lines = sum(1 for line in member)
            show("read %s lines of table.csv" % format(lines, ","), started, file)


if __name__ == "__main__":
    main()
