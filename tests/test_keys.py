"""What a URL means, and that a key is read and written to the letter, whatever the AWS CLI would make of it."""

import errno
import http.server
import os
import threading

import pytest

import archives
from s3zip import CACHE_SIZE, S3Error, S3File, s3open

pytest_plugins = ["recorder"]

SECRET = b"the content of a local file"

# LEAK and PORT stand for the path of a local file and the port of a local server
KEYS = ["a b?c#d%20e+f&g=h;i", "-x", "--range=bytes=0-0", "new\nline\r\n", "q'\"q `$(touch x)` \\n", "ü/日本/\U0001F600 e\u0301", "/lead",
        "a//b///c ", "s3://bucket/*?[a]!{b}", "FILE://LEAK", "%2e%2e/x%00"]
PARAMETERS = ["file://LEAK", "fileb://LEAK", "http://127.0.0.1:PORT/LEAK", "https://127.0.0.1:PORT/LEAK", "file://ü '\"-\n"]


@pytest.fixture
def local_file(tmp_path):
    path = tmp_path / "local file"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def local_server():
    """A server on the loopback that nobody is to call; it notes who does. `visits` is what it noted."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.visits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self):
            self.visits.append("a connection")      # TLS would not get as far as a request
            return super().get_request()

    with Server(("127.0.0.1", 0), Handler) as server:
        server.visits = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def filled(local_file, local_server):
    """A function that fills a key's placeholders in."""
    return lambda key: key.replace("LEAK", str(local_file)).replace("PORT", str(local_server.server_port))


@pytest.mark.parametrize("key", KEYS + PARAMETERS)
def test_keys_are_read_to_the_letter(put, calls, proxy, filled, local_server, key, assert_nothing_left):
    key = filled(key)
    data = b"content of " + key.encode()
    url = put(key, data)
    with calls(1), S3File(url) as file:
        assert (file.bucket, file.key, file.url.path, file.name) == ("bucket", key, "/" + key, url)
        assert file.read() == data
    assert [request.path for request in proxy.requests] == ["/bucket/" + key]
    assert local_server.visits == []
    assert_nothing_left()


@pytest.mark.parametrize("key", ["-x ü?c#d%20e+f&g=h", "/lead//q'\"q `$(touch x)`\n", "file://LEAK", "http://127.0.0.1:PORT/LEAK"])
def test_keys_are_written_to_the_letter(server, bucket, put, calls, filled, local_server, key):
    key = filled(key)
    url = put(key, b"old")                          # so that it goes after the test
    with calls(1), s3open(url, "wb") as file:
        file.write(b"new")
    assert server.get(bucket, key) == b"new"
    assert local_server.visits == []


@pytest.mark.parametrize("scheme", ["file", "fileb", "http", "https"])
def test_nothing_leaks_by_a_key_that_is_not_there(bucket, calls, proxy, filled, local_server, scheme):
    """Neither is an address looked up nor does the content of a local file reach a server or an error."""
    key = filled("%s://%s" % (scheme, "LEAK" if scheme.startswith("file") else "127.0.0.1:PORT/LEAK"))
    with calls(1), pytest.raises(FileNotFoundError) as caught:
        S3File("s3://bucket/" + key)
    assert [request.path for request in proxy.requests] == ["/bucket/" + key]
    assert SECRET.decode() not in "%s %r %s" % (caught.value, caught.value, caught.value.stderr)
    assert local_server.visits == []


@pytest.mark.parametrize("etag", ["file://LEAK", "fileb://LEAK", "http://127.0.0.1:PORT/", "--range"])
def test_an_etag_cannot_make_the_cli_read_files(put, calls, proxy, filled, local_server, etag):
    """A server chooses it, and gets it back with the next range: it must not get the content of a local file instead."""
    etag = filled(etag)
    data = archives.noise(CACHE_SIZE + 100)
    url = put("k", data)
    proxy.inject(times=None, answer={"ETag": etag}, ask={"If-Match": None})
    with calls(2), S3File(url) as file:
        assert (file.ETag, file.read()) == (etag, data)
    assert [request.if_match for request in proxy.requests] == [None, etag]
    assert local_server.visits == []


def test_a_version_id_cannot_make_the_cli_read_files(put, calls, proxy, filled, local_server):
    version = filled("file://LEAK")
    with calls(1), pytest.raises(S3Error):
        S3File(put("k", b"data"), version_id=version)
    request, = proxy.requests
    assert request.target.partition("?")[2] == "versionId=" + version.replace(":", "%3A").replace("/", "%2F").replace(" ", "%20")
    assert local_server.visits == []


@pytest.mark.parametrize("url", [
    "", "s3:", "s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3:/bucket/key", "S3://bucket/key", " s3://bucket/key", "bucket/key",
    "/bucket/key", "http://bucket/key", "https://bucket.s3.amazonaws.com/key", "file:///etc/passwd", "s3://bucket/a\0b",
    "s3://arn:aws:s3/k", "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint", "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name",
    "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/", "s3://bucket/file://a\rb", "s3://bucket/https://\r\n",
    "s3://bucket/\ud800", "s3://bucket/file://\ud800", "s3://bucket\nname", b"s3://bucket/key", None, 5])
@pytest.mark.one_cli
def test_what_is_not_a_url(login, calls, url):
    login()
    with calls(0):
        with pytest.raises(ValueError):
            S3File(url)
        for mode in ("r", "wb"):
            with pytest.raises(ValueError):
                s3open(url, mode)


ARNS = ["arn:aws:s3:eu-west-1:123456789012:accesspoint/my-point", "arn:aws:s3:eu-west-1:123456789012:accesspoint:my-point",
        "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/p", "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
        "arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/lambda",
        "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/name",
        "arn:aws:s3-outposts:eu-west-1:123456789012:outpost:op-01ac5d28a6a232904:accesspoint:name"]


@pytest.mark.parametrize("arn", ARNS)
def test_arns(recorder, stub, arn):
    """An access point is named in place of the bucket; the slash in it is not the one before the key."""
    (stub.root / arn / "folder").mkdir(parents=True)
    (stub.root / arn / "folder" / "a key").write_bytes(b"data")
    with S3File("s3://%s/folder/a key" % arn) as file:
        assert (file.bucket, file.key, file.url.netloc, file.url.path) == (arn, "folder/a key", arn, "/folder/a key")
        assert file.read() == b"data"
    words, = recorder.argv
    assert "--bucket=" + arn in words and "--key=folder/a key" in words


@pytest.mark.parametrize("url", ["s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/k", "s3://b.u-c_k/-x",
                                 "s3://-x/--range", "s3://bucket/arn:aws:s3:::x/y"])
def test_buckets_and_keys_reach_the_command_line(recorder, stub, url):
    """Options and values are one word each, which a leading dash cannot tear apart."""
    with pytest.raises(FileNotFoundError):
        S3File(url)
    words, = recorder.argv
    bucket, _, key = url[5:].replace("accesspoint/", "accesspoint|").partition("/")
    assert "--bucket=" + bucket.replace("|", "/") in words and "--key=" + key in words
    assert os.listdir(str(stub.root / "bucket")) == []


def test_nothing_matches_by_prefix(server, put, bucket, calls):
    longer = put("a/bc", b"longer")
    put("a/b/c", b"below")
    for absent in ("s3://bucket/a/b", "s3://bucket/a", "s3://bucke/a/bc"):
        with calls(1), pytest.raises(FileNotFoundError) as caught:
            S3File(absent)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, absent)
    with calls(1), S3File(longer) as file:
        assert file.read() == b"longer"
