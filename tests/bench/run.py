"""How fast is s3zip, against what else reads a ZIP archive in S3? Prints tables in Markdown, and which goals are met.

    python tests/bench/run.py                                       everything; half an hour or more
    python tests/bench/run.py --only list stored-1g --readers s3zip s3fs --speed 90 --rounds 1

Needs nginx (Debian: nginx-light), `aws`, Linux, 6 GB of disk and, for the other readers, `pip install -e .[bench]`. Nothing
leaves the machine. A figure is good for a comparison within one run only: the server and the reader share the processors.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import platform
import shlex
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time

import archives
from readers import RANDOM_MEMBERS, READERS, TAIL, WORKS
from server import BUCKET, SPEEDS, Server

MB, MiB = 10 ** 6, 2 ** 20
SPEED_TITLES = {"full": "at full speed", "90": "at 90 MiB/s per connection"}
OVER_READ = 2 * MiB             # what one member may cost beyond its own bytes and the tail
TEMP_DISK = (512 + 128) * MiB   # s3zip's default budget and one segment

_NOTE = """Rounds: %d; medians of them, but the most memory and temp disk. Time is that of opening, reading and closing, without
imports. Memory is the reader's own, without the `aws` processes; processor time is with those that ended."""

Run = collections.namedtuple("Run", "seconds opened cpu memory disk calls requests sent")


