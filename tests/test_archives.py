"""Archives of many makers read through zipfile as the local file does, member by member, at a known number of calls."""

import io
import os
import subprocess
import sys
import zipfile
import zlib

import pytest

import archives
import s3zip
from s3zip import CACHE_SIZE, S3File

MiB = 1 << 20
MEMBERS = {"table.csv": archives.text(3 * MiB), "stored.bin": archives.noise(3 * MiB), "empty": b"", "folder/": b"",
           "folder/ü.txt": b"one\ntwo\n", "stored last": archives.noise(MiB // 2, 1)}

SECRETS = {"table.csv": archives.text(MiB // 2), "stored.bin": archives.noise(5 * MiB // 4)}      # zipfile decrypts 1 MB/s


def with_info_zip(folder, members, *options):
    source = folder / "in"
    for name, data in members.items():
        path = source / name
        path.mkdir(parents=True, exist_ok=True) if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)
    return archives.write_with_info_zip(str(folder / "a.zip"), str(source), *options)


def make(name, folder, downloads):
    """The path of the archive of that name."""
    path = str(folder / "a.zip")
    if name == "wheel":
        return archives.wheel(str(downloads))
    if name == "jar":
        return archives.jar(str(downloads))
    if name == "many members":
        return archives.write_many(path)
    if name == "Info-ZIP":
        return with_info_zip(folder, MEMBERS)
    if name == "encrypted":
        return with_info_zip(folder, SECRETS, "-P", archives.PASSWORD.decode())
    if name == "empty":
        return archives.write_zip(path, {})
    options = {"zip64": dict(zip64=True), "long comment": dict(comment=b"PK\1\2" * 16000),
               "self-extracting": dict(prefix=b"#!/bin/sh\n" * 30000),
               "all at once": dict(prefix=b"x" * 100, zip64=True, comment=b"c" * 65535),
               "bzip2": dict(compression=zipfile.ZIP_BZIP2), "LZMA": dict(compression=zipfile.ZIP_LZMA), "plain": {}}[name]
    return archives.write_zip(path, MEMBERS, **options)


# Name, calls to open and list, calls to read all members after that
ARCHIVES = [("wheel", 1, 1), ("jar", 1, 0), ("plain", 1, 2), ("zip64", 1, 2), ("long comment", 1, 2), ("self-extracting", 1, 2),
            ("all at once", 1, 2), ("bzip2", 1, 2), ("LZMA", 1, 2), ("many members", 2, 2), ("Info-ZIP", 1, 2),
            ("encrypted", 1, 1), ("empty", 1, 0)]


@pytest.mark.one_cli
@pytest.mark.parametrize("name, to_list, to_read", ARCHIVES, ids=[name for name, *_ in ARCHIVES])
def test_archives(put, calls, tmp_path, downloads, name, to_list, to_read, assert_nothing_left):
    path = make(name, tmp_path, downloads)
    url = put("archive " + name, path)
    with calls(to_list):
        file = S3File(url)
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(path) as local:
            assert [vars_of(info) for info in archive.infolist()] == [vars_of(info) for info in local.infolist()]
            assert archive.comment == local.comment
    with calls(to_read):
        assert archives.members(file) == archives.members(path)
    file.close()
    assert_nothing_left()


def vars_of(info):
    return {name: getattr(info, name) for name in zipfile.ZipInfo.__slots__ if hasattr(info, name) and not name.startswith("_")}


@pytest.mark.one_cli
def test_a_member_is_a_file(put, calls, tmp_path):
    """Its lines, its end, and any place in it."""
    table = MEMBERS["table.csv"]
    url = put("a.zip", archives.write_zip(str(tmp_path / "a.zip"), MEMBERS))
    with calls(2), zipfile.ZipFile(S3File(url)) as archive:
        with io.TextIOWrapper(archive.open("table.csv"), newline="") as lines:
            assert list(lines) == table.decode().splitlines(keepends=True)
        with archive.open("table.csv") as member:
            assert (member.seek(2 * MiB), member.read(100), member.seek(-5, 2), member.read()) == (
                2 * MiB, table[2 * MiB:][:100], len(table) - 5, table[-5:])
            assert (member.seek(10), member.read(10)) == (10, table[10:20])
        assert archive.read("folder/ü.txt") == b"one\ntwo\n"
        assert archive.read("empty") == b""
        with pytest.raises(KeyError):
            archive.open("absent")


@pytest.mark.one_cli
def test_wrong_passwords_and_damage(put, calls, tmp_path):
    """What zipfile raises for a local archive, it raises for this one."""
    secret = put("e.zip", with_info_zip(tmp_path, SECRETS, "-P", archives.PASSWORD.decode()))
    with calls(2), zipfile.ZipFile(S3File(secret)) as archive:
        with pytest.raises(RuntimeError, match="password required"):
            archive.read("table.csv")
        with pytest.raises((RuntimeError, zipfile.BadZipFile, zlib.error)):
            archive.read("table.csv", pwd=b"wrong")
        assert archive.read("table.csv", pwd=archives.PASSWORD) == SECRETS["table.csv"]
    with zipfile.ZipFile(archives.write_zip(str(tmp_path / "a.zip"), MEMBERS)) as local:
        data = bytearray((tmp_path / "a.zip").read_bytes())
        data[local.getinfo("stored.bin").header_offset + 100000] ^= 1
    with calls(3), zipfile.ZipFile(S3File(put("damaged.zip", bytes(data)))) as archive:
        assert archive.testzip() == "stored.bin"
    with calls(1), pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(S3File(put("no.zip", archives.noise(2 * MiB))))
    with calls(1), pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(S3File(put("short.zip", bytes(data[:-CACHE_SIZE]))))


MAIN_JOB = """
import resource, sys, zipfile, zlib
from s3zip import S3File

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with zipfile.ZipFile(S3File(sys.argv[1])) as archive:
    print([(info.filename, info.file_size) for info in archive.infolist()])
    before = peak()
    for info in archive.infolist():
        crc = lines = 0
        with archive.open(info) as member:
            for line in member:
                crc = zlib.crc32(line, crc)
                lines += 1
        print(info.filename, crc == info.CRC, lines)
print(peak() - before < 40)
"""


@pytest.fixture(scope="session")
def large_archive(server, tmp_path_factory):
    """An archive of a few hundred MB: its URL, the sizes of its members, and their numbers of lines."""
    block = archives.noise(4 * MiB)
    path = tmp_path_factory.mktemp("large") / "large.zip"
    table = archives.text(8 * MiB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, blocks in ("one", 40), ("two", 30):
            with archive.open(zipfile.ZipInfo("stored " + name), "w") as member:
                for _ in range(blocks):
                    member.write(block)
        for number in range(3):
            archive.writestr("table%d.csv" % number, table)
    server.create_bucket("main")
    server.put("main", "large archive.zip", path.read_bytes())
    assert path.stat().st_size > 280 * MiB
    sizes = [("stored one", 160 * MiB), ("stored two", 120 * MiB)] + [("table%d.csv" % number, 8 * MiB) for number in range(3)]
    yield "s3://main/large archive.zip", sizes, [len(block.split(b"\n")[:-1]) * 40 + 1, len(block.split(b"\n")[:-1]) * 30 + 1] + [
        len(table.splitlines())] * 3
    server.delete("main", "large archive.zip")
    os.unlink(path)


def test_the_main_job(login, calls, large_archive, assert_nothing_left):
    """An archive of hundreds of MB is opened and listed in one call, and read line by line in few and in bounded memory."""
    login()
    url, sizes, lines = large_archive
    with calls(1), zipfile.ZipFile(S3File(url)) as archive:
        assert [(info.filename, info.file_size) for info in archive.infolist()] == sizes
    calls.reset()
    done = subprocess.run([sys.executable, "-c", MAIN_JOB, url], stdout=subprocess.PIPE, check=True,
                          env=dict(os.environ, PYTHONPATH=os.path.dirname(s3zip.__file__)))
    assert done.stdout.decode().splitlines() == [repr(sizes)] + [
        "%s True %d" % (name, count) for (name, _), count in zip(sizes, lines)] + ["True"]
    assert calls.count <= 12
    assert_nothing_left()
