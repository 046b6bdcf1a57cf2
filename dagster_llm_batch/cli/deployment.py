"""Find the deployment of a command: a code location of Dagster, or the addresses of a ledger and its payloads.

-m, -f, -a, -d          a code location, as for `dagster`; default: the one in pyproject.toml of this folder
--ledger …              for commands that need neither rows nor providers; preferred to pyproject.toml
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from dagster_llm_batch.cli.pointer import Pointer, pointer_in
from dagster_llm_batch.errors import ConfigError

if TYPE_CHECKING:
    from dagster_llm_batch.cli.code_location import CodeLocation
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.engine import Engine
    from dagster_llm_batch.resources import LLMBatchResource
    from dagster_llm_batch.storage.ledger import Ledger
    from dagster_llm_batch.storage.ledger.records import Submission
    from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["DeploymentAccess", "Options", "code_location_command", "ledger_command", "shown_root"]

_F = TypeVar("_F", bound=Callable[..., Any])
_VARIABLES = "DAGSTER_LLM_BATCH"

# Azure's addresses have the container before `@`, where others have who asks.
_CONTAINER_FIRST = ("abfs://", "abfss://", "az://")


def shown_root(root: str) -> str:
    """Return the root of a payload store without possible secrets before `@` and after `?`."""
    place = root.partition("?")[0]
    secret = r"(//[^/@:]*):[^/@]*(?=@)" if place.startswith(_CONTAINER_FIRST) else r"(//)[^/@]*@"
    return re.sub(secret, r"\1", place, count=1)


@dataclass(frozen=True)
class Options:
    """Options from the command line and the environment that locate the deployment."""

    module_name: str | None
    python_file: str | None
    attribute: str | None
    working_directory: str | None
    resource: str | None
    ledger: str | None = None
    payloads: str | None = None
    namespace: str | None = None

    @property
    def pointer(self) -> Pointer | None:
        if self.module_name and self.python_file:
            raise click.UsageError("Give either a module (-m) or a file (-f), not both.")
        if self.module_name or self.python_file:
            return Pointer(
                "-m" if self.module_name else "-f",
                module_name=self.module_name,
                python_file=self.python_file,
                attribute=self.attribute,
                working_directory=self.working_directory,
            )
        return pointer_in(Path.cwd() / "pyproject.toml")


class DeploymentAccess:
    """One deployment: its code location or the address of its ledger. Everything is loaded or opened on first use."""

    def __init__(self, options: Options, stack: ExitStack, *, takes_ledger: bool) -> None:
        self._options = options
        self._stack = stack
        self._takes_ledger = takes_ledger

    @property
    def _by_address(self) -> bool:
        return self._options.ledger is not None

    @property
    def has_code(self) -> bool:
        """True if this deployment was found through a code location."""
        return not self._by_address

    @cached_property
    def code(self) -> CodeLocation:
        """The code location."""
        pointer = self._options.pointer
        if pointer is None:
            pyproject = Path.cwd() / "pyproject.toml"
            state = "which has neither [tool.dagster] nor [tool.dg.project]" if pyproject.is_file() else "no such file"
            ledger = f", no --ledger (nor {_VARIABLES}_LEDGER)" if self._takes_ledger else ""
            raise click.UsageError(
                f"Which deployment? Looked for: -m or -f (nor DAGSTER_MODULE_NAME or DAGSTER_PYTHON_FILE in the "
                f"environment){ledger}, and {pyproject} ({state})."
            )
        from dagster_llm_batch.cli.code_location import CodeLocation  # noqa: PLC0415 - Dagster, for a second

        return self._stack.enter_context(CodeLocation.load(pointer, self._options.resource))

    @property
    def is_typed(self) -> bool:
        """True if the command line names a code location."""
        source = click.get_current_context().get_parameter_source
        return any(source(name) is ParameterSource.COMMANDLINE for name in ("module_name", "python_file"))

    @cached_property
    def named_payloads(self) -> PayloadStore | None:
        """The payload store by its address, which needs no definitions; None if a code location is to say it."""
        if self._options.payloads is None or self.is_typed:
            return None
        from dagster_llm_batch.storage.payloads import PayloadStore  # noqa: PLC0415 - pyarrow

        return PayloadStore(self._options.payloads)

    def is_looked_at(self, asset: str) -> bool:
        """Return whether this is nothing of another resource than the named one. Both may have the same ledger."""
        return not self.has_code or asset not in self.code.elsewhere

    @cached_property
    def resource(self) -> LLMBatchResource:
        """The resource of the code location, with the namespace that the command was given."""
        resource = self._stack.enter_context(self.code.resource())
        namespace = self._options.namespace
        return resource if namespace is None else resource.model_copy(update={"namespace": namespace})

    @cached_property
    def places(self) -> tuple[str, str | None]:
        """URL of the ledger and root of the payloads. The URL may hold a password: not to be shown."""
        if self._by_address:
            assert self._options.ledger is not None
            return self._options.ledger, self._options.payloads
        return self.resource.places()

    @property
    def namespace(self) -> str:
        """The namespace of all that is looked at."""
        return (self._options.namespace or "default") if self._by_address else self.resource.namespace

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger. A missing ledger is an error, because the address may be wrong."""
        # SQLite would create the file, and the command would report that nothing was submitted.
        if self._options.ledger is not None and not self._options.ledger.strip():
            raise click.UsageError(f"--ledger (or {_VARIABLES}_LEDGER) is empty. Give the URL or path of a ledger.")
        path = self.missing_ledger_file
        if path is not None:
            raise ConfigError(
                f"There is no ledger at {path}: nothing was submitted yet, or it is kept elsewhere. Materialize a "
                "batch asset first, or set DAGSTER_HOME or --ledger to its place."
            )
        if not self._by_address:
            return self._engine.ledger
        from dagster_llm_batch.storage.ledger import Ledger  # noqa: PLC0415 - SQLAlchemy

        return self._opened(Ledger(self.places[0]))

    @property
    def missing_ledger_file(self) -> Path | None:
        """Path of the ledger's SQLite file if the file is missing, else None."""
        url = self.places[0]
        scheme, separator, rest = url.partition(":///")
        path = Path((rest if separator else url).partition("?")[0])
        is_file = "://" not in url or scheme.partition("+")[0] == "sqlite"
        return path if is_file and not path.expanduser().exists() else None

    @cached_property
    def engine(self) -> Engine:
        """The engine. By address it has no providers: it looks, resolves and prunes."""
        _ = self.ledger
        return self._engine

    @property
    def new_engine(self) -> Engine:
        """The engine for a command that may create the ledger."""
        return self._engine

    @cached_property
    def dry_engine(self) -> Engine:
        """The engine, for a look that leaves nothing behind: where there is no ledger yet, with an empty one aside."""
        if self.missing_ledger_file is None:
            return self._engine
        # A plan leaves nothing behind. Before the first submission it works on a temporary ledger.
        if self.resource.fetched_prices:
            from dagster_llm_batch.loop.deployment import use_fetched_book  # noqa: PLC0415 - as below

            # The store aside has no book.
            use_fetched_book(self.payloads)
        folder = self._stack.enter_context(TemporaryDirectory())
        aside = {"ledger_url": f"sqlite:///{folder}/ledger.sqlite", "payload_root": folder}
        engine = self.resource.model_copy(update=aside).engine()
        self._opened(engine.ledger)
        return engine

    @property
    def has_payloads(self) -> bool:
        """True if the payload store is known. A ledger may be named without one."""
        return self.places[1] is not None

    @property
    def payloads(self) -> PayloadStore:
        """The payload store."""
        root = self.places[1]
        if root is None:
            raise click.UsageError(f"This command needs the payload store too: --payloads (or {_VARIABLES}_PAYLOADS).")
        from dagster_llm_batch.storage.payloads import PayloadStore  # noqa: PLC0415 - pyarrow

        return PayloadStore(root)

    @property
    def payload_place(self) -> str:
        """The root of the payload store, for people."""
        return shown_root(self.places[1] or "")

    def levels_of(self, submission: Submission) -> Levels | None:
        """Return the decisions of a cascade so far; None without a cascade or without a payload store."""
        if submission.questions is None or self.places[1] is None:
            return None
        from dagster_llm_batch.files.request_files import levels_of  # noqa: PLC0415 - pyarrow

        return levels_of(self.payloads, submission)

    def audited_of(self, submission: Submission) -> AuditedAnswers | None:
        """Return what an audit decides on in a submission; None without an audit or without a payload store."""
        if submission.questions is None or self.places[1] is None:
            return None
        from dagster_llm_batch.files.share_files import audited_of  # noqa: PLC0415 - pyarrow

        return audited_of(self.payloads, submission)

    @cached_property
    def _engine(self) -> Engine:
        if not self._by_address:
            engine = self.resource.engine()
            self._opened(engine.ledger)
            return engine
        from dagster_llm_batch.engine import Deployment, Engine  # noqa: PLC0415 - all that sends and collects

        return Engine(Deployment({}, self.ledger, self.payloads, self.namespace, lease_wait_seconds=5.0))

    def _opened(self, ledger: Ledger) -> Ledger:
        self._stack.callback(ledger.close)
        return ledger


