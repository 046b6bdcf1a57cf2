"""From rows to labels through Dagster, the engine and a real Slurm, with a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from slurm_batches import before_real

HERE = Path(__file__).parent
LABELS = {"a": "positive", "b": "negative", "c": "positive", "d": "negative", "e": "positive"}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    root = HERE.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    words = [sys.executable, str(HERE / "labeling.py"), str(folder)]
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_rows_are_labeled_by_one_job_although_its_submitter_was_killed_before_it_wrote_the_job_down(
    cluster, tmp_path, monkeypatch
):
    calls = tmp_path / "calls"
    with monkeypatch.context() as patch:
        before_real(tmp_path / "bin", patch, "sbatch", f'echo x >> {calls}; "$REAL" "$@" > /dev/null; kill -9 $PPID')
        assert run(tmp_path / "home").returncode == -signal.SIGKILL
    before_real(tmp_path / "bin2", monkeypatch, "sbatch", f'echo x >> {calls}; exec "$REAL" "$@"')
    done = run(tmp_path / "home")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == LABELS
    assert calls.read_text() == "x\n"
    (folder,) = (tmp_path / "home" / "work").iterdir()
    assert len(list(folder.glob("exit-*.json"))) == 3  # five rows, two a task
