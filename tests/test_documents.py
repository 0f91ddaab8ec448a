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


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
