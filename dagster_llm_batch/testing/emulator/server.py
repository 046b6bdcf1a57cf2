"""The emulator as a whole: the vendors' routes on their shared state, in process or on a loopback socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Literal, Self

# Starlette imports it at an upload, and would answer 500 without it: dagster-webserver installs the other two alone.
import python_multipart  # noqa: F401 -- see above
import uvicorn
from uvicorn.server import ServerState

from dagster_llm_batch.testing.emulator.answers import AnswerFunction, simulated_answer
from dagster_llm_batch.testing.emulator.books import Books
from dagster_llm_batch.testing.emulator.faults import Fault, FaultScript
from dagster_llm_batch.testing.emulator.flex import FlexTier
from dagster_llm_batch.testing.emulator.lifecycle import Clock, Mover, Pace
from dagster_llm_batch.testing.emulator.shared_state import Keys, SharedState, VendorLimits
from dagster_llm_batch.testing.emulator.storage_relay import GCS, S3, StorageRelay
from dagster_llm_batch.testing.emulator.vendors import VENDORS, routes_class
from dagster_llm_batch.testing.emulator.wire import AZURE, App, Connections, ErrorBody, Wire

HOST = "127.0.0.1"
DEFAULT_KEY = "sk-emulator"


class Emulator:
    """Emulated LLM batch providers.

        with Emulator() as emulator:
            client = openai.OpenAI(base_url=emulator.openai_base_url, api_key="sk-emulator")
            ...
            emulator.settle()

    answer: the answers of the model, see `answers`. pace: "manual" (`tick`, `settle`), seconds an edge, or seconds by
    state, on `clock`. work_steps: how many moves a batch's rows take. keys: accepted API keys (each its own account),
    or key -> account, or None for any key. gcs_url: a Cloud Storage server, in which the emulated Vertex AI reads
    request files and writes results. s3_url: an S3 server, in which the emulated Bedrock does the same; `local_s3`
    starts one. Clients can reach both by `gcs_relay_url` and `s3_relay_url`, where faults strike their calls too. seed:
    it determines ids, row order and chosen fractions. Nothing leaves the machine: the socket is bound to 127.0.0.1.
    """

    def __init__(
        self,
        *,
        answer: AnswerFunction = simulated_answer,
        pace: Literal["manual"] | float | Mapping[str, float] = "manual",
        clock: Clock = time.time,
        work_steps: int = 1,
        keys: Keys = frozenset({DEFAULT_KEY}),
        limits: VendorLimits | None = None,
        faults: Collection[Fault] = (),
        seed: int = 0,
        port: int = 0,
        gcs_url: str | None = None,
        s3_url: str | None = None,
    ) -> None:
        if work_steps < 1:
            raise ValueError(f"work_steps is 1 or more; got {work_steps}")
        self._mover = Mover(Pace.of(pace), clock)
        self._shared = SharedState(
            answer=answer,
            clock=clock,
            mover=self._mover,
            faults=FaultScript(faults, seed=seed),
            keys=keys,
            limits=limits or VendorLimits(),
            seed=seed,
            work_steps=work_steps,
            gcs_url=gcs_url,
            s3_url=s3_url,
        )
        self._vendors = {name: routes_class(name)(self._shared) for name in VENDORS}
        self._connections = Connections()
        apps: dict[str, App] = {
            prefix: StorageRelay(prefix, url) for prefix, url in ((GCS, gcs_url), (S3, s3_url)) if url is not None
        }
        error_bodies: dict[str, ErrorBody] = {}
        for routes in self._vendors.values():
            own = routes.apps()
            apps |= own
            error_bodies |= dict.fromkeys(own, routes.error_body)
        self.asgi_app = Wire(apps, error_bodies, self._shared, self._connections)
        self._wanted_port = port
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = asyncio.Event()

    @property
    def books(self) -> Books:
        """The records of all calls, batches and bills."""
        return self._shared.books

    @property
    def port(self) -> int:
        """The port that is listened on."""
        if self._port is None:
            raise RuntimeError(
                "The emulator isn't listening; use it as `with Emulator() as emulator:` or call start()."
            )
        return self._port

    @property
    def url(self) -> str:
        """The address, without a path."""
        return f"http://{HOST}:{self.port}"

    def base_url(self, vendor: str) -> str:
        """Return the address for the client of a vendor of VENDORS, such as `emulator.base_url("openai")`."""
        return f"{self.url}{self._vendors[vendor].base_path}"

    def exports(self, key: str) -> dict[str, dict[str, str]]:
        """Return the variables to export, under the names of the vendors' SDKs, by a line with the address."""
        return {
            f"{routes.title} emulator at {self.base_url(name)}{routes.remark(self.url)}": {
                **routes.exports(self.url, key)
            }
            for name, routes in self._vendors.items()
        }

    @property
    def openai_base_url(self) -> str:
        """For `openai.OpenAI(base_url=...)`."""
        return self.base_url("openai")

    @property
    def azure_base_url(self) -> str:
        """For `openai.OpenAI(base_url=...)`, in the form, and with the ways, of Azure's v1 API."""
        return f"{self.url}{AZURE}/v1/"

    @property
    def anthropic_base_url(self) -> str:
        """For `anthropic.Anthropic(base_url=...)`."""
        return self.base_url("anthropic")

    @property
    def openrouter_base_url(self) -> str:
        """For a client of OpenRouter's API, and of its batches."""
        return self.base_url("openrouter")

    @property
    def mistral_base_url(self) -> str:
        """For a client of Mistral's API: files, batch jobs and chat."""
        return self.base_url("mistral")

    @property
    def vertex_base_url(self) -> str:
        """For `genai.Client(vertexai=True, http_options=HttpOptions(base_url=...))`."""
        return self.base_url("vertex")

    @property
    def bigquery_url(self) -> str:
        """For `bigquery.Client(client_options={"api_endpoint": ...})`: the dataset `emulator` of any project."""
        return self._vendors["vertex"].exports(self.url, "")["BIGQUERY_EMULATOR_HOST"]

    @property
    def gemini_base_url(self) -> str:
        """For `genai.Client(http_options=HttpOptions(base_url=...))`."""
        return self.base_url("gemini")

    @property
    def bedrock_url(self) -> str:
        """For `boto3.client(..., endpoint_url=...)` of "bedrock", "bedrock-runtime" and "service-quotas"."""
        return self.base_url("bedrock")

    @property
    def gcs_relay_url(self) -> str:
        """For `storage.Client(client_options={"api_endpoint": ...})`: the server at `gcs_url`, faults included."""
        return f"{self.url}{GCS}"

    @property
    def s3_relay_url(self) -> str:
        """For `boto3.client("s3", endpoint_url=...)`: the server at `s3_url`, faults included."""
        return f"{self.url}{S3}"

    def tick(self, times: int = 1) -> int:
        """Move every live batch one edge, `times` times; how many moves that were."""
        return self._mover.tick(times)

    def settle(self) -> None:
        """Tick until no batch moves any more."""
        self._mover.settle()

    def advance(self) -> int:
        """Take the edges that are due by the clock, now and not when the timer thread next looks."""
        return self._mover.advance()

    @property
    def flex(self) -> FlexTier:
        """The tier "flex": set its `script`, and read the number of its calls."""
        return self._shared.flex

    def inject(self, *faults: Fault) -> None:
        """Let these faults happen from now on."""
        self._shared.faults.add(*faults)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._shared.faults.clear()

    def struck(self, fault: Fault) -> int:
        """Return how often the fault has struck."""
        return self._shared.faults.struck(fault)

    @property
    def hanging(self) -> int:
        """Number of calls that hang or stall now: they have had their effect, and their clients wait."""
        return self.asgi_app.hanging

    def start(self) -> Self:
        """Listen, and start the clock."""
        # asyncio sets TCP_NODELAY only where the protocol is named; without it each reply waits 40 ms for an ACK
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self._wanted_port))
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._listen(listener, ready)), name="emulator-server", daemon=True
        )
        self._thread.start()
        ready.wait()
        self._mover.start()
        return self

    def close(self) -> None:
        """Stop; open connections are dropped, files are gone. The books stay readable."""
        self._mover.stop()
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread, self._loop, self._port = None, None, None
        for routes in self._vendors.values():
            routes.close()
        self._shared.close()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    async def _listen(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        config = uvicorn.Config(
            self.asgi_app,
            lifespan="off",
            ws="none",
            date_header=False,
            log_config=None,
            log_level="critical",
            # As vendors do. After five seconds, the default, a slow client would write into a closed connection.
            timeout_keep_alive=60,
        )
        config.load()
        state, protocol = ServerState(), self._connections.protocol()
        server = await self._loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), sock=listener
        )
        ready.set()
        await self._stopping.wait()
        server.close()
        self._connections.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
