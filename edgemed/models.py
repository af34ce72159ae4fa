"""Installed models and adapters: install, find, verify, choose, remove.

An installed model is a folder `models/NAME` with the GGUF file or its shards, `manifest.json`, and
`installed.json` (size and modification time of each file, for the cheap check at each start). A folder gets
its name by one rename when every byte is checked and on the disk, so there are no half-installed models.
Called by the command line, the doctor, and everything that starts an engine.
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from edgemed import pack_folders
from edgemed.errors import ModelCorrupt, ModelNotFound, ModelUnsupported, StorageError, UsageError
from edgemed.gguf_header import (
    COPY_AGAIN,
    GGUFHeader,
    context_length_of,
    read_shards,
    shape_of,
    shard_name,
    tensor_types,
)
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.manifest import (
    MANIFEST_NAME,
    MODEL_CARD_NAME,
    REFERENCE_LOGITS_NAME,
    ModelFile,
    ModelManifest,
    ModelShape,
    encode_manifest,
    read_manifest,
)
from edgemed.operating_system import write_atomically, write_durably
from edgemed.pack_folders import (
    Counter,
    Progress,
    check_plain,
    check_present,
    check_space,
    copy_file,
    is_as_installed,
    locked,
    move_file,
    naming,
    new_folder,
    no_progress,
    remove_folder,
    size_of,
    write_states,
)
from edgemed.paths import data_folder, embedded_models_folder, models_folder
from edgemed.settings import change_settings, read_settings

Kind = Literal["model", "adapter"]

_MAX_REFERENCE_BYTES = 64 * 2**20
_MAX_TEXT_FILE_BYTES = 2**20
_KEPT_HASHES = 100
_UNHASHED = ModelFile(name="unhashed", size_bytes=0, sha256="0" * 64)
_INSTALL_AGAIN = later("Remove it with `edgemed models remove {name}` and install it again.")


@dataclass(frozen=True)
class InstalledModel:
    """A model or adapter that can be used: installed, inside edgemed, or named by its path."""

    manifest: ModelManifest
    folder: Path
    embedded: bool

    @property
    def name(self) -> str:
        """Return the name by which people choose it."""
        return self.manifest.name

    @property
    def path(self) -> Path:
        """Return the file that llama.cpp opens: the only one, or the first shard."""
        return self.folder / self.manifest.files[0].name


@dataclass(frozen=True)
class Origin:
    """Where a GGUF file without a manifest came from, for the manifest that is written for it."""

    source: str
    hashes: list[str]
    """The SHA-256 that each file must have, in order."""
    license: str | None = None
    """None: what the file says of itself."""
    base_model: str | None = None
    quantization_type: str | None = None


@dataclass(frozen=True)
class DamagedModel:
    """A folder among the models that holds no usable one, and why."""

    name: str
    problem: str


@dataclass(frozen=True)
class ModelList:
    """What is installed; one broken folder never hides the others."""

    models: list[InstalledModel] = field(default_factory=list)
    damaged: list[DamagedModel] = field(default_factory=list)


def list_models(kind: Kind | None = None) -> ModelList:
    """List the embedded and the installed models, reading manifests only; never fails."""
    found = ModelList()
    for folder in _folders(embedded_models_folder(), found):
        if (folder / MANIFEST_NAME).is_file():
            _list_folder(folder, found, embedded=True)
    for folder in _folders(models_folder(), found):
        _list_folder(folder, found, embedded=False)
    if kind is None:
        return found
    return ModelList([model for model in found.models if model.manifest.kind == kind], found.damaged)


def find_model(name_or_path: str | None, kind: Kind | None = "model") -> InstalledModel:
    """Find a model by its name or path; None is the chosen one, and without a choice the embedded one.

    With `kind` None an adapter is as welcome as a model.

    A file or folder outside the data folder is hashed, once for each of its states.

    Raises:
        ModelNotFound: nothing has this name.
        ModelCorrupt: it is there, but damaged.
        UsageError: there is no such file, or it is of the other kind.
    """
    found = list_models()
    if name_or_path is None:
        return _chosen_or_embedded(found, kind or "model")
    named = _named(found, name_or_path)
    if named is None:
        path = Path(name_or_path)
        with naming(path):
            exists = path.exists()
        if not exists and path.name == name_or_path and path.suffix != ".gguf":
            raise _not_found(found, name_or_path, kind or "model")
        named = _model_at(path)
    if kind is not None and named.manifest.kind != kind:
        raise UsageError(
            _(
                "{name_or_path} is {with_article}, not {with_article2}.",
                name_or_path=name_or_path,
                with_article=_with_article(named.manifest.kind),
                with_article2=_with_article(kind),
            ),
            hint=_("`edgemed models list` shows which is which."),
        )
    return named


def install_model(
    source: Path,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    origin: Origin | None = None,
    move: bool = False,
) -> InstalledModel:
    """Install a pack folder, a GGUF file, or a split GGUF of which any shard is named.

    Returns the model already there when the same bytes are installed under this name.

    Args:
        origin: of a GGUF file: what its manifest shall say besides. A pack says it itself.
        move: take the model's files out of the source, which lies on the same disk, instead of copying them.

    Raises:
        UsageError: the source is missing, or another model has this name.
        ModelError: the model is damaged or cannot be used.
        StorageError: no space, or a disk that fails.
    """
    if name is not None:
        check_name(name)
    plan = _plan(source, name)
    folder = models_folder()
    with locked(folder):
        same = installed_already(plan.name, lambda: _hashes(plan))
        if same is not None:
            return same
        if not move:
            check_space(folder, plan.name, plan.size_bytes)
        target = folder / plan.name
        with new_folder(target) as staged:
            _fill(plan, origin, staged, progress or no_progress, move=move)
    return InstalledModel(read_manifest(target / MANIFEST_NAME), target, embedded=False)


def check_name(name: str) -> None:
    """Refuse a name that some system could not give to a folder.

    Raises:
        UsageError: names the nearest one that can be.
    """
    if name != clean_name(name):
        raise UsageError(
            _("{name!r} cannot be a model's name.", name=name),
            hint=_("Take letters, digits, dots, dashes: {clean_name}", clean_name=clean_name(name)),
        )


def clean_name(text: str) -> str:
    """Return the nearest text that may be the name of a model, a folder and a file on every system."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:80].rstrip("._-")
    return name or "model"


