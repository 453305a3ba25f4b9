"""TensorBoard's files after a crash of the machine."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import Event, SessionLog

from ds_rvqvae.runs.event_files import mend_event_files
from tests.damage import DAMAGES, damage

TAG = "Train/loss"


def start(folder, first, last, name):
    """Writes the file of one start of a run: samples `first` to `last`; earlier points from `first` on are removed."""
    before = set(folder.iterdir())
    with SummaryWriter(str(folder)) as writer:
        writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START), step=first))
        for sample in range(max(first, 1), last + 1):
            writer.add_scalar(TAG, 1 / sample, sample)
            writer.add_scalar("Val/l1", 2 / sample, sample)
    (file,) = set(folder.iterdir()) - before
    return file.rename(folder / f"events.out.tfevents.{name}.host.1.0")


@pytest.fixture
def board(tmp_path):
    """The files of three starts: the first was killed at sample 130, after a checkpoint at 100."""
    starts = (0, 130, 1000000000), (101, 200, 1000000001), (201, 300, 1000000002)
    return [start(tmp_path, *one) for one in starts]


def points(folder, tag=TAG):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    return [(event.step, pytest.approx(event.value)) for event in events]


SCALARS = {sample: {TAG: 1 / sample, "Train/lr": 0.1} for sample in range(1, 301)}
WHOLE = [(sample, 1 / sample) for sample in range(1, 301)]


def test_whole_files_stay_as_they_are(board, tmp_path):
    before = [file.read_bytes() for file in board]
    assert points(tmp_path) == WHOLE
    assert mend_event_files(tmp_path, TAG, SCALARS) == []
    assert [file.read_bytes() for file in board] == before


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("which", range(3))
def test_a_curve_has_every_point_again(board, tmp_path, which, kind):
    damage(board[which], kind)
    notes = mend_event_files(tmp_path, TAG, SCALARS)
    assert points(tmp_path) == WHOLE
    assert notes and all(str(tmp_path) in note for note in notes)
    assert mend_event_files(tmp_path, TAG, SCALARS) == []
    assert ("written again" in " ".join(notes)) == ("after" not in kind)
    # What is written from now on is read as well.
    start(tmp_path, 301, 310, 1000000003)
    assert [step for step, _ in points(tmp_path)] == list(range(1, 311))


def test_points_that_nothing_has_are_only_cut(board, tmp_path):
    damage(board[2], "half")
    (note,) = mend_event_files(tmp_path, TAG, {})
    assert note.startswith(f"{board[2]}: damaged at its end; ")
    assert [step for step, _ in points(tmp_path)][:200] == list(range(1, 201))


def test_the_file_that_is_being_written_is_left_alone(board, tmp_path):
    content = damage(board[2], "random bytes after it")
    assert mend_event_files(tmp_path, TAG, {}, [board[2]]) == []
    assert board[2].read_bytes() != content


def test_a_run_without_files(tmp_path):
    assert mend_event_files(tmp_path / "none", TAG, SCALARS) == []
