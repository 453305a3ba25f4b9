import subprocess
import sys

import pytest

from ds_rvqvae.locks import BusyError, hold_folder

HOLDER = (
    "import sys; from pathlib import Path; from ds_rvqvae.locks import hold_folder\n"
    "held = hold_folder(Path(sys.argv[1]), wait=False, shared=sys.argv[2] == 'shared')\n"
    "print('held', flush=True); sys.stdin.read()"
)


def other_process(folder, how):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, how], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_process_until_that_ends(tmp_path):
    process = other_process(tmp_path, "alone")
    with pytest.raises(BusyError, match=str(tmp_path)):
        hold_folder(tmp_path, wait=False)
    process.kill()
    process.wait()
    with hold_folder(tmp_path, wait=False) as held:
        assert held.works and not any(tmp_path.iterdir())
        with pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
    hold_folder(tmp_path, wait=True).close()


def test_readers_hold_a_folder_together_and_keep_writers_out(tmp_path):
    process = other_process(tmp_path, "shared")
    with hold_folder(tmp_path, wait=False, shared=True), pytest.raises(BusyError):
        hold_folder(tmp_path, wait=False)
    process.communicate("")
    hold_folder(tmp_path, wait=False).close()
