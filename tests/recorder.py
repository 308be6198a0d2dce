"""A pytest plugin, for tests of the command that is run: pytest_plugins = ["recorder"] in a test file."""

import shlex

import pytest


class Recorder:
    """An executable in place of `aws` that notes the arguments and the environment of each call, and then answers as a Stub.

    It stands where the answer of a real server would tell less than the command that was run.
    """

    def __init__(self, folder, stub):
        self.path = folder / "aws"
        self._folder = folder
        self.path.write_text("#!/bin/sh\nn=$(ls %(folder)s | wc -l)\nenv -0 >%(folder)s/$n.env\n"
                             "printf '%%s\\0' \"$@\" >%(folder)s/$n.argv\nexec %(stub)s \"$@\"\n"
                             % {"folder": shlex.quote(str(folder)), "stub": shlex.join(stub.aws)})
        self.path.chmod(0o755)

    def _files(self, suffix):
        files = sorted(self._folder.glob("*" + suffix), key=lambda path: int(path.stem))
        return [path.read_bytes().decode().split("\0")[:-1] for path in files]

    @property
    def argv(self):
        """The arguments of each call, without the program's name."""
        return self._files(".argv")

    @property
    def environments(self):
        """The environment of each call, as a dict."""
        return [dict(line.split("=", 1) for line in lines) for lines in self._files(".env")]


@pytest.fixture
def recorder(stub, tmp_path_factory, monkeypatch):
    """A Recorder that is `aws` on PATH; the objects are those of `stub`."""
    made = Recorder(tmp_path_factory.mktemp("recorder"), stub)
    monkeypatch.setenv("PATH", str(made.path.parent), prepend=":")
    return made
