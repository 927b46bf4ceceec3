"""How a worker ended, in words: by a signal, by an exit, or for want of memory."""

from __future__ import annotations

import os
import re
import signal

from tunebook.measure._check import Finding

#: So many characters of what a worker wrote last are told.
LONGEST = 300


def ended_by_itself(where: str, status: int, tail: bytes) -> Finding:
    """Why a worker ended that nobody here ended; `status` as ``waitpid`` gives it, `tail` is what it wrote last."""
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return Finding("crash", f"{where}: it ended its process with exit code {code}", harm=True)
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL:
        words = f"{where}: killed from outside, as the kernel does where memory has run out"
        return Finding("memory", words, harm=True)
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    memory = number == signal.SIGABRT and b"bad_alloc" in tail
    return Finding("memory" if memory else "crash", f"{where}: {name}{last_words(tail)}", harm=True)


def last_words(tail: bytes) -> str:
    """The place that Python names, where it saw the end come, else the last line, with a colon before it; or nothing."""
    text = tail.decode(errors="replace")
    _, found, stack = text.partition("most recent call first")
    frames = re.findall(r"^  File \"([^\"\n]+)\", line (\d+) in (\S+)", stack, re.MULTILINE) if found else []
    if frames:
        library = os.path.dirname(os.__file__)
        file, line, name = next((frame for frame in frames if not frame[0].startswith(library)), frames[0])
        return f" in {os.path.basename(file)}:{line} ({name})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:LONGEST]}" if lines else ""
