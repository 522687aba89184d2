"""Every sentence that docs/errors.md quotes is one that the code can say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAID = re.compile(r"^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def parts(node):
    """The constant parts of a text, with None between them where a value comes; or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [v.value if isinstance(v, ast.Constant) else None for v in node.values]
    return None


def patterns(source):
    """A pattern and the letters it fixes, of each text in a module."""
    for node in ast.walk(ast.parse(source)):
        found = parts(node)
        if found is not None:
            # the logging module fills in %s and %d
            found = [p for part in found for p in ([part] if part is None else split(part))]
            pattern = "".join(".*" if part is None else re.escape(part) for part in found)
            yield re.compile(pattern, re.DOTALL), sum(len(part or "") for part in found)


def split(text):
    pieces = re.split(r"%[sd]", text)
    return [p for piece in pieces for p in (None, piece)][1:]


def can_be_said(sentence, known):
    """Whether a text of the code gives it, and more of it than half."""
    return any(
        2 * fixed > len(sentence.replace("…", "")) and pattern.fullmatch(sentence)
        for pattern, fixed in known
    )


@pytest.fixture(scope="module")
def known():
    files = sorted((ROOT / "src").rglob("*.py"))
    return [found for path in files for found in patterns(path.read_text(encoding="utf-8"))]


def test_quoted_sentences_are_in_the_code(known):
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    quoted = [line for block in SAID.findall(page) for line in block.splitlines()]
    assert len(quoted) > 50
    assert len(set(quoted)) == len(quoted)
    assert [line for line in quoted if not can_be_said(line, known)] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "walk.beta must be a positive number, got 0",
        "… must be a positive number, got …",
        "job … failed: …",  # of the log
    ],
)
def test_what_is_said_is_found(sentence, known):
    assert can_be_said(sentence, known)


@pytest.mark.parametrize(
    "sentence",
    [
        "… must be a negative number, got …",
        "must be a positive number",  # not the whole of it
        "image … does not exist; restore it",
        "…",
    ],
)
def test_what_nobody_says_is_noticed(sentence, known):
    assert not can_be_said(sentence, known)
