"""The tests' own tools do what the tests rely on. Nothing here is about s3zip."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

import archives
import servers

DATA = archives.noise(300000)
HOSTILE_KEYS = ["a b?c#d%20e+f&g=h", "-x", "new\nline", "q'\"q", "ü/日本", "/lead", "file:///etc/hostname", "trailing "]


def aws(*words, **kwargs):
    return subprocess.run(["aws", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100, **kwargs)


def get(path, *options, key="k", bucket="bucket"):
    """get-object at the endpoint of the environment: old CLIs look for it in their options only."""
    return aws("--endpoint-url", os.environ["AWS_ENDPOINT_URL"], "--output=json", "s3api", "get-object", "--bucket=" + bucket,
               "--key=" + key, *options, str(path), stdin=subprocess.DEVNULL)


def upload(data, key):
    return aws("--endpoint-url", os.environ["AWS_ENDPOINT_URL"], "s3", "cp", "-", "s3://bucket/" + key, input=data)


def test_server_stores_keys_literally(server, put):
    for number, key in enumerate(HOSTILE_KEYS):
        put(key, b"%d" % number)
    assert [server.get("bucket", key) for key in HOSTILE_KEYS] == [b"%d" % number for number in range(len(HOSTILE_KEYS))]


def test_server_empties_a_bucket(server, bucket):
    server.put(bucket, "key", b"data")
    server.request("POST", "/bucket/part", [("uploads", "")])
    assert (server.list_keys(bucket), server.list_multipart_uploads(bucket)) == (["key"], ["part"])
    server.empty(bucket)
    assert (server.list_keys(bucket), server.list_multipart_uploads(bucket)) == ([], [])
    assert not server.object_exists(bucket, "key")


def test_server_keeps_versions(server):
    server.create_bucket("versioned", versioned=True)
    first = server.put("versioned", "k", b"one")
    second = server.put("versioned", "k", b"two")
    assert first and second and first != second


@pytest.mark.parametrize("identity, code", [
    (servers.READER, b""), (servers.WRITER, b"AccessDenied"), (servers.NOBODY, b"AccessDenied"),
    (servers.STRANGER, b"InvalidAccessKeyId"), (servers.FORGER, b"SignatureDoesNotMatch")])
def test_server_holds_to_permissions(server, put, identity, code):
    put("k", b"data", bucket=servers.READABLE_BUCKET)
    answer = server.request("GET", "/readable/k", identity=identity)
    assert code in answer.body if code else answer.body == b"data"


def test_calls_are_logged_and_counted(cli, calls, put, tmp_path, assert_nothing_left):
    put("k", DATA)
    with calls(1):
        assert get(tmp_path / "out", "--range=bytes=-10", key="k").returncode == 0
    assert calls.argv[0][-3:] == ["--key=k", "--range=bytes=-10", str(tmp_path / "out")]
    with pytest.raises(AssertionError), calls(2):
        pass
    calls.reset()
    assert calls.count == 0
    assert_nothing_left()


def test_what_is_left_is_found(assert_nothing_left):
    with subprocess.Popen(["sleep", "60"]) as left:
        with pytest.raises(AssertionError, match="sleep 60"):
            assert_nothing_left(within=0)
        left.kill()
    assert_nothing_left()


def test_proxy_passes_everything_on(cli, calls, proxy, put, server, tmp_path):
    put("a b", DATA)
    done = get(tmp_path / "out", "--range=bytes=1-20", key="a b")
    assert (done.stderr, (tmp_path / "out").read_bytes()) == (b"", DATA[1:21])
    assert json.loads(done.stdout)["ContentRange"] == "bytes 1-20/300000"
    request, = proxy.requests
    assert (request.path, request.range, request.status, request.sent) == ("/bucket/a b", "bytes=1-20", 206, 20)


@pytest.mark.parametrize("size", [1, 20 << 20])
def test_proxy_passes_uploads_on(cli, proxy, server, size):
    data = DATA * (size // len(DATA)) + DATA[:size % len(DATA)]
    assert upload(data, "up").stderr == b""
    assert server.get("bucket", "up") == data
    assert sum(request.received for request in proxy.requests) >= size


@pytest.mark.one_cli
@pytest.mark.parametrize("fault, arrived", [
    (dict(after=1000), 1000), (dict(after=1000, then="reset"), 1000), (dict(resize=-5), 15), (dict(resize=5), 25)])
def test_proxy_changes_bodies(cli, proxy, put, tmp_path, fault, arrived):
    put("k", DATA)
    proxy.inject(**fault)
    end = 19 if "resize" in fault else 99999
    done = get(tmp_path / "out", "--range=bytes=0-%d" % end)
    assert (done.returncode == 0) == ("resize" in fault)
    assert proxy.sent == arrived
    assert get(tmp_path / "out", "--range=bytes=0-%d" % end).returncode == 0


@pytest.mark.one_cli
def test_proxy_answers_itself(cli, proxy, put, tmp_path):
    put("k", DATA)
    proxy.inject(times=None, status=403, code="InvalidObjectState")
    assert b"An error occurred (InvalidObjectState)" in get(tmp_path / "out").stderr
    proxy.clear()
    assert get(tmp_path / "out").returncode == 0


@pytest.mark.one_cli
def test_proxy_changes_what_is_asked_and_answered(cli, proxy, put, tmp_path):
    put("k", DATA)
    proxy.inject(ask={"If-Match": None}, answer={"ETag": '"other"'})
    assert json.loads(get(tmp_path / "out", "--if-match", "wrong", "--range=bytes=0-9").stdout)["ETag"] == '"other"'
    proxy.inject(ask={"Range": None})
    assert "ContentRange" not in json.loads(get(tmp_path / "out", "--range=bytes=0-9").stdout)
    assert (tmp_path / "out").read_bytes() == DATA
    proxy.inject(ask={"Range": "bytes=5-6"})
    assert json.loads(get(tmp_path / "out", "--range=bytes=0-9").stdout)["ContentRange"] == "bytes 5-6/300000"
    assert b"PreconditionFailed" in get(tmp_path / "out", "--if-match", "wrong", "--range=bytes=0-9").stderr


@pytest.mark.one_cli
def test_proxy_goes_away_and_comes_back(cli, proxy, put, tmp_path, monkeypatch):
    put("k", DATA)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.go_away()
    assert b"Could not connect to the endpoint URL" in get(tmp_path / "out").stderr
    proxy.come_back()
    assert get(tmp_path / "out").returncode == 0


@pytest.mark.one_cli
def test_proxy_stalls_and_is_slow(cli, proxy, put, tmp_path):
    put("k", DATA)
    proxy.inject(after=100, then="stall")
    assert b"timeout" in get(tmp_path / "out", "--cli-read-timeout=1").stderr.lower()
    proxy.inject(rate=len(DATA) / 0.5)
    assert get(tmp_path / "out").returncode == 0


def stub_get(stub, *options, key="k"):
    return subprocess.run([*stub.aws, "s3api", "get-object", "--bucket=bucket", "--key=" + key, *options, "/dev/null"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.one_cli
def test_stub_answers_as_the_cli_does(stub, cli, put, tmp_path):
    stub.put("k", DATA)
    put("k", DATA)
    for options in ["--range", "bytes=-9"], ["--range=bytes=299990-300100"]:
        real, own = (json.loads(each.stdout) for each in (get(tmp_path / "out", *options), stub_get(stub, *options)))
        assert [real[each] for each in ("ContentLength", "ContentRange")] == [own[each] for each in ("ContentLength", "ContentRange")]
    for options in ["--range=bytes=300000-"], ["--if-match", '"x"'], ["--key=absent"]:
        real, own = get(tmp_path / "out", *options).stderr, stub_get(stub, *options).stderr
        assert real.partition(b"(")[2].partition(b")")[0] == own.partition(b"(")[2].partition(b")")[0]


def test_stub_misbehaves(stub):
    stub.put("k", DATA)
    stub.then(after=10, status=255, stderr="broken")
    stub.then(signal=9)
    stub.then(stdout="junk")
    stub.then(etag="", total=5)
    ends = [stub_get(stub) for _ in range(4)]
    assert [(end.returncode, end.stderr) for end in ends] == [(255, b"broken\n"), (-9, b""), (0, b""), (0, b"")]
    assert ends[2].stdout == b"junk\n"
    assert json.loads(ends[3].stdout) == {"ContentLength": 300000, "ContentRange": "bytes 0-299999/5"}
    assert stub.count == 4


@pytest.mark.parametrize("options", [
    dict(comment=b"c" * 65535), dict(zip64=True), dict(prefix=b"#!/bin/sh\n" * 100), dict(prefix=b"x" * 100, zip64=True)])
def test_archives_can_be_read(tmp_path, options):
    path = archives.write_zip(str(tmp_path / "a.zip"), **options)
    assert len(archives.members(path)) == 5


def test_archive_with_many_members(tmp_path):
    with zipfile.ZipFile(archives.write_many(str(tmp_path / "many.zip"))) as archive:
        assert len(archive.infolist()) == 20000


@pytest.mark.skipif(not archives.has_info_zip(), reason="Info-ZIP's zip is not installed")
def test_archives_of_info_zip(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_bytes(DATA)
    plain = archives.write_with_info_zip(str(tmp_path / "a.zip"), str(tmp_path / "in"))
    secret = archives.write_with_info_zip(str(tmp_path / "e.zip"), str(tmp_path / "in"), "-P", archives.PASSWORD.decode())
    assert archives.members(plain) == archives.members(secret)


def test_archives_of_the_registries(downloads):
    assert "pip/__init__.py" in archives.members(archives.wheel(str(downloads)))
    assert "META-INF/MANIFEST.MF" in archives.members(archives.jar(str(downloads)))


def test_smoke():
    subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "smoke.py")], check=True)
