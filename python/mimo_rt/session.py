"""`Session`: one conversation with a model, from text to text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _C
from .chat_template import check_template_variables
from .loading import Progress, check_progress, engine_options, open_engine, require_directory
from .params import (
    GenerationDefaults,
    SamplingParams,
    core_options,
    fresh_seed,
    resolve_params,
)
from .preflight import check_model_files
from .results import DraftStats, GenerationResult, ScoreResult, result_from_core
from .scoring import score_logits
from .session_state import Limits, SessionState
from .streaming import AsyncTokenStream, Call, OnToken, TokenStream, call_interruptibly, run_to_end
from .text import ModelText, Prompt
from .value_checks import as_int

if TYPE_CHECKING:
    import numpy as np


class Session(SessionState):
    """A loaded model with one KV cache: prompts that continue the last text reuse it.

    One generation at a time; `cancel` and `close` may come from any thread. Use as a context
    manager, or call `close`, to free the weights at once.

    Args:
        model_dir: checkpoint directory (config.json, safetensors; tokenizer files for text).
        device: "auto", "cpu", "ref", "cuda" or a name from `list_backends`.
        num_threads: workers, alias `threads`; None: all usable cores or multiprocessors. `notes`.
        max_context: tokens of prompt and output; None: the model's limit, at most 8192.
        seed: default of generations that give none; None: a fresh one each time.
        pin_threads: bind each worker to a core.
        draft: the directory of a DFlash draft, "ngram" (what followed the last tokens earlier in
            the text), "auto" (``model_dir/dflash``, or else "ngram") or None.
        activations: what MXFP4 weights are multiplied with: "bf16", as the model defines it, or
            "int8", rounded to 8-bit integers, 32 with a common scale: faster, other logits.
        packed_cache: packed weights in files that later starts map: None, "auto" or a directory.
        window_tokens: width of sliding-window layers instead of the config's.
        progress: called with (done, total) bytes while loading, False cancels; True: a line on
            stderr.
        generation_config: "auto": sampling defaults of the model's generation_config.json;
            "none": neutral ones (temperature 1, nothing cut off). Its end tokens always hold.
        options: other fields of the engine's options, e.g. ``timeout_ms``, ``yield_cores``.

    Raises:
        MimoRtError: one of its subclasses, see `mimo_rt.errors`; names the file or tensor.
        TypeError: an unknown argument; names the closest one.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_threads: int | None = None,
        threads: int | None = None,
        max_context: int | None = None,
        seed: int | None = None,
        pin_threads: bool = True,
        draft: str | os.PathLike[str] | None = "auto",
        activations: str = "bf16",
        packed_cache: str | os.PathLike[str] | None = None,
        window_tokens: int | None = None,
        progress: Progress | bool | None = None,
        generation_config: str = "auto",
        **options: Any,
    ) -> None:
        if num_threads is not None and threads is not None:
            raise TypeError("[Session] 'num_threads' was given twice, once as 'threads'.")
        options |= {
            "device": device,
            "num_threads": threads if num_threads is None else num_threads,
            "pin_threads": pin_threads,
            "draft": "none" if draft is None else os.fspath(draft),
            "activations": activations,
            "packed_cache": "none" if packed_cache is None else os.fspath(packed_cache),
            "window_tokens": window_tokens,
        }
        # All that can be refused before the minutes that loading may take.
        engine_options(**options)
        check_progress(progress)
        limits = Limits(max_context, seed)
        directory = require_directory(model_dir)
        defaults = GenerationDefaults.chosen(directory, generation_config)
        text = ModelText(directory)
        check_model_files(
            directory, text, max_context=limits.max_context, window_tokens=window_tokens
        )
        self._attach(open_engine(directory, progress, options), text, defaults, limits)

    @classmethod
    def from_engine(
        cls, engine: Any, *, max_context: int | None = None, seed: int | None = None
    ) -> Session:
        """A session on an engine that exists already, without tokenizer: token ids only."""
        session = cls.__new__(cls)
        limits = Limits(max_context, seed)
        session._attach(engine, ModelText(None), GenerationDefaults(), limits)
        return session

    def new_session(self, *, max_context: int | None = None) -> Session:
        """Another conversation on the same weights, with a KV cache of its own."""
        engine = self._require_engine("new_session")
        limits = Limits(self.max_context if max_context is None else max_context, self._limits.seed)
        session = Session.__new__(Session)
        session._attach(engine, self._text, self._defaults, limits)
        return session

    # -- generation

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **arguments: Any
    ) -> GenerationResult:
        """Continue ``prompt`` and return the whole result.

        Args:
            prompt: text, token ids in ``[0, vocab_size)``, or chat messages.
            params: how to choose tokens and when to stop.
            arguments: fields of `SamplingParams`; they win over ``params``.

        Raises:
            InvalidArgumentError: a bad value, or the session is busy; nothing has changed.
            CapacityError: the prompt does not fit into ``max_context``; nothing has changed.
            KeyboardInterrupt: within one step of Ctrl-C; the session stays usable.
        """
        return run_to_end(self._prepare("generate", prompt, params, arguments), self.cancel)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **arguments: Any
    ) -> TokenStream:
        """Iterate over `StreamEvent` values while the text is made; the last one has the result.

        Arguments and errors as `generate`. The generation starts with the first event asked for;
        closing or dropping the iterator cancels it within one step.
        """
        return TokenStream(self._prepare("stream", prompt, params, arguments), self.cancel)

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **arguments: Any
    ) -> AsyncTokenStream:
        """`stream` for ``async for``; cancelling the task, too, cancels the generation."""
        call = self._prepare("astream", prompt, params, arguments)
        return AsyncTokenStream(TokenStream(call, self.cancel))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> GenerationResult:
        """Answer ``messages``, dicts with "role" and "content", by the model's chat template.

        Args:
            tools: descriptions handed to the template.
            chat_template_kwargs: further variables of the template, e.g. ``enable_thinking``.

        Raises:
            InvalidArgumentError: no chat template, or it refused the messages.
        """
        variables = check_template_variables(chat_template_kwargs)
        text = self.apply_chat_template(messages, tools=tools, **variables)
        ids = self.encode(text, add_special_tokens=False)
        return run_to_end(self._prepare("chat", ids, params, arguments), self.cancel)

    def cancel(self) -> None:
        """From any thread: the generation ends as "abort" within a step (prompt: 512 tokens)."""
        core = self._core
        if core is not None and self._busy.locked():
            core.cancel()

    def reset(self) -> None:
        """Forget the cached conversation."""
        core = self._require_open("reset")
        with self._hold("reset"):
            core.reset()

    def _prepare(
        self,
        where: str,
        prompt: Prompt,
        params: SamplingParams | None,
        arguments: Mapping[str, Any],
    ) -> Call:
        core, engine = self._require_open(where), self._require_engine(where)
        params = resolve_params(params, arguments, f"Session.{where}")
        if params.stop and (self._text.tokenizer is None or self._decodes_in_python):
            raise _C.InvalidArgumentError(
                f"[Session.{where}] stop: stop strings need a byte-level BPE tokenizer.json, "
                f"got {'another kind' if self._text.tokenizer else 'none'}. Use stop_token_ids."
            )
        seed = next(s for s in (params.seed, self._limits.seed, fresh_seed()) if s is not None)
        eos_token_ids = [] if params.ignore_eos else self._text_eos_token_ids()
        options = core_options(params, self._defaults, seed, eos_token_ids)
        token_ids = self._text.prompt_ids(prompt)
        self._check_fits(where, len(token_ids), core.max_context - 1)
        num_spec_tokens = self._num_spec_tokens(params, engine)  # the session may be closed when it ends

        def call(on_token: OnToken | None) -> GenerationResult:
            with self._hold(where):
                if self._decodes_in_python and on_token is not None:
                    on_token = self._decoding(on_token)
                raw = core.generate(token_ids, options, on_token)
                text = self.decode(raw.token_ids) if self._decodes_in_python else raw.text
                result = result_from_core(
                    raw, text=text, seed=seed,
                    stop_token_ids=params.stop_token_ids,
                    wants_logprobs=params.logprobs is not None,
                    draft=DraftStats.from_core(raw, num_spec_tokens, params.want_rounds),
                )
                self._record(result)
                return result

        return call

    def _decoding(self, on_token: OnToken) -> OnToken:
        assert self._text.tokenizer is not None
        decode = self._text.tokenizer.stream_decoder()
        return lambda token_ids, _: on_token(token_ids, decode(token_ids))

    # -- evaluation

    def logits(self, prompt: Prompt, *, step_tokens: int = 0) -> np.ndarray:
        """Raw logits of every position, float32 ``[num_tokens, vocab_size]``.

        The cache is rebuilt from scratch. ``step_tokens``: rows per step, 0: the engine's choice; values do not
        depend on it. A step has logits of 64 rows (``device="cuda"``: 8) and runs once more for each so many.
        """
        import numpy as np

        core = self._require_open("logits")
        rows = as_int("step_tokens", step_tokens, 0, 2**31 - 1, "Session.logits")
        ids = np.asarray(self._text.prompt_ids(prompt), dtype=np.int32)
        self._check_fits("logits", len(ids), core.max_context)
        with self._hold("logits"):
            return call_interruptibly(lambda: core.logits(ids, rows), core.cancel)

    def draft_logits(self, prompt: Prompt) -> np.ndarray:
        """What the draft predicts behind the next token, float32 ``[block_size - 1, vocab_size]``.

        The last token of ``prompt`` is the anchor of the block; the cache is rebuilt from scratch.
        Tokens that a draft of a part of the vocabulary cannot propose have minus infinity.

        Raises:
            UnavailableError: the model has no draft.
        """
        import numpy as np

        core = self._require_open("draft_logits")
        ids = np.asarray(self._text.prompt_ids(prompt), dtype=np.int32)
        self._check_fits("draft_logits", len(ids), core.max_context - 1)
        with self._hold("draft_logits"):
            flat = call_interruptibly(lambda: core.draft_logits(ids), core.cancel)
        return flat.reshape(-1, self._vocab_size)

    def score(self, prompt: Prompt) -> ScoreResult:
        """Logprob of every token given those before it, and their mean loss in nat per token.

        Needs at least two tokens and memory for their logits (4 bytes x tokens x vocab_size).
        """
        ids = self._text.prompt_ids(prompt)
        if len(ids) < 2:
            raise _C.InvalidArgumentError("[Session.score] expected at least 2 tokens, got 1.")
        return score_logits(ids, self.logits(ids))

    # -- text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        return self._text.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; bytes that are no UTF-8 become U+FFFD."""
        return self._text.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt text that the model's chat template makes of ``messages``."""
        return self._text.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
