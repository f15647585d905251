"""Prometheus and Alertmanager accept the repository's files, and every alert fires and stays silent when it should."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT, WAIT_SECONDS

RULES = sorted(map(str, ROOT.glob("prometheus/*.rules.yml")))
CASES = sorted(map(str, ROOT.glob("prometheus/*.test.yml")))
ALERTMANAGER = str(ROOT / "prometheus" / "alertmanager.yml")


def run(*command: str) -> str:
    """Run a tool and return what it says; fail with that when its status is not 0."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WAIT_SECONDS, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_configuration_finds_every_rule_in_a_checkout() -> None:
    said = run("promtool", "check", "config", "prometheus.yml")

    assert f"{len(RULES)} rule files found" in said


def test_configuration_finds_every_rule_as_compose_mounts_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "prometheus.yml", tmp_path)
    shutil.copytree(ROOT / "prometheus", tmp_path / "rules")

    said = run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))

    assert f"{len(RULES)} rule files found" in said


def test_rules_are_sound() -> None:
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_alerts_fire_and_stay_silent_as_their_cases_say() -> None:
    run("promtool", "test", "rules", *CASES)


def test_alertmanager_accepts_its_configuration() -> None:
    run("amtool", "check-config", ALERTMANAGER)


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pages"), ("ticket", "tickets")])
def test_alerts_go_to_the_receiver_of_their_severity(severity: str, receiver: str) -> None:
    said = run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}")

    assert said.split() == [receiver]