def plain_line(text: str) -> str:
    """Return text from outside as one short line that a terminal can show."""
    return "".join(letter for letter in text if letter.isprintable())[:200]


def installed_already(name: str, hashes: Callable[[], list[str]]) -> InstalledModel | None:
    """Return the model of this name if it is made of the files with these SHA-256.

    Args:
        hashes: called only when there is something to compare with.

    Raises:
        UsageError: another model has the name.
    """
    found = list_models()
    installed = _named(found, name, damaged_is_error=False)
    if installed is not None:
        if hashes() == [file.sha256 for file in installed.manifest.files]:
            return installed
        raise UsageError(
            f"Another model named {name} is "
            + ("a part of edgemed." if installed.embedded else "installed already."),
            hint="Give this one another name with --name"
            + ("." if installed.embedded else f", or first `edgemed models remove {name}`."),
        )
    taken = {path.name.lower() for path in _folders(models_folder(), found)}
    if name.lower() in taken or any(name == damaged.name for damaged in found.damaged):
        raise UsageError(
            _("There is a damaged model or one of nearly the same name as {name}.", name=name),
            hint=_(
                "Give this one another name with --name, or first `edgemed models remove {name}`.",
                name=name,
            ),
        )
    return None


@dataclass(frozen=True)
class Examined:
    """What can be known of a model before it is installed, without reading it whole."""

    name: str
    kind: Kind
    size_bytes: int
    context_length: int
    shape: ModelShape
    notice: str | None


def examine_model(source: Path) -> Examined:
    """Look at a pack or GGUF file as `install_model` does, but for its hashes.

    Raises:
        EdgemedError: as `install_model` says.
    """
    plan = _plan(source, None)
    manifest = plan.manifest or _manifest_of(plan.headers, [_UNHASHED], plan.name)
    return Examined(
        plan.name, manifest.kind, plan.size_bytes, manifest.context_length, manifest.shape, manifest.notice
    )


