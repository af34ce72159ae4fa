"""Where a file's numbers come from, written into its metadata and read from it again.

Quantizing keeps these keys, so each file says by itself what it was made of. Called by `run`, `pack` and
the command line's `export`.
"""

from collections.abc import Mapping, Sequence

from edgemed.gguf_header import GGUFHeader
from edgemed.manifest import MergedAdapter
from edgemed_convert.adapter import Adapter
from edgemed_convert.checkpoint import files_fingerprint
from edgemed_convert.licence import one_line

LICENSE_KEY = "general.license"
BASE_NAME_KEY = "general.base_model.0.name"
# The keys of one adapter stand at the same place of each list.
_NAMES, _HASHES, _WEIGHTS = "edgemed.adapter.names", "edgemed.adapter.sha256", "edgemed.adapter.weights"
_GENERIC_NAMES = ("adapter", "final", "lora", "output", "best", "last")


def provenance_metadata(
    *, name: str, base_name: str, licence: str | None, adapters: Sequence[Adapter]
) -> dict[str, str | list[str]]:
    """Return the keys of a file that is exported from a base model with these adapters merged."""
    fields: dict[str, str | list[str]] = {
        "general.name": name,
        BASE_NAME_KEY: base_name,
        LICENSE_KEY: licence or "",
        _NAMES: [adapter_name(adapter) for adapter in adapters],
        _HASHES: [files_fingerprint(adapter.files()) for adapter in adapters],
        _WEIGHTS: [f"{adapter.weight:g}" for adapter in adapters],
    }
    return {key: value for key, value in fields.items() if value}


def merged_adapters(header: GGUFHeader) -> list[MergedAdapter]:
    """Return the adapters that a file says were merged into it; what does not fit together is left out."""
    names, hashes, weights = (_texts(header.metadata, key) for key in (_NAMES, _HASHES, _WEIGHTS))
    found = []
    for name, sha256, weight in zip(names, hashes, weights, strict=False):
        is_hash = len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        try:
            number = float(weight)
        except ValueError:
            continue
        found.append(MergedAdapter(name=one_line(name), sha256=sha256 if is_hash else None, weight=number))
    return found


def adapter_name(adapter: Adapter) -> str:
    """Return what an adapter's folder is called; its parent's name where its own says nothing."""
    folder = adapter.folder.resolve()
    is_generic = folder.name.lower() in _GENERIC_NAMES or folder.name.lower().startswith("checkpoint-")
    return one_line(folder.parent.name if is_generic and folder.parent.name else folder.name)


def _texts(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    return [str(text) for text in value] if isinstance(value, list) else []
