"""Pages of the docs, run as a reader would: `python tests/page.py PAGE…`, each in an empty folder.

The Python blocks are one program, in their order; a block with a title is a file, too. The commands run after them.
This module needs only the standard library, since a page's environment has just the packages that the page lists.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

if TYPE_CHECKING:
    from dagster_llm_batch.testing.emulator import Emulator

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "docs" / "start.md"
CLI = ROOT / "docs" / "reference" / "cli.md"
# Other tests run these pages' commands: the first four pages' in an environment with the packages that the page
# installs, and the reference's in `run_cli_page`. Commands about rows need a user's project, so they are only read.
COMMANDS_RUN_ELSEWHERE = {
    *("README.md", "docs/start.md", "docs/tutorial.md", "docs/how-to/components.md"),
    *("docs/reference/cli.md", "docs/how-to/look-at-rows.md"),
}
OWN = "dagster-llm-batch"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>\w.*)\n(?P<content>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)
# A path before it, as in `flink/bin/pip`, is another environment.
_INSTALL = re.compile(r"(?<![\w/-])(?:pip install|uv add) ([^`\n]+)")
_NOT_RUN = re.compile(r"python3? -m (venv|example_project|tests)\b|mkdir |pip install |export |dagster dev\b")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        line: Of its fence, counted from 1.
        title: The name of the file that it is, or nothing.
    """

    line: int
    language: str
    title: str
    content: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the page's blocks of code in these languages."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in _FENCE.finditer(text):
        language, _, options = fence["info"].partition(" ")
        if language in languages:
            title = re.search(r'title="([\w./]+)"', options)
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(line, language, title[1] if title else "", textwrap.dedent(fence["content"])))
    return found


def install_lines(page: Path) -> list[list[str]]:
    """Return the packages of each line that installs some; this package without the path of its clone."""
    lines = [shlex.split(line) for line in _INSTALL.findall(page.read_text(encoding="utf-8"))]
    # A group is of a clone's pyproject.toml.
    lines = [words for words in lines if "--group" not in words]
    return [[OWN + word.partition(OWN)[2] if OWN in word else word for word in words if word != "…"] for words in lines]


def packages(page: Path) -> tuple[str, ...]:
    """Return the packages that the page installs, with the start page's if it links there. This package comes first."""
    lines = install_lines(page)
    if f"({os.path.relpath(START, page.parent)}#install)" in page.read_text(encoding="utf-8"):
        lines += install_lines(START)
    words = {word for line in lines for word in line}
    own = {word for word in words if word.startswith(OWN)}
    extras = sorted({extra for word in own for extra in extras_of(word)})
    return (with_extras(extras), *sorted(words - own)) if own else ()


def extras_of(package: str) -> list[str]:
    """Return the names in brackets."""
    return [extra for extra in package.rstrip("]").partition("[")[2].split(",") if extra]


def with_extras(extras: Sequence[str]) -> str:
    """Return this package with these extras, as pip takes it."""
    return f"{OWN}[{','.join(extras)}]" if extras else OWN


def run_python(page: Path, folder: Path) -> Mapping[str, Any]:
    """Run the page's Python in this process, whose current folder is `folder`; return the program's names."""
    program = ModuleType("page")
    program.__file__ = str(folder / "page.py")
    sys.modules["page"] = program
    for table in blocks(page, "csv"):
        folder.joinpath(table.title).write_text(table.content, encoding="utf-8")
    for block in blocks(page, "python"):
        if block.title:
            folder.joinpath(block.title).parent.mkdir(exist_ok=True)
            folder.joinpath(block.title).write_text(block.content, encoding="utf-8")
        code = compile("\n" * block.line + block.content, str(page), "exec", dont_inherit=True)
        exec(code, vars(program))
    return vars(program)


def run_commands(page: Path) -> None:
    """Run the page's commands in the current folder, line by line. Raises AssertionError if one fails."""
    for block in blocks(page, "sh"):
        for line in block.content.splitlines():
            if not _NOT_RUN.match(line):
                words = shlex.split(line)
                _materialize(words) if words[0] == "dg" else _run_command(words)


def _run_command(words: list[str]) -> str:
    """Run a package's script in this process, since starting one takes longer than its work. Run `python` outside."""
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True, env={**os.environ, "PYTEST_ADDOPTS": ""})
        return ""
    [script] = entry_points(name=words[0], group="console_scripts")
    # Another process would import the definitions as they are now.
    for module in ("support", "labels"):
        sys.modules.pop(module, None)
    # a command may write bytes, as `cost --format focus` does
    printed = TextIOWrapper(BytesIO(), encoding="utf-8", newline="", write_through=True)
    with mock.patch.object(sys, "argv", words), redirect_stdout(printed):
        try:
            status = script.load()()
        except SystemExit as ended:
            status = ended.code
    printed.seek(0)
    said = printed.read()
    assert not status, (words, said)
    return said