def verify_model(model: InstalledModel, progress: Progress | None = None) -> None:
    """Read every byte again and compare; a sound model counts as unchanged from now on.

    Raises:
        ModelCorrupt: names the first file that is not as it should be.
        StorageError: the disk does not give a file.
    """
    done = Counter(progress or no_progress, model.manifest.size_bytes)
    for file in model.manifest.files:
        path = model.folder / file.name
        check_present(path, file, _remedy(model))
        if pack_folders.hash_file(path, done) != file.sha256:
            raise ModelCorrupt(
                _(
                    "{name} of {name2} is damaged: its SHA-256 is not the one in the manifest.",
                    name=path.name,
                    name2=model.name,
                ),
                hint=_remedy(model),
            )
    if _is_installed(model) and not is_as_installed(model.folder, model.manifest.files):
        write_states(model.folder, model.manifest.files, replace=True)


def check_unchanged(model: InstalledModel) -> None:
    """Compare size and modification time with those at installation: cheap enough for each start.

    Raises:
        ModelCorrupt: a file is missing or changed.
    """
    for file in model.manifest.files:
        check_present(model.folder / file.name, file, _remedy(model))
    if _is_installed(model) and not is_as_installed(model.folder, model.manifest.files):
        raise ModelCorrupt(
            _("The files of {name} changed since it was installed.", name=model.name),
            hint=_("Check every byte with `edgemed models verify {name}`.", name=model.name),
        )


def remove_model(name: str) -> None:
    """Delete an installed model, also a damaged one.

    Raises:
        ModelNotFound: nothing has this name.
        UsageError: the model is a part of edgemed.
        StorageError: the disk, or another program that has the model open, refuses.
    """
    folder = models_folder()
    found = list_models()
    if name not in {path.name for path in _folders(folder, found)}:
        if _named(found, name, damaged_is_error=False) is not None:
            raise UsageError(_("{name} is a part of edgemed and cannot be removed.", name=name))
        raise _not_found(found, name, "model")
    with locked(folder):
        remove_folder(folder / name, "Close edgemed where the model is in use, then try again.")
    if read_settings()[0].model == name:
        change_settings(model=None)


def use_model(name: str) -> None:
    """Choose the model that is used when none is named.

    Raises:
        ModelNotFound: nothing has this name.
        UsageError: it is an adapter.
    """
    found = list_models()
    model = _named(found, name)
    if model is None:
        raise _not_found(found, name, "model")
    if model.manifest.kind != "model":
        raise UsageError(
            _("{name} is an adapter; choose a model.", name=name), hint=_("Adapters are named at each start.")
        )
    change_settings(model=name)


# Finding.


def _folders(parent: Path, found: ModelList) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        found.damaged.append(
            DamagedModel(str(parent), _("The folder cannot be read: {reason}.", reason=error.strerror))
        )
        return []


def _list_folder(folder: Path, found: ModelList, *, embedded: bool) -> None:
    try:
        manifest = read_manifest(folder / MANIFEST_NAME)
    except ModelCorrupt as error:
        found.damaged.append(DamagedModel(folder.name, error.message))
        return
    if manifest.name != folder.name:
        problem = f"Its manifest is that of {manifest.name}."
    elif any(model.name == manifest.name for model in found.models):
        problem = "A model inside edgemed has the same name; that one is used."
    else:
        found.models.append(InstalledModel(manifest, folder, embedded))
        return
    found.damaged.append(DamagedModel(folder.name, problem))


def _named(found: ModelList, name: str, *, damaged_is_error: bool = True) -> InstalledModel | None:
    for model in found.models:
        if model.name == name:
            return model
    for damaged in found.damaged:
        if damaged.name == name and damaged_is_error:
            raise ModelCorrupt(
                _("The model {name} is damaged. {problem}", name=name, problem=damaged.problem),
                hint=_(_INSTALL_AGAIN, name=name),
            )
    return None


def _chosen_or_embedded(found: ModelList, kind: Kind) -> InstalledModel:
    if kind == "model":
        chosen = _named(found, read_settings()[0].model or "")
        if chosen is not None and chosen.manifest.kind == kind:
            return chosen
    for model in found.models:
        if model.embedded and model.manifest.kind == kind:
            return model
    raise ModelNotFound(
        _("No {kind} is installed.", kind=kind), hint=_("Install one with `edgemed models install FILE`.")
    )


