"""Peers behind one small interface: forget, feed tokens, name the most likely next token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from peers import MAX_CONTEXT

BATCH = 512


class Stepper(Protocol):
    version: str
    vocab_size: int

    def reset(self) -> None:
        """Forget all tokens."""

    def feed(self, token_ids: list[int], num_logits: int) -> None:
        """One step; logits of the last token, or of all."""

    def best(self) -> int:
        """The most likely next token."""

    def logits(self) -> np.ndarray:
        """Of the last token, float32 ``[vocab_size]``."""


class LlamaCppPython:
    """The package llama-cpp-python."""

    def __init__(self, model: Path, threads: int, wants_all_logits: bool) -> None:
        import llama_cpp

        self._api = llama_cpp
        self.version = llama_cpp.__version__
        self._llama = llama_cpp.Llama(
            model_path=str(model), n_ctx=MAX_CONTEXT, n_batch=BATCH, n_ubatch=BATCH,
            n_threads=threads, n_threads_batch=threads, logits_all=wants_all_logits,
            use_mmap=False, verbose=False,
        )
        self.vocab_size = self._llama.n_vocab()

    def reset(self) -> None:
        self._llama.reset()

    def feed(self, token_ids: list[int], num_logits: int) -> None:
        self._llama.eval(token_ids)

    def best(self) -> int:
        return self._llama.sample(temp=0.0)

    def logits(self) -> np.ndarray:
        pointer = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return np.array(np.ctypeslib.as_array(pointer, (self.vocab_size,)))


class _NativeLlama:
    """llama.h through bindings that offer its functions by name."""

    _api: Any
    _context: Any
    vocab_size: int
    logits: Any  # a method of the bindings below

    def __init__(self) -> None:
        self._position = 0

    def feed(self, token_ids: list[int], num_logits: int) -> None:
        count = len(token_ids)
        batch = self._api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token_id in enumerate(token_ids):
            batch.token[i] = token_id
            batch.pos[i] = self._position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= count - num_logits
        code = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        self._position += count

    def best(self) -> int:
        return int(np.argmax(self.logits()))


class IkLlama(_NativeLlama):
    """The package ik-llama-cpp-python, with what makes it fast: repacked and merged weights."""

    def __init__(self, model: Path, threads: int, wants_all_logits: bool) -> None:
        if (scale := _value_scale(model)) != 1.0:
            raise RuntimeError(f"ignores the file's attention value scale {scale:.4g}: make the "
                               "file with convert.py --fold-value-scale")
        import ik_llama_cpp
        from ik_llama_cpp import _ctypes_api as api

        super().__init__()
        self.version = ik_llama_cpp.__version__
        self._api = api
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers, params.use_mmap = 0, False
        for name in ("repack_tensors", "merge_qkv", "merge_up_gate_exps", "use_thp"):
            setattr(params, name, True)
        self._model = api.llama_model_load_from_file(str(model).encode(), params)
        if not self._model:
            raise RuntimeError(f"cannot load {model}")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = MAX_CONTEXT, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("cannot make a context")

    def reset(self) -> None:
        self._api.llama_kv_cache_clear(self._context)
        self._position = 0

    def logits(self) -> np.ndarray:
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))


def _value_scale(model: Path) -> float:
    import gguf

    fields = gguf.GGUFReader(str(model)).fields
    return next((float(field.contents()) for name, field in fields.items()
                 if name.endswith(".attention.value_scale")), 1.0)


class LlamaSync(_NativeLlama):
    """The package llama-cpp-py-sync: llama.cpp of the day, built for AVX2."""

    def __init__(self, model: Path, threads: int, wants_all_logits: bool) -> None:
        import llama_cpp_py_sync
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        super().__init__()
        self.version = llama_cpp_py_sync.__version__
        self._api, self._ffi = get_lib(), get_ffi()
        self._api.llama_backend_init()
        params = self._api.llama_model_default_params()
        params.n_gpu_layers, params.load_mode = 0, self._api.LLAMA_LOAD_MODE_NONE
        self._model = self._api.llama_model_load_from_file(str(model).encode(), params)
        if self._model == self._ffi.NULL:
            raise RuntimeError(f"cannot load {model}")
        vocab = self._api.llama_model_get_vocab(self._model)
        self.vocab_size = self._api.llama_vocab_n_tokens(vocab)
        options = self._api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = MAX_CONTEXT, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        self._context = self._api.llama_init_from_model(self._model, options)
        if self._context == self._ffi.NULL:
            raise RuntimeError("cannot make a context")

    def reset(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._position = 0

    def logits(self) -> np.ndarray:
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.frombuffer(self._ffi.buffer(pointer, 4 * self.vocab_size), np.float32)


class Transformers:
    """transformers on a checkpoint that is a plain transformer in disguise."""

    def __init__(self, model: Path, threads: int, wants_all_logits: bool, dtype: str) -> None:
        import torch
        import transformers
        from hf_llama import load_llama

        self.version = transformers.__version__
        torch.set_num_threads(threads)
        self._torch = torch
        self._llama = load_llama(model, getattr(torch, dtype))
        self.vocab_size = self._llama.config.vocab_size
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None
        self._logits: Any = None

    def feed(self, token_ids: list[int], num_logits: int) -> None:
        with self._torch.inference_mode():
            out = self._llama(self._torch.tensor([token_ids]), past_key_values=self._cache,
                              use_cache=True, logits_to_keep=num_logits)
        self._cache, self._logits = out.past_key_values, out.logits

    def best(self) -> int:
        return int(self._logits[0, -1].argmax())

    def logits(self) -> np.ndarray:
        return self._logits[0, -1].float().numpy()
