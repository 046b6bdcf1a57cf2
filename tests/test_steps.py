"""`python3 -m tests` leaves out what the machine lacks and it cannot install, passes without it, and names it."""

import os

import pytest

from tests.__main__ import ALL, find_daemons, main, prepare_machine


def test_a_step_whose_program_is_not_there_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt either, as on macOS
    assert main(["spark"]) == 0
    assert capsys.readouterr().out.startswith("LEFT OUT: spark: not here: java (Debian and Ubuntu: default-jre-")


@pytest.mark.skipif(os.geteuid() != 0, reason="what starts daemons is left out for that without root")
def test_one_of_a_steps_programs_is_not_enough(tmp_path, monkeypatch, capsys):
    (tmp_path / "sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm"]) == 0
    assert capsys.readouterr().out.startswith("LEFT OUT: slurm: not here: munged, slurmdbd, mariadbd (Debian ")


def test_what_a_step_goes_on_without_is_named_and_what_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DLB_TEST_POSTGRES", "0")
    monkeypatch.setenv("DLB_TEST_KAFKA", "0")
    absences = prepare_machine(list(ALL))
    assert absences["kafka"] == "DLB_TEST_KAFKA=0"
    assert absences["a look at Dagster's pages"] == "there is no Chromium (Debian: chromium) and no Chrome"
    assert not {"wheel", "slow", "pythons"} & set(absences)


def test_daemons_are_looked_for_where_a_users_path_has_none(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/usr/sbin")
    find_daemons()
    assert os.environ["PATH"] == "/usr/bin:/usr/sbin:/usr/local/sbin:/sbin"
