"""A whole transformers model with random weights in the shape of Llama 3 8B, with and without hooks that cap."""

import time
from typing import Any

import torch

from .arithmetic import cap

TOKENS, ROUNDS = 48, 6
SHAPE: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256}
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 256}


def speeds(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Decodes greedily without and with hooks on 8 layers, in turn. Returns tokens per second by round."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(LlamaConfig(**(TINY if tiny else SHAPE)))
    finally:
        torch.set_default_dtype(torch.float32)
    model.eval()
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    capped_layers = range(layers * 5 // 8, layers * 7 // 8)
    axes = torch.nn.functional.normalize(torch.randn(layers, width), dim=1).to(device, torch.bfloat16)

    def hook(axis: torch.Tensor) -> Any:
        def capped(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            cap(hidden.view(-1, width), axis[None], [1.0])
            return output
        return capped

    def decode() -> float:
        tokens = 4 if tiny else TOKENS
        with torch.inference_mode():
            state = model(torch.arange(32, device=device)[None], use_cache=True)
            begun = 0.0
            for turn in range(tokens + 1):
                if turn == 1:
                    _wait(device)
                    begun = time.perf_counter()
                token = state.logits[:, -1:].argmax(-1)
                state = model(token, past_key_values=state.past_key_values, use_cache=True)
            _wait(device)
        return tokens / (time.perf_counter() - begun)

    decode()
    found = []
    for _ in range(2 if tiny else ROUNDS):
        plain = decode()
        handles = [model.model.layers[layer].register_forward_hook(hook(axes[layer])) for layer in capped_layers]
        hooked = decode()
        for handle in handles:
            handle.remove()
        found.append({"uncapped_tps": plain, "capped_tps": hooked, "ratio": hooked / plain})
    return found


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
