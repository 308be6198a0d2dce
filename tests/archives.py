"""Real archives for tests, each made or fetched here, always with the same content."""

import contextlib
import glob
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile

_DATE = (2024, 2, 29, 12, 34, 56)

PASSWORD = b"secret"


def noise(size, seed=0):
    """Bytes that do not compress, the same each time."""
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "little") if size else b""


def text(size, seed=0):
    """Lines of a table that compress as such things do, the same each time."""
    draw = random.Random(seed)
    line = b"%08d,%d,some text that is the same in every line\n"
    rows = [line % (number, draw.randrange(10 ** 6)) for number in range(size // 50 + 1)]
    return b"".join(rows)[:size]


def write_zip(path, members=None, compression=zipfile.ZIP_DEFLATED, comment=b"", zip64=False, prefix=b""):
    """Write an archive of {name: data} and return path. prefix is what a self-extracting one begins with.

    A name that begins with "stored" is stored whatever the compression; zip64 gives each member a ZIP64 extra field and the
    archive a ZIP64 end record, as if it were huge.
    """
    if members is None:
        members = {"stored.bin": noise(300000), "table.csv": text(500000), "empty": b"", "folder/": b"", "folder/ü.txt": b"one\ntwo\n"}
    with open(path, "wb") as file:
        file.write(prefix)
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = comment
            for name, data in members.items():
                info = zipfile.ZipInfo(name, _DATE)
                info.compress_type = zipfile.ZIP_STORED if name.startswith("stored") else compression
                info.file_size = len(data)
                with archive.open(info, "w", force_zip64=zip64) as member:
                    member.write(data)
    if zip64:
        _add_zip64_end(path)
    return path


def _add_zip64_end(path):
    """Put a ZIP64 end record and its locator before the end record, which then refers to them for all its numbers.

    zipfile does so from 65536 members or 2 GiB on only.
    """
    with open(path, "r+b") as file:
        data = file.read()
        end = data.rindex(b"PK\5\6")
        entries, size, offset = struct.unpack("<10xHLL", data[end:end + 20])
        start = end - size - offset             # of the archive, which all offsets count from: not 0 with a prefix
        record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end - start, 1)
        file.seek(end)
        file.write(record + locator + struct.pack("<4sHHHHLL", b"PK\5\6", 0, 0, 0xffff, 0xffff, 0xffffffff, 0xffffffff))
        file.write(data[end + 20:])


def write_many(path, count=20000):
    """Write an archive whose directory is larger than CACHE_SIZE: small members with long names."""
    return write_zip(path, {"folder/%050d.txt" % number: b"%d\n" % number for number in range(count)})


def write_with_info_zip(path, folder, *options):
    """Have Info-ZIP's `zip` pack a folder, and return path. Options such as "-9", or "-P", "secret" to encrypt."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)                         # zip would add to what is there
    subprocess.run(["zip", "-q", "-r", *options, os.path.abspath(path), "."], cwd=folder, stdin=subprocess.DEVNULL, check=True)
    return path


def has_info_zip():
    return bool(shutil.which("zip"))


def wheel(folder, requirement="pip==23.2.1"):
    """The path of a real wheel, fetched from PyPI by pip unless it is in folder already."""
    return _download(folder, requirement, "*.whl")


def jar(folder):
    """The path of a real jar: the one that the package py4j brings along."""
    path = os.path.join(folder, "py4j.jar")
    if not os.path.exists(path):
        with zipfile.ZipFile(wheel(folder, "py4j==0.10.9.7")) as package:
            name, = [each for each in package.namelist() if each.endswith(".jar")]
            with open(path + ".part", "wb") as file:
                file.write(package.read(name))
        os.replace(path + ".part", path)        # other tests may look at the same moment
    return path


def _download(folder, requirement, pattern):
    folder = os.path.join(folder, requirement)
    if not glob.glob(os.path.join(folder, pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, requirement],
                       stdin=subprocess.DEVNULL, check=True)
    path, = glob.glob(os.path.join(folder, pattern))
    return path


def members(file):
    """What an archive holds, {name: CRC}, after having read it all: to compare two of them."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info, pwd=PASSWORD if info.flag_bits & 1 else None) as member:
                while member.read(1 << 20):     # checks the CRC at its end
                    pass
        return {info.filename: info.CRC for info in archive.infolist()}
