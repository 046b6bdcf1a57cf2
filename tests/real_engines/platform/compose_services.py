"""The services of a folder like docs/deploy as processes, with the commands and the environment of its compose.yaml.

Only the container network is replaced: the names of hosts, and ports that may be taken here. PostgreSQL requires the
passwords; the bucket is a real S3 server, and OpenAI is the emulator.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from dagster_llm_batch.testing.emulator import local_s3
from tests.crash.postgres import _binaries
from tests.dagster.dagster_dev import DagsterDev, emulator, free_port, process, until

DEPLOY = Path(__file__).resolve().parents[3] / "docs" / "deploy"
RUN = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
RUNS = "{ runsOrError { ... on Runs { results { status assetSelection { path } } } } }"
MATERIALIZED = """
query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset { assetMaterializations { runId } } } }"""


def load_services(file: Path) -> dict[str, Any]:
    """Return the services of a file of Compose."""
    services: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
    return services


def merge(services: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the services of compose.yaml and of another file, merged like Compose does it."""
    both = dict(services)
    for name, given in more.items():
        base = services.get(name, {})
        if extended := given.get("extends"):
            # Compose takes the service of that file alone, before it merges the files.
            base = load_services(DEPLOY / extended["file"])[extended["service"]]
        maps = {key: {**base.get(key, {}), **given.get(key, {})} for key in ("environment", "depends_on")}
        both[name] = {**base, **given, **maps}
    return both


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """Substitute `${NAME}`, `${NAME:?}` and `${NAME-}` like compose."""

    def value(found: re.Match[str]) -> str:
        given = variables.get(found[1], "")
        assert given or found[2] != ":?", f"{found[1]} is not set"
        return given

    return re.sub(r"\$\{(\w+)(:\?|-)?\}", value, text)