def run_cli_page(folder: Path) -> None:
    """Run the commands of docs/reference/cli.md in its project, against an emulator whose batches end in time."""
    from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

    folder.joinpath("pyproject.toml").write_text(blocks(CLI, "toml")[0].content, encoding="utf-8")
    source = folder / "support.py"
    source.write_text(blocks(CLI, "python")[0].content, encoding="utf-8")
    for table in blocks(CLI, "csv"):
        folder.joinpath(table.title).write_text(table.content, encoding="utf-8")
    lines = [line for block in blocks(CLI, "sh") for line in block.content.splitlines() if line]
    with Emulator() as emulator:
        address = {"OPENAI_API_KEY": DEFAULT_KEY, "OPENAI_BASE_URL": emulator.openai_base_url}
        with mock.patch.dict(os.environ, address):
            for line in lines:
                words = shlex.split(line)
                if "SHARD" in words:
                    words[words.index("SHARD")] = _leave_a_shard_in_doubt(source, emulator)
                if "labels,ticket_labels_rejects" in line:
                    emulator.settle()
                _run_cli_line(words, emulator)
    assert folder.joinpath("labels.parquet").is_file()


def _run_cli_line(words: list[str], emulator: Emulator) -> None:
    if words[0] == "dg":
        _materialize(words)
    elif words[1] == "emulate":
        assert _run_until_interrupted(words)["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
    elif words[1] == "review":
        assert "/table/ticket_labels#token=" in _run_until_interrupted(words)["url"]
    else:
        with _settled_all_the_time(emulator) if words[1] == "smoke" else nullcontext():
            said = _run_command(words)
        for text in said.splitlines() if "watch" in words else [said]:
            assert "--json" not in words or json.loads(text), words


def _materialize(words: list[str]) -> None:
    """Run `dg launch` if it is installed; otherwise run, in this process, the equivalent command of Dagster."""
    if find_spec("dagster_dg_cli"):
        subprocess.run(words, check=True)
    else:
        renamed = {"dg": ["dagster"], "launch": ["asset", "materialize"], "--assets": ["--select"]}
        _run_command([new for word in words for new in renamed.get(word, [word])])


@contextmanager
def _settled_all_the_time(emulator: Emulator) -> Iterator[None]:
    """Let batches end meanwhile, since the command waits for one."""
    is_over = threading.Event()

    def settle() -> None:
        while not is_over.wait(0.05):
            emulator.settle()

    thread = threading.Thread(target=settle)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _run_until_interrupted(words: list[str]) -> dict[str, str]:
    """Return the first output of the command, as JSON."""
    script = Path(sys.executable).with_name(words[0])
    with subprocess.Popen([script, *words[1:]], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said: dict[str, str] = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        return said


def _leave_a_shard_in_doubt(source: Path, emulator: Emulator) -> str:
    """Submit another row, whose create call gets no answer, and whose batch cannot be searched."""
    from dagster_llm_batch.testing.emulator import WireFault

    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace('"The page stays white."', '"The page stays black."'), encoding="utf-8")
    emulator.inject(WireFault(kind="close", route="POST /v1/batches"))
    emulator.inject(WireFault(kind="status", status=503, route="GET /v1/batches", times=None))
    _materialize(["dg", "launch", "-m", "support", "--assets", "tickets,ticket_labels_batch"])
    emulator.clear_faults()
    found = json.loads(_run_command(["dagster-llm-batch", "resolve", "--json"]))["orphans"]
    shard: str = found[0]["shard"]["shard_id"]
    return shard


def run(page: Path, folder: Path) -> None:
    """Run the page in this process, in a separate folder."""
    os.chdir(folder)
    sys.path[0] = str(folder)
    run_python(page, folder)
    # A page may have made it, with runs in it.
    folder.joinpath("home").mkdir(exist_ok=True)
    folder.joinpath("home", "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(folder / "home")
    if page == CLI:
        run_cli_page(folder)
    elif str(page.relative_to(ROOT)) not in COMMANDS_RUN_ELSEWHERE:
        run_commands(page)


def passes(page: Path) -> bool:
    """Run the page in a child process. Print its name and its time, and its output if it fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        log, folder = Path(name, "log"), Path(name, "folder")
        folder.mkdir()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            with log.open("wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            status = 1
            try:
                run(page, folder)
                status = 0
            except BaseException:  # noqa: BLE001 - also SystemExit: a child returns to nothing
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        said = "passed" if status == 0 else "FAILED"
        print(f"{said} in {time.monotonic() - began:.1f} s: {page.relative_to(ROOT)}", flush=True)
        if status != 0:
            print(log.read_text(encoding="utf-8", errors="replace")[-6_000:], flush=True)
    return status == 0


def main(pages: Sequence[str]) -> int:
    """Run the pages, each in a separate process that has already imported Dagster; return the exit status."""
    # Dagster, too: importing it takes longer than most pages.
    import_module("dagster_llm_batch")
    passed = [passes(Path(page).resolve()) for page in pages]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
