"""Names shortened to fit into pictures."""

from ds_rvqvae.viz.names import name_words, short_names


def test_names_can_be_drawn_and_their_middle_is_left_out():
    assert "\n" not in name_words("two\nlines") and "\x1b" not in name_words("\x1b[2J")
    assert name_words("one two three four", 12) == "one tw… four" and name_words("one two", 12) == "one two"


def test_what_all_long_names_begin_with_goes_first():
    names = ["dataset-1_bye_musical_001", "dataset-1_walk_old_001", "dataset-1_walk-left_not-confident_001"]
    assert short_names(names, 18) == ["…bye_musical_001", "…walk_old_001", "…walk-lef…dent_001"]
    assert short_names(["a_1", "a_2"], 18) == ["a_1", "a_2"]  # short enough as they are
    assert short_names(names[:1] * 2, 12) == ["datase…l_001"] * 2
    assert short_names(["x" * 30, "y" * 30], 9) == ["xxxx…xxxx", "yyyy…yyyy"]