def _not_found(found: ModelList, name: str, kind: Kind) -> ModelNotFound:
    names = [model.name for model in found.models if model.manifest.kind == kind]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"Did you mean {nearest[0]}? " if nearest else ""
    return ModelNotFound(
        _("No {kind} is named {name}.", kind=kind, name=name),
        hint=_("{meant}Installed: {names}.", meant=meant, names=", ".join(names) or f"no {kind}"),
    )


def _model_at(path: Path) -> InstalledModel:
    """A model used where it lies, outside the data folder."""
    plan = _plan(path.absolute(), None)
    cache = _read_hash_cache()
    files = [
        ModelFile(name=source.name, size_bytes=size_of(source), sha256=_cached_hash(source, cache))
        for source in plan.sources
    ]
    if plan.manifest is not None:
        _check_hashes(plan.manifest, [file.sha256 for file in files])
        return InstalledModel(plan.manifest, plan.folder, embedded=False)
    return InstalledModel(_manifest_of(plan.headers, files, plan.name), plan.folder, embedded=False)


# What lies at the source.


@dataclass(frozen=True)
class _Plan:
    """What will be installed: checked but for its hashes."""

    name: str
    folder: Path
    sources: list[Path]
    target_names: list[str]
    headers: list[GGUFHeader]
    manifest: ModelManifest | None
    """None: a GGUF without one; it is written when the hashes are known."""

    @property
    def size_bytes(self) -> int:
        return sum(header.file_size for header in self.headers)


def _plan(source: Path, name: str | None) -> _Plan:
    with naming(source):
        exists = source.exists()
    if not exists:
        raise UsageError(
            _("There is no file or folder {source}.", source=source),
            hint=_("Check the spelling and the stick."),
        )
    return _plan_pack(source, name) if source.is_dir() else _plan_file(source, name)


def _plan_pack(folder: Path, name: str | None) -> _Plan:
    if not (folder / MANIFEST_NAME).exists():
        raise UsageError(
            _("The folder {folder} has no {MANIFEST_NAME}.", folder=folder, MANIFEST_NAME=MANIFEST_NAME),
            hint=_("Name the .gguf file in it, or a pack."),
        )
    check_plain(folder / MANIFEST_NAME, _MAX_TEXT_FILE_BYTES, _(COPY_AGAIN))
    manifest = read_manifest(folder / MANIFEST_NAME)
    names = [file.name for file in manifest.files]
    # Case counts as equal: on Windows and on sticks it is.
    if len({file_name.lower() for file_name in names}) < len(names) or not all(
        file_name.endswith(".gguf") for file_name in names
    ):
        raise ModelCorrupt(
            _("The manifest in {folder} lists files that make no model.", folder=folder), hint=_(COPY_AGAIN)
        )
    if manifest.name != clean_name(manifest.name):
        raise ModelCorrupt(
            _("The manifest in {folder} gives the model an unusable name.", folder=folder), hint=_(COPY_AGAIN)
        )
    for file in manifest.files:
        check_plain(folder / file.name, file.size_bytes, _(COPY_AGAIN))
        check_present(folder / file.name, file, _(COPY_AGAIN))
    headers = read_shards(folder / names[0])
    _check_usable(headers)
    _check_manifest(manifest, headers)
    return _Plan(
        name=name or manifest.name,
        folder=folder,
        sources=[folder / file_name for file_name in names],
        target_names=names,
        headers=headers,
        manifest=manifest,
    )


def _plan_file(path: Path, name: str | None) -> _Plan:
    headers = read_shards(path)
    _check_usable(headers)
    sources = [header.path for header in headers]
    stem = sources[0].stem.removesuffix(f"-00001-of-{len(sources):05}") if len(sources) > 1 else path.stem
    prefix = clean_name(stem)
    count = len(sources)
    return _Plan(
        name=name or clean_name(headers[0].text("general.name") or stem),
        folder=path.parent,
        sources=sources,
        target_names=[f"{prefix}.gguf"]
        if count == 1
        else [shard_name(prefix, number, count) for number in range(1, count + 1)],
        headers=headers,
        manifest=None,
    )


