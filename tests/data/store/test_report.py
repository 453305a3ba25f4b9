import json
from pathlib import Path

import numpy as np

from ds_rvqvae.data.store.report import (
    ColumnFacts,
    Findings,
    TakeFacts,
    column_ranges,
    extreme_columns,
    make_report,
    report_text,
)
from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.motion.clip import Quarantined
from ds_rvqvae.motion.layout import Channels, feature_layout, joint_layout

LAYOUT = joint_layout(("Hips", "LHipJoint", "Head"), "position")
TAKES = (
    TakeFacts("a.bvh", 120.00004577, 7200, (("a", 1800, None),), ("unit: guessed 0.01 metres",)),
    TakeFacts("b.bvh", 120.000480002, 3600, (("b#0", 400, None), ("b#1", 300, None)), ("unit: guessed 0.01 metres",)),
    TakeFacts("c.bvh", 29.97, 300, (("c", 300, None),), ("only one joint",)),
    TakeFacts("d.bvh", 25.0, 50, ()),
    TakeFacts("e.bvh", 50.0, 500, (("e", 300, None),)),
)
SEGMENTS = (
    Segment("a", 0, 1440, "train"),
    Segment("a", 1440, 1800, "val"),
    Segment("b#0", 0, 400, "train"),
    Segment("b#1", 0, 300, "test"),
    Segment("c", 0, 300, "train"),
    Segment("e", 0, 300, "val"),
)
QUARANTINED = (
    Quarantined("a.bvh", "reference_pose", (0, 1), "a reference pose"),
    Quarantined("b.bvh", "dropouts", (1600, 1610), "every value is zero"),
    Quarantined("b.bvh", "max_joint_step", (2000, 2002), "jump between frames 2000 and 2001"),
    Quarantined("b.bvh", "max_joint_step", (2500, 2504), "jumps between all frames from 2500 to 2503"),
    Quarantined("d.bvh", "too_short", None, "60 frames, fewer than 100"),
    Quarantined("x\x1b[2J.bvh", "unreadable", None, "damaged or cut short"),
)


def columns() -> ColumnFacts:
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(3100, 21))
    frames[:, 6:12] = [0.5, -3000.1, 0, 0, 1, 0]
    frames[:, 7] += rng.uniform(-1e-4, 1e-4, size=3100)  # a constant after interpolation
    frames[7, 14], frames[9, 20] = 40, -90
    statistics = frames.mean(0), frames.std(0), frames.min(0), frames.max(0)
    return ColumnFacts(*statistics, extreme_columns(*statistics, LAYOUT))


def store_of(layout, segments) -> Store:
    """Returns a store of one data set, with all that its report needs."""
    names = list(dict.fromkeys(segment.name for segment in segments))
    stops = [max(segment.stop for segment in segments if segment.name == name) for name in names]
    width = layout[-1].stop
    return Store(
        folder=Path("/store"),
        shards=[],
        starts=np.cumsum([0, *stops]),
        clip_names=names,
        layout=layout,
        fps=30.0,
        dtype="float32",
        mean=np.zeros(width, np.float32),
        std=np.ones(width, np.float32),
        segments=list(segments),
        has_own_statistics=False,
        has_body_parts=False,
        skeleton=None,
        left_out=[],
        settings={"fps": 30.0},
        fingerprint="",
        num_parts=1,
        sources=["/motion"],
    )


def report() -> dict:
    return make_report(store_of(LAYOUT, SEGMENTS), Findings("BVH", TAKES, QUARANTINED, columns()))


def test_counts_and_hours_add_up():
    found = report()
    assert (found["clips"], found["files"], found["frames"], found["columns"]) == (5, 6, 3100, 21)
    assert found["hours"] == round(3100 / 30 / 3600, 6) and found["fps"] == 30
    assert found["splits"] == {
        "train": {"clips": 3, "frames": 2140, "hours": round(2140 / 30 / 3600, 6)},
        "val": {"clips": 2, "frames": 660, "hours": round(660 / 30 / 3600, 6)},
        "test": {"clips": 1, "frames": 300, "hours": round(300 / 30 / 3600, 6)},
    }
    assert list(found["splits"]) == ["train", "val", "test"]
    assert found["notes"] == {"unit: guessed 0.01 metres": 2, "only one joint": 1}


def test_frame_rates_say_what_was_done_about_them():
    found = report()
    rates = [(rate["fps"], rate["files"], rate["resampled"], rate["how"]) for rate in found["frame_rates"]]
    assert rates == [
        (25.0, 1, True, "interpolated"),
        (29.97, 1, False, "as it is"),
        (50.0, 1, True, "interpolated"),
        (120.0, 2, True, "decimated by 4"),
    ]
    assert found["resampled"] == 4
    assert found["frame_rates"][3]["hours"] == round(10800 / 120 / 3600, 6)


def test_rules_count_files_spans_and_frames_that_are_not_kept():
    found = report()
    assert found["rules"] == {
        "dropouts": {"files": 1, "spans": 1, "frames": 10},
        "max_joint_step": {"files": 1, "spans": 2, "frames": 2},
        "reference_pose": {"files": 1, "spans": 1, "frames": 1},
        "too_short": {"files": 1, "spans": 0, "frames": 0},
        "unreadable": {"files": 1, "spans": 0, "frames": 0},
    }
    assert found["left_out"] == 2
    quarantine = found["quarantine"]
    first = {"file": "a.bvh", "rule": "reference_pose", "frames": [0, 1], "reason": "a reference pose"}
    assert quarantine[0] == first and [entry["frames"] for entry in quarantine[4:]] == [None, None]