def main():
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))       # through the `with` blocks, which end nginx and the readers
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3zip-bench-"))
        os.chmod(scratch, 0o755)
        _say("making the archives in %s, unless they are there" % args.work)
        archives.build(os.path.join(args.work, BUCKET))
        server = stack.enter_context(Server(args.work, scratch))
        bench = Bench(args, server, scratch)
        for speed in args.speed:
            for work in args.only:
                bench.measure(speed, work)
        bench.report()


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="READER", help=", ".join(READERS))
    parser.add_argument("--speed", choices=[*SPEEDS, "both"], default="both", help="of the server; 90 is MiB/s per connection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=200, metavar="SECONDS", help="a run that takes longer is given up")
    parser.add_argument("--original", type=os.path.abspath, metavar="FILE", help="the original answer as a module")
    parser.add_argument("--work", type=os.path.abspath, default=os.path.join(tempfile.gettempdir(), "s3zip-bench"),
                        metavar="FOLDER", help="keeps the archives from run to run (5.2 GB)")
    args = parser.parse_args()
    args.speed = list(SPEEDS) if args.speed == "both" else [args.speed]
    return args


def _say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """Runs every reader at every work, and remembers how it went."""

    def __init__(self, args, server, scratch):
        self._args, self._server, self._scratch = args, server, scratch
        self._runs = collections.defaultdict(list)      # (speed, work, reader): its Runs
        self._excuses = {}                              # (speed, work, reader): why there is none
        self._load = os.getloadavg()[0]                 # of others: it should be next to nothing
        self._aws = _beside_python("aws") or shutil.which("aws")
        self._calls = os.path.join(scratch, "calls")
        self._wrap_aws()

    def _wrap_aws(self):
        """Put a command into the readers' PATH that notes each call of `aws`, also of those that are stopped early."""
        os.mkdir(os.path.join(self._scratch, "bin"))
        wrapper = os.path.join(self._scratch, "bin", "aws")
        with open(wrapper, "w") as file:
            file.write('#!/bin/sh\necho "$*" >> %s\nexec %s "$@"\n' % (shlex.quote(self._calls), shlex.quote(self._aws)))
        os.chmod(wrapper, 0o755)

    # -- measuring

    def measure(self, speed, work):
        """All rounds of one work: readers take turns, so that whatever else the machine does meets all of them."""
        for turn in range(self._args.rounds):
            for reader in self._args.readers:
                key = speed, work, reader
                if key not in self._excuses:
                    self._measure(key)
                    outcome = self._excuses.get(key) or "%.2f s" % self._runs[key][-1].seconds
                    _say("%s, round %d: %s" % (", ".join(key), turn + 1, outcome))

    def _measure(self, key):
        speed, work, reader = key
        job = {"reader": reader, "work": work, "folder": os.path.join(self._args.work, BUCKET),
               "endpoint": self._server.endpoint(speed), "original": self._args.original}
        open(self._calls, "w").close()
        self._server.sent()
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            result, disk = self._run(job, folder)
        sent = self._server.sent()
        if "cannot" in result:
            self._excuses[key] = result["cannot"] + (", %.0f MB sent" % (sum(sent) / MB) if sent else "")
            return
        with open(self._calls) as calls:
            count = len(calls.readlines())
        self._runs[key].append(Run(disk=disk, calls=count, requests=len(sent), sent=sum(sent), **result))

    def _run(self, job, folder):
        """The result of the job, and the most bytes that it had in folder, its temp folder."""
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "readers.py")
        process = subprocess.Popen([sys.executable, script, json.dumps(job)], stdout=subprocess.PIPE, start_new_session=True,
                                   stderr=subprocess.DEVNULL, env=self._environment(job["endpoint"], folder))
        try:
            disk = self._watch(process, folder)
            late = process.poll() is None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)      # with what it has started
            output = process.communicate()[0]
        if late:
            return {"cannot": "over %d s" % self._args.patience}, disk
        return json.loads(output) if output else {"cannot": "died with status %d" % process.returncode}, disk

    def _watch(self, process, folder):
        """The most bytes in folder until the process ends or patience does."""
        end, disk = time.monotonic() + self._args.patience, 0
        while process.poll() is None and time.monotonic() < end:
            disk = max(disk, _temp_disk(process.pid, folder))
            time.sleep(0.05)
        return disk

    def _environment(self, endpoint, folder):
        """Ours, with nothing in it that leads to Amazon or to somebody's account."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment.update(
            AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=endpoint,
            AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true",
            AWS_PAGER="", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", TMPDIR=folder, S3ZIP_AWS="aws",
            PATH=os.path.join(self._scratch, "bin") + os.pathsep + os.environ["PATH"])
        return environment

    # -- reporting

    def report(self):
        print("`%s`\n" % shlex.join(["python", os.path.relpath(__file__), *sys.argv[1:]]))
        print("%d cores, load %.1f before the run, %s, Python %s; %s; %s.\n" % (
            os.cpu_count(), self._load, platform.system(), platform.python_version(),
            _said(self._aws, "--version"), _said("nginx", "-v")))
        print(_NOTE % self._args.rounds)
        for speed in self._args.speed:
            self._table(speed)
        self._judge()

    def _table(self, speed):
        print("\n### Server %s\n" % SPEED_TITLES[speed])
        print("| work | reader | s | × s3zip | × local | CPU s | aws calls | requests | MB sent | memory MiB | temp disk MiB |")
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        for work in self._args.only:
            for number, reader in enumerate(self._args.readers):
                row = self._row(speed, work, reader)
                print("| %s | %s | %s |" % (WORKS[work].title if number == 0 else "", READERS[reader][0], " | ".join(row)))

    def _row(self, speed, work, reader):
        if (speed, work, reader) in self._excuses:
            return [self._excuse((speed, work, reader))] + [""] * 8
        run = self.median(speed, work, reader)
        ratios = [self._ratio(run, self.median(speed, work, other)) for other in ("s3zip", "local")]
        return [_figure(run.seconds), *ratios, "%.1f" % run.cpu, "%d" % run.calls, "%d" % run.requests,
                "%.1f" % (run.sent / MB), "%.0f" % (run.memory / MiB), "%.0f" % (run.disk / MiB)]

    @staticmethod
    def _ratio(run, other):
        return _figure(run.seconds / other.seconds) if other else ""

    def median(self, speed, work, reader):
        """A Run of medians, but of the most memory and disk; None if there was no run."""
        runs = self._runs.get((speed, work, reader))
        if not runs:
            return None
        middle = Run(*map(statistics.median, zip(*runs)))
        return middle._replace(memory=max(run.memory for run in runs), disk=max(run.disk for run in runs))

    def _judge(self):
        packed = archives.packed_sizes(os.path.join(self._args.work, BUCKET))
        print("\n### Goals\n\n| goal | server | figure | limit | |\n|---|---|--:|--:|---|")
        for speed in self._args.speed:
            for title, speeds, judge in _goals(packed):
                with contextlib.suppress(NotAsked):
                    if speed in speeds:
                        print("| %s | %s | %s |" % (title, SPEED_TITLES[speed], self._verdict(speed, judge)))

    def _verdict(self, speed, judge):
        try:
            return judge(functools.partial(self._needed, speed))
        except NoFigure as reason:
            return "| | not known: %s" % reason

    def _needed(self, speed, work, reader="s3zip"):
        key = speed, work, reader
        if key in self._excuses:
            raise NoFigure("%s: %s" % (reader, self._excuse(key)))
        run = self.median(*key)
        if not run:
            raise NotAsked
        return run

    def _excuse(self, key):
        return self._excuses[key].replace("|", "/").replace("\n", " ")[:90]


class NotAsked(Exception):
    """A goal needs what this run was not to measure."""


class NoFigure(Exception):
    """A goal needs a figure of a reader that could not or did not finish."""


def _at_most(figure, limit):
    return "%s | ≤ %s | %s" % (_figure(figure), _figure(limit), "met" if figure <= limit else "**missed**")


def _at_least(figure, limit):
    return "%s | ≥ %s | %s" % (_figure(figure), _figure(limit), "met" if figure >= limit else "**missed**")


# The judges of the goals: each takes a function that gives the median of (work, reader)

def _listing_time(run):
    return _at_most(run("list").seconds / run("list", "bare").seconds, 1.15)


def _calls_over_local(work, factor):
    def judge(run):
        over = run(work).seconds - factor * run(work, "local").seconds
        return _at_most(over / run(work, "bare").seconds, 2.3)
    return judge


def _times_as_fast(work, rivals):
    def judge(run):
        best = min(run(work, rival).seconds for rival in rivals)
        return _at_least(best / run(work).seconds, 2.2)
    return judge


def _bytes_of_member(work, size):
    return lambda run: _at_most(run(work).sent / MB, (size + TAIL + OVER_READ) / MB)


def _random_calls(run):
    return _at_most(run("random-60").calls - run("list-40000").calls, RANDOM_MEMBERS)


def _random_bytes(run):
    sent = run("random-60").sent - run("list-40000").sent
    return _at_most(sent / MB, RANDOM_MEMBERS * (archives.SMALL_SIZE + OVER_READ) / MB)


def _random_time(run):
    reading = run("random-60").seconds - run("random-60").opened
    return _at_most(reading / run("random-60", "bare").seconds, 1.05)


BOTH = tuple(SPEEDS)
RIVALS = ("smart_open", "s3fs", "remotezip")


def _goals(packed):
    """Title, the speeds that it is for, and judge of each; packed has the members' compressed sizes."""
    return (
        ("open and list: calls", BOTH, lambda run: _at_most(run("list").calls, 1)),
        ("open and list: bare calls of time", BOTH, _listing_time),
        ("deflated 130 MB: bare calls over 1 × local zipfile", ("full",), _calls_over_local("deflated-130m", 1)),
        ("deflated 1 GB: bare calls over 1.25 × local zipfile", ("90",), _calls_over_local("deflated-1g", 1.25)),
        ("stored 1 GiB: times as fast as the best of " + ", ".join(RIVALS), ("90",), _times_as_fast("stored-1g", RIVALS)),
        ("deflated 130 MB: MB sent", BOTH, _bytes_of_member("deflated-130m", packed[archives.TEXTS[1]])),
        ("deflated 1 GB: MB sent", BOTH, _bytes_of_member("deflated-1g", packed[archives.BIG_TEXT])),
        ("stored 1 GiB: MB sent", BOTH, _bytes_of_member("stored-1g", packed[archives.STORED])),
        ("60 random members: calls without those of opening", BOTH, _random_calls),
        ("60 random members: MB sent without those of opening", BOTH, _random_bytes),
        ("60 random members: time without opening, in 60 bare calls", BOTH, _random_time),
        ("all 40 000 members: calls", BOTH, lambda run: _at_most(run("all-40000").calls, 40)),
        ("in turn: calls for each one by one", BOTH, lambda run: _at_most(run("in-turn").calls / run("one-by-one").calls, 1.5)),
        ("stream 2 GiB: MiB of memory", BOTH, lambda run: _at_most(run("stream-2g").memory / MiB, 80)),
        ("stream 2 GiB: MiB of temp disk", BOTH, lambda run: _at_most(run("stream-2g").disk / MiB, TEMP_DISK / MiB)),
    )


def _figure(number):
    return "%.0f" % number if number >= 100 else "%.3g" % number


def _beside_python(name):
    return shutil.which(name, path=os.path.dirname(sys.executable))


def _said(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()


def _temp_disk(pid, folder):
    """Bytes that a process has in its temp folder now, those in files without a name included."""
    files = {}
    paths = ["/proc/%d/fd/%s" % (pid, fd) for fd in _listed("/proc/%d/fd" % pid)]
    paths += [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    for path in paths:
        with contextlib.suppress(OSError):      # it may be gone by now
            if path.startswith(folder) or os.readlink(path).startswith(folder):
                info = os.stat(path)
                files[info.st_dev, info.st_ino] = info.st_blocks * 512 if stat.S_ISREG(info.st_mode) else 0
    return sum(files.values())


def _listed(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


if __name__ == "__main__":
    main()