class Deployment:
    """The services as processes, in the Dockerfile's folders.

    `programs` is the folder of Python and of the commands of the image, by default the folder of this environment.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        *,
        deploy: Path = DEPLOY,
        programs: Path = Path(sys.executable).parent,
    ) -> None:
        self.folder, self.variables, self.deploy, self.programs = folder, variables, deploy, programs
        self.services = load_services(deploy / "compose.yaml")
        self.app, self.home = folder / "app", folder / "home"
        for copied in re.findall(r"^COPY (?!--from)(.+) (\S+)$", (deploy / "Dockerfile").read_text(), re.MULTILINE)[1:]:
            target = {"/opt/dagster/home/": self.home, "./": self.app}[copied[1]]
            target.mkdir(exist_ok=True)
            for path in (path for name in copied[0].split() for path in deploy.glob(name)):
                shutil.copy(path, target)
        (self.home / "storage").mkdir()
        self.places = {
            "4000": str(free_port()),
            "3000": str(free_port()),
            "/opt/dagster/home": str(self.home),
            "/app/": f"{self.app}/",
            "0.0.0.0": "127.0.0.1",
        }

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """Run the service `postgres` like its image, with its password and the mounted script."""
        given = self.services["postgres"]
        environment = {name: filled_in(text, self.variables) for name, text in given["environment"].items()}
        binaries = (_binaries() / "initdb").resolve().parent
        home = Path(tempfile.mkdtemp(prefix="dlb-deploy-", dir="/tmp"))
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
        (home / "password").write_text(environment["POSTGRES_PASSWORD"])
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        port = str(free_port())
        control = [str(binaries / "pg_ctl"), "-D", f"{home}/data", "-w"]
        login = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={home}/password"]
        try:
            subprocess.run([binaries / "initdb", "-D", f"{home}/data", *login], check=True, cwd=home, **quiet, **who)
            options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
            subprocess.run(
                [*control, "-l", f"{home}/log", "-o", options, "start"], check=True, cwd=home, **quiet, **who
            )
            self.places = {"@postgres:5432": f"@127.0.0.1:{port}", "5432": port, **self.places}
            scripts = [volume.split(":")[0] for volume in given["volumes"] if "initdb.d" in volume]
            for script in scripts:
                self.administrator("psql", "-q", "-f", str(self.deploy / script), environment=environment)
            yield
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=False, cwd=home, **quiet, **who)
            shutil.rmtree(home, ignore_errors=True)

    def administrator(self, program: str, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a program of PostgreSQL as the administrator of the server, and return its output."""
        command = [(_binaries() / "initdb").resolve().parent / program, "-h", "127.0.0.1", "-p", self.places["5432"]]
        login = {**(environment or {}), "PGPASSWORD": self.variables["POSTGRES_PASSWORD"]}
        done = subprocess.run(
            [*command, "-U", "postgres", *words],
            env={**os.environ, **login},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (program, words, done.stderr[-3000:])
        return done.stdout

    def environment(self, service: str) -> dict[str, str]:
        given = {name: filled_in(text, self.variables) for name, text in self.services[service]["environment"].items()}
        given = {name: self._placed(value) for name, value in given.items()}
        # A container's name is its host.
        given |= {name: "127.0.0.1" for name in given if name.endswith("_HOST")}
        paths = {"DAGSTER_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        return {**given, **paths}

    def command(self, *words: str) -> list[str]:
        program, *rest = (self._placed(word) for word in words)
        python = str(self.programs / "python")
        return [python, *rest] if program == "python" else [python, str(self.programs / program), *rest]

    def run(self, service: str, *words: str) -> str:
        """Run a service, or another command in it, to its end: `docker compose run --rm SERVICE WORDS`."""
        command = self.command(*(words or self.services[service]["command"]))
        environment = {**os.environ, **self.environment(service)}
        done = subprocess.run(
            command, cwd=self.app, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    @contextmanager
    def started(self, service: str) -> Iterator[Path]:
        log = self.folder / f"{service}.log"
        command = self.command(*self.services[service]["command"])
        with process(f"{self.folder}/{service}", command, self.environment(service), log, self.app):
            yield log

    @contextmanager
    def running(self, *locations: str) -> Iterator[DagsterDev]:
        """Start the services in the order of their dependencies, with these code locations, and end them."""
        with ExitStack() as stack:
            assert self.services["code"]["depends_on"].keys() == {"ledger", "instance"}
            self.run("ledger")
            self.run("instance")
            code_log = stack.enter_context(self.started("code"))
            health = self.services["code"]["healthcheck"]["test"][1:]

            def is_healthy() -> bool:
                check = subprocess.run(
                    self.command(*health),
                    env={**os.environ, **self.environment("code")},
                    check=False,
                    capture_output=True,
                )
                return check.returncode == 0

            until("the code location", is_healthy, code_log)
            for location in locations:
                stack.enter_context(self.started(location))
            stack.enter_context(self.started("daemon"))
            web_log = stack.enter_context(self.started("webserver"))
            dagster = DagsterDev(f"http://127.0.0.1:{self.places['3000']}", web_log)
            dagster.until("the web server", dagster.is_up)
            dagster.until(
                "all locations", lambda: dagster.assets("assetNodes { id }").keys() == {"support", *locations}
            )
            yield dagster

    def _placed(self, text: str) -> str:
        # In one pass, since a port may contain the digits of another name.
        return re.sub("|".join(map(re.escape, self.places)), lambda found: self.places[found[0]], text)


@contextmanager
def outside(folder: Path, deploy: Path = DEPLOY) -> Iterator[dict[str, str]]:
    """Run a bucket and a provider, and give the variables of `.env`, filled in except for the webhook."""
    with ExitStack() as stack:
        s3_url = stack.enter_context(local_s3("bucket"))
        exported = stack.enter_context(emulator(folder))
        example = (deploy / "env.example").read_text(encoding="utf-8")
        variables = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
        passwords = {name: f"{name.lower()}1" for name in variables if name.endswith("PASSWORD")}
        roots = {name: value.replace("BUCKET", "bucket") for name, value in variables.items() if name.endswith("ROOT")}
        keys = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        keys["AWS_ENDPOINT_URL"] = s3_url
        openai = {name: exported[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")}
        yield {**variables, **passwords, **roots, **keys, **openai}


def launch(dagster: DagsterDev, *assets: str) -> None:
    """Launch a run of these assets by the web server."""
    selector = {
        "repositoryLocationName": "support",
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": [asset]} for asset in assets],
    }
    launched = dagster.ask(RUN, selector=selector)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched


def materializations(dagster: DagsterDev, asset: str) -> list[Any]:
    """Return the materializations of an asset."""
    found = dagster.ask(MATERIALIZED, key={"path": [asset]})["assetOrError"]
    return list(found.get("assetMaterializations", []))