def test_constant_and_extreme_columns_are_named():
    found = report()
    assert found["constant_columns"] == ["LHipJoint[0-5]"] and found["constant_column_count"] == 6
    assert [(one["column"], one["index"]) for one in found["extreme_values"]] == [
        ("translation[2]", 20),
        ("Head[2]", 14),
    ]
    worst = found["extreme_values"][0]
    assert worst["minimum"] == -90 and 20 < found["extreme_values"][1]["stds"] < worst["stds"] < 56


def test_extreme_columns_are_twenty_at_most_and_the_worst():
    spread = np.arange(1, 101) + 0.0
    found = extreme_columns(np.zeros(100), np.ones(100), -spread, np.zeros(100), feature_layout(100))
    assert [one["stds"] for one in found] == list(range(100, 80, -1))
    fixed = extreme_columns(np.ones(100), np.zeros(100), np.ones(100), np.ones(100), feature_layout(100))
    assert fixed == []


def test_column_ranges_do_not_cross_channels():
    layout = (Channels("Hips", "rotation_6d", 0, 6), Channels("z", "feature", 6, 9))
    assert column_ranges([0, 2, 3, 5, 6, 7], layout) == ["Hips[0]", "Hips[2-3]", "Hips[5]", "z[0-1]"]
    assert column_ranges([], layout) == []


def test_a_report_is_json_and_the_same_every_time():
    text = json.dumps(report(), allow_nan=False)
    assert text == json.dumps(report(), allow_nan=False) and json.loads(text) == report()


def test_the_text_tells_what_went_in_and_what_did_not():
    text = report_text(json.loads(json.dumps(report())))
    lines = [line.split() for line in text.splitlines()]
    assert "5 clips of 6 files: 3,100 frames, 1.7 minutes, 21 columns, 30 fps" in text
    assert ["120", "2", "0.025", "decimated", "by", "4"] in lines and ["train", "3", "2,140", "0.020"] in lines
    assert ["dropouts", "1", "1", "10", "b.bvh", "1600-1609"] in lines
    assert "max_joint_step" in text and "b.bvh 2000-2001, b.bvh 2500-2503" in text
    assert "  d.bvh: 60 frames, fewer than 100" in text and "x?[2J.bvh: damaged" in text and "\x1b" not in text
    assert "6 constant columns: LHipJoint[0-5]" in text and "  translation[2]: -90, " in text
    assert "  unit: guessed 0.01 metres (2 files)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_long_lists_end_with_their_count():
    found = report()
    found["quarantine"] = [entry for number in range(30) for entry in [{**found["quarantine"][4], "file": str(number)}]]
    found["rules"] = {"too_short": {"files": 30, "spans": 0, "frames": 0}}
    text = report_text(found, most=8)
    assert "0, 1, … (30)" in text and "  7: 60 frames" in text and "  8: 60" not in text and "and 22 more" in text


def test_a_report_of_nothing_odd_is_short():
    clean = ColumnFacts(np.zeros(3), np.ones(3), -np.ones(3), np.ones(3), [])
    takes = [TakeFacts("a.npy", 30.0, 60, (("a", 60, "train"),))]
    store = store_of(feature_layout(3), [Segment("a", 0, 60, "train")])
    found = make_report(store, Findings("BVH", takes, [], clean))
    text = report_text(found)
    assert "1 clip of 1 file: 60 frames, 2.0 seconds" in text and "nothing was left out" in text
    assert found["constant_columns"] == [] and "constant" not in text and "notes" not in text


def rates_of(*rates: float) -> list[str]:
    takes = [TakeFacts(f"{index}.npz", rate, 60, ((str(index), 60, None),)) for index, rate in enumerate(rates)]
    return list(make_report(store_of(LAYOUT, SEGMENTS), Findings("SMPL", takes, (), columns()))["notes"])


def test_files_whose_rate_differs_from_all_others_are_named():
    assert rates_of(30, 30, 20, 30) == ["1 file has 20 fps, the others 30: 2.npz"]
    assert rates_of(20, 30) == ["1 file has 30 fps, the others 20: 1.npz"]
    assert rates_of(*[30] * 300, 20, 20) == ["2 files have 20 fps, the others 30: 300.npz, 301.npz"]
    assert rates_of(60, 30, 30, 30, 30, 100) == [
        "1 file has 60 fps, most others 30: 0.npz",
        "1 file has 100 fps, most others 30: 5.npz",
    ]


def test_data_of_many_rates_and_rates_that_are_read_alike_are_no_news():
    assert rates_of(30, 30, 29.99, 120, 60, 100, 150, 250) == []
    assert rates_of(*[120] * 50, *[60] * 20) == [] == rates_of(120, 120.00004577, 119.95) == rates_of()


def test_what_became_of_all_files_is_told():
    groups = [
        {"reason": "not of this format", "suffix": ".wav", "files": 1200, "first": ["a.wav"]},
        {"reason": "hidden", "suffix": "", "files": 2, "first": [".a"]},
        {"reason": "not of this format", "suffix": "", "files": 1, "first": ["README"]},
    ]
    counts = [{"source": name, "seen": 1210, "read": 5, "left_out": 2, "passed_over": groups} for name in ("a", "b")]
    found = make_report(store_of(LAYOUT, SEGMENTS), Findings("BVH", TAKES, QUARANTINED, columns(), (), counts))
    seen, read, left_out, passed_over = (found[f"files_{key}"] for key in ("seen", "read", "left_out", "passed_over"))
    assert seen == read + left_out + passed_over == 2420 and found["file_counts"] == counts
    lines = report_text(found).splitlines()
    start = lines.index("2,420 files found: 10 read, 4 left out, 2,406 passed over")
    assert lines[start + 1 : start + 4] == ["  2,402 not of this format (.wav)", "  4 hidden", ""]
    old = {key: value for key, value in found.items() if not key.startswith("file_")}
    del old["files_seen"]
    assert "are read" not in report_text(old)
