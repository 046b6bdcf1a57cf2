"""`python3 -m tests` leaves out tests whose programs it cannot install, passes without them, and names them."""

import os

import pytest

from tests.__main__ import ALL, find_daemons, find_failures, main, prepare_machine

pytest_plugins = ["pytester"]


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


def test_failed_tests_are_found_in_the_output_of_a_step(pytester):
    pytester.mkdir("tests").joinpath("test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    pytester.path.joinpath("tests/test_none.py").write_text("import nothing_of_this_name\n")
    output = pytester.runpytest_inprocess(
        "-ra", "-p", "no:cacheprovider", "--color=yes", "--continue-on-collection-errors"
    ).stdout.str()
    assert sorted(find_failures(output)) == [
        "ERROR tests/test_none.py",
        "FAILED tests/test_two.py::test_bad - assert 1 == 2",
    ]
