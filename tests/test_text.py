import pytest

from ds_rvqvae.text import GIB, MIB, TIB, counted, duration, gibibytes, gigabytes, in_gb, in_gib, size


@pytest.mark.parametrize(
    ("count", "short", "long"),
    [
        (0, "0 B", "0 bytes"),
        (1023, "1,023 B", "1,023 bytes"),
        (1024, "1.0 KiB", "1.0 KiB"),
        (MIB - 1, "1,024.0 KiB", "1,024.0 KiB"),
        (1.5 * MIB, "1.5 MiB", "1.5 MiB"),
        (2.255 * GIB, "2.25 GiB", "2.3 GiB"),
        (1500 * GIB, "1,500.00 GiB", "1.5 TiB"),
        (5000 * TIB, "5,120,000.00 GiB", "5,000.0 TiB"),
        (-5 * GIB, "-5,368,709,120 B", "-5,368,709,120 bytes"),
    ],
)
def test_sizes_have_the_unit_that_leaves_few_digits(count, short, long):
    assert (size(count), size(count, short=False)) == (short, long)


def test_numbers_and_units():
    assert (in_gib(18.25 * GIB), in_gb(18.26e9), in_gib(None), in_gb(None)) == ("18.2", "18.3", "N/A", "N/A")
    assert (gibibytes(GIB), gibibytes(3 * GIB / 2, ".3g"), gigabytes(24e9)) == ("1.00 GiB", "1.5 GiB", "24.0 GB")


def test_counts_and_lengths_of_time():
    assert [counted(count, "clip") for count in (0, 1, 1200)] == ["0 clips", "1 clip", "1,200 clips"]
    assert [duration(seconds) for seconds in (0, 59.6, 7503)] == ["0 s", "1 min", "2 h 5 min 3 s"]
