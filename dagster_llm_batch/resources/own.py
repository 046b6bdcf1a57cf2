"""Models that run on machines of one's own: a command here, or on a cluster."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field

from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.protocols import Provider

__all__ = ["CommandBatchResource", "RayBatchResource", "SlurmBatchResource"]


class CommandBatchResource(ProviderResource):
    """A command that reads an OpenAI-format batch file and writes a results file, as `vllm run-batch` does.

    It runs detached on the machine of the run that submits, and goes on when that run ends.
    """

    command: list[str] = Field(
        description="The command and its arguments; {input}, {output} and {model} are replaced. No shell is involved.",
        examples=[["vllm", "run-batch", "-i", "{input}", "-o", "{output}", "--model", "{model}"]],
    )
    workdir: str | None = Field(
        default=None,
        description="Folder for input, output and log of each batch, on this machine. Default: below the Dagster home.",
    )
    account: str | None = Field(default=None, description="A name for the source of the answers. Default: the command.")

    def provider_below(self, folder: Path) -> Provider:
        """See ProviderResource. Its batches are in that folder, unless `workdir` names another."""
        return self.provider(str(folder))

    def provider(self, default_workdir: str = ".llm_batch/command") -> Provider:
        """Return the provider; starts nothing."""
        from dagster_llm_batch.providers.command.provider import CommandProvider  # noqa: PLC0415 - as the others

        return CommandProvider(
            name=self.name, command=self.command, workdir=self.workdir or default_workdir, account=self.account
        )


class RayBatchResource(ProviderResource):
    """Jobs on a Ray cluster. Lines are answered in exactly one way: base_url, call, command or vllm."""

    address: str = Field(description="The cluster's job server, as in http://ray-head:8265.")
    storage: str = Field(
        description="Folder for request and result files that this process and all nodes reach: a path, s3://…, gs://…."
    )
    base_url: str | None = Field(
        default=None, description="An OpenAI-compatible server that the workers reach, as in http://llm:8000/v1."
    )
    call: str | None = Field(
        default=None,
        description="Import path, package.module:name, of a callable on the workers: bodies of requests to replies.",
    )
    command: list[str] | None = Field(
        default=None, description="A command on the workers; {input}, {output} and {model} are replaced. No shell."
    )
    vllm: dict[str, Any] | None = Field(
        default=None, description="Settings of ray.data.llm's vLLMEngineProcessorConfig, such as engine_kwargs."
    )
    api_key_env: str | None = Field(
        default=None, description="Environment variable of the workers that holds the server's key."
    )
    workers: int = Field(default=1, description="The most workers at a time; Ray starts as many as it has room for.")
    num_cpus: float = Field(default=1.0, description="Ray's logical CPUs for each worker.")
    num_gpus: float = Field(default=0.0, description="Ray's GPUs for each worker.")
    rows_per_file: int = Field(
        default=64, description="Rows that a worker answers and then writes; they are lost if it is killed."
    )
    requests_at_once: int = Field(default=16, description="Requests to the server, or rows in one call, at a time.")
    max_retries: int = Field(default=5, description="The most repeats of a request that the server puts off.")
    timeout_seconds: float = Field(default=600.0, description="Seconds that one request to the server may take.")
    runtime_env: dict[str, Any] = Field(
        repr=False, default={}, description="Ray's runtime_env: pip, working_dir, env_vars, …."
    )
    token: str | None = Field(repr=False, default=None, description="Token of Ray's job server. As an EnvVar.")
    account: str | None = Field(
        default=None,
        description="A name for the source of the answers. Default: the server, function, command or model.",
    )

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.ray.answers import RayAnswers  # noqa: PLC0415 - as above
        from dagster_llm_batch.providers.ray.provider import RayProvider  # noqa: PLC0415 - its SDK is an extra

        answers = RayAnswers(**{field.name: getattr(self, field.name) for field in fields(RayAnswers)})
        return RayProvider(
            name=self.name,
            address=self.address,
            storage=self.storage,
            answers=answers,
            account=self.account,
            runtime_env=self.runtime_env,
            headers={} if self.token is None else {"Authorization": f"Bearer {self.token}"},
        )


class SlurmBatchResource(ProviderResource):
    """A command of the same form on a cluster, as one sbatch job for each batch: an array for a large batch."""

    command: list[str] = Field(
        description="The command and its arguments, as on the nodes; {input}, {output} and {model} are replaced.",
        examples=[["vllm", "run-batch", "-i", "{input}", "-o", "{output}", "--model", "{model}"]],
    )
    workdir: str = Field(description="Directory for the batches' files, seen by all nodes and here under this path.")
    partition: str | None = Field(default=None, description="Partition. Default: the cluster's.")
    slurm_account: str | None = Field(default=None, description="Slurm account that the hours are booked on.")
    qos: str | None = Field(default=None, description="Quality of service.")
    time_limit: str | None = Field(
        default=None, description="Time limit of one task: minutes, or as in 2:30:00 or 1-12."
    )
    gres: str | None = Field(default=None, description="Generic resources of one task, such as gpu:1.")
    mem: str | None = Field(default=None, description="Memory of one task, such as 64G.")
    cpus_per_task: int | None = Field(default=None, description="CPUs of one task.")
    sbatch_options: list[str] = Field(
        default_factory=list, description="Further long options, such as --constraint=a100 or --nice=100."
    )
    requests_per_task: int = Field(default=50_000, description="A batch of more requests is an array of tasks.")
    max_running_tasks: int | None = Field(default=None, description="Tasks of a batch that run at once. Default: all.")
    row_by_row: bool = Field(
        default=False,
        description="The command writes each row when it is answered; then a task that starts again keeps good rows.",
    )
    requeue: bool = Field(default=True, description="Start a task again after its node failed.")
    export: list[str] = Field(
        default_factory=list, description="Names of environment variables that the command gets, such as HF_TOKEN."
    )
    python: str = Field(default="python3", description="Python 3.6 or later on the nodes; standard library only.")
    account: str | None = Field(default=None, description="A name for the source of the answers. Default: the command.")
    timeout_seconds: float = Field(
        default=60.0, description="Seconds that one call of sbatch, squeue, sacct or scancel may take."
    )
    settle_seconds: float = Field(
        default=60.0, description="Seconds after an sbatch of unknown end in which its job may still appear."
    )

    def provider(self) -> Provider:
        """Return the provider; calls nothing."""
        from dagster_llm_batch.providers.slurm.options import SlurmOptions  # noqa: PLC0415 - as the others
        from dagster_llm_batch.providers.slurm.provider import SlurmProvider  # noqa: PLC0415 - as the others

        options = SlurmOptions(
            partition=self.partition,
            account=self.slurm_account,
            qos=self.qos,
            time_limit=self.time_limit,
            gres=self.gres,
            mem=self.mem,
            cpus_per_task=self.cpus_per_task,
            extra=tuple(self.sbatch_options),
        )
        return SlurmProvider(
            name=self.name,
            command=self.command,
            workdir=self.workdir,
            options=options,
            account=self.account,
            export=self.export,
            requests_per_task=self.requests_per_task,
            max_running_tasks=self.max_running_tasks,
            row_by_row=self.row_by_row,
            requeue=self.requeue,
            python=self.python,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )
