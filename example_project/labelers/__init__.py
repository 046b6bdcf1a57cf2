"""Commands that label an OpenAI batch file, each with the file contract of `vllm run-batch` (see run_batch.py)."""