_CODE_OPTIONS = [
    click.option("-m", "--module-name", envvar="DAGSTER_MODULE_NAME", help="Module with the Dagster definitions."),
    click.option("-f", "--python-file", envvar="DAGSTER_PYTHON_FILE", help="File with the Dagster definitions."),
    click.option("-a", "--attribute", envvar="DAGSTER_ATTRIBUTE", help="Variable with the definitions, as `defs`."),
    click.option(
        "-d", "--working-directory", envvar="DAGSTER_WORKING_DIRECTORY", help="Folder to import modules from."
    ),
    click.option("--resource", help="Key of the LLMBatchResource, if there are several."),
]
_LEDGER_OPTIONS = [
    click.option("--ledger", envvar=f"{_VARIABLES}_LEDGER", help="URL or path of the ledger, instead of definitions."),
    click.option("--payloads", envvar=f"{_VARIABLES}_PAYLOADS", help="Root of the payload store, with --ledger."),
    click.option(
        "--namespace",
        envvar=f"{_VARIABLES}_NAMESPACE",
        help="Namespace.  [default: that of the definitions; with --ledger: default]",
    ),
]


def code_location_command(function: _F) -> _F:
    """Give `function` a DeploymentAccess as its first argument; it needs definitions: datasets, rows or providers."""
    return _located(function, _CODE_OPTIONS, takes_ledger=False)


def ledger_command(function: _F) -> _F:
    """Give `function` a DeploymentAccess as its first argument; it needs the ledger, by definitions or by address."""
    return _located(function, [*_CODE_OPTIONS, *_LEDGER_OPTIONS], takes_ledger=True)


def _preferred(options: Options) -> Options:
    """Prefer the command line to the environment."""
    source = click.get_current_context().get_parameter_source
    typed = {name for name in ("ledger", "module_name", "python_file") if source(name) is ParameterSource.COMMANDLINE}
    if "ledger" in typed and len(typed) > 1:
        raise click.UsageError("Give either a code location (-m, -f) or a ledger (--ledger), not both.")
    has_code = bool(options.module_name or options.python_file) and "ledger" not in typed
    for name, flag in (("working_directory", "-d"), ("attribute", "-a")):
        if source(name) is ParameterSource.COMMANDLINE and not has_code:
            raise click.UsageError(
                f"{flag} {getattr(options, name)} belongs to a module (-m) or a file (-f), and neither is given. "
                f"Give one, or leave {flag} out: the command then takes what --ledger names, or what pyproject.toml in "
                "the current folder points to."
            )
    if not typed & {"module_name", "python_file"}:
        return options
    # A ledger in the environment is for all commands, and the namespace there is in it; a code location that is typed
    # is for this one.
    apart = source("ledger") is ParameterSource.ENVIRONMENT and source("namespace") is ParameterSource.ENVIRONMENT
    return replace(options, ledger=None, **({"namespace": None} if apart else {}))


def _located(function: _F, options: list[Callable[[Any], Any]], *, takes_ledger: bool) -> _F:
    @wraps(function)
    def with_deployment(**arguments: Any) -> Any:
        names = [field.name for field in fields(Options) if field.name in arguments]
        options_ = _preferred(Options(**{name: arguments.pop(name) for name in names}))
        with ExitStack() as stack:
            return function(DeploymentAccess(options_, stack, takes_ledger=takes_ledger), **arguments)

    decorated: Any = with_deployment
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
