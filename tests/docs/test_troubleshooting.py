"""Every message that `docs/troubleshooting.md` quotes is one of the package's."""

import ast
import re

from tests.ranks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = (*sorted((ROOT / "ds_rvqvae").rglob("*.py")), ROOT / "launch" / "environment.sh")
LEFT_OUT = "…"
"""Stands for what differs from one message to the next, in the page and in `_texts`."""
LEAST = 8
"""Letters that a quoted piece has at the least, or it would be found anywhere."""


def _text(node):
    """A string as it is written, with `…` for each value in it; None for what is no string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else LEFT_OUT for part in node.values)
    return None


def texts():
    """Every string of the package, and every line of the script that installs it."""
    found = set()
    for file in SOURCES:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".sh":
            found.update(content.splitlines())
        else:
            found.update(text for node in ast.walk(ast.parse(content)) if (text := _text(node)))
    return found


def quoted():
    """Each message of the page's tables, without the backticks."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = line.split(" | ")
        if line.startswith("| `") and len(cells) == 3:
            yield from re.findall(r"`([^`]+)`", cells[0])


def has_message(text, message):
    """Whether the pieces of a message stand in a text, in their order."""
    start = 0
    for piece in map(str.strip, message.split(LEFT_OUT)):
        start = text.find(piece, start)
        if start < 0:
            return False
        start += len(piece)
    return True


def test_every_quoted_message_is_one_of_the_packages():
    messages, there = sorted(set(quoted())), texts()
    assert len(messages) > 100
    assert [message for message in messages if max(map(len, message.split(LEFT_OUT))) < LEAST] == []
    gone = [message for message in messages if not any(has_message(text, message) for text in there)]
    assert gone == [], "messages that the package does not have any more: mend the page"
