"""Stands in for `aws s3api get-object` where thousands of calls are needed, or where the CLI itself is to misbehave.

It serves the files STUB_AWS_ROOT/BUCKET/KEY, in some 15 ms if it is run as `python -ISE stub_aws.py`, for which it imports
next to nothing. Each call adds a line to STUB_AWS_ROOT/.calls. If there is a file in the folder STUB_AWS_ROOT/.faults, the
call takes the one whose name is lowest and does as its lines NAME=VALUE say:

    range=FIRST-LAST    answer with this range instead
    total=N             lie about the object's length
    etag=TEXT           lie about its ETag; with nothing after the = leave it out, as with:
    contentrange=TEXT   lie about the range
    extra=N             write so many zeros after the body
    after=N             write only so many bytes of it, and then:
    pause=SECONDS       wait
    signal=N            send itself this signal
    stderr=TEXT         print it on stderr
    stdout=TEXT         print it in place of the JSON
    status=N            exit with it, without JSON unless stdout is given

STUB_AWS_RANDOM=SEED,N does one of the failures that pass in N of 1000 calls; which ones follows from the seed and the calls.
"""

import os
import sys


def main(words):
    root = os.environ["STUB_AWS_ROOT"]
    options, outfile = parse(words[words.index("get-object") + 1:])
    number = record(root, words)
    fault = next_fault(root) or random_fault(number)
    try:
        file = open(os.path.join(root, options["--bucket"], options["--key"]), "rb")
    except OSError:
        fail("NoSuchKey", "The specified key does not exist.")
    with file:
        size, etag = os.fstat(file.fileno()).st_size, '"%x"' % os.fstat(file.fileno()).st_mtime_ns
        if options.get("--if-match", etag) != etag:
            fail("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        first, last = resolve(fault.get("range") or options.get("--range", "bytes=0-").partition("=")[2], size)
        copy(file, outfile, first, last, fault)
    misbehave(fault)
    answer = {"ContentLength": last + 1 - first, "ETag": fault.get("etag", etag).replace('"', '\\"'),
              "ContentRange": fault.get("contentrange", "bytes %d-%d/%s" % (first, last, fault.get("total", size)))}
    print("{%s}" % ", ".join('"%s": %s' % (name, '"%s"' % value if isinstance(value, str) else value)
                             for name, value in answer.items() if value != ""))


def parse(words):
    """The options of get-object, in both forms, and OUTFILE."""
    options, outfile, words = {}, None, iter(words)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            outfile = word
        elif equals:
            options[name] = value
        else:
            options[name] = next(words)
    if options["--key"].startswith("file://"):
        with open(options["--key"][7:], newline="") as file:
            options["--key"] = file.read()
    return options, outfile


def record(root, words):
    """Log the call. Returns a number that no other call has: where the log ended after it."""
    log = os.open(os.path.join(root, ".calls"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, os.fsencode(repr(words) + "\n"))
    return os.lseek(log, 0, os.SEEK_CUR)


def next_fault(root):
    """Take an instruction; removing its file makes it ours, since other calls may run at the same time."""
    folder = os.path.join(root, ".faults")
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            with open(path) as file:
                fault = dict(line.rstrip("\n").split("=", 1) for line in file)
            os.unlink(path)
            return fault
        except FileNotFoundError:
            continue
    return {}


def random_fault(number):
    seed, _, chance = os.environ.get("STUB_AWS_RANDOM", "0,0").partition(",")
    draw = abs(hash((int(seed), number)))
    after = str(draw // 1000000 % 3000)
    faults = [{"after": after, "status": "255", "stderr": "Connection broken: IncompleteRead"},
              {"after": after, "signal": "9"},
              {"after": after},                 # and status 0, as a body without Content-Length that is closed early
              {"after": "0", "status": "255", "stderr": "An error occurred (503) when calling the GetObject operation: "}]
    return faults[draw // 1000 % len(faults)] if draw % 1000 < int(chance) else {}


def resolve(text, size):
    """First and last byte of FIRST-LAST, FIRST- or -LENGTH."""
    first, _, last = text.partition("-")
    first, last = (int(first), min(size, int(last or size - 1) + 1) - 1) if first else (max(0, size - int(last)), size - 1)
    if first > last or first >= size:
        fail("InvalidRange", "The requested range is not satisfiable")
    return first, last


def copy(file, outfile, first, last, fault):
    file.seek(first)
    left = min(last + 1 - first, int(fault.get("after", last + 1)))
    with open(outfile, "wb", 0) as body:
        while left > 0:
            left -= body.write(file.read(min(left, 1 << 20)))
        body.write(bytes(int(fault.get("extra", 0))))


def misbehave(fault):
    if "pause" in fault:
        import time                             # worth a millisecond in every other call
        time.sleep(float(fault["pause"]))
    if "signal" in fault:
        os.kill(os.getpid(), int(fault["signal"]))
    if "stderr" in fault:
        print(fault["stderr"], file=sys.stderr)
    if "stdout" in fault:
        print(fault["stdout"])
    if "status" in fault or "stdout" in fault:
        sys.exit(int(fault.get("status", 0)))


def fail(code, message):
    print("\nAn error occurred (%s) when calling the GetObject operation: %s" % (code, message), file=sys.stderr)
    sys.exit(254)


if __name__ == "__main__":
    main(sys.argv[1:])
