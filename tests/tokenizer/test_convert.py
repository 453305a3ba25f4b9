"""Converting many files: the result of each, their order, and what is refused before the start."""

import numpy as np
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, LeftOut
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.tokenizer.convert import Converted, Report, checked_levels, convert_files, reason_of
from tests.cli.commands import files_below, make_tokenizer


class Doubles:
    """Doubles the numbers in `.npy` files of one clip; an empty file is done already, and negative numbers fail."""

    suffixes = (".npy",)

    def __init__(self, out):
        self.out, self.started = out, []

    def start(self, found):
        assert self.out.is_dir()
        self.started.append([file.relative.as_posix() for file in found])

    def convert(self, found):
        values = np.load(found.file)
        output = self.out / found.relative
        if not len(values):
            yield Converted(str(found.file), str(output), skipped=True)
            return
        if values.min() < 0:
            raise ClipError(f"{found.file}: a number\nbelow 0")
        output.parent.mkdir(parents=True, exist_ok=True)
        np.save(output, 2 * values)
        yield Converted(str(found.file), str(output), float(len(values)), notes=("doubled",))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    for name, values in {"a": [1.0, 2.0], "below/b": [3.0], "done": [], "wrong": [-1.0]}.items():
        np.save(folder / f"{name}.npy", np.array(values))
    (folder / "notes.txt").write_text("not for us")
    return folder


@pytest.mark.parametrize("workers", [1, 3])
def test_each_file_is_named_with_what_became_of_it(data, tmp_path, workers):
    converter = Doubles(tmp_path / "out")
    report = convert_files(converter, [data, tmp_path / "nowhere.npy"], workers)
    assert [sorted(names) for names in converter.started] == [["a.npy", "below/b.npy", "done.npy", "wrong.npy"]]
    assert sorted(clip.file for clip in report.done) == [str(data / "a.npy"), str(data / "below" / "b.npy")]
    assert [clip.file for clip in report.skipped] == [str(data / "done.npy")]
    assert {left.file: left.reason for left in report.failed} == {
        str(tmp_path / "nowhere.npy"): "no such file or folder",
        str(data / "wrong.npy"): "a number below 0",
    }
    assert files_below(tmp_path / "out") == ["a.npy", "below/b.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), [2.0, 4.0])
    assert report.seconds == 3.0 and report.elapsed > 0 and not report.stopped


def test_nothing_to_do_is_refused(data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no \.npy file in it or its subfolders$"):
        convert_files(Doubles(tmp_path / "out"), [tmp_path / "empty"], 1)
    with pytest.raises(UserError, match=r"nowhere: no such file or folder \(and 1 more\)"):
        convert_files(Doubles(tmp_path / "out"), [tmp_path / "nowhere", tmp_path / "nor here"], 1)
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_and_files_written_over_are_refused(data, tmp_path):
    np.save(tmp_path / "a.npy", np.ones(1))
    with pytest.raises(UserError, match=r"would both be written to .*a\.npz; convert one at a time"):
        convert_files(Doubles(tmp_path / "out"), [data, tmp_path / "a.npy"], 1)
    np.savez(tmp_path / "b.npz", np.ones(1))
    with pytest.raises(UserError, match=r"would overwrite the input .*b\.npz; name another folder"):
        convert_files(Doubles(tmp_path), [tmp_path / "b.npz"], 1)
    # One file under two paths is one file.
    report = convert_files(Doubles(tmp_path / "out"), [data / "a.npy", data / "below" / ".." / "a.npy"], 1)
    assert len(report.done) == 1


def test_a_folder_that_cannot_be_made_is_refused(data):
    with pytest.raises(UserError, match=r"--out .*: cannot be written: "):
        convert_files(Doubles(data / "a.npy" / "out"), [data], 1)


def test_the_summary_counts_and_gathers_notes():
    report = Report(elapsed=2.0)
    report.add([Converted(f"{name}.npz", "out", 1800.0, notes=("at rest",)) for name in "abc"])
    report.add([Converted("d.npz", "out", skipped=True), LeftOut("e.npz", "damaged")])
    assert report.text().splitlines() == [
        "3 done, 1 skipped, 1 failed; 1.50 hours of motion in 2.0 s, 2700 times real time",
        "at rest: a.npz and 2 more",
    ]
    told = report.to_dict()
    assert (told["hours"], told["elapsed_s"], told["times_real_time"], told["stopped"]) == (1.5, 2.0, 2700.0, False)
    assert told["done"][1] == {"file": "b.npz", "output": "out", "seconds": 1800.0, "notes": ["at rest"]}
    assert told["skipped"] == [{"file": "d.npz", "output": "out"}]
    assert told["failed"] == [{"file": "e.npz", "reason": "damaged"}]
    assert Report(stopped=True).text() == "0 done, 0 skipped, 0 failed, stopped before all were done"
    assert Report().to_dict()["times_real_time"] is None


def test_equal_failures_are_one_line_and_twelve_are_shown():
    report = Report(failed=[LeftOut(f"{name}.bvh", "no LeftArm") for name in range(1500)])
    report.failed += [LeftOut("odd.bvh", "cut short"), LeftOut("7.bvh", "no LeftArm")]
    assert report.failures().splitlines() == [
        "failed: 0.bvh and 1,500 more: no LeftArm",
        "failed: odd.bvh: cut short",
    ]
    report = Report(failed=[LeftOut(f"{name}.bvh", f"line {name // 2}") for name in range(30)])
    lines = report.failures().splitlines()
    assert len(lines) == 13 and lines[11] == "failed: 22.bvh and 1 more: line 11"
    assert lines[12] == "failed: 6 more, for 3 other reasons; --json lists them all"
    assert len(report.to_dict()["failed"]) == 30


def test_reasons_are_one_line_without_the_files_name(tmp_path):
    file = tmp_path / "clip.npz"
    assert reason_of(ClipError(f"{file}: too\n  short"), file) == "too short"
    assert reason_of(KeyError("poses"), file) == "KeyError: 'poses'"
    with pytest.raises(OSError) as raised:
        file.open()
    assert reason_of(raised.value, file) == f"{file}: No such file or directory"
    assert reason_of(OSError("odd"), file) == "odd"


def test_levels_are_those_that_every_part_has():
    parts = {"upper": make_tokenizer(feature_layout(5))}
    assert [checked_levels(levels, parts) for levels in (None, 1, 3)] == [None, 1, 3]
    for levels in (0, 4):
        with pytest.raises(UserError, match=f"--levels {levels}: upper has levels 1 to 3"):
            checked_levels(levels, parts)
    with pytest.raises(UserError, match="--levels 4: this tokenizer has levels 1 to 3"):
        checked_levels(4, {"": parts["upper"]})
