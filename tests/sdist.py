"""The command behind `python -m build --sdist`: it packs the tests too, which setup.cfg has no other word for."""

from setuptools.command.sdist import sdist


class SdistWithTests(sdist):
    def make_distribution(self):
        self.filelist.graft("tests")
        self.filelist.global_exclude("*.py[cod]")
        super().make_distribution()
