"""`docs/profiles.md` lists every key as it is; `python -m tests.docs.test_profiles_page` writes that part anew."""

from ds_rvqvae.config.keys import markdown
from tests.ranks import ROOT

PAGE = ROOT / "docs" / "profiles.md"
BEGIN = "<!-- from here to the end mark: `ds-rvqvae profile keys --markdown` -->\n"
END = "<!-- end of the generated part -->\n"
COMMAND = "python -m tests.docs.test_profiles_page"


def renewed(text):
    """The page with its generated part as it is now."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE}: one of the two marks is missing"
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def test_the_page_lists_the_keys_as_they_are():
    text = PAGE.read_text(encoding="utf-8")
    assert text == renewed(text), f"keys, their meanings or defaults have changed; run: {COMMAND}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
