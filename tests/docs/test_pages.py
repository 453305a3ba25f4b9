"""The pages themselves: their length, their links, and a Chinese README that says what the English one says."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks_of
from tests.words import findings, prose_of

README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


def without_blocks(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_front_pages_are_short():
    assert len(README.read_text().splitlines()) <= 200
    assert len(CHINESE.read_text().splitlines()) <= 260


def test_the_chinese_readme_has_the_same_blocks_pictures_headings_and_tables():
    assert [block[2:] for block in blocks_of(CHINESE)] == [block[2:] for block in blocks_of(README)]
    english, chinese = README.read_text(), CHINESE.read_text()
    for pattern in (r"\]\((docs/images/\S+)\)", r"^(#+) "):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE), pattern
    cells = [[row.count("|") for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)] for text in (english, chinese)]
    assert cells[0] == cells[1]


def test_the_chinese_readme_has_the_same_figures_names_and_links():
    def told(page: Path) -> Counter[str]:
        text = without_blocks(page)
        text = text.replace("[中文](README.zh-CN.md)", "").replace("[English](README.md)", "")
        return Counter(re.findall(r"`[^`]+`|\]\([^)]+\)|\d[\d,.]*\d|\d", text))

    english, chinese = told(README), told(CHINESE)
    assert english - chinese == chinese - english == Counter()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = without_blocks(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = without_blocks(page)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words_of_the_pages(page):
    assert [finding for piece in prose_of(page) for finding in findings(piece)] == []
