"""A MiMo checkpoint that is a plain transformer in disguise, as transformers' Llama in BF16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf_models import is_plain_transformer, join
from mimo_rt.checkpoints.layout import layer_shape
from stored import StoredCheckpoint


def load_llama(directory: Path, dtype: Any = torch.bfloat16) -> Any:
    """The model, ready to run; NotImplementedError for a checkpoint that is something else."""
    checkpoint = StoredCheckpoint(directory)
    config = checkpoint.config
    shapes = [layer_shape(config, i) for i in range(config["num_hidden_layers"])]
    if not is_plain_transformer(checkpoint, shapes):
        raise NotImplementedError("the model is no plain transformer")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["n_routed_experts"] * config["moe_intermediate_size"],
        num_hidden_layers=len(shapes),
        num_attention_heads=shapes[0].num_q_heads,
        num_key_value_heads=shapes[0].num_kv_heads,
        head_dim=shapes[0].qk_head_dim,
        rms_norm_eps=config["layernorm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=config["tie_word_embeddings"],
        dtype=dtype,
    )).to(dtype)
    llama.load_state_dict(_weights(checkpoint, shapes), strict=False, assign=False)
    return llama.eval()


def _weights(checkpoint: StoredCheckpoint, shapes: list[Any]) -> dict[str, torch.Tensor]:
    values = {"model.norm.weight": checkpoint.plain("model.norm.weight"),
              "model.embed_tokens.weight": checkpoint.plain("model.embed_tokens.weight")}
    tied = checkpoint.config["tie_word_embeddings"]
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    values["lm_head.weight"] = checkpoint.plain(head)
    for i, shape in enumerate(shapes):
        prefix = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            values[f"{prefix}.{norm}.weight"] = checkpoint.plain(f"{prefix}.{norm}.weight")
        attention = f"{prefix}.self_attn"
        for name, weight in zip("qkv", checkpoint.qkv(attention, shape), strict=True):
            values[f"{attention}.{name}_proj.weight"] = weight.values()
        values[f"{attention}.o_proj.weight"] = checkpoint.linear(f"{attention}.o_proj").values()
        for name in ("gate_proj", "up_proj", "down_proj"):
            experts = [checkpoint.linear(f"{prefix}.mlp.experts.{e}.{name}")
                       for e in range(checkpoint.config["n_routed_experts"])]
            joined = join(experts, axis=1 if name == "down_proj" else 0)
            values[f"{prefix}.mlp.{name}.weight"] = joined.values()
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in values.items()}
