"""What front ends and the worker say to each other: typed frames, each with its length before it.

Pure data, shared by both sides. Knows no bytes (frames.py), no pipe, no process and no llama.cpp.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from edgeqwen.errors import EdgeQwenError, InvalidInput, from_wire

KvType = Literal["f16", "q8_0", "q4_0"]
Overflow = Literal["stop", "drop-oldest", "drop-thinking", "keep-ends"]
"""What to do when a conversation does not fit the context: refuse it, or leave something out and say so."""
StopReason = Literal["eos", "stop", "length", "cancelled"]
Role = Literal["system", "user", "assistant", "tool"]
DeviceKind = Literal["cpu", "gpu", "igpu", "accelerator", "other"]


class SavedParams(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache on disk."""

    folder: str
    model: str
    """What tells this model's bytes from every other's: a sha256 where there is one."""
    max_bytes: int = 2 << 30
    """Of all files together; those not used for longest go first."""


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """How a model divides among devices."""

    n: int
    n_bytes: int
    """Weights and KV cache of one layer, on average."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something llama.cpp can compute on."""

    name: str
    description: str
    kind: DeviceKind
    total_bytes: int
    free_bytes: int
    """As the device says; of a CPU, the system's memory."""


class LoadParams(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed while a model is loaded."""

    paths: tuple[str, ...]
    """The model file, or all its shards in order; for the scripted engine, its script."""
    engine: Literal["llama", "scripted"] = "llama"
    n_ctx: int = 4096
    """Tokens promised to one slot."""
    n_slots: int = 1
    n_batch: int = 512
    """Most tokens evaluated in one step."""
    n_threads: int = 1
    kv_type: KvType = "f16"
    """How keys are kept, and values unless `kv_type_v` says otherwise; smaller costs a little quality."""
    kv_type_v: KvType | None = None
    n_gpu_layers: int = -1
    """Layers on the GPU, where the build has one; -1 is as many as its free memory holds."""
    layers: Layers | None = None
    """What the -1 above is reckoned with; None tries all of them."""
    load_mode: Literal["auto", "mmap", "mlock", "read"] = "auto"
    """mmap reads weights as they are used, mlock pins them as well, read copies them into memory at once."""
    repack: bool = True
    """Keep rearranged copies of weights, which CPUs compute faster with."""
    saved: SavedParams | None = None
    """Where the KV cache is kept on disk; None keeps it nowhere."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning, before a process is started for it. Raises InvalidInput."""
        _check_bounds(self, _LOAD_BOUNDS)
        if self.n_ctx * self.n_slots > _MAX_CELLS:
            raise InvalidInput(f"a context of {self.n_ctx:,} tokens is more than llama.cpp can count")
        for kv_type in filter(None, (self.kv_type, self.kv_type_v)):
            if kv_type not in get_args(KvType):
                raise InvalidInput(f"unknown KV type: {kv_type}; there are {', '.join(get_args(KvType))}")


class SamplerParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one request chooses its tokens. Raises InvalidInput for values that have no meaning."""

    temperature: float = 0.7
    """0 always takes the likeliest token."""
    top_k: int = 20
    """0 lifts the limit to the 1,024 likeliest tokens: sorting a whole vocabulary costs 10 ms per token."""
    top_p: float = 0.8
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    """Divides the score of each of the last 64 tokens, prompt included; 1 is off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None takes a new one per request; Finished says which."""
    max_tokens: int | None = None
    """None goes on to the end of the context."""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_bounds(self, _SAMPLER_BOUNDS)


_SAMPLER_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 10),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.1, 10),
    "presence_penalty": (-10, 10),
    "frequency_penalty": (-10, 10),
    "max_tokens": (1, 1 << 24),
}


_MAX_CELLS = (1 << 31) - 256  # llama.cpp counts cells in 32 bits
_LOAD_BOUNDS: dict[str, tuple[float, float]] = {
    "n_ctx": (1, _MAX_CELLS),
    "n_slots": (1, 256),
    "n_batch": (1, 1 << 16),
    "n_threads": (1, 512),
    "n_gpu_layers": (-1, 100_000),
}


def _check_bounds(params: object, bounds: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            raise InvalidInput(f"{name} is {value:,}; it must lie between {low:,} and {high:,}")


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of the prompt, in the form that chat templates read."""

    role: Role
    content: str | list[dict[str, Any]] | None = ""
    """Text, or OpenAI-style parts of which the text ones are joined."""
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    name: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and durations of one request, by the worker's own clock. Rates are made where they are shown.

    prompt_tokens = cached_tokens + prefill_tokens; decode_tps = (completion_tokens - 1) / decode_s, since n
    tokens span n - 1 intervals; prefill_tps = prefill_tokens / prefill_s.
    """

    queued_s: float
    """Request accepted by the worker to its slot starting on it."""
    ttft_s: float | None
    """Slot start to first token sampled, thinking included; None when there was none."""
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt taken from the slot's cache: known already and not evaluated again."""
    prefill_tokens: int
    """Tokens of the prompt really evaluated."""
    prefill_s: float
    """Slot start to the logits of the last prompt token."""
    completion_tokens: int
    """Tokens sampled and kept, thinking included, the end token not."""
    thinking_tokens: int
    """Those of them inside a thinking block."""
    decode_s: float
    """First kept token to last kept token."""
    rss_bytes: int
    """The worker's resident memory at the end."""

    @property
    def prefill_tps(self) -> float | None:
        """Tokens per second of reading; None when nothing was read."""
        return self.prefill_tokens / self.prefill_s if self.prefill_tokens and self.prefill_s > 0 else None

    @property
    def decode_tps(self) -> float | None:
        """Tokens per second from the first to the last; None for fewer than two."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s > 0 else None


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Open the engine; answered by Loading frames, then Ready or Failed."""

    params: LoadParams


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Answer a conversation; closed by exactly one Finished or Failed."""

    id: int
    messages: tuple[ChatMessage, ...]
    sampler: SamplerParams = SamplerParams()
    think: bool | None = None
    """For templates that can switch it; None leaves it to the template."""
    tools: tuple[dict[str, Any], ...] = ()
    overflow: Overflow = "stop"
    thinking_budget: int | None = None
    """Tokens of thinking after which it is closed and the answer begins; None lets it end by itself."""
    delta_s: float = 0.05
    """Seconds of text that are sent together, after the first piece. Where the engine computes with every
    core, each frame stops it for as long as the front end takes to read and draw it."""


class AnswerNow(msgspec.Struct, frozen=True, kw_only=True, tag="answer_now"):
    """Close the thinking of a request and go on with its answer; nothing when it does not think."""

    id: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stop a request; what was said so far stays."""

    id: int


class ListDevices(msgspec.Struct, frozen=True, kw_only=True, tag="list_devices"):
    """Say what there is to compute on; answered by Devices. Needs no model."""


class Close(msgspec.Struct, frozen=True, kw_only=True, tag="close"):
    """Finish in good order."""


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag="loading"):
    """How far the weights are, 0 to 1."""

    progress: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine is open."""

    load_s: float
    """Load asked to engine ready."""
    n_ctx: int
    n_slots: int
    n_vocab: int
    architecture: str
    has_template: bool
    """False: the file brings none and plain ChatML is used."""
    rss_bytes: int
    n_gpu_layers: int = 0
    """Layers that really went to GPUs; -1 is all of them."""
    notices: tuple[str, ...] = ()
    """What is not as it was asked for, a sentence each."""


class Devices(msgspec.Struct, frozen=True, kw_only=True, tag="devices"):
    """What there is to compute on."""

    devices: tuple[Device, ...]
    features: tuple[str, ...] = ()
    """What llama.cpp was built to use of the CPU, in its own words: AVX2, DOTPROD."""


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """What was left out of a conversation that did not fit."""

    messages: tuple[int, ...]
    """Indices into the request's messages."""
    n_tokens: int
    thinking_of: tuple[int, ...] = ()
    """Messages that stayed, but without their thinking."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """A slot begins with a request."""

    id: int
    prompt_tokens: int
    cached_tokens: int
    restored_tokens: int = 0
    """Those of `cached_tokens` that came from disk."""
    in_thinking: bool
    """The prompt ends inside a thinking block, so the answer starts there."""
    dropped: Dropped | None = None


class Prefill(msgspec.Struct, frozen=True, kw_only=True, tag="prefill"):
    """How much of the prompt has been read, cached part included."""

    id: int
    done: int
    total: int


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """A piece of raw reply text, thinking tags included, control characters not."""

    id: int
    text: str
    n_tokens: int = 0
    """Tokens of the answer so far, as Stats counts them at the end."""
    n_thinking: int = 0
    """Those of them inside a thinking block."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The request is over and this is what it took."""

    id: int
    stop_reason: StopReason
    seed: int
    stats: Stats


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A request, or the load when `id` is None, ended with an error."""

    id: int | None
    code: str
    message: str
    data: dict[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, error: EdgeQwenError, request: int | None = None) -> Failed:
        """Return a failure as a frame; `error` makes it an error again."""
        return cls(id=request, code=error.code, message=error.message, data=error.data())

    def error(self) -> EdgeQwenError:
        """Return the error as it was raised on the other side."""
        return from_wire(self.code, self.message, self.data)


Command = Load | Generate | AnswerNow | Cancel | ListDevices | Close
Event = Loading | Ready | Devices | Started | Prefill | TextDelta | Finished | Failed
