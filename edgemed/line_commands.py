"""The commands of line mode for models and settings: what the full screen has screens for."""

import difflib

from edgemed.control import SETTING_NAMES, Control, describe_model
from edgemed.errors import ModelNotFound, UsageError
from edgemed.languages import text as _
from edgemed.line_mode import MoreCommands, Say


def line_commands(control: Control) -> MoreCommands:
    """Return the commands, working on one chat."""
    commands = _LineCommands(control)
    return {
        "/models": (commands.list_models, _("lists the models on this computer and on sticks")),
        "/model": (commands.use_model, _("uses another model: /model NAME")),
        "/settings": (commands.list_settings, _("lists the settings")),
        "/set": (commands.change, _("changes a setting: /set NAME VALUE")),
    }


class _LineCommands:
    def __init__(self, control: Control) -> None:
        self._control = control

    def list_models(self, say: Say, _argument: str) -> None:
        for choice in self._control.model_choices():
            say(describe_model(choice))
        say(_("To change: /model NAME"))

    def use_model(self, say: Say, argument: str) -> None:
        choices = self._control.model_choices()
        chosen = next((choice for choice in choices if choice.name == argument), None)
        if chosen is None:
            near = difflib.get_close_matches(argument, [choice.name for choice in choices], n=1)
            raise ModelNotFound(
                _("There is no model {name}.", name=argument or "?"),
                hint=_("Did you mean {name}?", name=near[0]) if near else _("/models lists them."),
            )
        if chosen.source is not None:
            say(_("Copying and checking {name}. This can take minutes.", name=chosen.name))
            self._control.install(chosen, lambda _done, _all: None)
        self._control.use_model(chosen.name)
        self._wait(say)

    def list_settings(self, say: Say, _argument: str) -> None:
        for name in SETTING_NAMES:
            labels = ", ".join(choice.label for choice in self._control.choices(name))
            say(f"{name}: {self._control.label(name)}  ({labels})")
        say(_("To change: /set NAME VALUE"))

    def change(self, say: Say, argument: str) -> None:
        name, _space, wanted = argument.partition(" ")
        choices = self._control.choices(name)
        wanted = wanted.strip().lower()
        chosen = next((c for c in choices if wanted in (c.label.lower(), str(c.value).lower())), None)
        if chosen is None:
            raise UsageError(
                _("{name} cannot be {value}.", name=name, value=wanted or "?"),
                hint=", ".join(choice.label for choice in choices),
            )
        self._control.change(**{name: chosen.value})
        say(f"{name}: {chosen.label}")
        if self._control.needs_loading(name):
            self._control.load()
            self._wait(say)

    def _wait(self, say: Say) -> None:
        self._control.chat.engine.wait_until_ready()
        model = self._control.chat.model
        say(_("Model in use: {name}", name=model.name if model else _("none")))
