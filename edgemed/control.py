"""What the chat does outside a conversation: models, settings, media. The same for both faces.

The settings decide what is loaded; options of the command line stand above them for this one run.
What looks at models and at the machine is imported by the functions that need it: the first screen does not
wait for it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edgemed import languages
from edgemed.chat import Chat, ModelDescription
from edgemed.errors import EdgemedError, UsageError
from edgemed.languages import text as _
from edgemed.settings import Settings, change_settings, read_settings

CONTEXT_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
TEMPERATURES = (0.0, 0.2, 0.3, 0.5, 0.7, 1.0)

if TYPE_CHECKING:
    from edgemed.manifest import ModelShape
    from edgemed.session import Session

Opener = Callable[..., "Session"]


class Options(NamedTuple):
    """What the command line said."""

    model: str | None = None
    adapter: str | None = None
    context_length: int | None = None
    threads: int | None = None


class ModelChoice(NamedTuple):
    """A model that could be used, installed or on a medium."""

    name: str
    size_bytes: int
    need_bytes: int
    fits: bool
    in_use: bool
    notice: str | None
    source: Path | None
    """Where it must be installed from first; None: it is installed."""
    medium: str
    problem: str
    """Why it cannot be used; mostly empty."""


class Choice(NamedTuple):
    """One value of a setting."""

    value: object
    label: str


class Control:
    """The chat with its settings and models. One thread at a time loads or changes a model."""

    def __init__(self, chat: Chat, options: Options, *, open_model: Opener | None = None) -> None:
        self.chat = chat
        self._options = options
        self._open = open_model or _open_session
        self.settings, self.problems = read_settings()
        if problem := languages.use_language(self.settings.language):
            self.problems.append(problem)

    # Models.

    def load(self) -> None:
        """Begin to load the chosen model; wait with `chat.engine.wait_until_ready`.

        Raises:
            EdgemedError: it cannot be used; the model before is let go, for its memory.
        """
        options, settings = self._options, self.settings
        self.chat.let_go()
        session = self._open(
            options.model or settings.model,
            adapter_name=options.adapter or settings.adapter,
            context_length=options.context_length or settings.context_length,
            threads=options.threads,
        )
        manifest = session.model.manifest
        self.chat.use(
            session.engine,
            ModelDescription(session.model.name, manifest.sha256, manifest.notice, session.opening),
        )
        self._manifest_sampling = manifest.sampling
        self._apply_temperature()

    @property
    def load_fraction(self) -> float:
        """How much of the model is loaded, from 0 to 1."""
        try:
            return self.chat.engine.load_fraction
        except EdgemedError:
            return 0.0

    def model_choices(self) -> list[ModelChoice]:
        """Return the installed models and those on media, the one in use first."""
        from edgemed import machine, models

        free = machine.available_memory_bytes()
        in_use = self.chat.model.name if self.chat.model else ""
        found = models.list_models("model")
        choices = []
        for model in found.models:
            manifest = model.manifest
            need = _need_bytes(manifest.shape, manifest.size_bytes, manifest.context_length)
            choices.append(
                ModelChoice(
                    model.name,
                    manifest.size_bytes,
                    need,
                    need <= free or model.name == in_use,
                    model.name == in_use,
                    manifest.notice,
                    None,
                    "",
                    "",
                )
            )
        choices += [
            ModelChoice(damaged.name, 0, 0, False, False, None, None, "", damaged.problem)
            for damaged in found.damaged
        ]
        names = {choice.name for choice in choices}
        choices += [each for each in self._on_media(free) if each.name not in names]
        return sorted(choices, key=lambda choice: (not choice.in_use, bool(choice.problem), not choice.fits))

    def recommended(self, choices: Sequence[ModelChoice]) -> ModelChoice | None:
        """Return the largest model that fits and may be used for patients; else the largest that fits."""
        usable = [choice for choice in choices if choice.fits and not choice.problem]
        return max(usable, key=lambda choice: (choice.notice is None, choice.size_bytes), default=None)

    def install(self, choice: ModelChoice, progress: Callable[[int, int], None]) -> None:
        """Install a model from its medium; every byte is checked.

        Raises:
            EdgemedError: as `models.install_model` says.
        """
        from edgemed import models

        if choice.source is not None:
            models.install_model(choice.source, progress=progress)

    def use_model(self, name: str) -> None:
        """Choose an installed model and begin to load it. Raises as `load` does."""
        from edgemed import models

        if models.find_model(name).name != self.settings.model:
            self.change(model=name, adapter=None)
        self._options = self._options._replace(model=None, adapter=None)
        self.load()

    # Settings.

    def change(self, **changes: object) -> None:
        """Change settings, save them, and let them work at once; a model is not loaded here.

        Raises:
            StorageError: they cannot be saved; they work until edgemed is closed.
        """
        self.settings = msgspec.convert(msgspec.structs.asdict(self.settings) | changes, Settings)
        if "language" in changes:
            languages.use_language(self.settings.language)
        if "temperature" in changes:
            self._apply_temperature()
        change_settings(**changes)

    def needs_loading(self, changed: str) -> bool:
        """Whether a changed setting works only after `load`."""
        return changed in ("model", "adapter", "context_length")

    def choices(self, name: str) -> list[Choice]:
        """Return the values that a setting can take, that in use among them."""
        from edgemed import models

        own = Choice(None, _("the model's own"))
        match name:
            case "model":
                found = [Choice(each.name, each.name) for each in models.list_models("model").models]
            case "adapter":
                found = [Choice(None, _("none"))]
                found += [Choice(each.name, each.name) for each in models.list_models("adapter").models]
            case "context_length":
                found = [own, *(Choice(length, str(length)) for length in CONTEXT_LENGTHS)]
            case "temperature":
                found = [own, *(Choice(value, f"{value:.1f}") for value in TEMPERATURES)]
            case "text_size":
                found = [Choice("normal", _("normal")), Choice("large", _("large"))]
            case "theme":
                found = [
                    Choice(None, _("by the terminal")),
                    Choice("dark", _("dark")),
                    Choice("light", _("light")),
                    Choice("high-contrast", _("high contrast")),
                    Choice("console", _("console, 16 colours")),
                ]
            case "language":
                found = [Choice(code, own_name) for code, own_name in languages.available_languages().items()]
            case _:
                raise UsageError(_("There is no setting {name}.", name=name), hint=", ".join(SETTING_NAMES))
        value = self.value(name)
        if value not in [choice.value for choice in found]:
            found.append(Choice(value, str(value)))
        return found

    def value(self, name: str) -> object:
        """Return the value of a setting; the model's is that in use."""
        if name == "model" and self.settings.model is None and self.chat.model is not None:
            return self.chat.model.name
        return getattr(self.settings, name)

    def label(self, name: str) -> str:
        """Return a setting's value in words."""
        value = self.value(name)
        return next(choice.label for choice in self.choices(name) if choice.value == value)

    # Where an export can go.

    def export_places(self) -> list[tuple[str, Path]]:
        """Return folders that can take an export: plugged-in media first, then the user's own."""
        from edgemed import machine

        places = [(medium.label, medium.path) for medium in machine.mounted_media() if medium.free_bytes]
        return [*places, (_("this computer"), Path.home())]

    def _on_media(self, free_bytes: int) -> list[ModelChoice]:
        from edgemed import machine, media

        choices = []
        for found in media.find_models(machine.mounted_media()):
            examined, need = found.examined, 0
            if examined is not None and examined.kind != "model":
                continue
            if examined is not None:
                need = _need_bytes(examined.shape, examined.size_bytes, examined.context_length)
            choices.append(
                ModelChoice(
                    found.name,
                    examined.size_bytes if examined else 0,
                    need,
                    examined is not None and need <= free_bytes,
                    False,
                    examined.notice if examined else None,
                    found.path,
                    found.medium.label,
                    found.problem,
                )
            )
        return choices

    def _apply_temperature(self) -> None:
        try:
            engine = self.chat.engine
        except EdgemedError:
            return
        sampling, temperature = self._manifest_sampling, self.settings.temperature
        if temperature is not None:
            sampling = msgspec.structs.replace(sampling, temperature=temperature)
        engine.use_sampling(sampling)


