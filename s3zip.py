"""Read ZIP archives, and any other object, in Amazon S3 through the AWS command line: no boto3, no download.

    import zipfile
    from s3zip import S3File

    with zipfile.ZipFile(S3File("s3://bucket/archive.zip")) as archive:
        for info in archive.infolist():
            print(info.filename, info.file_size)
        with archive.open("data/table.csv") as member:
            for line in member:
                ...

The path of a read, which is also the order of this file:

    S3File               io.BufferedReader: peek, readline, iteration and locking, all in C
      _ObjectReader      the position, the caches, and the decision what to fetch next
        _Segment         one range of the object: a running `aws s3api get-object` and the temp file that it fills
          _Object        which object it is, how to ask for a range of it, and whether an answer is of the version opened
            _Call        one run of `aws`: the only place that starts a process
              _aws_error the only place that reads what a failed `aws` said

What costs is starting `aws`: about half a second of CPU, in which one connection to S3 moves 40 MB. So the reader asks
for few and large ranges, reads their temp files while these still grow, and starts the next ones before they are needed.
A ZIP's own directory tells where members begin and end: what is fetched for one member ends with that member.

Ranges are half-open, [start, end), except in `_http_range`. Everything raised for S3's sake is an `S3Error`.
"""

import bisect
import codecs
import errno
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import weakref

__all__ = ["S3File", "s3open", "S3Error", "CACHE_SIZE"]
__version__ = "1.0.0"

KiB, MiB = 1024, 1024 * 1024

CACHE_SIZE = 1 * MiB        # bytes in the front and in the back cache: the directory of some 10 000 members, 12 ms at 90 MB/s
TEMP_DISK = 512 * MiB       # `cache_size` by default: what one file may hold in the temp folder

_BUFFER_SIZE = 128 * KiB    # of the BufferedReader: one look into a temp file serves 32 reads of zipfile
_FIRST_WINDOW = 1 * MiB     # of a reader who has just run on to another member, or jumped in an object without members
_SMALLEST_RANGE = 128 * KiB  # of what is asked for: its neighbours, in 2 ms
_GROWTH = 4                 # each further window is so many times the last one
_FIRST_SEGMENT = 64 * MiB   # of a run: at 90 MB/s it arrives in about the time that the next call takes to start
_SMALLEST_LIMIT = 64 * KiB  # of a segment, however little disk there is
_JUMP = 1 * MiB             # skipping so much still counts as reading on
_HELD_BACK = 1 * MiB        # the end of a segment, which is given out only when the call has ended and its answer is right
_MOST_RUNNING = 4           # processes of one file, if it is read in one place
_MOST_RUNS = 8              # places in turn that keep what they have running
_MOST_SEGMENTS = 100        # temp files of one file: a process on macOS may open 256
_LOOK_EVERY = 1 * MiB       # bytes read between thoughts about what else to start
_POLL = 0.01                # seconds between looks at a growing file: 0.9 MB at 90 MB/s, at 1 % of a core
_MUCH_WAITED = 0.05         # seconds for the network after which more is started ahead
_TRIES = 5                  # calls in a row without a new byte before their error is raised
_PAUSE = 0.2                # seconds before a range is asked for again; doubled each time

_UPLOAD_BUFFER = 256 * KiB  # of the BufferedWriter: about what a socket takes at once
_INTERRUPT_SECONDS = 1      # for `aws s3 cp` to know of an interrupt before its input ends: v1 might wait 60 s for a part
_ABORT_SECONDS = 90         # for `aws s3 cp` to take back what it has uploaded: longer than its read timeout

_log = logging.getLogger("s3zip")
_log.addHandler(logging.NullHandler())      # or Python prints warnings where nobody has asked for a log


class S3File(io.BufferedReader):
    """An object in S3 as a file opened with "rb": seekable, and read through `aws s3api get-object`.

    name: "s3://BUCKET/KEY", or the ARN of an access point in place of the bucket. All after the first slash is the key,
        to the letter: `?`, `#`, `%`, spaces and slashes mean nothing special.
    mode: "rb" and nothing else.
    aws: the command with its global options, as a string that is split as a shell would or as a sequence, such as
        "aws --profile prod --region eu-west-1"; by default the environment variable S3ZIP_AWS, else "aws".
    version_id: the version to read (needs s3:GetObjectVersion); by default the latest, which is pinned by its ETag.
    options: more options of `aws s3api get-object`, string or sequence, such as ("--request-payer", "requester").
    cache_size: bytes of temp disk to use, by default 512 MiB or three eighths of what is free, whichever is less. The range
        that is being read comes on top, up to a third of it. A larger one allows larger ranges.

    Opening makes one call, which fetches the last CACHE_SIZE bytes and learns the length. It raises ValueError for a URL or
    a mode that cannot be, else FileNotFoundError, PermissionError, ConnectionError or a plain S3Error; all are S3Errors.
    Reading raises S3Error with errno ESTALE if the object has changed since; what merely broke off is asked for again.

    Attributes: name, mode, url (parsed), bucket, key, length (bytes), ETag (None for an empty object), version_id,
    frontcache and backcache (the first and the last CACHE_SIZE bytes).
    An S3File can be pickled: it opens again where it is first used, at the same position, and only the same version.
    """

    raw: "_ObjectReader"

    def __init__(self, name, mode="rb", *, aws=None, version_id=None, options=(), cache_size=None):
        if mode != "rb":
            raise ValueError("mode must be 'rb', not %r; s3open reads text and writes" % (mode,))
        if cache_size is not None and cache_size < 0:
            raise ValueError("cache_size must not be negative")
        raw = _ObjectReader(_Object(name, aws, options, version_id), cache_size)
        raw.open()
        super().__init__(raw, _BUFFER_SIZE)

    url = property(lambda self: self.raw.source.url, doc="the URL parsed: scheme, netloc (the bucket), path (/ and the key)")
    bucket = property(lambda self: self.raw.source.bucket, doc="the bucket's name or the access point's ARN")
    key = property(lambda self: self.raw.source.key, doc="the key, to the letter")
    length = property(lambda self: self.raw.source.length, doc="bytes in the object")
    ETag = property(lambda self: self.raw.source.ETag, doc="as S3 gives it, in quotes; None for an empty object")
    version_id = property(lambda self: self.raw.source.version_id, doc="the version opened; None without versioning")
    frontcache = property(lambda self: self.raw.head(), doc="the first CACHE_SIZE bytes, fetched when first needed")
    backcache = property(lambda self: self.raw.tail(), doc="the last CACHE_SIZE bytes, there since opening")

    def __repr__(self):
        return "<s3zip.S3File %r%s>" % (self.raw.source.name, " closed" if self.closed else "")

    def __reduce_ex__(self, protocol):
        return _reopen, (type(self), self.raw.source, self.raw.cache_size, self.tell())


def _reopen(cls, source, cache_size, position):
    """Make a pickled S3File again, without a call: an error raised here would break the process pool that unpickles."""
    file = cls.__new__(cls)
    io.BufferedReader.__init__(file, _ObjectReader(source, cache_size), _BUFFER_SIZE)
    file.seek(position)
    return file


class _Run:
    """One reader's way through the object; there are several when members are read in turn."""

    def __init__(self, position):
        self.position = position        # where it was read last
        self.last_start = None          # where its last segment starts; None: has none yet
        self.window = 0                 # bytes to fetch whatever member they are of; grows as reading runs on
        self.explicit = False           # whether its last segment is as large as one read wanted it
        self.depth = 1                  # how many segments to have ahead of the one that is read
        self.turn = 0                   # when it was read last, counted in changes from run to run
        self.look_again = position      # where to think of more segments next
        self.waited = 0.0               # seconds spent waiting for data since `since`
        self.since = time.monotonic()   # when depth was changed last

    def wait(self, seconds, for_network):
        """Let time pass until more has come. What more segments ahead would not have spared does not count as waiting."""
        time.sleep(seconds)
        if for_network:
            self.waited += seconds
            if self.waited > _MUCH_WAITED:
                self.look_again = self.position
        else:
            self.since = time.monotonic()

    def adjust(self):
        """Have more segments ahead when half of the time is spent waiting for the network, fewer when hardly any is."""
        elapsed = time.monotonic() - self.since
        if self.waited > max(_MUCH_WAITED, elapsed / 2):
            self.depth = min(self.depth + 1, _MOST_RUNNING - 1)
        elif elapsed > 1 and self.waited < elapsed / 10:
            self.depth = max(self.depth - 1, 1)
        elif elapsed < 1:
            return
        self.waited, self.since = 0.0, time.monotonic()


