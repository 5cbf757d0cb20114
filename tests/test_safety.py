"""Nothing is lost, and nothing is believed unchecked: two runs in one folder, kills, full disks, damaged records."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import runs

# -- two runs in one folder --------------------------------------------------------------------------------------------


def test_hold_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "run"
    runs.hold(folder)
    runs.hold(folder)  # again in the same process
    lock = folder.with_name(".run.lock")
    assert f"process {os.getpid()} on " in lock.read_text()
    runs.release(folder)
    runs.release(folder)
    assert not lock.exists()
    lock.write_text("what a killed process left")
    runs.hold(folder)
    runs.release(folder)
    assert not lock.exists()


def test_the_second_process_is_told_who_holds_a_folder_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"folder = Path({str(folder)!r}); runs.hold(folder); print('ready', flush=True); time.sleep(60)"
    before = "import time; from pathlib import Path; import runs\n"
    first = subprocess.Popen([sys.executable, "-c", before + code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout.readline() == "ready\n"
    today = time.strftime("%Y-")
    with pytest.raises(runs.Held, match=rf"run is in use by process {first.pid} on .+ since {today}.*; wait until it ends"):
        runs.hold(folder)
    first.kill()
    first.wait()
    runs.hold(folder)
    runs.release(folder)
    assert list(tmp_path.iterdir()) == []