def _open_session(name: str | None, **options: Any) -> "Session":
    from edgemed.session import open_session

    return open_session(name, **options)


def _need_bytes(shape: "ModelShape", size_bytes: int, context_length: int) -> int:
    from edgemed.engine.memory import memory_need
    from edgemed.session import DEFAULT_CONTEXT_LENGTH

    return memory_need(shape, size_bytes, min(context_length, DEFAULT_CONTEXT_LENGTH)).total_bytes


SETTING_NAMES = tuple(name for name in Settings.__annotations__ if name != "references")
"""What people change in the chat; which libraries are in use is the work of kits and updates."""


def describe_model(choice: ModelChoice) -> str:
    """Return one line about a model."""
    if choice.problem:
        return _("{name}: DAMAGED. {problem}", name=choice.name, problem=choice.problem)
    size = (
        f"{choice.size_bytes / 1e9:.1f} GB"
        if choice.size_bytes >= 1e9
        else f"{choice.size_bytes / 1e6:.0f} MB"
    )
    parts = [size, _("fits") if choice.fits else _("needs more memory than is free")]
    if choice.source is not None:
        parts.append(_("on {medium}", medium=choice.medium))
    if choice.notice:
        parts.append(choice.notice)
    mark = " " + _("(in use)") if choice.in_use else ""
    return f"{choice.name}{mark}: {', '.join(parts)}"


def size_in_words(size_bytes: int) -> str:
    """Return a file size as people say it."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