def _check_usable(headers: Sequence[GGUFHeader]) -> None:
    """Refuse GGUF files that are no models; whether llama.cpp knows the architecture, the engine will say."""
    first = headers[0]
    content = first.text("general.type") or "model"
    if content not in ("model", "adapter"):
        raise ModelUnsupported(
            _(
                "{name} holds no language model but {plain!r}.",
                name=first.path.name,
                plain=plain_line(content),
            ),
            hint=_("Ask for the model's own .gguf file."),
        )
    if not any(header.tensors for header in headers):
        raise ModelUnsupported(
            _("{name} has no weights, only a vocabulary.", name=first.path.name),
            hint=_("Ask for the whole model file."),
        )
    no_vocabulary = first.text("tokenizer.ggml.model") in ("no_vocab", "none")
    if content == "model" and (no_vocabulary or not first.length("tokenizer.ggml.tokens")):
        raise ModelUnsupported(
            _("{name} has no vocabulary, so it can neither read nor write text.", name=first.path.name),
            hint=_("Ask for a file that was converted with its tokenizer."),
        )
    if content == "model" and not context_length_of(first):
        raise ModelUnsupported(
            _("{name} does not say how long a text the model can read.", name=first.path.name),
            hint=_("Ask for a file with its context length in the metadata."),
        )


def _check_manifest(manifest: ModelManifest, headers: Sequence[GGUFHeader]) -> None:
    described = _manifest_of(headers, manifest.files, manifest.name)
    wrong = [
        key
        for key in ("kind", "shape", "tensor_types", "context_length")
        if getattr(manifest, key) != getattr(described, key)
    ]
    # An adapter's GGUF has no context length to compare with.
    if manifest.kind == "adapter" and wrong == ["context_length"]:
        wrong = []
    if [header.path.name for header in headers] != [file.name for file in manifest.files]:
        wrong.append("files")
    if wrong:
        raise ModelCorrupt(
            _(
                "The manifest of {name} does not fit {name2}: {names}.",
                name=manifest.name,
                name2=headers[0].path.name,
                names=", ".join(wrong),
            ),
            hint=_(COPY_AGAIN),
        )


def _manifest_of(headers: Sequence[GGUFHeader], files: list[ModelFile], name: str) -> ModelManifest:
    first = headers[0]
    is_adapter = first.text("general.type") == "adapter"
    license_name = first.text("general.license")
    base_model = first.text("general.base_model.0.name")
    # Of an adapter: the file it was made for, as edgemed-convert recorded it.
    base_sha256 = first.text("edgemed.base_sha256") if is_adapter else None
    return ModelManifest(
        kind="adapter" if is_adapter else "model",
        name=name,
        files=files,
        shape=shape_of(headers),
        tensor_types=tensor_types(*headers),
        # An adapter works at its base model's; the schema wants a number.
        context_length=context_length_of(first) or 1,
        license=plain_line(license_name) if license_name else None,
        base_model=plain_line(base_model) if base_model else None,
        quantization_type=None if is_adapter else first.quantization_type,
        base_sha256=base_sha256 if base_sha256 and re.fullmatch("[0-9a-f]{64}", base_sha256) else None,
    )


# Installing.


def _hashes(plan: _Plan) -> list[str]:
    if plan.manifest is not None:
        return [file.sha256 for file in plan.manifest.files]
    return [pack_folders.hash_file(source, Counter(no_progress, plan.size_bytes)) for source in plan.sources]


def _fill(plan: _Plan, origin: Origin | None, staged: Path, progress: Progress, *, move: bool) -> None:
    done = Counter(progress, plan.size_bytes)
    files = []
    for source, name, header in zip(plan.sources, plan.target_names, plan.headers, strict=True):
        take = move_file if move else copy_file
        sha256 = take(source, staged / name, header.file_size, done)
        files.append(ModelFile(name=name, size_bytes=header.file_size, sha256=sha256))
    # Of the copies: the source may have changed since it was looked at.
    headers = read_shards(staged / plan.target_names[0])
    if plan.manifest is None:
        manifest = _with_origin(_manifest_of(headers, files, plan.name), origin)
    else:
        _check_hashes(plan.manifest, [file.sha256 for file in files])
        manifest = msgspec.structs.replace(plan.manifest, name=plan.name)
        card = plan.folder / MODEL_CARD_NAME
        if card.exists():
            check_plain(card, _MAX_TEXT_FILE_BYTES, _(COPY_AGAIN))
            copy_file(card, staged / MODEL_CARD_NAME, size_of(card), Counter(no_progress, 0))
        if manifest.reference_logits_sha256 is not None:
            _copy_reference(plan.folder / REFERENCE_LOGITS_NAME, staged, manifest.reference_logits_sha256)
    with naming(staged):
        write_durably(staged / MANIFEST_NAME, encode_manifest(manifest))
    write_states(staged, manifest.files)
    read_manifest(staged / MANIFEST_NAME)


