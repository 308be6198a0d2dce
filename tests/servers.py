"""A real S3 server on the loopback, SeaweedFS from PyPI, and as much of S3's HTTP as tests need to fill and inspect it.

    with SeaweedFS() as server:
        server.create_bucket("bucket")
        server.put("bucket", "a key", b"data")
        subprocess.run(["aws", "s3", "ls"], env={**os.environ, **server.environment(ADMIN)})

The requests here are signed with the standard library alone: filling a bucket must not cost half a second of CLI per object.
"""

import collections
import ctypes
import datetime
import hashlib
import hmac
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
import xml.etree.ElementTree as ElementTree

REGION = "us-east-1"
READABLE_BUCKET = "readable"    # the only one that READER may read
_START_SECONDS = 30
_TRIES = 5                      # another worker may take a port between our look and the server's start

Identity = collections.namedtuple("Identity", "name access_key secret_key actions")

ADMIN = Identity("admin", "ADMINKEY", "adminsecret", ["Admin", "Read", "Write", "List", "Tagging"])
READER = Identity("reader", "READERKEY", "readersecret", ["Read:" + READABLE_BUCKET])
WRITER = Identity("writer", "WRITERKEY", "writersecret", ["Write:" + READABLE_BUCKET])
NOBODY = Identity("nobody", "NOBODYKEY", "nobodysecret", [])
STRANGER = Identity("stranger", "STRANGERKEY", "strangersecret", None)             # the server does not know this one
FORGER = Identity("forger", ADMIN.access_key, "wrong" + ADMIN.secret_key, None)    # a known key and a wrong secret


class Answer(collections.namedtuple("Answer", "status headers body")):
    """What the server said; headers is an http.client.HTTPMessage."""


class SeaweedFS:
    """A context manager that runs `weed mini` with ports and a folder of its own, and ends it and nothing else."""

    def __init__(self):
        self.port = 0           # not started yet
        self._process = None    # likewise
        self._folder = ""       # likewise
        # Nobody else's server knows this one, should it have been faster to take our port
        self._owner = Identity("owner", uuid.uuid4().hex, uuid.uuid4().hex, ["Admin"])

    def __enter__(self):
        for _ in range(_TRIES - 1):
            if self._start():
                return self
            self.stop()
        if self._start():
            return self
        log = self._log()
        self.stop()
        raise RuntimeError("SeaweedFS does not start:\n" + log)

    def __exit__(self, *_):
        self.stop()

    @property
    def host(self):
        return "127.0.0.1:%d" % self.port

    @property
    def url(self):
        return "http://" + self.host

    def environment(self, identity=ADMIN, url=None):
        """What `aws` needs in its environment to act as somebody, here or through a proxy at url."""
        return {"AWS_ACCESS_KEY_ID": identity.access_key, "AWS_SECRET_ACCESS_KEY": identity.secret_key,
                "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": url or self.url}

    def stop(self):
        """End the server and remove what it stored: "the server is gone". May be called twice."""
        if self._process:
            self._process.kill()        # nothing in it is worth a clean end, which takes seconds
            self._process.wait()
            self._process = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    def _start(self):
        """Whether the server came up. It does not if somebody was faster to take one of its ports."""
        self._folder = tempfile.mkdtemp(prefix="s3zip-seaweedfs-")
        master, volume, filer, admin, self.port = _free_ports(5)
        config = os.path.join(self._folder, "identities.json")
        with open(config, "w") as file:
            json.dump({"identities": [_described(each) for each in (self._owner, ADMIN, READER, WRITER, NOBODY)]}, file)
        words = [_weed(), "mini", "-dir=" + self._folder, "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.port=%d" % master,
                 "-volume.port=%d" % volume, "-filer.port=%d" % filer, "-admin.port=%d" % admin, "-s3.port=%d" % self.port,
                 "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
                 "-s3.config=" + config, "-s3.autoCreateBucket=false", "-s3.localSocket=" + os.path.join(self._folder, "s3.sock"),
                 "-filer.localSocket=" + os.path.join(self._folder, "filer.sock")]
        with open(os.path.join(self._folder, "log"), "wb") as log:
            # It reads flags from the environment and from ~, so it gets none of ours
            self._process = subprocess.Popen(
                words, cwd=self._folder, env={"PATH": os.defpath, "HOME": self._folder, "TMPDIR": self._folder},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent)
        return self._wait_until_ready()

    def _wait_until_ready(self):
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.request("PUT", "/" + READABLE_BUCKET, identity=self._owner, timeout=2).status == 200:
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.05)
        return False

    def _log(self):
        with open(os.path.join(self._folder, "log"), errors="replace") as file:
            return file.read()[-4000:]

    def request(self, method, path, query=(), body=b"", headers=(), identity=ADMIN, timeout=60):
        """Send one signed request; path is not yet quoted, and query is a sequence of pairs."""
        target = quote(path)
        if query:
            target += "?" + "&".join("%s=%s" % (quote(name, ""), quote(value, "")) for name, value in sorted(query))
        headers = sign(method, self.host, target, body, dict(headers), identity)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def _succeed(self, method, path, *args, **kwargs):
        answer = self.request(method, path, *args, **kwargs)
        if answer.status >= 300:
            raise RuntimeError("%s %s: %d %s" % (method, path, answer.status, answer.body.decode(errors="replace")))
        return answer

    def create_bucket(self, bucket, versioned=False):
        self._succeed("PUT", "/" + bucket)
        if versioned:
            self._succeed("PUT", "/" + bucket, [("versioning", "")], body=b"<VersioningConfiguration><Status>Enabled</Status>"
                          b"</VersioningConfiguration>")

    def put(self, bucket, key, data):
        """Store an object under exactly this key; returns its version id, None in a bucket without versions."""
        return self._succeed("PUT", "/%s/%s" % (bucket, key), body=data).headers["x-amz-version-id"]

    def delete(self, bucket, key):
        self._succeed("DELETE", "/%s/%s" % (bucket, key))

    def empty(self, bucket):
        """Delete what a listing shows, and abort its multipart uploads."""
        for key in self.list_keys(bucket):
            self.delete(bucket, key)
        for key, upload in self._listed(bucket, [("uploads", "")], "Upload", "Key", "UploadId"):
            self._succeed("DELETE", "/%s/%s" % (bucket, key), [("uploadId", upload)])

    def object_exists(self, bucket, key):
        return self.request("HEAD", "/%s/%s" % (bucket, key)).status == 200

    def get(self, bucket, key):
        """The whole object, to compare with."""
        return self._succeed("GET", "/%s/%s" % (bucket, key)).body

    def list_keys(self, bucket):
        """All keys of a small bucket, below 1000."""
        return self._listed(bucket, [("list-type", "2")], "Contents", "Key")

    def list_multipart_uploads(self, bucket):
        """The keys of uploads that were neither completed nor aborted."""
        return self._listed(bucket, [("uploads", "")], "Upload", "Key")

    def _listed(self, bucket, query, element, *fields):
        """A field of each element of a listing, or tuples of several."""
        tree = ElementTree.fromstring(self._succeed("GET", "/" + bucket, query).body)
        found = [[child.text for child in each if _local(child.tag) in fields] for each in tree if _local(each.tag) == element]
        return [each[0] if len(fields) == 1 else tuple(each) for each in found]


