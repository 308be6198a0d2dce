"""Mixed reading at the speed of one connection to S3 with faults, for long: nothing grows. --soak MINUTES makes it longer."""

import gc
import logging
import os
import random
import time
import zipfile

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
SHORT = 20              # seconds, without the option
RATE = 90e6             # bytes per second and connection
FAULTS = [dict(after=300000), dict(after=5 * MiB), dict(after=2 * MiB, then="reset"), dict(status=503), dict(status=500, code=""), dict()]


class Counter(logging.Handler):
    """Counts the resumes."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record):
        self.count += 1


@pytest.fixture
def resumes():
    counter = Counter()
    logging.getLogger("s3zip").addHandler(counter)
    yield counter
    logging.getLogger("s3zip").removeHandler(counter)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def memory():
    """KiB that are resident. The proxy's are among them."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def members(count):
    return {("stored%d" if number % 2 else "text%d") % number:
            archives.noise(3 * MiB, number) if number % 2 else archives.text(6 * MiB, number) for number in range(count)}


@pytest.mark.timeout(0)
def test_soak(request, proxy, put, monkeypatch, tmp_path, record_property, resumes, assert_nothing_left):
    """Costs about 1 call a second."""
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    minutes = request.config.getoption("--soak")
    contents = members(16)
    url = put("k", archives.write_zip(str(tmp_path / "a.zip"), contents))
    proxy.rate = RATE
    draw = random.Random(0)
    state = {"calls": 0, "fetched": 0, "read": 0}
    began = time.monotonic()
    first = None                                        # what there was after the first round
    rounds = 0
    while first is None or time.monotonic() - began < (minutes * 60 or SHORT):
        with s3zip.S3File(url) as file, zipfile.ZipFile(file) as archive:
            for work in (read_in_order, read_at_random, read_in_turn):
                state["read"] += work(archive, contents, draw, proxy)
            calls, fetched, _ = file.raw.stats()
        state["calls"] += calls
        state["fetched"] += fetched
        rounds += 1
        gc.collect()
        proxy.requests.clear()
        first = first or (open_descriptors(), memory())
    seconds = time.monotonic() - began
    figure = "soak: %d rounds in %d s, %d calls, %d MB fetched, %d MB read, %d resumes; descriptors %d, then %d; memory %d KiB, then %d" % (
        rounds, seconds, state["calls"], state["fetched"] // 10 ** 6, state["read"] // 10 ** 6, resumes.count,
        first[0], open_descriptors(), first[1], memory())
    record_property("figure", figure)
    assert resumes.count > 0
    assert open_descriptors() <= first[0] + 5           # connections of the proxy's that are just ending
    assert memory() <= first[1] * 1.25 + 20 * 1024
    assert_nothing_left()


def break_something(draw, proxy):
    proxy.inject(when=lambda request: request.if_match, **draw.choice(FAULTS))     # not at the opening, which would fail


def read_in_order(archive, contents, draw, proxy):
    count = 0
    for name in sorted(contents, key=lambda name: archive.getinfo(name).header_offset):
        if draw.random() < 0.3:
            break_something(draw, proxy)
        assert archive.read(name) == contents[name]
        count += len(contents[name])
    return count


def read_at_random(archive, contents, draw, proxy):
    count = 0
    for name in draw.sample(sorted(contents), 4):
        break_something(draw, proxy)
        with archive.open(name) as member:
            at = draw.randrange(len(contents[name]))
            member.seek(at)
            assert member.read(100000) == contents[name][at:at + 100000]
            count += 100000
    return count


def read_in_turn(archive, contents, draw, proxy):
    names = draw.sample(sorted(contents), 3)
    opened = [archive.open(name) for name in names]
    break_something(draw, proxy)
    for at in range(0, 2 * MiB, 256 * 1024):
        for name, member in zip(names, opened):
            assert member.read(256 * 1024) == contents[name][at:at + 256 * 1024]
    for member in opened:
        member.close()
    return 3 * 2 * MiB
