"""A run's meter of its own GPU."""

import json

import pytest

from ds_rvqvae.gpu.meter import CardMeter
from tests.gpu.stand_in import GPU_IS_LOST, NOT_SUPPORTED

METER = """
import json, sys
from dataclasses import asdict
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter({identity!r})
print(json.dumps([meter.found, asdict(meter.read())]))
"""


class TestMeter:
    @pytest.mark.parametrize(
        "identity", ["GPU-00000003-0000-4090-8000-000000000000", "00000003-0000-4090-8000-000000000000", "0000:31:00.0"]
    )
    def test_a_card_by_its_uuid_or_bus_id(self, stand_in, identity):
        stand_in.play("3 used 4096", "3 utilisation 55", "3 power 123456")
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert found and reading["memory_used_bytes"] == 4096 and reading["utilisation"] == 55
        assert reading["power_watts"] == 123.456 and reading["temperature"] == 33

    def test_a_mig_slice(self, stand_in):
        stand_in.play("1 slice 1000 2000")
        identity = "MIG-0-00000001-0000-4090-8000-000000000000"
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert found and reading["memory_used_bytes"] == 1000 and reading["power_watts"] is None

    @pytest.mark.parametrize("identity", ["GPU-none", "0000:ff:00.0", "", "a:b"])
    def test_no_such_card(self, stand_in, identity):
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert not found and set(reading.values()) == {None}

    def test_energy_is_the_cards_own_count_since_the_meter_was_opened(self, stand_in):
        changed = stand_in.file.read_text() + "0 energy 1500000\n"
        code = f"""
from pathlib import Path
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
assert meter.read().energy_joules == 0
Path({str(stand_in.file)!r}).write_text({changed!r})
print(meter.read().energy_joules)
"""
        assert float(stand_in.python(code)) == 500

    def test_energy_is_summed_from_power_where_the_card_does_not_count(self, stand_in):
        stand_in.play(f"0 energy !{NOT_SUPPORTED}", "0 power 1000000")
        code = """
import time
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
meter.read()
began = time.monotonic()
time.sleep(0.2)
print(meter.read().energy_joules, 1000 * (time.monotonic() - began))
"""
        joules, expected = map(float, stand_in.python(code).split())
        assert joules == pytest.approx(expected, rel=0.1)

    def test_a_card_that_is_lost_and_comes_back(self, stand_in):
        code = f"""
from pathlib import Path
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
for line in ("0 error {GPU_IS_LOST}", "0 temperature 44"):
    Path({str(stand_in.file)!r}).write_text(line)
    print(meter.read().temperature)
meter.close()
print(meter.read().temperature)
"""
        assert stand_in.python(code).split() == ["None", "44", "None"]

    def test_without_a_driver_it_reads_nothing(self):
        meter = CardMeter("GPU-00000000-0000-0000-0000-000000000000")
        assert not meter.found and meter.read().memory_used_bytes is None
        meter.close()
