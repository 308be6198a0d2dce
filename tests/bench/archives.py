"""The archives that the benchmark reads: always the same bytes, made once and kept.

Deflated members are text like that of a log, about 3 : 1; stored ones are noise. Both are made of random blocks in random
order, larger than the window of deflate: quick to make, and nothing that repeats is found by the compressor.
"""

import itertools
import os
import random
import zipfile

MB, GB, KiB, MiB, GiB = 10 ** 6, 10 ** 9, 2 ** 10, 2 ** 20, 2 ** 30

LARGE = "large.zip"                 # what the reader was made for: few members, large ones
SMALL = "small.zip"                 # many members; its directory is larger than the tail that is fetched first
STREAM = "stream.zip"               # one stored member, for memory and temp disk

TEXTS = ("text-1.log", "text-2.log", "text-3.log")
TEXT_SIZE = 130 * MB
BIG_TEXT, BIG_TEXT_SIZE = "text-big.log", 1 * GB
STORED, STORED_SIZE = "stored.bin", 1 * GiB
STREAMED, STREAMED_SIZE = "streamed.bin", 2 * GiB
SMALL_COUNT, SMALL_SIZE = 40_000, 40_000

_BLOCK = 128 * KiB
_DATE = (2024, 1, 1, 0, 0, 0)


def small_name(number):
    return "photos/%02d/%05d.jpg" % (number % 100, number)


def build(folder):
    """Make those archives that the folder lacks."""
    os.makedirs(folder, exist_ok=True)
    for name, fill in ((LARGE, _fill_large), (SMALL, _fill_small), (STREAM, _fill_stream)):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            with zipfile.ZipFile(path + ".part", "w") as archive:
                fill(archive, random.Random(name))
            os.rename(path + ".part", path)


def packed_sizes(folder):
    """Bytes that the members of LARGE take in it."""
    with zipfile.ZipFile(os.path.join(folder, LARGE)) as archive:
        return {info.filename: info.compress_size for info in archive.infolist()}


def _fill_large(archive, rng):
    text, noise = _text_blocks(rng), _noise_blocks(rng)
    for name in TEXTS:
        _add(archive, name, zipfile.ZIP_DEFLATED, TEXT_SIZE, text, rng)
    _add(archive, BIG_TEXT, zipfile.ZIP_DEFLATED, BIG_TEXT_SIZE, text, rng)
    _add(archive, STORED, zipfile.ZIP_STORED, STORED_SIZE, noise, rng)


def _fill_small(archive, rng):
    blocks = _noise_blocks(rng)
    for number in range(SMALL_COUNT):
        _add(archive, small_name(number), zipfile.ZIP_STORED, SMALL_SIZE, blocks, rng)


def _fill_stream(archive, rng):
    _add(archive, STREAMED, zipfile.ZIP_STORED, STREAMED_SIZE, _noise_blocks(rng), rng)


def _add(archive, name, method, size, blocks, rng):
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info._compresslevel, info.file_size = method, 1, size     # ZipInfo has no public name for the level
    with archive.open(info, "w") as member:
        while size:
            size -= member.write(rng.choice(blocks)[:size])


def _noise_blocks(rng):
    return [rng.randbytes(_BLOCK) for _ in range(256)]


def _text_blocks(rng):
    """Lines of a log: time, level, and words of which few are frequent and many are rare."""
    letters = "etaoinshrdlucmfw"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(4000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    return [_text_block(rng, words, weights) for _ in range(256)]


def _text_block(rng, words, weights):
    lines, length, seconds = [], 0, rng.randrange(80_000)
    while length < _BLOCK:
        seconds += rng.randrange(3)
        lines.append("2024-01-01T%02d:%02d:%02dZ INFO id=%06d %s\n" % (
            seconds // 3600 % 24, seconds // 60 % 60, seconds % 60, rng.randrange(10 ** 6),
            " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(4, 12)))))
        length += len(lines[-1])
    return "".join(lines).encode()[:_BLOCK]
