"""From a model's name to an engine that answers: used by every command that asks questions."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from edgemed import languages, machine, models, paths
from edgemed.engine.client import ChildEngine
from edgemed.engine.memory import check_fits, memory_need
from edgemed.engine.messages import AdapterFile, ChatMessage, Engine, LoadRequest
from edgemed.errors import ModelError, UsageError
from edgemed.languages import text as _
from edgemed.models import InstalledModel
from edgemed.prompts import opening_messages

DEFAULT_CONTEXT_LENGTH = 4096
DEFAULT_MAX_TOKENS = 512


class Session(NamedTuple):
    """An engine with what one needs to know of its model."""

    engine: ChildEngine
    model: InstalledModel
    adapter: InstalledModel | None
    opening: list[ChatMessage]
    """What stands before the first question."""


def open_session(
    model_name: str | None = None,
    *,
    adapter_name: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    forbid_sockets: bool = False,
) -> Session:
    """Check a model and start loading it.

    Args:
        model_name: an installed model's name or a path; None is the one in use.
        context_length: tokens; None is the model's own, at most `DEFAULT_CONTEXT_LENGTH`.
        threads: None follows the cores that are free.

    Raises:
        UsageError: an option is out of range.
        ModelError: the model is missing, changed, or does not fit into memory.
    """
    if threads is not None and threads < 1:
        raise UsageError(
            _("--threads must be 1 or more, not {threads}.", threads=threads),
            hint=_("Leave it out to let edgemed choose."),
        )
    model = models.find_model(model_name)
    models.check_unchanged(model)
    length = _context_length(model, context_length)
    available = machine.available_memory_bytes()
    check_fits(
        model.name,
        model.manifest.shape,
        model.manifest.size_bytes,
        length,
        available,
        smaller_models=_names_that_fit(model, length, available),
    )
    adapter = None if adapter_name is None else _find_adapter(adapter_name, model)
    request = LoadRequest(
        model_path=str(model.path),
        model_sha256=model.manifest.sha256,
        context_length=length,
        threads=threads,
        chat_template=model.manifest.chat_template,
        prefix_states_folder=str(paths.prefix_states_folder()),
        kernels_file=str(paths.kernels_file()),
        adapter=None if adapter is None else AdapterFile(str(adapter.path), adapter.manifest.sha256),
        language=languages.language(),
        forbid_sockets=forbid_sockets,
    )
    engine = ChildEngine(request, model.manifest.sampling)
    return Session(engine, model, adapter, opening_messages(model.manifest))


@contextlib.contextmanager
def interrupt_stops(engine: Engine) -> Iterator[None]:
    """Let Ctrl+C end the answer and not the app, which then receives the rest of the events.

    A KeyboardInterrupt in the middle of a read from the pipe would lose them. A second Ctrl+C raises it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        engine.stop()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _context_length(model: InstalledModel, wanted: int | None) -> int:
    trained = model.manifest.context_length
    if wanted is None:
        return min(trained, DEFAULT_CONTEXT_LENGTH)
    if not 128 <= wanted <= trained:
        raise UsageError(
            _(
                "The context length must be from 128 to {trained} tokens for {name}, not {wanted}.",
                trained=trained,
                name=model.name,
                wanted=wanted,
            ),
            hint=_("Leave --context-length out to use the model's own."),
        )
    return wanted


def _names_that_fit(refused: InstalledModel, length: int, available_bytes: int) -> list[str]:
    """Return the other installed models that fit, the largest first."""
    fitting = [
        model
        for model in models.list_models("model").models
        if model.name != refused.name
        and memory_need(
            model.manifest.shape, model.manifest.size_bytes, min(length, model.manifest.context_length)
        ).total_bytes
        <= available_bytes
    ]
    return [model.name for model in sorted(fitting, key=lambda model: -model.manifest.size_bytes)]


def _find_adapter(name: str, base: InstalledModel) -> InstalledModel:
    adapter = models.find_model(name, kind="adapter")
    models.check_unchanged(adapter)
    wanted = adapter.manifest.base_sha256
    if wanted is not None and wanted != base.manifest.sha256:
        raise ModelError(
            _(
                "The adapter {name} was made for another base model than {name2}.",
                name=adapter.name,
                name2=base.name,
            ),
            hint=_("Use it with the base model that its model card names."),
        )
    return adapter
