"""The kit's list of parts: CycloneDX 1.6, with what is known of their faults; the same for the same kit."""

import hashlib
import json
import tomllib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kit_files import Entry
from kit_lock import FOLDER
from kit_wheel import Wheel
from kit_wheelhouse import ENGINE, Wheelhouse

from edgemed.checksums import sha256_of_file
from edgemed.errors import MissingExtra, UsageError
from edgemed.manifest import ModelManifest
from edgemed.reference_manifest import ReferenceManifest, encode_reference_manifest

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.vulnerability import Vulnerability

SBOM_NAME = "sbom.cdx.json"
VEX_FILE = FOLDER / "vex.toml"


def sbom_entry(
    kit_name: str,
    version: str,
    created_seconds: int,
    wheelhouse: Wheelhouse,
    packs: Iterable[ModelManifest | ReferenceManifest],
    carried_python: str | None,
) -> Entry:
    """Return the file.

    Raises:
        MissingExtra: cyclonedx-python-lib is not installed.
        UsageError: vex.toml names a package that is not in the kit's lock.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise MissingExtra("cyclonedx-bom is not installed.", hint="pip install 'edgemed[hq]'") from error

    kit = Component(name=kit_name, version=version, type=ComponentType.APPLICATION, bom_ref=kit_name)
    parts = [_wheel(wheel) for wheel in wheelhouse.all] + [_pack(pack) for pack in packs]
    if carried_python:
        parts.append(
            Component(name="python", version=carried_python, type=ComponentType.PLATFORM, bom_ref="python")
        )
    bom = Bom(
        components=parts,
        metadata=BomMetaData(component=kit, timestamp=datetime.fromtimestamp(created_seconds, UTC)),
        vulnerabilities=_faults(parts),
    )
    bom.register_dependency(kit, parts)
    found = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library draws a random number; this one comes from the content.
    found.pop("serialNumber", None)
    digest = hashlib.sha256(_encoded(found)).digest()
    found["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"
    return Entry(SBOM_NAME, _encoded(found))


def _encoded(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _wheel(wheel: Wheel) -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=wheel.path.name,
        purl=PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.path.name}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256_of_file(wheel.path))],
        licenses=[LicenseFactory().make_from_string(wheel.licence)] if wheel.licence else [],
        components=[_llama_cpp()] if wheel.name == ENGINE else [],
    )


def _llama_cpp() -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name="llama.cpp",
        type=ComponentType.LIBRARY,
        bom_ref="llama.cpp",
        description="As it lies in the source of llama-cpp-python of the same version.",
        licenses=[LicenseFactory().make_from_string("MIT")],
    )


def _pack(pack: ModelManifest | ReferenceManifest) -> "Component":
    return _model(pack) if isinstance(pack, ModelManifest) else _reference(pack)


def _reference(reference: ReferenceManifest) -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    sha256 = hashlib.sha256(encode_reference_manifest(reference)).hexdigest()
    return Component(
        name=reference.name,
        version=str(reference.version),
        type=ComponentType.DATA,
        bom_ref=f"{reference.kind}:{reference.name}",
        description=f"{reference.title}, {reference.edition}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        licenses=[LicenseFactory().make_from_string(reference.license)],
    )


def _model(model: ModelManifest) -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=model.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{model.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model.sha256)],
        licenses=[LicenseFactory().make_from_string(model.license)] if model.license else [],
    )


def _faults(parts: "list[Component]") -> "list[Vulnerability]":
    from cyclonedx.model import XsUri
    from cyclonedx.model.impact_analysis import ImpactAnalysisJustification, ImpactAnalysisState
    from cyclonedx.model.vulnerability import (
        BomTarget,
        Vulnerability,
        VulnerabilityAnalysis,
        VulnerabilitySource,
    )

    faults = []
    for fault in tomllib.loads(VEX_FILE.read_text(encoding="utf-8"))["fault"]:
        touched = [part for part in parts if part.name == fault["package"]]
        if not touched:
            raise UsageError(
                f"{VEX_FILE.name} speaks of {fault['package']}, which the kit does not carry.",
                hint="Delete the entry.",
            )
        analysis = VulnerabilityAnalysis(
            state=ImpactAnalysisState.NOT_AFFECTED,
            justification=ImpactAnalysisJustification(fault["justification"]),
            detail=fault["detail"],
        )
        faults.append(
            Vulnerability(
                id=fault["id"],
                bom_ref=fault["id"],
                source=VulnerabilitySource(url=XsUri(fault["source"])),
                analysis=analysis,
                affects=[BomTarget(ref=str(part.bom_ref.value)) for part in touched],
            )
        )
    return faults
