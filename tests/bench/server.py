"""nginx as the S3 that the benchmark reads from: the unmodified readers take plain files under /BUCKET/KEY for objects.

It answers Range, If-Match, HEAD and an ETag as S3 does, and asks for no signature. One port sends as fast as it can, the
other at most 90 MiB/s per connection, about what one connection to S3 gives. Its access log tells what was really sent.
"""

import os
import pwd
import socket
import subprocess
import time

BUCKET = "bench"
SPEEDS = {"full": "", "90": "limit_rate 90m;"}

_CONFIG = """
user {user};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 2;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    log_format sent $body_bytes_sent;
    access_log {folder}/access.log sent;
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 2m;      # after each chunk a limited connection pauses: no burst is larger
    tcp_nopush on;
    keepalive_timeout 300;
    map $arg_prefix $size {{ {sizes} }}
    {servers}
}}
"""

# A listing by prefix is answered too, for readers that begin with one
_SERVER = """
    server {{
        listen 127.0.0.1:{port};
        root {root};
        {limit}
        location = /{bucket} {{
            default_type application/xml;
            return 200 '<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated><Contents><Key>$arg_prefix</Key><Size>$size</Size><ETag>"listed"</ETag><LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>';
        }}
    }}
"""  # noqa: E501


class Server:
    """A running nginx; `with` ends it."""

    def __init__(self, root, folder):
        """Serve root, which holds the bucket as a folder; folder is for nginx's own files."""
        self._ports = {speed: _free_port() for speed in SPEEDS}
        self._log = os.path.join(folder, "access.log")
        self._log_read = 0
        config = os.path.join(folder, "nginx.conf")
        with open(config, "w") as file:
            file.write(self._config(root, folder))
        self._process = subprocess.Popen(["nginx", "-p", folder, "-c", config], stderr=subprocess.DEVNULL)
        for port in self._ports.values():
            self._wait_for(port)

    def _config(self, root, folder):
        bucket = os.path.join(root, BUCKET)
        sizes = ["%s %d;" % (name, os.path.getsize(os.path.join(bucket, name))) for name in os.listdir(bucket)]
        servers = [_SERVER.format(port=port, root=root, limit=SPEEDS[speed], bucket=BUCKET)
                   for speed, port in self._ports.items()]
        user = pwd.getpwuid(os.geteuid()).pw_name       # root's nginx would serve as somebody who may not read our files
        return _CONFIG.format(user=user, folder=folder, sizes=" ".join(sizes), servers="".join(servers))

    def _wait_for(self, port):
        for _ in range(100):
            try:
                return socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise RuntimeError("nginx does not answer; is nginx-light installed?")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._process.terminate()
        self._process.wait()

    def endpoint(self, speed):
        return "http://127.0.0.1:%d" % self._ports[speed]

    def sent(self):
        """Bytes sent for each request since the last time."""
        time.sleep(0.2)         # nginx notes that a reader has gone when it writes to it again, and only then logs
        with open(self._log) as log:
            log.seek(self._log_read)
            sent = [int(line) for line in log.read().split()]
            self._log_read = log.tell()
        return sent


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