def _local(tag):
    """An XML name without its namespace."""
    return tag.rpartition("}")[2]


def quote(text, safe="/"):
    """Quote as SigV4 wants it."""
    return urllib.parse.quote(text, safe=safe + "-_.~")


def sign(method, host, target, body, headers, identity):
    """Headers for a request that S3 accepts (Signature Version 4); target is quoted and its query sorted."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path, _, query = target.partition("?")
    signed = {"host": host, "x-amz-date": now, "x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    request = "\n".join([method, path, query, *("%s:%s" % pair for pair in sorted(signed.items())), "",
                         ";".join(sorted(signed)), signed["x-amz-content-sha256"]])
    scope = "%s/%s/s3/aws4_request" % (now[:8], REGION)
    key = ("AWS4" + identity.secret_key).encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    authorization = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        identity.access_key, scope, ";".join(sorted(signed)), hmac.digest(key, text.encode(), "sha256").hex())
    return {**headers, **signed, "Authorization": authorization}


def _described(identity):
    return {"name": identity.name, "actions": identity.actions,
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}]}


def _weed():
    """The server's program: the one beside this Python, since the venv need not be activated."""
    beside = os.path.join(os.path.dirname(sys.executable), "weed")
    return beside if os.path.exists(beside) else shutil.which("weed") or beside


def _end_with_parent():
    """Have the kernel kill the server when its test process is killed. Linux only; elsewhere such a server would stay."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG


def _free_ports(count):
    """Ports below those that the kernel gives to clients, whose neighbour 10000 higher, for gRPC, is free as well."""
    free = []
    for port in random.SystemRandom().sample(range(12000, 22000), 10 * count):
        if len(free) < count and all(map(_is_free, (port, port + 10000))):
            free.append(port)
    return free


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
