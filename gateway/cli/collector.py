"""The garbage collector: not while a command is loaded, and never over what was loaded then."""

from __future__ import annotations

import gc


def leave_alone() -> None:
    """Collect nothing until `settle_in`: what is loaded stays, and looking it through takes a tenth of the start."""
    gc.disable()


def settle_in() -> None:
    """From now on collect what comes and goes; what is there by now stays. For what runs on and on.

    Without a last look at what was loaded: it would find next to nothing, and the first callers would wait for it.
    """
    gc.freeze()
    gc.enable()
