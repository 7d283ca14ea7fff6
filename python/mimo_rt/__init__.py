"""mimo_rt: a low-latency engine for MiMo-V2-class models with MXFP4 experts.

    with mimo_rt.Session("/models/MiMo-V2.5-Pro-FP4") as session:
        print(session.generate("The three laws of robotics are", max_tokens=64).text)

Importing this package starts no thread, prints nothing and loads neither the tokenizer library
nor the template engine: they are imported when a session first needs them.
"""

from . import errors
from ._C import Engine, EngineOptions, ModelConfig, __version__, list_backends
from ._paths import get_cmake_dir, get_include, get_lib_dir
from .errors import MimoRtError
from .params import SamplingParams
from .results import (
    GenerationResult,
    GenerationStats,
    ScoreResult,
    SessionStats,
    StreamEvent,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from .session import Session
from .streaming import TokenStream

__all__ = [
    "Engine",
    "EngineOptions",
    "GenerationResult",
    "GenerationStats",
    "MimoRtError",
    "ModelConfig",
    "SamplingParams",
    "ScoreResult",
    "Session",
    "SessionStats",
    "StreamEvent",
    "TokenLogprob",
    "TokenLogprobs",
    "TokenStream",
    "Usage",
    "__version__",
    "errors",
    "get_cmake_dir",
    "get_include",
    "get_lib_dir",
    "list_backends",
]