def _copy_reference(source: Path, staged: Path, sha256: str) -> None:
    if not source.exists():
        raise ModelCorrupt(_("{path} is missing.", path=source), hint=_(COPY_AGAIN))
    check_plain(source, _MAX_REFERENCE_BYTES, _(COPY_AGAIN))
    if copy_file(source, staged / REFERENCE_LOGITS_NAME, size_of(source), Counter(no_progress, 0)) != sha256:
        raise ModelCorrupt(
            _("{name} is damaged: its SHA-256 is not the one in the manifest.", name=source.name),
            hint=_(COPY_AGAIN),
        )


def _check_hashes(manifest: ModelManifest, hashes: Sequence[str]) -> None:
    for file, sha256 in zip(manifest.files, hashes, strict=True):
        if file.sha256 != sha256:
            raise ModelCorrupt(
                _("{name} is damaged: its SHA-256 is not the one in the manifest.", name=file.name),
                hint=_(COPY_AGAIN),
            )


def _with_origin(manifest: ModelManifest, origin: Origin | None) -> ModelManifest:
    if origin is None:
        return manifest
    for file, sha256 in zip(manifest.files, origin.hashes, strict=True):
        if file.sha256 != sha256:
            raise ModelCorrupt(
                _("{name} is damaged: its SHA-256 is not the published one.", name=file.name),
                hint=_("Run the same command again; if it happens again, check the disk."),
            )
    return msgspec.structs.replace(
        manifest,
        source=plain_line(origin.source),
        license=plain_line(origin.license or "") or manifest.license,
        base_model=plain_line(origin.base_model or "") or manifest.base_model,
        quantization_type=origin.quantization_type or manifest.quantization_type,
    )


# The cheap check.


def _is_installed(model: InstalledModel) -> bool:
    """Not embedded and not used where it lies: only those have an `installed.json`."""
    return not model.embedded and model.folder.parent == models_folder()


def _remedy(model: InstalledModel) -> str:
    if model.embedded:
        return "Install edgemed again."
    return _(_INSTALL_AGAIN, name=model.name) if _is_installed(model) else _(COPY_AGAIN)


# Hashes of files outside the data folder.


def _read_hash_cache() -> dict[str, list[object]]:
    """A lost or broken cache only costs hashing again."""
    try:
        cache = json.loads((data_folder() / "file_hashes.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(cache, dict):
        return {}
    return {path: entry for path, entry in cache.items() if isinstance(entry, list)}


def _cached_hash(path: Path, cache: dict[str, list[object]]) -> str:
    with naming(path):
        status = path.stat()
    state: list[object] = [status.st_size, status.st_mtime_ns]
    entry = cache.get(str(path), [])
    if len(entry) == 3 and entry[:2] == state and re.fullmatch("[0-9a-f]{64}", str(entry[2])):
        return str(entry[2])
    sha256 = pack_folders.hash_file(path, Counter(no_progress, status.st_size))
    cache.pop(str(path), None)
    cache[str(path)] = [*state, sha256]
    newest = dict(list(cache.items())[-_KEPT_HASHES:])
    try:
        data_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(data_folder() / "file_hashes.json", json.dumps(newest).encode())
    except (OSError, StorageError):
        pass  # A read-only data folder: hashed again next time.
    return sha256


# Files.


def hash_file(path: Path, size_bytes: int, progress: Progress | None = None) -> str:
    """Return a file's SHA-256.

    Raises:
        StorageError: the disk does not give it.
    """
    return pack_folders.hash_file(path, Counter(progress or no_progress, size_bytes))


def _with_article(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a model"
