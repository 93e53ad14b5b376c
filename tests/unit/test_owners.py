from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.database.owners import Duty, Owners

HOLD = """
import sys
from pathlib import Path
from gateway.database.owners import Owners
owners = Owners(Path(sys.argv[1]))
print(owners.name, flush=True)
sys.stdin.read()
"""


def test_a_process_is_alive_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    ours = Owners(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdin is not None
    name = other.stdout.readline().strip()

    assert ours.is_alive(name)
    assert ours.is_alive(ours.name)
    other.kill()
    other.wait()
    other.stdout.close()
    other.stdin.close()

    assert not ours.is_alive(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ours.name]
    ours.close()


def test_whoever_leaves_is_gone_and_a_stranger_never_was(tmp_path: Path) -> None:
    ours, other = Owners(tmp_path), Owners(tmp_path)
    other.close()

    assert not ours.is_alive(other.name)
    assert not ours.is_alive("nobody")
    ours.close()


def test_a_duty_is_one_process_at_a_time_and_passes_on_when_it_is_left(tmp_path: Path) -> None:
    one, two = Duty(tmp_path / "duty"), Duty(tmp_path / "duty")

    assert one.is_ours()
    assert one.is_ours()
    assert not two.is_ours()
    one.close()
    assert two.is_ours()
    two.close()
