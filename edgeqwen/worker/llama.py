"""The llama.cpp engine: one model, one context, one reused batch.

Owns every call into the library, and guards each one that could abort the process. Knows no messages, no
templates and no frames.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeqwen.engine.protocol import LoadParams, SamplerParams
from edgeqwen.errors import EngineError, LoadFailed
from edgeqwen.text import clean_line
from edgeqwen.worker.attention import TILE, cpu_kernels
from edgeqwen.worker.binding import LLAMA_VERSION, L, package_version
from edgeqwen.worker.devices import layer_notices, layers_to_try, list_devices
from edgeqwen.worker.engine import Decoded, Row
from edgeqwen.worker.kernels import Kernels
from edgeqwen.worker.sampler import LlamaSampler

_ATTR_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_ATTR_USER_DEFINED = 1 << 4
_PIECE_BYTES = 256
_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml_type
_FLASH_ATTENTION_ON = 1  # LLAMA_FLASH_ATTN_TYPE_ENABLED
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_NO_TOKEN = -1  # LLAMA_TOKEN_NULL
_ABORTED, _NO_ROOM = 2, 1
_WHOLE, _RECURRENT_PART = 0, 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_UNPINNED_NOTICE = (
    "the system let no more of the weights be pinned in memory; `ulimit -l` tells how much it allows, in KiB"
)
_AMX_NOTICE = (
    "llama.cpp was built with AMX, which is not safe to use, so prompts are read more slowly; to mend it, "
    "run `pip cache remove llama_cpp_python`, delete .venv and run scripts/run again"
)
_LOAD_MODES = {"auto": -1, "read": 0, "mmap": 1, "mlock": 3}  # llama_load_mode


class LlamaEngine:
    """A loaded model; created and used by one thread, but for `abort`."""

    def __init__(self, params: LoadParams, on_progress: Callable[[float], bool]) -> None:
        """Load the model; `on_progress` gets 0 to 1 and gives up by returning False. Raises LoadFailed."""
        _check_library()
        self._flag = ctypes.create_string_buffer(2)
        self._model: Any = None
        self._ctx: Any = None
        self._batch: Any = None
        self.notices: tuple[str, ...] = ()
        with _ErrorLog() as log:
            try:
                self._open(params, on_progress)
            except LoadFailed as error:
                self.close()
                if not error.reason and (reason := log.reason()):
                    error.message += f": {reason}"
                raise
            self.notices += log.notices()
        self._wants: list[bool] = []

    def _open(self, params: LoadParams, on_progress: Callable[[float], bool]) -> None:
        L.llama_backend_init()
        self.n_ctx, self.n_slots = params.n_ctx, params.n_slots
        self._open_on_devices(params, on_progress)
        self._vocab = L.llama_model_get_vocab(self._model)
        self.n_vocab = int(L.llama_vocab_n_tokens(self._vocab))
        self._memory = L.llama_get_memory(self._ctx)
        self.n_batch = int(L.llama_n_batch(self._ctx))
        self.goes_back = not (L.llama_model_is_hybrid(self._model) or L.llama_model_is_recurrent(self._model))
        self.can_shift = self.goes_back and bool(L.llama_memory_can_shift(self._memory))
        self.architecture = self._meta("general.architecture")
        self.kernels = self._find_kernels(params)
        # Many commits of llama.cpp call themselves by one version; the package's names one of them.
        self.version = f"{LLAMA_VERSION} {package_version()} {self.architecture}"
        template = L.llama_model_chat_template(self._model, None)
        self.template = template.decode("utf-8", "replace") if template else None
        self._open_batch()
        self._read_vocabulary()

    def _open_on_devices(self, params: LoadParams, on_progress: Callable[[float], bool]) -> None:
        """Load with as many layers on GPUs as they take, and say so where that is less than was wanted."""
        devices = list_devices()
        counts = layers_to_try(params.n_gpu_layers, params.layers, devices)
        for n_layers in counts:
            try:
                self._open_with(params, n_layers, on_progress)
                break
            except LoadFailed:
                self.close()
                if n_layers == counts[-1]:
                    raise
        self.n_gpu_layers = n_layers
        self.notices = layer_notices(params.n_gpu_layers, params.layers, devices, n_layers)
        if params.repack and _has_amx():
            self.notices += (_AMX_NOTICE,)

    def _open_with(self, params: LoadParams, n_layers: int, on_progress: Callable[[float], bool]) -> None:
        name = Path(params.paths[0]).name
        self._model = _load_model(params, n_layers, on_progress)
        if not self._model:
            raise LoadFailed(f"llama.cpp could not load {name}", path=params.paths[0])
        self._ctx = self._open_context(params)
        if not self._ctx:
            message = f"llama.cpp could not make a context of {params.n_ctx:,} tokens for {name}"
            raise LoadFailed(message, path=params.paths[0])

    def _open_context(self, params: LoadParams) -> Any:  # noqa: ANN401 - a ctypes pointer
        settings = L.llama_context_default_params()
        cells = -(-params.n_ctx // 256) * 256  # llama.cpp rounds up; asking for it keeps our count right
        settings.n_ctx = cells * params.n_slots
        settings.n_batch = settings.n_ubatch = min(params.n_batch, cells)
        settings.n_seq_max = params.n_slots
        settings.kv_unified = True
        settings.n_outputs_max = params.n_slots  # the true maximum: 40 MiB of compute buffer instead of 300
        value_type = params.kv_type_v or params.kv_type
        settings.type_k, settings.type_v = _KV_TYPES[params.kv_type], _KV_TYPES[value_type]
        if value_type != "f16":
            settings.flash_attn_type = _FLASH_ATTENTION_ON  # values can be quantized only with it
        settings.n_threads = settings.n_threads_batch = params.n_threads
        # strlen(flag) != 0 is asked once per graph node; a Python callback would fight for the GIL there.
        strlen = (ctypes.CDLL(None) if sys.platform != "win32" else ctypes.CDLL("msvcrt")).strlen
        settings.abort_callback = ctypes.cast(strlen, L.ggml_abort_callback)
        settings.abort_callback_data = ctypes.addressof(self._flag)
        return L.llama_init_from_model(self._model, settings)

    def _find_kernels(self, params: LoadParams) -> Kernels:
        if self.n_gpu_layers != 0:
            return Kernels()
        n_embd, n_head = L.llama_model_n_embd(self._model), L.llama_model_n_head(self._model)
        head_size = self._meta(f"{self.architecture}.attention.key_length")
        return cpu_kernels(
            n_embd,
            n_head,
            int(head_size) if head_size.isdecimal() else n_embd // max(1, n_head),
            repacks=_repacks(params),
            has_tiles=self.n_batch >= TILE and {params.kv_type, params.kv_type_v} <= {"f16", None},
        )

    def _open_batch(self) -> None:
        """Make the one batch, with views that cost 0.07 us per write instead of 0.44."""
        size = self.n_batch
        batch = self._batch = L.llama_batch_init(size, 0, 1)
        self._tokens = (L.llama_token * size).from_address(ctypes.addressof(batch.token.contents))
        self._positions = (L.llama_pos * size).from_address(ctypes.addressof(batch.pos.contents))
        self._logits = (ctypes.c_int8 * size).from_address(ctypes.addressof(batch.logits.contents))
        for index in range(size):
            batch.n_seq_id[index] = 1
        self._sequences = [batch.seq_id[index] for index in range(size)]

    def _read_vocabulary(self) -> None:
        vocab, attributes = self._vocab, L.llama_vocab_get_attr
        special = _ATTR_CONTROL | _ATTR_USER_DEFINED
        marked = {
            token: attr for token in range(self.n_vocab) if (attr := attributes(vocab, token)) & special
        }
        # A vocabulary's end tokens are special ones, but a file may name any token as its end.
        named = {L.llama_vocab_eos(vocab), L.llama_vocab_eot(vocab)} - {_NO_TOKEN}
        self.eog = frozenset(token for token in {*marked, *named} if L.llama_vocab_is_eog(vocab, token))
        controls = (token for token, attr in marked.items() if attr & _ATTR_CONTROL)
        self.control_texts = tuple(
            L.llama_vocab_get_text(vocab, token).decode("utf-8", "replace") for token in controls
        )
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._piece_buffer = ctypes.create_string_buffer(_PIECE_BYTES)

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = L.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return clean_line(buffer.value.decode("utf-8", "replace")) if length >= 0 else ""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8  # a token has at least one byte
        tokens = (L.llama_token * room)()
        count = L.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
        if count < 0:
            raise EngineError(f"a text of {len(data):,} bytes could not be tokenized")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        buffer = self._piece_buffer
        count = L.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = L.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]

    def decode(self, rows: Sequence[Row]) -> Decoded:
        self._wants = [row.wants_logits for row in rows]
        # Each of these would abort the process inside the library.
        assert 0 < len(rows) <= self.n_batch, f"{len(rows)} rows for a batch of {self.n_batch}"
        assert sum(self._wants) <= self.n_slots, "more outputs than the context was made for"
        for index, row in enumerate(rows):
            self._tokens[index], self._positions[index] = row.token, row.position
            self._sequences[index][0], self._logits[index] = row.slot, row.wants_logits
        self._batch.n_tokens = len(rows)
        status = L.llama_decode(self._ctx, self._batch)
        if status == 0:
            if len(rows) > self.n_slots:
                L.llama_synchronize(self._ctx)  # so that prefill is timed to its end on a GPU, too
            return Decoded.DONE
        self._wants = []
        if status == _ABORTED:
            return Decoded.ABORTED
        if status == _NO_ROOM:
            raise EngineError("the KV cache is full")
        raise EngineError(f"llama.cpp could not evaluate a batch (status {status})")

    def trim(self, slot: int, length: int) -> bool:
        if length == 0:
            return bool(L.llama_memory_seq_rm(self._memory, slot, -1, -1))
        return self.goes_back and bool(L.llama_memory_seq_rm(self._memory, slot, length, -1))

    def n_cached(self, slot: int) -> int:
        return int(L.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def copy(self, source: int, target: int) -> None:
        self.trim(target, 0)
        L.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def shift(self, slot: int, start: int, stop: int) -> None:
        assert self.can_shift
        L.llama_memory_seq_rm(self._memory, slot, start, stop)
        L.llama_memory_seq_add(self._memory, slot, stop, -1, start - stop)

    def checkpoint(self, slot: int) -> bytearray:
        return self._get_state(slot, _RECURRENT_PART)

    def restore(self, slot: int, length: int, checkpoint: bytearray) -> bool:
        # In this order: after the recurrent part is that of `length`, the attention part may follow.
        is_restored = (
            self._set_state(slot, checkpoint, _RECURRENT_PART)
            and bool(L.llama_memory_seq_rm(self._memory, slot, length, -1))
            and self.n_cached(slot) == length
        )
        if not is_restored:
            self.trim(slot, 0)
        return is_restored

    def state_bytes(self, slot: int) -> int:
        return int(L.llama_state_seq_get_size_ext(self._ctx, slot, _WHOLE))

    def save(self, slot: int) -> bytearray:
        return self._get_state(slot, _WHOLE)

    def load(self, slot: int, data: bytes | bytearray | memoryview) -> bool:
        self.trim(slot, 0)
        if self._set_state(slot, data, _WHOLE):
            return True
        self.trim(slot, 0)
        return False

    def _get_state(self, slot: int, flags: int) -> bytearray:
        state = bytearray(L.llama_state_seq_get_size_ext(self._ctx, slot, flags))
        if state:
            view = (ctypes.c_uint8 * len(state)).from_buffer(state)
            if L.llama_state_seq_get_data_ext(self._ctx, view, len(state), slot, flags) != len(state):
                raise EngineError("llama.cpp could not give out the state of a sequence")
        return state

    def _set_state(self, slot: int, data: bytes | bytearray | memoryview, flags: int) -> bool:
        kind = ctypes.c_uint8 * len(data)
        # ctypes lends out what may be written to, and only that; llama.cpp does not write to it.
        view = kind.from_buffer_copy(data) if isinstance(data, bytes) else kind.from_buffer(data)
        return bool(L.llama_state_seq_set_data_ext(self._ctx, view, len(data), slot, flags) == len(data))

    def open_sampler(self, params: SamplerParams, seed: int) -> _GuardedSampler:
        return _GuardedSampler(self, LlamaSampler(self._ctx, self.n_vocab, params, seed))

    def has_logits(self, row: int) -> bool:
        """Say whether the last decode made logits for this row; sampling without aborts the process."""
        return row < len(self._wants) and self._wants[row]

    def abort(self) -> None:
        self._flag[0] = b"\x01"

    def resume(self) -> None:
        self._flag[0] = b"\x00"

    def close(self) -> None:
        if self._batch is not None:
            L.llama_batch_free(self._batch)
        if self._ctx:
            L.llama_free(self._ctx)
        if self._model:
            L.llama_model_free(self._model)
        self._batch = self._ctx = self._model = None


class _GuardedSampler:
    """A sampler that refuses rows without logits."""

    def __init__(self, engine: LlamaEngine, sampler: LlamaSampler) -> None:
        self._engine, self._sampler = engine, sampler

    def sample(self, row: int, recent: Sequence[int]) -> int:
        assert self._engine.has_logits(row), f"row {row} has no logits"
        return self._sampler.sample(row, recent)

    def close(self) -> None:
        self._sampler.close()


def _load_model(params: LoadParams, n_layers: int, on_progress: Callable[[float], bool]) -> Any:  # noqa: ANN401
    settings = L.llama_model_default_params()
    settings.n_gpu_layers = n_layers
    settings.use_extra_bufts = _repacks(params)
    settings.load_mode = _LOAD_MODES[params.load_mode]
    # Kept in a name until the load is over: the library holds a bare pointer to it.
    callback = L.llama_progress_callback(lambda progress, _data: on_progress(float(progress)))
    settings.progress_callback = callback
    paths = [path.encode() for path in params.paths]
    if len(paths) == 1:
        return L.llama_model_load_from_file(paths[0], settings)
    array = (ctypes.c_char_p * len(paths))(*paths)
    return L.llama_model_load_from_splits(array, len(paths), settings)


def _repacks(params: LoadParams) -> bool:
    return params.repack and not _has_amx()


def _has_amx() -> bool:
    """Say whether this build would use AMX.

    Its kernels mix up the sequences of a batch of a hybrid model, and virtual machines may announce AMX
    without letting it run, which ends the process (both seen on a Xeon, 2026-11). It comes with repacking.
    """
    return b"AMX_INT8 = 1" in L.llama_print_system_info()


def _check_library() -> None:
    version = L.llama_version().decode()
    if version != LLAMA_VERSION:
        message = (
            f"llama.cpp is {version}, but this program is made for {LLAMA_VERSION}; run scripts/run again"
        )
        raise LoadFailed(message, reason="wrong library")


class _ErrorLog:
    """Listens to the library's log while a model loads and remembers what matters of it."""

    def __enter__(self) -> _ErrorLog:
        self._lines: list[str] = []
        self._is_unpinned = False
        self._callback = L.llama_log_callback(self._take)
        L.llama_log_set(self._callback, None)
        return self

    def __exit__(self, *_: object) -> None:
        # Back to the library's own logger, which writes to stderr without asking Python.
        L.llama_log_set(L.llama_log_callback(), None)

    def _take(self, level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", "replace")
        sys.stderr.write(line)
        if level == _ERROR_LEVEL:
            self._lines.append(clean_line(line))
        self._is_unpinned |= "failed to mlock" in line or "mlock not supported" in line  # llama-mmap.cpp

    def notices(self) -> tuple[str, ...]:
        """Return what did not go as it was asked for, though the model is there."""
        return (_UNPINNED_NOTICE,) if self._is_unpinned else ()

    def reason(self) -> str:
        """Return the first error, without the function name llama.cpp puts before it."""
        line = next(filter(None, self._lines), "")
        return line.partition(": ")[2] or line
