"""What the READMEs promise is there."""

import re

import pytest
from tiny import ROOT

TESTS = re.findall(r"\| \[`(\w+)`\]\((\w+\.py)\) \|$", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE)
READMES = [path for path in ROOT.rglob("README.md") if not {".venv", "venv"} & set(path.parts)]


def test_every_fault_of_the_table_has_its_test():
    absent = [
        (file, name)
        for name, file in TESTS
        if f"\ndef {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert len(TESTS) >= 60 and not absent


def test_every_difference_has_a_number_in_both_languages_and_a_test():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = (ROOT / "tests" / "test_differences.py").read_text(encoding="utf-8")
    tested = {*map(int, re.findall(r"^def test_(\d\d)_", code, re.M))}
    for heading in ("## What differs from the reference", "## 与原实现的差异"):
        part = text.split(f"\n{heading}\n")[1].split("\n## ")[0]
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", part, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)) and {*numbers} == tested and len(numbers) >= 36


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
