"""What the logger tells, and what nobody ever gets to read."""

import logging
import os
import pickle
import re
import subprocess
import sys
import traceback

import pytest

import archives
import conftest
import s3zip

MiB = 1 << 20
DATA = archives.noise(3 * MiB)
SECRET = "c2VjcmV0IHRoYXQgbm9ib2R5IHNlZXM="


def test_each_call_and_each_resume_is_logged(proxy, put, monkeypatch, caplog):
    """Costs 3 calls."""
    monkeypatch.setenv("S3ZIP_AWS", next(iter(conftest._clis().values())).path)
    caplog.set_level(logging.DEBUG, "s3zip")
    url = put("a key", DATA)
    with s3zip.S3File(url) as file:
        proxy.inject(after=500000)
        assert file.read() == DATA
    debug = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert {record.name for record in caplog.records} == {"s3zip"}
    assert len(debug) == len(proxy.requests) == 3 and len(warnings) == 1
    for request, line, why in zip(proxy.requests, debug, ("open", "read", "read")):
        seen = re.fullmatch(r"get-object (bytes=\S+) of (s3://bucket/a key) to (\w+): (\d+) bytes in \d+\.\d\d s, .*", line)
        assert seen, line
        assert (seen.group(1), seen.group(3)) == (request.range, why)
    arrived = re.fullmatch(r"resuming bytes=0-\d+ of s3://bucket/a key after (\d+) bytes: \S.*", warnings[0]).group(1)
    assert proxy.requests[2].range.startswith("bytes=%s-" % arrived)


SCRIPT = """
import s3zip
with s3zip.S3File("s3://bucket/k") as file:
    file.read()
"""


@pytest.mark.parametrize("flags", [[], ["-X", "dev"]])
def test_nothing_is_printed(stub, monkeypatch, flags):
    """Not even a resume, by a program that has not set up logging. No call of the real CLI."""
    stub.put("k", DATA)
    monkeypatch.setenv("S3ZIP_AWS", " ".join(stub.aws))
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(s3zip.__file__))
    stub.then()
    stub.then(after=1000, status=255, stderr="Connection broken: IncompleteRead")
    done = subprocess.run([sys.executable, *flags, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert stub.count == 3
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("options", [
    ["--sse-customer-algorithm", "AES256", "--sse-customer-key", SECRET],
    ["--sse-customer-algorithm=AES256", "--sse-customer-key=" + SECRET],
    "--sse-customer-key '%s'" % SECRET])
def test_secrets_are_never_shown(stub, caplog, options):
    """Neither in logs nor in errors, even if `aws` prints them. No call of the real CLI."""
    caplog.set_level(logging.DEBUG)
    url = stub.put("k", DATA)
    aws = ["env", "AWS_SECRET_ACCESS_KEY=" + SECRET, "AWS_SESSION_TOKEN=" + SECRET[::-1], *stub.aws]
    said = "Unknown options: --sse-customer-key, %s %s" % (SECRET, SECRET[::-1])
    with s3zip.S3File(url, aws=aws, options=options) as file:
        stub.then(status=255, stderr="Connection broken " + said)
        assert file.read(1000) == DATA[:1000]
        stub.then(status=252, stderr=said)
        with pytest.raises(s3zip.S3Error) as raised:
            file.seek(2 * MiB - 100)
            file.read(10)
        shown = repr(file)
    stub.then(stdout="junk", stderr=said)
    with pytest.raises(s3zip.S3Error) as raised_at_opening:
        s3zip.S3File(url, aws=aws, options=options)
    with pytest.raises(s3zip.S3Error) as raised_by_the_start:
        s3zip.S3File(url, aws=["/nonexistent/aws", "--sse-customer-key", SECRET, SECRET[::-1]][:3], options=options)
    for error in raised.value, raised_at_opening.value, raised_by_the_start.value:
        again = pickle.loads(pickle.dumps(error))
        for each in error, again:
            shown += "%s %r %s %s %s" % (each, each, each.stderr, each.command, each.args)
            shown += "".join(traceback.format_exception(type(each), each, each.__traceback__))
    shown += caplog.text
    assert SECRET not in shown and SECRET[::-1] not in shown
    assert "--sse-customer-key" in shown and "s3://bucket/k" in caplog.text


def test_secrets_of_an_upload_are_never_shown(stub, tmp_path, caplog):
    """The stub knows nothing of `s3 cp`: that is the error."""
    options = ["--sse-c", "AES256", "--sse-c-key", SECRET]
    with pytest.raises(s3zip.S3Error) as raised:
        with s3zip.s3open("s3://bucket/k", "wb", aws=stub.aws, options=options) as file:
            file.write(b"data")
    shown = "%s %r %s %s" % (raised.value, raised.value, raised.value.command, raised.value.stderr)
    assert "--sse-c-key" in shown and SECRET not in shown