class _ObjectReader(io.RawIOBase):
    """The position, what of the object is in memory or on disk, and what to fetch next.

    BufferedReader calls this under its lock: only one thread is ever in here.
    """

    mode = "rb"

    def __init__(self, source, cache_size):
        self.source = source
        self.cache_size = cache_size    # as the caller gave it
        self.calls = 0                  # segments started, of which each is a run of `aws`
        self.fetched = 0                # bytes that dropped segments brought
        self.unread = 0                 # and how many of those nobody read
        self._position = 0
        self._opened = False            # whether the tail has been fetched
        self._tail = b""                # the back cache
        self._head = None               # the front cache; None: not fetched, or still in its segment
        self._segments = []             # what is on disk or coming, oldest first
        self._runs = []                 # the last few, the one read last first
        self._turn = 0                  # changes from run to run
        self._keep = 1                  # how many runs seem to be read in turn
        self._new_runs = 0              # changes to a new run, in a row
        self._budget = cache_size       # bytes of temp disk; None: not looked up yet
        self._call_seconds = 0.45       # what starting `aws` takes; measured when opening
        self._failures = 0              # calls in a row that brought no byte
        self._wanted = 0                # the position up to which the caller has asked for bytes
        self._exactly = False           # whether bounds are of what is going to be read, and nothing beyond is
        self._bounds = None             # where members begin and end, ascending; None: the tail not looked at yet
        self._stored = set()            # where those begin that are not compressed
        self._unread_directory = None   # an archive's directory that reaches beyond the tail and has not come yet
        self._pid = os.getpid()

    # -- what io asks for

    @property
    def name(self):
        """The URL as given. zipfile asks for it before it reads, and would make BadZipFile of what reading raises: so a
        file that comes out of a pickle is opened here."""
        if not self.closed:
            self.open()
        return self.source.name

    def readable(self):
        self._check_open()
        return True

    def seekable(self):
        self._check_open()
        return True

    def tell(self):
        self._check_open()
        return self._position

    def seek(self, offset, whence=io.SEEK_SET):
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.source.length}
        if whence not in bases:
            raise ValueError("invalid whence (%r, should be 0, 1 or 2)" % (whence,))
        if bases[whence] + offset < 0:
            raise OSError(errno.EINVAL, "seek to before the beginning", self.source.name)
        self._position = bases[whence] + offset
        return self._position

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")
        self._wanted = self._position + len(view) if len(view) > _BUFFER_SIZE else 0
        return self._advance(view)

    def readall(self):
        pieces = io.BytesIO()           # unlike a join, its getvalue() makes no second copy
        piece = memoryview(bytearray(min(8 * MiB, max(0, self.source.length - self._position))))
        self._wanted = self.source.length
        count = self._advance(piece)
        while count:
            pieces.write(piece[:count])
            count = self._advance(piece)
        return pieces.getvalue()

    def close(self):
        """Stop what is running. Never raises: that would replace the exception of the `with` body."""
        for segment in self._segments:
            segment.close()
        super().close()

    def _check_open(self):
        if self.closed:
            raise ValueError("I/O operation on closed file")

    # -- what is in memory

    def open(self):
        """Fetch the tail, unless it is there: its answer tells length, ETag and version."""
        while not self._opened and self.source.length != 0:
            segment = self._start(-CACHE_SIZE, 0, _Run(0), "open")
            try:
                while segment.running():
                    time.sleep(_POLL)
                if segment.error is None:
                    self._tail = segment.read(0, CACHE_SIZE)
                    self._opened = True
                elif segment.error.code in ("InvalidRange", "416") and self.source.length is None:
                    self.source.length = 0      # the last bytes can be had of any object but an empty one
                elif self.source.length is None and not segment.arrived:
                    raise segment.error         # `aws` has tried several times
                else:
                    self._count_failure(segment, new_bytes=False)   # they come again
                segment.read_to = segment.arrived       # it is needed, be it for opening alone
                self._call_seconds = segment.seconds_to_start()
            finally:
                self._drop(segment)

    def expect(self, ranges):
        """Take these ranges, ascending, for the members, since they are what is going to be read; and nothing else is."""
        self._bounds = [bound for start_and_end in ranges for bound in start_and_end]
        self._exactly = True
        self._unread_directory = None

    def tail(self):
        self.open()
        return self._tail

    def head(self):
        self.open()
        if self._head is None:
            head = memoryview(bytearray(min(CACHE_SIZE, self.source.length)))
            at = 0
            while at < len(head):
                at += self._read(at, head[at:])
            self._head = bytes(head)
        return self._head

    def _tail_start(self):
        return self.source.length - len(self._tail)

    def _cached(self, start, end):
        """What the caches have of [start, end), from start on."""
        if start >= self._tail_start():
            return self._tail[start - self._tail_start():end - self._tail_start()]
        return self._head[start:end] if self._head else b""

    # -- reading

    def _advance(self, view):
        """Fill view from the position on, at least one byte of it before the end of the object."""
        self._check_open()
        view = view[:max(0, self.source.length - self._position)]
        count = self._read(self._position, view) if view else 0
        self._position += count
        return count

    def _read(self, position, view):
        self.open()
        if self._pid != os.getpid():
            self._forget_parents_calls()
        cached = self._cached(position, position + len(view))
        if cached:
            view[:len(cached)] = cached
            return len(cached)
        while True:
            segment = self._segment_at(position) or self._demand(position)
            self._visit(segment.run, position)
            count = segment.readinto(view, position)
            if count:
                self._failures = 0
                segment.run.position = position + count
                return count
            if segment.ended:           # as readinto found: to look again here could find the rest of the bytes
                self._recover(segment)
            elif self._is_far_ahead(segment, position):
                self._stop(segment)
            else:
                segment.run.wait(_POLL, for_network=segment.is_short())

    def _segment_at(self, position):
        for segment in self._segments:
            if segment.start <= position < segment.end:
                return segment
        return None

    def _is_far_ahead(self, segment, position):
        """Whether a new call would bring position sooner than the segment that is on its way to it."""
        return (0 < segment.arrived < position - segment.start - _JUMP
                and segment.seconds_left(position) > self._call_seconds)

    def _stop(self, segment):
        """End a call that is not worth its time; what it has brought stays."""
        segment.stop()
        if not segment.arrived:
            self._drop(segment)

    def _recover(self, segment):
        """A segment broke off before the byte that is read now: raise its error, or let that byte be asked for again."""
        segment.end = segment.start + segment.arrived
        if not segment.arrived:
            self._drop(segment)
        self._count_failure(segment, new_bytes=segment.arrived > 0)

    def _count_failure(self, segment, new_bytes):
        """Raise the segment's error if it will not pass or came too often without a new byte; else wait a little."""
        self._failures = 0 if new_bytes else self._failures + 1
        if not segment.error.passing or self._failures >= _TRIES:
            self._failures = 0
            raise segment.error
        _log.warning("resuming %s of %s after %d bytes: %s", segment.asked, self.source.name, segment.arrived,
                     segment.error.strerror)
        time.sleep(_PAUSE * 2 ** self._failures)

    def _forget_parents_calls(self):
        """After a fork: the processes are the parent's to wait for and to stop; what has come is shared."""
        self._pid = os.getpid()
        for segment in [s for s in self._segments if not s.ended]:
            segment.disown()
            self._segments.remove(segment)

    # -- what to fetch

    def _demand(self, position):
        """Ask for what is read now and is not there: the one segment that the reader has to wait for."""
        run = self._run_near(position) or _Run(position)
        run.position = start = position
        end = self._range_end(run, position)
        if not self._exactly:
            end = max(end, min(position + _SMALLEST_RANGE, self._range_stop(position)))
            if position < CACHE_SIZE and not any(s.start < CACHE_SIZE for s in self._segments):
                start, end = 0, max(end, min(CACHE_SIZE, self._tail_start()))   # have all of the front cache
        self._make_room(end - start, position, at_any_price=True)
        segment = self._start(start, end, run, "read")
        run.last_start = position
        return segment

    def _run_near(self, position):
        """The run that is read on at position, or near it."""
        return next((run for run in self._runs if abs(position - run.position) <= _JUMP), None)

    def _visit(self, run, position):
        """A run is read at position: see to what else should be running, for this and for other runs."""
        if not self._runs or run is not self._runs[0]:
            self._change_to(run)
        run.position = position
        if position >= run.look_again:
            run.look_again = position + _LOOK_EVERY
            run.adjust()
            self._stop_left_behind()
            self._fetch_ahead(run)

    def _change_to(self, run):
        """Reading goes on elsewhere. Runs that are come back to are kept going; a new one alone shows nothing."""
        self._turn += 1
        if run in self._runs:
            self._runs.remove(run)
            self._new_runs = 0
            self._keep = max(self._keep, min(self._turn - run.turn, _MOST_RUNS))
        else:
            self._new_runs += 1
            if self._new_runs > self._keep:
                self._keep = 1
        self._runs.insert(0, run)
        del self._runs[2 * _MOST_RUNS:]
        run.turn = self._turn
        self._stop_left_behind()

    def _is_kept(self, run):
        return run.turn > self._turn - self._keep

    def _stop_left_behind(self):
        """Stop what is running where nobody reads, unless it ends sooner than a new call would start."""
        for segment in [s for s in self._segments if s.running()]:
            behind = not self._is_kept(segment.run) or segment.end <= segment.run.position
            if behind and segment.seconds_left(segment.end) > self._call_seconds:
                self._stop(segment)

    def _fetch_ahead(self, run):
        """Start the next segment of a run before it is needed, if reading seems to go on and there is room."""
        chain = self._chain(run.position)
        running = sum(s.running() for s in self._segments)
        start = chain[-1].end
        if (len(chain) > (run.depth if self._keep == 1 else 1) or running >= max(_MOST_RUNNING, self._keep + 1)
                or self._failures or any(s.error for s in chain) or start >= self._tail_start()):
            return
        hardly_begun = run.position - chain[0].start < self._begin(run, chain[0])
        if start >= self._wanted and (hardly_begun or self._is_too_far(run, start, chain)):
            return
        end = self._range_end(run, start)
        if self._make_room(end - start, run.position):
            self._start(start, end, run, "read ahead")

    def _chain(self, position):
        """The segment that holds position and those that follow it without a gap."""
        chain = []
        segment = self._segment_at(position)
        while segment:
            chain.append(segment)
            segment = self._segment_at(segment.end)
        return chain

    def _begin(self, run, segment):
        """Bytes of a segment to be read before the next one is started."""
        if self._exactly or self._is_long(self._member(segment.start)):
            return 0
        return min((segment.end - segment.start) // 8, _LOOK_EVERY if run.depth > 1 else segment.end)

    def _is_too_far(self, run, start, chain):
        """Whether start is in another member than the one read, and the run has not run on often enough to get there now; or
        nothing tells that a single large read will be followed by more."""
        member = self._member(start)
        if member is None:
            return self._exactly or run.explicit
        return member[0] > run.position and (run.window == 0 or len(chain) > 1 and run.window < self._limit())

    def _is_long(self, member):
        """Whether a member is sure to have its reader wait for the network, and takes many calls, so that one more or less in
        vain does not count."""
        return (member is not None and (self._exactly or member[0] in self._stored)
                and member[1] - member[0] > self._temp_disk())

    def _range_end(self, run, start):
        """Where a range of run that begins at start ends: with the member that is read, unless reading has run on before."""
        member = self._member(start)
        limit = self._limit()
        if run.last_start is None and not self._is_long(member):
            limit = min(limit, _FIRST_SEGMENT)
        run.window = min(limit, self._window(run, member))
        run.explicit = self._wanted > start + run.window
        end = max(start + run.window, self._wanted)
        if member and member[0] <= run.position:
            end = max(end, member[1])
        if end - start > limit * 5 // 4:        # not leaving a rest that costs a call for little
            end = start + limit
        return min(end, self._range_stop(start))

    def _window(self, run, member):
        """The window of a run that goes on in this member: larger if it has come there from another, or there are none."""
        if member is None:
            return max(_FIRST_WINDOW, run.window * _GROWTH)
        if self._exactly or run.last_start is None or member[0] <= run.last_start:
            return run.window
        before = self._member(run.position - 1) if run.window else None     # who reads whole members gets a whole one more
        return max(_FIRST_WINDOW, run.window * _GROWTH, before[1] - before[0] if before else 0)

    def _range_stop(self, start):
        """Where what is there already begins."""
        return min([s.start for s in self._segments if s.start > start], default=self._tail_start())

    def _limit(self):
        """Bytes that a segment may have: room for four of them, or two for each run that is read in turn."""
        return max(_SMALLEST_LIMIT, self._temp_disk() // max(4, 2 * self._keep))

    def _temp_disk(self):
        """The budget. Its default leaves half of the disk free, even with the segment that is read on top, 5/16 of it."""
        if self._budget is None:
            self._budget = min(TEMP_DISK, shutil.disk_usage(tempfile.gettempdir()).free * 3 // 8)
        return self._budget

    def _start(self, start, end, run, why):
        segment = _Segment(self.source, start, end, run, why)
        run.last_start = start
        self.calls += 1
        self._segments.append(segment)
        return segment

    # -- what to keep

    def _make_room(self, size, position, at_any_price=False):
        """Evict old segments until the budget holds size more bytes; False if what is left is still to be read."""
        while True:
            others = [s for s in self._segments if not s.start <= position < s.end]
            if sum(s.disk() for s in others) + size <= self._temp_disk() and len(others) < _MOST_SEGMENTS:
                return True
            spent = [s for s in others if s.end <= s.run.position or not self._is_kept(s.run)]
            if not spent and at_any_price:
                spent = sorted(others, key=lambda s: (s.run.turn, -s.start))    # the one needed last
            if not spent:
                return at_any_price
            self._drop(spent[0])

    def _drop(self, segment):
        """Forget a segment, but for what it brought to the front cache and to the statistics."""
        segment.stop()
        if segment.start == 0 and not self._head and segment.arrived >= CACHE_SIZE:
            self._head = segment.read(0, CACHE_SIZE)
        self.fetched += segment.arrived
        self.unread += segment.arrived - segment.read_to
        segment.close()
        self._segments.remove(segment)

    def stats(self):
        """How many calls, how many bytes they brought, and how many of those were never read."""
        return (self.calls, self.fetched + sum(s.arrived for s in self._segments),
                self.unread + sum(s.arrived - s.read_to for s in self._segments))

    # -- where members begin and end

    def _member(self, position):
        """The member, (start, end), that holds position, or None where none is known.

        What an archive says of itself is used for nothing else: if it lies, this costs speed, not correctness.
        """
        if self._bounds is None:
            self._unread_directory = _Directory.find(self._tail, self._tail_start())
            self._bounds = []
        if self._unread_directory:
            self._read_directory(self._unread_directory)
        after = bisect.bisect_right(self._bounds, position)
        return (self._bounds[after - 1], self._bounds[after]) if 0 < after < len(self._bounds) else None

    def _read_directory(self, directory):
        """Learn the members' bounds, once the whole directory is here. Until then, only it is known."""
        chain = self._chain(directory.start) if directory.start < self._tail_start() else []
        if directory.start >= self._tail_start() or (chain and chain[-1].end == self._tail_start()
                                                     and all(s.ended and not s.error for s in chain)):
            data = b"".join([s.read(max(0, directory.start - s.start), s.end - s.start) for s in chain])
            data += self._tail[max(0, directory.start - self._tail_start()):]
            self._bounds, self._stored = directory.bounds(data)
            self._unread_directory = None
        else:
            self._bounds = [directory.start, self._tail_start()]


class _Directory:
    """The central directory of a ZIP archive: where it is, and where it says that members are (APPNOTE.TXT 4.3 and 4.5.3)."""

    _END = struct.Struct("<4s4H2LH")                    # end of central directory record
    _END64 = struct.Struct("<4sQ2H2L4Q")                # the same of zip64
    _LOCATOR64 = struct.Struct("<4sLQL")
    _ENTRY = struct.Struct("<4s6xH8x2L3H8xL")           # a member: method, sizes, three lengths, offset
    _LOCAL_HEADER = 30 + 0xFFFF + 24                    # its extra field may have any length; and a data descriptor

    def __init__(self, start, size, shift):
        self.start = start              # in the object
        self.size = size
        self.shift = shift              # what stands before the archive, as in one that extracts itself

    @classmethod
    def find(cls, tail, tail_start):
        """The directory that the end of an object tells of, or None."""
        at = tail.rfind(b"PK\5\6", max(0, len(tail) - cls._END.size - 0xFFFF))
        if at < 0 or at + cls._END.size > len(tail):
            return None
        size, offset = cls._END.unpack_from(tail, at)[5:7]
        at64 = at - cls._LOCATOR64.size - cls._END64.size
        if at64 >= 0 and tail[at64:at64 + 4] == b"PK\6\6" and tail[at - cls._LOCATOR64.size:][:4] == b"PK\6\7":
            size, offset = cls._END64.unpack_from(tail, at64)[8:10]
            at = at64
        start = tail_start + at - size
        return cls(start, size, start - offset) if 0 <= start and 0 <= start - offset else None

    def bounds(self, data):
        """Every position where a member begins or ends, ascending, and those where one begins that is not compressed, as
        data, the directory's bytes, have it."""
        members = sorted(self._members(data))
        bounds = {0, self.start}
        for (start, end, _), (following, _, _) in zip(members, members[1:] + [(self.start, 0, 0)]):
            bounds.update((start, min(end, following)))
        return sorted(bound for bound in bounds if bound <= self.start), {start for start, _, method in members if method == 0}

    def _members(self, data):
        at = 0
        while at + self._ENTRY.size <= min(len(data), self.size):
            magic, method, size, full_size, name, extra, comment, offset = self._ENTRY.unpack_from(data, at)
            if magic != b"PK\1\2":
                return
            if 0xFFFFFFFF in (size, offset):
                fields = data[at + self._ENTRY.size + name:][:extra]
                size, offset = self._zip64(fields, full_size, size, offset)
            start = self.shift + offset
            yield start, start + self._LOCAL_HEADER + name + size, method
            at += self._ENTRY.size + name + extra + comment

    @staticmethod
    def _zip64(fields, *sizes):
        """Size and offset, with those replaced that stand in the zip64 extra field, in its order: full size first."""
        at = 0
        while at + 4 <= len(fields):
            kind, length = struct.unpack_from("<2H", fields, at)
            if kind == 1:
                field = fields[at + 4:at + 4 + length]
                large = iter(struct.unpack_from("<%dQ" % (len(field) // 8), field))
                return [next(large, size) if size == 0xFFFFFFFF else size for size in sizes][1:]
            at += 4 + length
        return sizes[1:]


class _Segment:
    """Bytes [start, end) of the object, and the call of `aws` that fills a temp file with them.

    The only one who knows that its bytes come from a process: another source of the same range could stand in its place.
    start = -N, end = 0 are the last N bytes.
    """

    def __init__(self, source, start, end, run, why):
        self.start, self.end, self.run = start, end, run
        self.asked = _http_range(start, end)
        self.first = run.last_start is None         # of its run
        self.arrived = 0                            # bytes in the temp file; none of them if they are not to be trusted
        self.read_to = 0                            # how far they have been read
        self.ended = False                          # whether the call has, or was stopped
        self.error = None                           # why not all has arrived
        self._source, self._why = source, why
        self._body = _temp_file()
        try:
            self._call = source.get(self.asked, self._body)
        except BaseException:
            self._body.close()
            raise
        self._empty_at = self._call.started         # when nothing had arrived yet
        self._stop_at_exit = weakref.finalize(self, self._call.stop)

    def running(self):
        """Whether more may arrive. Looks."""
        if not self.ended:
            status = self._call.status()            # before the size, which then is final
            self.arrived = os.fstat(self._body.fileno()).st_size
            if not self.arrived:
                self._empty_at = time.monotonic()
            if status is not None or self.arrived > self.end - self.start:
                self._finish()
        return not self.ended

    def _finish(self):
        """Hold what has arrived against what was asked for and against what `aws` says of it."""
        try:
            if self.arrived > self.end - self.start:
                raise self._source.error(errno.EIO, "the server sent more bytes than asked for", self._call)
            answer = self._call.answer(self._source.ETag is not None)
            self._source.accept(answer, self.start, self.end, self.arrived, self._call)
        except S3Error as error:
            self.error = error
            if not error.passing:
                self.arrived = self.read_to = 0
        self.ended = True               # only now: an interrupt before makes all of this be done again
        self._end_call(self.error.strerror if self.error else "ended")

    def _end_call(self, how):
        self._stop_at_exit()
        self._call.close()
        _log.debug("get-object %s of %s to %s: %d bytes in %.2f s, %s", self.asked, self._source.name, self._why, self.arrived,
                   time.monotonic() - self._call.started, how)

    def readinto(self, view, position):
        """Copy what may be given out from position on, and say how much this is; 0 if nothing of it has come."""
        ready = min(self.arrived, self.end - self.start - _HELD_BACK) if self.running() else self.arrived
        offset = position - self.start
        count = max(0, min(len(view), ready - offset))
        if hasattr(os, "preadv"):       # not on macOS before Python 3.10; saves a copy
            count = os.preadv(self._body.fileno(), [view[:count]], offset)
        else:
            data = self.read(offset, offset + count)
            view[:len(data)] = data
        self.read_to = max(self.read_to, offset + count)
        return count

    def read(self, start, end):
        """Bytes [start, end) of those that have arrived, counted from the first of them."""
        return os.pread(self._body.fileno(), max(0, min(end, self.arrived) - start), start)

    def is_short(self):
        """Whether having been started earlier would have helped its reader: not if it is the first, or all is here."""
        return 0 < self.arrived < self.end - self.start or not (self.first or self.arrived)

    def disk(self):
        """Bytes that it takes, or is going to take, in the temp folder."""
        return self.arrived if self.ended else self.end - self.start

    def seconds_to_start(self):
        """How long the first byte was waited for."""
        return self._empty_at - self._call.started

    def seconds_left(self, position):
        """How long the bytes up to position will take to come, at the rate seen so far."""
        if not self.running() or not self.arrived:
            return 0 if self.ended else float("inf")
        rate = self.arrived / (time.monotonic() - self._empty_at)
        return (position - self.start - self.arrived) / rate

    def stop(self):
        """End the call. What has arrived stays, but for the part that only a checked answer would have released."""
        if self.running():
            self._stop_at_exit()
            self.arrived = max(0, min(os.fstat(self._body.fileno()).st_size, self.end - self.start - _HELD_BACK))
            self.end = self.start + self.arrived
            self.ended = True
            self._end_call("stopped")

    def disown(self):
        """Forget the call without ending it."""
        self.ended = True
        self._stop_at_exit.detach()
        self._call.disown()
        self._call.close()
        self.close()

    def close(self):
        """End the call and let go of the temp file; where a cycle of garbage is collected, that may be closed before us."""
        if self._body.closed:
            self._stop_at_exit()
            self._call.close()
        else:
            self.stop()
            self._body.close()


def _http_range(start, end):
    """HTTP's form of [start, end): inclusive. The last N bytes, [-N, 0), are "bytes=-N"."""
    return "bytes=%d" % start if start < 0 else "bytes=%d-%d" % (start, end - 1)


class _Object:
    """Which object, how to ask for a range of it and, once it is opened, which version; all of this is what a pickle holds."""

    _URL = re.compile(r"s3://(arn:[^/]*:(?:accesspoint[:/][^/:]+|outpost[:/][^/:]+[:/]accesspoint[:/][^/:]+)|(?!arn:)[^/]+)/(.+)",
                      re.DOTALL)

    def __init__(self, name, aws, options, version_id=None):
        match = self._URL.fullmatch(name) if isinstance(name, str) else None
        if not match:
            raise ValueError("not an s3://BUCKET/KEY URL: %r" % (name,))
        self.name = name
        self.bucket, self.key = match.groups()
        self.aws = _words(os.environ.get("S3ZIP_AWS") or "aws" if aws is None else aws)
        self.options = _words(options)
        self.asked_version = self.version_id = version_id
        self.length = None              # not opened yet
        self.ETag = None                # not opened yet, or an empty object
        if not self.aws:
            raise ValueError("aws must name a command")
        if "\0" in name:
            raise ValueError("null byte in URL: %r" % (name,))
        if _looks_like_parameter(self.key) and "\r" in self.key:
            raise ValueError("the AWS CLI cannot be given a key like %r: it makes line feeds of its carriage returns" % self.key)

    @property
    def url(self):
        from urllib.parse import ParseResult        # takes a fifth of all the other imports, and few ask for this

        return ParseResult("s3", self.bucket, "/" + self.key, "", "", "")

    def get(self, http_range, body):
        """Start `aws` to fill the file `body` with a range."""
        files = []
        words = ["s3api", "get-object", "--output=json", "--range=" + http_range]
        for option, value in (("--bucket", self.bucket), ("--key", self.key), ("--if-match", self.ETag),
                              ("--version-id", self.asked_version)):
            if value is not None:
                words.append(option + "=" + _literal(value, files))
        return _Call(self, words + self.options + [_path(body)], [body.fileno()], files)

    def accept(self, answer, start, end, arrived, call):
        """Hold the JSON of get-object against what was asked, [start, end); the first answer tells what the object is."""
        if start < 0 and self.length is None and answer.get("ContentLength") == 0 == arrived:
            total, given = 0, (0, 0)            # some servers answer so for an empty object, without a range
        else:
            numbers = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(answer.get("ContentRange")))
            if not numbers or not isinstance(answer.get("ETag"), str):
                raise self.error(errno.EIO, "the server did not answer with a range and an ETag, as S3 does", call)
            first, last, total = map(int, numbers.groups())
            given = (first, last + 1)
        if self.length is None:
            self.length, self.ETag = total, answer.get("ETag")
            self.version_id = answer.get("VersionId", self.version_id)
        if (total, answer.get("ETag")) != (self.length, self.ETag):
            raise self.changed("the server sent ETag %s of %d bytes" % (answer.get("ETag"), total), call)
        if given != ((max(0, total + start), total) if start < 0 else (start, end)):
            raise self.error(errno.EIO, "the server sent another range, %s" % answer.get("ContentRange"), call)
        if arrived < given[1] - given[0]:
            raise self.error(errno.EIO, "only %d of %d bytes came" % (arrived, given[1] - given[0]), call, passing=True)

    def error(self, number, message, call=None, kind=None, code=None, passing=False):
        error = (kind or S3Error)(number, message, self.name)
        error.code, error.passing = code, passing
        if call:
            error.command, error.status, error.stderr = call.shown(), call.status(), call.stderr()
        return error

    def changed(self, message, call, code=None):
        return self.error(errno.ESTALE, "the object has changed since it was opened (ETag %s, %s bytes): %s; open it again"
                          % (self.ETag, self.length, message), call, code=code)


def _words(command):
    """A command, or a part of one, as a list: a string is split as a shell would."""
    return shlex.split(command) if isinstance(command, str) else [os.fspath(word) for word in command]


def _looks_like_parameter(value):
    """Whether the CLI would take a value for the address of one, and read a local file or call a server instead."""
    return value.startswith(("file://", "fileb://", "http://", "https://"))


def _literal(value, files):
    """Value such that the CLI takes it to the letter: if need be by way of a file, whose content it does not interpret."""
    if not _looks_like_parameter(value):
        return value
    content = value.encode()
    files.append(_temp_file())
    files[-1].write(content)
    files[-1].seek(0)
    return "file://" + _path(files[-1])


_HAS_DEV_FD = os.path.isdir("/dev/fd")


def _temp_file():
    """A file that a child can open by `_path`: where there is /dev/fd it has no name, so that nothing can be left behind."""
    return (tempfile.TemporaryFile if _HAS_DEV_FD else tempfile.NamedTemporaryFile)(buffering=0)


def _path(file):
    return "/dev/fd/%d" % file.fileno() if _HAS_DEV_FD else file.name


def s3open(path, mode="r", encoding=None, errors=None, newline=None, *, aws=None, options=(), expected_size=None):
    """Open an object as `open()` opens a file, to read it or to write it from the start.

    path: "s3://BUCKET/KEY"; mode: "r" or "w", with "t" (the default) or "b"; encoding (default UTF-8), errors, newline: as
    for `open()`. aws: as for S3File. options: more options of `aws s3api get-object` or, for writing, of `aws s3 cp`.
    expected_size: bytes that will be written, needed above 80 GB (https://docs.aws.amazon.com/cli/latest/reference/s3/cp.html).

    Reading gives an S3File, or a text file around one: it checks lengths, stays with one version and resumes, which
    `aws s3 cp` does not; it also seeks. Writing streams into `aws s3 cp`: close() waits for the end and raises the upload's
    error, and only then is there an object. An exception in the `with` body publishes nothing.
    Raises ValueError for a mode, URL or combination that cannot be, else what S3File raises.
    """
    if sorted(mode) not in (["r"], ["r", "t"], ["b", "r"], ["w"], ["t", "w"], ["b", "w"]):
        raise ValueError("invalid mode: %r (an object is read or written as a whole: r or w, with b or t)" % (mode,))
    binary = "b" in mode
    if binary and (encoding, errors, newline) != (None, None, None):
        raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
    text = {"encoding": encoding or "utf-8", "errors": errors, "newline": newline}
    if not binary:
        io.TextIOWrapper(io.BytesIO(), **text)      # what it refuses should be refused before anything is started
    if "w" in mode:
        upload = _upload(_Object(path, aws, options), expected_size)
        writer = _UploadWriter(upload, _UPLOAD_BUFFER)
        writer.upload = upload
        if binary:
            return writer
        file = _mode(_TextUploadWriter(writer, **text), mode)
        file.upload = upload
        if codecs.lookup(text["encoding"]).name in ("utf-16", "utf-32"):
            file.write("\ufeff")    # TextIOWrapper leaves the byte order mark out where it cannot seek
        return file
    reader = S3File(path, aws=aws, options=options)
    reader.raw.expect([(0, reader.length)])
    return reader if binary else _mode(io.TextIOWrapper(reader, **text), mode)


def _mode(file, mode):
    file.mode = mode
    return file


def _upload(source, expected_size):
    """Start an `aws s3 cp - URL`, and return what writes to its standard input."""
    import socket       # takes as long as a tenth of all the other imports, and only writing needs it

    if source.key.endswith("/"):
        raise ValueError("the AWS CLI cannot write a key that ends in a slash: %r" % (source.name,))
    size = [] if expected_size is None else ["--expected-size", str(expected_size)]
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            theirs.send(b"!")
            return _Upload(source, _Call(source, ["s3", "cp", "-", source.name, "--only-show-errors"] + size + source.options,
                                         stdin=theirs), ours)
    except BaseException:
        ours.close()
        raise


class _Upload(io.RawIOBase):
    """The standard input of an `aws s3 cp - URL`.

    The CLI publishes what came when its input ends, however that comes about. So its input is a socket in whose other end a
    byte lies unread: if that end is closed, be it by the kernel because we were killed, the CLI reads an error (ECONNRESET),
    not an end. close() takes the byte out first. (Linux does so; elsewhere the interrupt that abort() sends has to do.)
    """

    mode = "wb"

    def __init__(self, source, call, our_socket):
        self._source, self._call, self._socket = source, call, our_socket
        self._over = False          # whether the upload has failed or was given up, and that is known to the caller
        self._sent = 0              # bytes
        self.name = source.name

    def writable(self):
        return True

    def write(self, data):
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._over:              # what is left in buffers above
            return len(memoryview(data).cast("B"))
        try:
            count = self._socket.send(data)
            self._sent += count
            return count
        except OSError:             # `aws` has ended: it knows why
            self._finish()
            raise

    def close(self):
        if self.closed or not self._call.owned():
            return super().close()
        try:
            if not self._over:
                self._socket.recv(1)
                self._socket.shutdown(1)        # SHUT_WR: the end of its input, even if a forked child has the socket too
                self._finish()
        except BaseException:
            self.abort()
            raise
        finally:
            self._socket.close()
            self._call.close()
            _log.debug("s3 cp to %s to write: %d bytes in %.2f s, status %s", self.name, self._sent,
                       time.monotonic() - self._call.started, self._call.status())
            super().close()

    def __del__(self):
        if not self.closed:         # by the writer around it, which may still have had a part of the data
            self.abort()
            self.close()

    def _finish(self):
        """Wait for the end of `aws`, and raise what went wrong."""
        self._call.wait()
        self._over = True
        if self._call.status() != 0:
            raise _aws_error(self._source, self._call)

    def abort(self):
        """Publish nothing and leave nothing behind, in bounded time."""
        self._over = True
        if self._call.owned() and self._call.status() is None:
            self._call.interrupt()
            self._call.wait(_INTERRUPT_SECONDS)
            self._socket.close()
            if not self._call.wait(_ABORT_SECONDS):
                self._call.stop()


class _AbortsOnError(io.IOBase):
    """What the files that write to an _Upload have in common: they end it well only if the `with` body did."""

    upload: _Upload

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            self.upload.abort()
        self.close()

    def __del__(self):
        if not self.closed:
            try:
                warnings.warn("unclosed file %r" % (self,), ResourceWarning, stacklevel=2, source=self)
            finally:                # a warning may be an exception
                self.close()


class _UploadWriter(_AbortsOnError, io.BufferedWriter):
    pass


class _TextUploadWriter(_AbortsOnError, io.TextIOWrapper):
    pass


class _Call:
    """One run of `aws`: the only place that starts a process.

    What it prints goes to files without a name, since a pipe that nobody reads would stop it.
    """

    def __init__(self, source, words, pass_fds=(), files=(), stdin=subprocess.DEVNULL):
        self._source = source
        self._words = source.aws + _endpoint(source.aws + words) + words
        self._stdout, self._stderr = tempfile.TemporaryFile(buffering=0), tempfile.TemporaryFile(buffering=0)
        self._files = [self._stdout, self._stderr] + list(files)     # to close at the end; files are for it to read
        self._owner = os.getpid()
        self.started = time.monotonic()
        self._process = subprocess.Popen.__new__(subprocess.Popen)
        try:
            self._stderr.write(bytes(4 * KiB))      # has room to say that the disk is full, when it is
            self._stderr.seek(0)
            self._process.__init__(  # type: ignore[misc]   # as UTF-8 whatever our locale is: the child's is pinned to that
                [word.encode("utf-8", "surrogateescape") for word in self._words], env=_environment(), stdin=stdin,
                stdout=self._stdout, stderr=self._stderr, pass_fds=[*pass_fds, *(file.fileno() for file in files)])
        except BaseException as error:
            if getattr(self._process, "pid", None):     # an interrupt after it has started
                self._process.kill()
                self._process.wait()
            self.close()
            if not isinstance(error, OSError):
                raise
            if error.errno == errno.ENOSPC:
                raise source.error(errno.ENOSPC, _join(error.strerror, _no_room())) from None
            raise source.error(error.errno, "cannot run %r (%s): install the AWS CLI, or name it in S3ZIP_AWS or with aws="
                               % (self._words[0], error.strerror)) from None

    def status(self):
        """The exit status; None while it runs."""
        return self._process.poll()

    def wait(self, timeout=None):
        """Wait for the end; False if it has not come in so many seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self):
        """Kill it, unless it has ended or is another process's (our parent's, after a fork)."""
        if self._owner == os.getpid() and self.status() is None:
            self._process.kill()
            self._process.wait()

    def close(self):
        """Let go of its files. What it printed is to be read before."""
        for file in self._files:
            file.close()

    def interrupt(self):
        """Do as Ctrl-C does: `aws s3 cp` then takes back what it has uploaded."""
        self._process.send_signal(signal.SIGINT)

    def disown(self):
        self._process.returncode = 0            # or its destructor would wait and warn

    def owned(self):
        return self._owner == os.getpid()

    def answer(self, opened):
        """The JSON that it printed, once it has ended."""
        if self.status() == 0:
            try:
                answer = json.loads(_content(self._stdout))
            except ValueError:
                answer = None
            if isinstance(answer, dict):
                return answer
        raise _aws_error(self._source, self, opened)

    def stderr(self):
        text = _content(self._stderr)
        for secret in filter(None, _secrets(self._words)):
            text = text.replace(secret, "***")
        return _PASSWORD.sub("***", text)

    def shown(self):
        """The command, without secrets, for people to read."""
        secrets = set(_secrets(self._words))
        return _PASSWORD.sub("***", " ".join(shlex.quote(_hide(word, secrets)) for word in self._words))


def _content(file):
    file.seek(0)
    return file.read().rstrip(b"\0").decode("utf-8", "replace")


_SECRET = re.compile(r"-.*(customer-key|sse-c.*-key|secret|token|password).*|AWS_(SECRET_ACCESS_KEY|SESSION_TOKEN)", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")      # and the name before it, in the URL of an endpoint or a proxy


def _secrets(words):
    """The values in a command that nobody should see: customers' keys, and credentials given by way of `env`."""
    for word, following in zip(words, words[1:] + [""]):
        option, equals, value = word.partition("=")
        if _SECRET.fullmatch(option) and (equals or option.startswith("-")):
            yield value if equals else following


def _hide(word, secrets):
    option, equals, value = word.partition("=")
    return "***" if word in secrets else option + "=***" if equals and value in secrets else word


def _environment():
    """Ours, with all that changes what the CLI prints or does pinned. It is often a Python script, and not for our Python."""
    keep = ("PYTHONUSERBASE", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in keep}
    environment.update(
        AWS_CLI_AUTO_PROMPT="off", AWS_CLI_ERROR_FORMAT="legacy", AWS_PAGER="", LC_ALL="C.UTF-8", AWS_CLI_FILE_ENCODING="UTF-8",
        AWS_RESPONSE_CHECKSUM_VALIDATION="when_required")    # else one of the whole object is held against a range
    return environment


def _endpoint(words):
    """The endpoint that the environment names, as an option: older CLIs would not look, and talk to Amazon."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    given = any(word.partition("=")[0] == "--endpoint-url" for word in words)
    return ["--endpoint-url", url] if url and not ignored and not given else []


class S3Error(OSError):
    """What went wrong with an object in S3, or with the AWS CLI. All errors of s3zip are also of this class.

    errno, strerror: what happened, in S3's own words where it had any, and what to do; filename: the URL;
    code: S3's name of the error, such as "NoSuchKey", or None; command, status, stderr: the run of `aws` that showed it,
    without secrets ("", None and "" where there was none).
    """

    code = None
    command = ""
    status = None
    stderr = ""
    passing = False     # whether the same call may well succeed a little later

    def __str__(self):
        run = " (%s: exit status %s)" % (self.command, self.status) if self.command else ""
        return super().__str__() + run


class S3NotFoundError(S3Error, FileNotFoundError):
    """There is no such object, version or bucket."""


class S3PermissionError(S3Error, PermissionError):
    """S3 refused, or there is nothing to show it: no credentials, no such profile."""


class S3ConnectionError(S3Error, ConnectionError):
    """The endpoint could not be reached, or the connection broke off."""


_SERVICE_ERROR = re.compile(
    r"An error occurred \(([^)]+)\)(?: when calling the (\w+) operation)?(?: \(reached max retries: \d+\))?: ?.*")

_ARCHIVED = "the object is archived (Glacier) and must be restored first: aws s3api restore-object"
_REGION = "the bucket is in another region or at another endpoint: give aws='aws --region REGION'"
_DENIED = "S3 says so for a key that does not exist too, where s3:ListBucket is not allowed"

# S3's codes (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html); a number where the answer had no body
_CODES = {code: (kind, number, hint) for codes, kind, number, hint in (
    ("NoSuchKey NoSuchBucket NoSuchVersion 404", S3NotFoundError, errno.ENOENT, ""),
    ("AccessDenied AllAccessDisabled Forbidden 403", S3PermissionError, errno.EACCES, _DENIED),
    ("InvalidAccessKeyId SignatureDoesNotMatch RequestTimeTooSkewed InvalidToken", S3PermissionError, errno.EACCES, ""),
    ("ExpiredToken ExpiredTokenException TokenRefreshRequired", S3PermissionError, errno.EACCES, "renew the credentials"),
    ("PreconditionFailed 412", S3Error, errno.ESTALE, ""),
    ("InvalidObjectState", S3Error, errno.EBUSY, _ARCHIVED),
    ("PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301", S3Error, errno.EREMOTE, _REGION),
) for code in codes.split()}

_GONE = ("PreconditionFailed", "412", "NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404", "InvalidRange", "416")
_PASSING = re.compile(r"SlowDown|InternalError|ServiceUnavailable|RequestTimeout|\w*Throttl\w*|429|5\d\d")

# What is not S3's but the CLI's own
_MESSAGES = (
    (r"unable to locate credentials|partial credentials|config profile .* could not be found|\bSSO\b"
     r"|token has expired|error when retrieving (credentials|token)", S3PermissionError, errno.EACCES, False,
     "see `aws configure` and `aws sts get-caller-identity`"),
    (r"no space left on device|disk quota exceeded", S3Error, errno.ENOSPC, False, ""),
    (r"time(d )?out", S3ConnectionError, errno.ETIMEDOUT, True, ""),
    (r"could not connect|failed to connect|ssl validation|endpoint URL|proxy", S3ConnectionError, errno.ECONNREFUSED, True, ""),
    (r"connection|total bytes expected|IncompleteRead", S3ConnectionError, errno.ECONNRESET, True, ""),
    (r"usage: |unknown option|parameter validation|invalid choice|the following arguments", S3Error, errno.EINVAL, False, ""),
    (r"", S3Error, errno.EIO, True, ""),
)


def _aws_error(source, call, opened=False):
    """The error that a call's exit status and stderr tell of; opened says whether the object has been there before."""
    status, stderr = call.status(), call.stderr()
    service = _SERVICE_ERROR.search(stderr)
    if service:
        code = service.group(1)
        if opened and code in _GONE:
            return source.changed(service.group(), call, code)
        kind, number, hint = _CODES.get(code, (S3Error, errno.EIO, ""))
        return source.error(number, _join(service.group(), hint), call, kind, code, bool(_PASSING.fullmatch(code)))
    said = " / ".join([line.strip() for line in stderr.splitlines() if line.strip()][-2:])
    if status == 0:
        return source.error(errno.EIO, _join("`aws` printed no JSON that can be read", said), call)
    if status < 0:
        return source.error(errno.EIO, _join("`aws` was killed by signal %d" % -status, said), call, passing=True)
    for pattern, kind, number, passing, hint in _MESSAGES:
        if re.search(pattern, said, re.IGNORECASE):
            break
    if number == errno.ENOSPC:
        hint = _no_room()
    return source.error(number, _join(said or "`aws` failed and said nothing", hint), call, kind, passing=passing)


def _no_room():
    return "no room in the temp folder %s: set TMPDIR to a larger one, or use a smaller cache_size" % tempfile.gettempdir()


def _join(message, hint):
    return "%s; %s" % (message.rstrip(" ."), hint) if hint else message


# -- the command line

_USAGE = """s3zip (-l | -p | -t) [-v] [-q] [--stats] [--aws COMMAND] URL [PATTERN ...]
       s3zip -e [-v] [-q] [--stats] [--aws COMMAND] URL DIR [PATTERN ...]"""

_EXAMPLES = """\
examples:
  s3zip -l s3://bucket/a.zip                        all members
  s3zip -p s3://bucket/a.zip 'data/*.csv' | head    some, as they come
  s3zip -e s3://bucket/a.zip out                    again: goes on where it stopped
  s3zip -t s3://bucket/a.zip --aws 'aws --profile prod'

In a PATTERN * and ? match slashes too; one that matches nothing is an error.
Exit status: 1 for an error, 2 for wrong usage; -t: 1, 2, 81, 82 as unzip -t."""


def main(argv=None):
    """The command line: see `s3zip --help`. argv is without the program's name; returns the exit status."""
    arguments = _parse(argv)
    if arguments.verbose:
        logging.basicConfig(format="s3zip: %(message)s", level=logging.DEBUG)
    try:
        with _Archive(arguments) as archive:
            status = arguments.verb(archive, arguments)
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except _expected_errors() as error:
        if arguments.verbose:
            raise
        _complain(arguments.url, error)
        return 1
    finally:
        _end_stdout()


def _end_stdout():
    """What cannot be written now is not to be tried again by the interpreter's exit, which would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv):
    import argparse

    parser = argparse.ArgumentParser(
        prog="s3zip", usage=_USAGE, description="List, print, extract or test the members of a ZIP archive in S3.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_mutually_exclusive_group(required=True)
    for option, verb, text in (("-l", _list, "list: size, compressed size, date, name"), ("-p", _print, "print to standard output"),
                               ("-e", _extract, "extract into the folder DIR"), ("-t", _test, "test: read all and check the CRCs")):
        verbs.add_argument(option, dest="verb", action="store_const", const=verb, help=text)
    parser.add_argument("url", metavar="URL", help="s3://BUCKET/KEY, or the path of a local file")
    parser.add_argument("rest", metavar="PATTERN", nargs="*", help="which members; without any, all (-p needs one)")
    parser.add_argument("--aws", metavar="COMMAND", help="aws with its global options; default: $S3ZIP_AWS")
    parser.add_argument("--stats", action="store_true", help="tell at the end what it took")
    parser.add_argument("-v", dest="verbose", action="store_true", help="show the calls of aws, and a traceback")
    parser.add_argument("-q", dest="quiet", action="store_true", help="no progress line, no summary")
    arguments = parser.parse_intermixed_args(argv)
    arguments.folder = arguments.rest.pop(0) if arguments.verb is _extract and arguments.rest else None
    if arguments.verb is _extract and not arguments.folder:
        parser.error("-e needs the folder to extract into")
    if arguments.verb is _print and not arguments.rest:
        parser.error("-p needs a member or a pattern")
    return arguments


def _expected_errors():
    """What opening and reading an archive raises when the archive, the network or the user is at fault, not this program."""
    import zipfile
    import zlib

    return OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error     # RuntimeError: encrypted, unsupported


def _complain(about, error):
    what = str(error)
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror + (": %s" % error.filename if error.filename not in (None, about) else "")
    print("s3zip: %s: %s" % (about, " ".join(what.split()) or type(error).__name__), file=sys.stderr)


class _Archive:
    """An archive in S3 or on disk, as the command line wants it."""

    def __init__(self, arguments):
        import zipfile

        self._started = time.monotonic()
        self._stats = arguments.stats
        is_s3 = "://" in arguments.url
        self.file = S3File(arguments.url, aws=arguments.aws) if is_s3 else open(arguments.url, "rb")
        try:
            self.zip = zipfile.ZipFile(self.file)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.zip.close()
        self.file.close()
        if self._stats:
            calls, fetched, unread = self.file.raw.stats() if isinstance(self.file, S3File) else (0, 0, 0)
            print("s3zip: %d requests, %d bytes fetched, %d of them not needed, %.1f s"
                  % (calls, fetched, unread, time.monotonic() - self._started), file=sys.stderr)

    def members(self, patterns, by_offset=True):
        """Those that match a pattern, or all: as they lie in the archive, or as they were asked for."""
        import fnmatch

        found = {}
        infos = sorted(self.zip.infolist(), key=lambda info: info.header_offset)
        for pattern in patterns or ["*"]:
            matching = [i for i in infos if i.filename == pattern or fnmatch.fnmatchcase(i.filename, pattern)]
            if patterns and not matching:
                raise ValueError("no member matches %r" % pattern)
            found.update((id(info), info) for info in matching)
        return sorted(found.values(), key=lambda info: info.header_offset) if by_offset else list(found.values())

    def expect(self, infos):
        """Tell the reader that these members are going to be read: neighbours are fetched together, and nothing else is."""
        if isinstance(self.file, S3File):
            wanted = {info.header_offset for info in infos}
            starts = sorted({info.header_offset for info in self.zip.infolist()} | {self.zip.start_dir})
            ranges = []
            for start, end in zip(starts, starts[1:]):
                if start in wanted and ranges and ranges[-1][1] == start:
                    ranges[-1] = (ranges[-1][0], end)
                elif start in wanted:
                    ranges.append((start, end))
            self.file.raw.expect(ranges)

    def read(self, info, progress):
        """The content of a member in pieces; the CRC has been right if they come to an end."""
        with self.zip.open(info) as member:
            for piece in iter(lambda: member.read(256 * KiB), b""):
                yield piece
                progress.add(len(piece), info.filename)


class _Progress:
    """One line on a terminal's stderr that says how far the work is, and goes when the work is done."""

    def __init__(self, arguments, infos, shown=True):
        self._total = sum(info.file_size for info in infos)
        self._shown = shown and not arguments.quiet and sys.stderr.isatty()
        self._done, self._started, self._drawn = 0, time.monotonic(), 0.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.erase()

    def erase(self):
        if self._drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def add(self, count, name):
        self._done += count
        now = time.monotonic()
        if self._shown and now - self._drawn >= 0.2:
            self._drawn = now
            rate = self._done / max(now - self._started, 0.001)
            left = max(0, self._total - self._done) / rate
            line = "%d of %d MB, %.1f MB/s, %d:%02d left: %s" % (
                self._done // 1000000, self._total // 1000000, rate / 1e6, left // 60, left % 60, _printable(name))
            sys.stderr.write("\r%s\033[K" % line[:os.get_terminal_size(sys.stderr.fileno()).columns - 1])
            sys.stderr.flush()


def _printable(name):
    """A member's name for a terminal: what would steer it is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _list(archive, arguments):
    infos = archive.members(arguments.rest)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print("%14s %14s  %-19s %s" % ("Size", "Compressed", "Modified", "Name"))
    for info in infos:
        print("%14d %14d  %04d-%02d-%02d %02d:%02d:%02d %s"
              % ((info.file_size, info.compress_size) + info.date_time + (_printable(info.filename),)))
    print("%14d %14d  %-19s %d member%s" % (sum(i.file_size for i in infos), sum(i.compress_size for i in infos), "", len(infos),
                                            "" if len(infos) == 1 else "s"))
    return 0


def _print(archive, arguments):
    infos = [info for info in archive.members(arguments.rest, by_offset=False) if not info.is_dir()]
    archive.expect(infos)
    with _Progress(arguments, infos, shown=not sys.stdout.isatty()) as progress:
        for info in infos:
            for piece in archive.read(info, progress):
                sys.stdout.buffer.write(piece)
    return 0


def _test(archive, arguments):
    """As `unzip -t`: 2 for damage; if nothing can be read and something is encrypted, 82; 81 for what is not supported; 1 if
    some is encrypted, or there is nothing."""
    infos = archive.members(arguments.rest)
    problems = []
    archive.expect(infos)
    with _Progress(arguments, infos) as progress:
        for info in infos:
            try:
                for _ in archive.read(info, progress):
                    pass
            except S3Error:
                raise
            except _expected_errors() as error:
                problems.append(81 if isinstance(error, NotImplementedError) else 82 if info.flag_bits & 1 else 2)
                progress.erase()
                _complain("%s: %s" % (arguments.url, _printable(info.filename)), error)
    if not arguments.quiet:
        print("%d members tested, %d with errors" % (len(infos), len(problems)))
    if 2 in problems:
        return 2
    if 82 in problems and len(problems) == len(infos):
        return 82
    return 81 if 81 in problems else 1 if problems or not infos else 0


def _extract(archive, arguments):
    places = {_safe_path(arguments.folder, info.filename): info for info in archive.members(arguments.rest)}    # the last wins
    os.makedirs(arguments.folder, exist_ok=True)
    files = {path: info for path, info in places.items() if not info.is_dir() and not _is_there(info, path)}
    archive.expect(files.values())
    with _Progress(arguments, files.values()) as progress:
        for path, info in sorted(files.items(), key=lambda item: item[1].header_offset):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _extract_file(archive, info, path, progress)
    for path, info in sorted(places.items(), reverse=True):         # a folder after what is in it
        if info.is_dir():
            os.makedirs(path, exist_ok=True)
            _set_attributes(info, path)
    return 0


def _extract_file(archive, info, path, progress):
    """Write a member beside its place, under a name that the next run would use again, and move it there when complete."""
    import zlib

    partial = os.path.join(os.path.dirname(path), ".s3zip-%08x.partial" % zlib.crc32(os.fsencode(path)))
    try:
        with open(partial, "wb") as file:
            for piece in archive.read(info, progress):
                file.write(piece)
        _set_attributes(info, partial)
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def _safe_path(folder, name):
    """Where a member goes: below folder, whatever its name says, as zipfile's extract has it."""
    parts = [part for part in name.split("/") if part not in ("", os.curdir, os.pardir)]
    if not parts:
        raise ValueError("a member's name leaves nothing to extract to: %r" % name)
    return os.path.join(folder, *parts)


def _is_there(info, path):
    """Whether a file has been extracted before: the same size and the same CRC."""
    import zlib

    if not os.path.isfile(path) or os.path.getsize(path) != info.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(MiB), b""):
            crc = zlib.crc32(piece, crc)
    return crc == info.CRC


def _set_attributes(info, path):
    """The time, and the mode where the archive comes from a system that has them (APPNOTE.TXT 4.4.2 and 4.4.15)."""
    mode = info.external_attr >> 16 & 0o777
    if info.create_system == 3 and mode:
        os.chmod(path, mode)
    try:
        modified = time.mktime(info.date_time + (0, 0, -1))
    except (OverflowError, ValueError):
        return                  # the archive has no such day
    os.utime(path, (modified, modified))


if __name__ == "__main__":
    sys.exit(main())
