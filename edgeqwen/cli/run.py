"""`edgeqwen run`: one answer, or a conversation line by line.

Reads the command line and the pipe, decides which of the two it is, and hands over.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Literal

import click

from edgeqwen.cli import output
from edgeqwen.cli.chat import LineChat
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option
from edgeqwen.cli.talk import Talk, TalkOptions
from edgeqwen.errors import InvalidInput

_MAX_PIPED = 16 << 20  # bytes; the worker takes prompts of as many characters
_QUIET_S = 2.0


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("prompt", nargs=-1)
@click.option(
    "--chat", is_flag=True, help="Hold a conversation even when stdin is no terminal: one line, one message."
)
@click.option("--system", metavar="TEXT", default="", help="System prompt.")
@click.option(
    "--think/--no-think", default=None, help="Let the model think first, or not, where it has the choice."
)
@click.option("--temp", "temperature", type=float, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, help="Choose among tokens that make up this share of the probability.")
@click.option("--top-k", type=int, help="Choose among so many tokens; 0 is 1,024.")
@click.option(
    "--min-p", type=float, help="Leave out tokens below this share of the likeliest one's probability."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 2), help="The same seed gives the same answer on this machine."
)
@click.option("--max-tokens", type=click.IntRange(1), help="End the answer after so many tokens.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End the answer where this text would come; repeatable."
)
@click.option("--ctx", "n_ctx", type=click.IntRange(16), help="Context in tokens.")
@click.option(
    "--full",
    "overflow",
    type=click.Choice(["stop", "drop-oldest", "drop-thinking", "keep-ends"]),
    help="What to do when the context is full: refuse, or leave out oldest turns, thinking, or the middle.",
)
@click.option(
    "--kv", "kv_type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", help="Type of the KV cache."
)
@click.option(
    "--kv-v", "kv_type_v", type=click.Choice(["f16", "q8_0", "q4_0"]), help="Type of its values, if another."
)
@click.option(
    "--think-budget", type=click.IntRange(0), metavar="N", help="Close the thinking after so many tokens."
)
@click.option("--mlock", is_flag=True, help="Keep the weights in memory, whatever else wants it.")
@click.option("--no-mmap", is_flag=True, help="Read the weights into memory at once.")
@click.option("--no-repack", is_flag=True, help="Make no second copies of weights: less memory, slower.")
@click.option("--gpu-layers", "n_gpu_layers", type=click.IntRange(-1), help="Layers on the GPU; -1 is all.")
@click.option("--force", is_flag=True, help="Load even what does not fit into memory.")
@click.option("--threads", "n_threads", type=click.IntRange(1, 512), help="CPU threads.")
@json_option
@click.pass_obj
def run(
    invocation: Invocation,
    /,
    ref: str,
    prompt: tuple[str, ...],
    chat: bool,
    **options: Any,  # noqa: ANN401 - click's own types
) -> int:
    """Talk to a model, or get one answer.

    REF is an installed model (qwen3-4b, qwen3-4b:q5_k_m) or the path of a GGUF file. With a PROMPT, or with
    text piped in, the answer goes to stdout; text piped in is added to the prompt. Else it is a conversation,
    line by line. Ctrl-C stops an answer and keeps what was said; a second Ctrl-C leaves.

    Sampler settings default to those of `edgeqwen config`, then to the model card's.
    """
    if chat and prompt:
        raise InvalidInput("`--chat` takes its messages from stdin; leave the prompt out")
    talk_options = _talk_options(options)
    is_chat = chat or (not prompt and sys.stdin.isatty())
    text = "" if is_chat else _whole_prompt(_plain(" ".join(prompt)))
    with Talk(invocation, ref, talk_options) as talk:
        return LineChat(talk).hold() if is_chat else talk.answer_once(text)


def _talk_options(options: dict[str, Any]) -> TalkOptions:
    sampler_keys = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop")
    sampler = {key: options[key] for key in sampler_keys if options[key] not in (None, ())}
    return TalkOptions(
        system=_plain(options["system"]),
        think=options["think"],
        n_ctx=options["n_ctx"],
        n_threads=options["n_threads"],
        overflow=options["overflow"],
        think_budget=options["think_budget"],
        kv_type=options["kv_type"],
        kv_type_v=options["kv_type_v"],
        load_mode=_load_mode(options),
        repack=not options["no_repack"],
        n_gpu_layers=-1 if options["n_gpu_layers"] is None else options["n_gpu_layers"],
        force=options["force"],
        sampler=sampler,
    )


def _load_mode(options: dict[str, Any]) -> Literal["auto", "mlock", "read"]:
    if options["mlock"] and options["no_mmap"]:
        raise InvalidInput("`--mlock` pins what `--no-mmap` would not map; give one of the two")
    return "mlock" if options["mlock"] else "read" if options["no_mmap"] else "auto"


def _whole_prompt(prompt: str) -> str:
    """Return the prompt with what was piped in after it. Raises InvalidInput when both are empty."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _read_piped()
    text = "\n\n".join(filter(None, (prompt, piped)))
    if not text.strip():
        raise InvalidInput("the prompt is empty; give one after the model, or pipe text in")
    return text


def _read_piped() -> str:
    told = threading.Timer(_QUIET_S, output.note, ["reading from stdin until it ends; Ctrl-C leaves"])
    told.daemon = True
    told.start()
    try:
        data = sys.stdin.buffer.read(_MAX_PIPED + 1)
    except OSError as error:
        raise InvalidInput(f"stdin cannot be read: {error.strerror}") from error
    finally:
        told.cancel()
    if len(data) > _MAX_PIPED:
        raise InvalidInput(f"more than {_MAX_PIPED >> 20} MiB were piped in, which no context can hold")
    return data.decode("utf-8", "replace").strip("\n")


def _plain(text: str) -> str:
    """Return an argument as text that can be encoded: bytes that are no UTF-8 become question marks."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
