"""What people install: from a checkout, from a wheel, from an sdist, or as one copied file."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv

import pytest

import s3zip

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
MODULE = os.path.join(ROOT, "s3zip.py")

with open(MODULE, encoding="utf-8") as _file:
    SOURCE = _file.read()


def run(*words, cwd):
    """What a program prints. It sees no module that it has not installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, words)), cwd=str(cwd), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A copy, since building leaves files."""
    return shutil.copytree(ROOT, tmp_path / "checkout",
                           ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))


@pytest.fixture
def install(tmp_path):
    """A function that installs something with pip into a fresh environment, and returns that environment's Python."""
    def into_fresh(what):
        venv.create(tmp_path / "fresh", clear=True)
        python = tmp_path / "fresh" / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "-q", what, cwd=tmp_path)
        return python
    return into_fresh


def assert_works(python, tmp_path):
    said = run(python, "-c", "import s3zip; print(s3zip.__file__, s3zip.__version__)", cwd=tmp_path).split()
    assert said[0].startswith(str(tmp_path / "fresh")) and said[1] == s3zip.__version__
    assert "Version: %s\n" % s3zip.__version__ in run(sys.executable, "-m", "pip", "--python", python, "show", "s3zip", cwd=tmp_path)
    assert run(python.parent / "s3zip", "--help", cwd=tmp_path).startswith("usage: s3zip")
    assert run(python, "-m", "s3zip", "--help", cwd=tmp_path).startswith("usage: s3zip")


def test_install_from_checkout(checkout, install, tmp_path):
    assert_works(install(checkout), tmp_path)


def test_wheel_and_sdist(checkout, install, tmp_path):
    """The sdist has the tests, and the wheel is made from it."""
    run(install("setuptools>=61"), "-c", "import setuptools.build_meta as backend; backend.build_sdist('..')", cwd=checkout)
    sdist = "s3zip-%s" % s3zip.__version__
    with tarfile.open(tmp_path / (sdist + ".tar.gz")) as archive:
        packed = set(archive.getnames())
    expected = ["tests/" + name for name in os.listdir(TESTS) if name.endswith(".py")]
    expected += ["s3zip.py", "README.md", "setup.cfg", "pyproject.toml"]
    assert not {"%s/%s" % (sdist, name) for name in expected} - packed
    assert_works(install(tmp_path / (sdist + ".tar.gz")), tmp_path)

    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", sdist + ".tar.gz", cwd=tmp_path)
    assert_works(install(tmp_path / (sdist + "-py3-none-any.whl")), tmp_path)


def test_single_file(tmp_path, put):
    """1 call. Copied next to a script, with a Python that has nothing installed."""
    url = put("object", b"content")
    shutil.copy(MODULE, tmp_path)
    (tmp_path / "script.py").write_text("from s3zip import S3File\nprint(S3File(%r).read())\n" % url)
    assert run(sys.executable, "-S", "script.py", cwd=tmp_path) == "b'content'\n"
    assert run(sys.executable, "-S", "s3zip.py", "--help", cwd=tmp_path).startswith("usage: s3zip")


def test_version_is_in_one_place():
    with open(os.path.join(ROOT, "setup.cfg"), encoding="utf-8") as file:
        configuration = file.read()
    assert "version = attr: s3zip.__version__" in configuration and s3zip.__version__ not in configuration
    assert SOURCE.count('"%s"' % s3zip.__version__) == 1


def imports(nodes):
    """The modules that these nodes of a syntax tree import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_imports_of_the_class_alone():
    """What only the command line needs is not imported by `import s3zip`. (fnmatch may be, by shutil and so by tempfile.)"""
    said = subprocess.run([sys.executable, "-S", "-X", "importtime", "-c", "import s3zip"], cwd=ROOT, stderr=subprocess.PIPE,
                          check=True, encoding="utf-8").stderr
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "s3zip" in imported and not imported & {"argparse", "zipfile", "ssl", "http.client", "asyncio", "concurrent.futures"}
    assert not imports(ast.parse(SOURCE).body) & {"argparse", "fnmatch", "zipfile"}


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is of Python 3.10")
def test_nothing_but_the_standard_library():
    names = imports(ast.walk(ast.parse(SOURCE)))
    assert names and {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_one_place_starts_processes():
    lines = [line for line in SOURCE.splitlines() if re.search(r"subprocess\.Popen|subprocess\.run", line)]
    assert len(lines) in (1, 2)
