"""README.md and docs/: every command is a valid command line, and "Use the student" works as it stands."""

import argparse
import importlib
import re
import shlex
import shutil
import sys

import pytest
from conftest import ROOT

import train_fskd

PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.M | re.S)
LINES = [
    (page.name, " ".join(line.split()))
    for page in PAGES
    for language, block in BLOCK.findall(page.read_text())
    for line in block.replace("\\\n", " ").splitlines()
    if language == "bash" and "$" not in line  # not inside a shell's loop
]
INLINE = [(page.name, line) for page in PAGES for line in re.findall(r"`(python -m [^`]+)`", page.read_text())]
COMMANDS = sorted({(page, line) for page, line in LINES if "train_fskd.py" in line})
OF_MODULES = sorted(
    {
        (page, line)
        for page, line in LINES + INLINE
        if re.match(r"python -m (benchmarks|experiments)\.\w+ [^#]", line) and "..." not in line
    }
)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_is_parsed(page, line):
    words = shlex.split(line, comments=True)
    assert train_fskd.arguments(words[words.index("train_fskd.py") + 1 :])


class Parsed(Exception):
    pass


@pytest.mark.parametrize(("page", "line"), OF_MODULES)
def test_every_command_of_a_module_is_parsed(page, line, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def stop_there(*arguments, **named):
        parse(*arguments, **named)
        raise Parsed

    _, _, module, *words = shlex.split(line, comments=True)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_there)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


def test_use_the_student(with_teacher, capsys):
    """The section's own lines, on a student of the small data set."""
    (section,) = re.findall(r"^## Use the student\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    ((_, commands), (_, code)) = BLOCK.findall(section)
    assert train_fskd.main(["--dataset", "Folder", "--nshot", "1", "--trials", "1"]) == 0
    (with_teacher / "docs").mkdir()
    shutil.copy(ROOT / "docs/star.jpg", "docs")
    student = "vgg-student-graft-net-Tiny-1perclass-trial0"
    commands = commands.replace("Shapes10 ", "Folder ").replace(
        "vgg11-small-student-graft-net-Shapes10-10perclass-trial0", student
    )
    for line in commands.replace("\\\n", " ").splitlines():
        python, script, *words = shlex.split(line, comments=True)
        assert (python, script) == ("python", "train_fskd.py") and train_fskd.main(words) == 0
    capsys.readouterr()
    exec(code, {})
    assert re.fullmatch(r"\('[abc]', 0\.\d+\)\n", capsys.readouterr().out)
