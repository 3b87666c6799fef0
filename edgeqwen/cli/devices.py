"""`edgeqwen devices`: what llama.cpp can compute on here."""

from __future__ import annotations

import asyncio

import click
import msgspec

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import Devices
from edgeqwen.machine.memory import available_bytes
from edgeqwen.text import size_text


@click.command()
@json_option
@click.pass_obj
def devices(invocation: Invocation) -> None:
    """List what llama.cpp can compute on here.

    GPUs show up where llama-cpp-python was built for them: CUDA, Vulkan, Metal.
    """
    # llama.cpp says of the CPU that all memory is free.
    found = [
        msgspec.structs.replace(one, free_bytes=available_bytes()) if one.kind == "cpu" else one
        for one in asyncio.run(_ask(invocation)).devices
    ]
    if invocation.as_json:
        output.document([msgspec.structs.asdict(device) for device in found])
        return
    rows = [
        (one.name, one.kind, one.description, size_text(one.free_bytes), size_text(one.total_bytes))
        for one in found
    ]
    output.table(("DEVICE", "KIND", "DESCRIPTION", ">FREE", ">MEMORY"), rows)


async def _ask(invocation: Invocation) -> Devices:
    async with WorkerClient(invocation.paths.logs) as client:
        return await client.devices()
