"""An HTTP proxy on the loopback that misbehaves as it is told to, between the AWS CLI and a real S3 server.

    with FaultyProxy(server) as proxy:                      # proxy.url is the endpoint for the CLI
        proxy.inject(after=1000, then="reset", times=2)     # two bodies break off, then all is well
        ...
        assert [request.range for request in proxy.requests] == ["bytes=-1048576", "bytes=0-99999"]

Requests go on to the server as they come, Host included, since the client has signed them. A request that a fault changes
is signed anew, as the server's administrator.
"""

import dataclasses
import email.message
import http.client
import http.server
import io
import select
import socket
import socketserver
import struct
import threading
import time
import typing
import urllib.parse

import servers

_CHUNK = 64 * 1024
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange", 429: "TooManyRequests",
          500: "InternalError", 503: "SlowDown"}


@dataclasses.dataclass
class Fault:
    """What to do to the requests that match; all that is not set happens as usual."""

    times: typing.Optional[int] = 1             # how many requests it befalls; None: all of them
    when: typing.Callable = lambda request: request.method == "GET"     # which of them
    delay: float = 0                            # seconds before anything is answered
    status: typing.Optional[int] = None         # answered in place of the server
    code: typing.Optional[str] = None           # S3's name of that error; "" for an answer without a body
    ask: typing.Mapping = dataclasses.field(default_factory=dict)       # request headers to set, or to leave out if None
    answer: typing.Mapping = dataclasses.field(default_factory=dict)    # response headers likewise
    resize: int = 0                             # bytes to send beyond (below 0: short of) what is right, and to announce
    rate: typing.Optional[float] = None         # bytes per second
    after: typing.Optional[int] = None          # bytes of the body, before that which is to happen then
    then: str = "close"                         # or "reset", or "stall" until the client goes away
    befallen: int = 0                           # how many requests it has befallen so far


@dataclasses.dataclass
class Request:
    """What the client asked, and what came of it."""

    method: str
    target: str                                 # path and query as they came, quoted
    headers: email.message.Message
    status: typing.Optional[int] = None         # not answered yet, or never
    sent: int = 0                               # bytes of the answer's body
    received: int = 0                           # bytes of the request's body

    @property
    def path(self):
        """The path as it is meant: /bucket/key."""
        return urllib.parse.unquote(self.target.partition("?")[0])

    @property
    def range(self):
        return self.headers.get("Range")

    @property
    def if_match(self):
        return self.headers.get("If-Match")


class FaultyProxy:
    """A context manager. `rate` limits each connection that no fault limits otherwise."""

    def __init__(self, server, rate=None):
        self.requests = []
        self.rate = rate
        self.server_port = server.port
        self._faults = []
        self._lock = threading.Lock()
        self._connections = set()
        self._listener = None
        self._port = 0                          # not chosen yet

    def __enter__(self):
        self.come_back()
        return self

    def __exit__(self, *_):
        self.go_away()

    @property
    def url(self):
        return "http://127.0.0.1:%d" % self._port

    @property
    def sent(self):
        """Bytes of bodies sent so far."""
        return sum(request.sent for request in self.requests)

    def inject(self, **fields):
        """Add a fault; of those that match a request, the one added first befalls it. See Fault for the fields."""
        fault = Fault(**fields)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self):
        """Be well again, and forget the requests."""
        with self._lock:
            self._faults.clear()
        self.requests.clear()

    def go_away(self):
        """Reset all connections and refuse new ones."""
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
        for connection in list(self._connections):
            _reset(connection)

    def come_back(self):
        """Accept connections (again), on the same port."""
        self._listener = _Listener(("127.0.0.1", self._port), _Handler)
        self._listener.proxy = self
        self._port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def fault_for(self, request):
        with self._lock:
            for fault in self._faults:
                if fault.befallen != fault.times and fault.when(request):
                    fault.befallen += 1
                    return fault
        return Fault()


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100
    proxy: FaultyProxy

    def process_request(self, request, client_address):
        self.proxy._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.proxy._connections.discard(request)
        self.close_request(request)             # without a shutdown before it, which would make an end of a reset

    def handle_error(self, request, client_address):
        """Clients that go away are what this is about; they are no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def proxy(self):
        return self.server.proxy

    def log_message(self, *_):
        """The tests look at proxy.requests."""

    def do_GET(self):
        proxy = self.proxy
        request = Request(self.command, self.path, self.headers)
        proxy.requests.append(request)
        fault = proxy.fault_for(request)
        announced = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(announced)
        request.received = len(body)
        if len(body) < announced:
            return                              # the client has gone, or we have
        time.sleep(fault.delay)
        if fault.status:
            self._refuse(request, fault)
        else:
            self._forward(request, body, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _refuse(self, request, fault):
        code = _CODES.get(fault.status, "InternalError") if fault.code is None else fault.code
        body = b"<Error><Code>%s</Code><Message>injected</Message></Error>" % code.encode() if code else b""
        self._head(request, fault.status, {"Content-Length": str(len(body)), "Content-Type": "application/xml", **fault.answer})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, request, body, fault):
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._asked(body, fault):
                connection.putheader(name, value)
            connection.endheaders(body)
            self._pass_on(request, connection.getresponse(), fault)
        finally:
            connection.close()

    def _asked(self, body, fault):
        """The headers for the server. Expect has been answered, by http.server."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if not fault.ask:
            return headers.items()
        kept = _changed({name: headers[name] for name in ("Range", "If-Match") if name in headers}, fault.ask)
        if body:
            kept["Content-Length"] = str(len(body))
        return servers.sign(self.command, headers["Host"], self.path, body, kept, servers.ADMIN).items()

    def _pass_on(self, request, response, fault):
        headers = {name: value for name, value in response.getheaders() if name.lower() not in ("transfer-encoding", "connection")}
        source = response
        if "Content-Length" not in headers:     # what S3 says of other things than objects may come in chunks
            source = io.BytesIO(response.read())
            headers["Content-Length"] = str(len(source.getvalue()))
        length = int(headers["Content-Length"]) + fault.resize
        headers["Content-Length"] = str(length)
        self._head(request, response.status, _changed(headers, fault.answer))
        if self.command != "HEAD":
            self._send_body(request, source, length, fault)

    def _head(self, request, status, headers):
        request.status = status
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, request, source, length, fault):
        end = length if fault.after is None else min(fault.after, length)
        rate = fault.rate or self.proxy.rate
        started = time.monotonic()
        while request.sent < end:
            chunk = (source.read1(_CHUNK) or bytes(_CHUNK))[:end - request.sent]
            self.wfile.write(chunk)
            request.sent += len(chunk)
            if rate:
                time.sleep(max(0, started + request.sent / rate - time.monotonic()))
        if fault.after is not None:
            self._break_off(fault.then)

    def _break_off(self, then):
        self.close_connection = True
        if then == "reset":
            _reset(self.connection, shut=False)
        elif then == "stall":
            select.select([self.connection], [], [])


def _changed(headers, changes):
    """Headers with some replaced, and without those that are changed to None; names in any case."""
    names = {name.lower() for name in changes}
    kept = {name: value for name, value in headers.items() if name.lower() not in names}
    return {**kept, **{name: value for name, value in changes.items() if value is not None}}


def _reset(connection, shut=True):
    """Have a connection end with RST: at once, or when it is closed."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if shut:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass                                    # its client was faster
