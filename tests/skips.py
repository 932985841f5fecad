"""Which tests may be left out where ``LAVILA_NO_SKIPS=1`` is set, as CI does; any other skip is a failure there.

A suite that is green because its compiler or its golden data are gone says nothing.
"""

from __future__ import annotations

import os
import re

VARIABLE = "LAVILA_NO_SKIPS"
# What a reason holds (a regular expression) → why a test may be left out for it on a machine that has all of `[dev]`.
ALLOWED = {
    r"needs a GPU|no GPU|no device that decodes": "CI has none",
    r"there is a (GPU|device)|there is one$|has the provider$|interpreter is off": "tests of what is said without",
    r"LAVILA_VIDEO_DIR|is not in .*videos": "real recordings are nobody's to pass on",
    r"LAVILA_TOKENIZER_DIR": "published vocabularies are downloads",
    r"METEOR's tables": "a download of 104 MB; its arithmetic is tested on small tables",
    r"^strace is not here": "faults of system calls are tried where it can be installed; others are faked",
    r"processor.*AVX2|x86-64 Linux with AVX2": "an instruction set cannot be installed",
    r"is one of these|one process is enough|under a sanitizer already": "the process that started this one tests it",
    r"file system takes no such names": "a property of the disk",
    r"^(size|pixel format) ": "pictures that the kernel leaves to another, by design",
    r"could not import 'deepspeed": "of `[train]`, which `[dev]` leaves out: it compiles for minutes",
}


def forbidden(reason: str) -> str:
    """What to say of a skip, or an empty string if it may be."""
    if os.environ.get(VARIABLE, "0") in ("", "0") or any(re.search(allowed, reason) for allowed in ALLOWED):
        return ""
    return f"{reason}: skips fail here ({VARIABLE}); install what is missing, or add the reason to tests/skips.py"
