from io import BytesIO

from matplotlib.figure import Figure

from ds_rvqvae.viz import canvas
from ds_rvqvae.viz.canvas import set_names_as_text, write_png

NAME = "x\x1b[2J\u202e\udcff$\\bad{0$"


def test_names_are_drawn_as_they_are_and_without_what_no_font_has():
    figure = Figure(layout="constrained")
    figure.suptitle(NAME)
    axes = figure.add_subplot()
    axes.plot([1, 10, 100], label=NAME)
    axes.set(title=f"two\n{NAME}", xlabel=NAME)
    axes.set_xticks([0, 1], labels=[NAME, NAME])
    axes.set_yscale("log")
    axes.legend()
    with BytesIO() as file:
        write_png(figure, file, dpi=50)
        assert file.getvalue().startswith(b"\x89PNG")
    assert axes.get_title() == "two\nx?[2J??$\\bad{0$"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x?[2J??$\\bad{0$"] * 2
    assert all(label.get_parse_math() for label in axes.get_yticklabels())  # powers of ten


def test_text_that_is_drawn_again_stays_the_same():
    figure = Figure()
    figure.text(0.5, 0.5, "a$b$")
    for _ in range(2):
        set_names_as_text(figure)
    assert [text.get_text() for text in figure.texts] == ["a$b$"]


def test_characters_that_no_font_has_are_question_marks_without_a_word(recwarn, monkeypatch):
    monkeypatch.setattr(canvas, "_wide_fonts", list)
    canvas._is_drawn.cache_clear()
    figure = Figure(layout="constrained")
    figure.suptitle("走る $x$ … Größe")
    figure.add_subplot().set_yticks([0, 1], ["左腕", "右腕"])
    with BytesIO() as file:
        write_png(figure, file, dpi=50)
    canvas._is_drawn.cache_clear()
    assert figure.get_suptitle() == "?? $x$ … Größe" and not recwarn.list
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["??", "??"]
