"""What is in use before and after an update: a model, an adapter, libraries and rule sets.

All of it is in settings.toml, which is replaced in one step; so nothing is ever in use half old and half new.
"""

from collections.abc import Callable, Collection

from edgemed import models, reference_packs, reference_versions
from edgemed.errors import ModelNotFound, StorageError, UsageError
from edgemed.languages import text as _
from edgemed.settings import Settings, change_settings, read_settings
from edgemed.update_plan import Plan
from edgemed.update_record import InUse, Record, locked, read_record

Notice = Callable[[str], None]
"""Given a sentence for the person at the screen."""


def in_use() -> InUse:
    """Return what the settings name, and the versions of libraries and rule sets that the app looks into.

    Raises:
        StorageError: the settings cannot be read, so nobody knows.
    """
    settings, problems = read_settings()
    if problems and settings == Settings():
        # The whole file may be unreadable: then nobody knows what is in use, nor what to go back to.
        raise StorageError(problems[0], hint=_("Correct or delete the file, then try again."))
    return InUse(settings.model, settings.adapter, reference_versions.names_in_use(settings.references))


def next_in_use(now: InUse, plan: Plan, record: Record, say: Notice) -> InUse:
    """Return the newest versions of what is in use, and all libraries and rule sets that come.

    An adapter that belongs to another model is not used any more. What is installed but cannot be read stops
    the update here: it may be readable a moment later.
    """
    model_name = _newer(now.model or _found_name(), "model", plan, record) or now.model
    coming = [pack.installed_name for pack in plan.packs if pack.is_reference]
    references = reference_versions.with_newer(now.references or [], coming)
    return InUse(model_name, _next_adapter(now, model_name, plan, record, say), references)


def switch(to: InUse) -> None:
    """Use this from now on, all of it in one step.

    Raises:
        StorageError: the disk does not take it; what was in use still is.
    """
    changes: dict[str, object] = {"model": to.model, "adapter": to.adapter}
    if to.references is not None and reference_versions.installed_names():
        changes["references"] = to.references
    change_settings(**changes)


def check_usable(wanted: InUse) -> None:
    """See whether all of it is still here, as it was installed.

    Raises:
        ModelError: something is gone or damaged.
        StorageError: the disk does not say.
    """
    if wanted.model is not None:
        models.check_unchanged(models.find_model(wanted.model))
    if wanted.adapter is not None:
        models.check_unchanged(models.find_model(wanted.adapter, "adapter"))
    for name in wanted.references or ():
        reference_packs.check_or_verify(reference_packs.find_pack(name))


def use_kit_packs(names: Collection[str]) -> list[str]:
    """Use a kit's libraries and rule sets from now on, where no newer ones are; return what was deleted.

    Args:
        names: NAME-vVERSION, installed.

    Raises:
        StorageError: the settings cannot be read or changed, or an update is working.
    """
    with locked():
        now, previous = in_use(), read_record().previous
        references = reference_versions.with_newer(now.references or [], names)
        if references != now.references:
            change_settings(references=references)
        keep = {*references, *((previous and previous.references) or ())}
        return reference_packs.remove_old_versions(keep)[0]


def _next_adapter(now: InUse, model_name: str | None, plan: Plan, record: Record, say: Notice) -> str | None:
    base_sha256 = _sha256(model_name)
    for adapter_name in (_newer(now.adapter, "adapter", plan, record), now.adapter):
        if adapter_name is not None and _fits(adapter_name, base_sha256):
            return adapter_name
    if now.adapter is not None:
        say(
            _(
                "The adapter {name} does not belong to the model that is used from now on, so none is used.",
                name=now.adapter,
            )
        )
    return None


def _newer(name: str | None, kind: str, plan: Plan, record: Record) -> str | None:
    """Return the installed name of the new version of what is in use under this name."""
    for planned in plan.packs:
        pack_name = planned.entry.name
        older = {pack_name, *(each.installed_name for each in record.packs if each.name == pack_name)}
        if planned.entry.kind == kind and name in older:
            return planned.installed_name
    return None


def _found_name() -> str | None:
    try:
        return models.find_model(None).name
    except ModelNotFound:
        return None


def _sha256(model_name: str | None) -> str | None:
    try:
        return models.find_model(model_name).manifest.sha256
    except (ModelNotFound, UsageError):
        return None


def _fits(adapter_name: str, base_sha256: str | None) -> bool:
    try:
        wanted = models.find_model(adapter_name, "adapter").manifest.base_sha256
    except (ModelNotFound, UsageError):
        return False
    return wanted is None or wanted == base_sha256
