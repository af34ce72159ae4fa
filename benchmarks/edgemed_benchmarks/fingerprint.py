"""What this machine and this model are, without anything that says whose: for the record.

No host or user name, no path, no serial number, no network address. A machine is told apart by a random word
that is made once for each data folder.
"""

import contextlib
import hashlib
import importlib.util
import platform
import secrets
from pathlib import Path
from typing import Any

from edgemed import machine, machine_counters, paths
from edgemed.errors import EdgemedError, StorageError
from edgemed.gguf_header import read_header
from edgemed.models import InstalledModel
from edgemed.operating_system import write_atomically
from edgemed.records import Arm, EnergyGrade
from edgemed_benchmarks.bandwidth import memory_bandwidth

MACHINE_ID_NAME = "bench_machine_id"
_ID_LETTERS = "bcdfghjkmnpqrstvwxz23456789"
_ID_LENGTH = 10
_KERNEL_FEATURES = frozenset(
    (
        *("sse3", "ssse3", "sse4_2", "avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni"),
        *("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_vbmi", "avx512_vnni", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
        *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2", "sme"),
    )
)
"""Linux's names of what llama.cpp has kernels for (ggml/src/ggml-cpu/CMakeLists.txt)."""
_CHUNK_BYTES = 2**20


def machine_fields(
    *,
    llama_cpp_build: str = "",
    kernels: str = "",
    energy_source: str | None = None,
    energy_grade: EnergyGrade | None = None,
    canary_ns: int | None = None,
    measure_bandwidth: bool = True,
) -> dict[str, Any]:
    """Return all fields of `records.Machine` but those of its line; measuring bandwidth takes 1 to 2 s.

    Args:
        llama_cpp_build: as the engine tells it; the times of its files are left out.
        kernels: `full` or `plain`.
        energy_source: what the energy suite would measure with.
        energy_grade: of that source.
        canary_ns: `watch.Watch.canary.reference_ns`.
        measure_bandwidth: only while nothing else of ours runs.
    """
    swap = machine.swap_bytes()
    mains = machine.on_mains()
    return {
        "machine_id": machine_id(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_model": machine.cpu_model(),
        "physical_cores": machine.physical_cores(),
        "logical_cores": machine.logical_cores(),
        "cpu_features": sorted(machine.cpu_features() & _KERNEL_FEATURES),
        "total_memory_bytes": machine.total_memory_bytes(),
        "available_memory_bytes": machine.available_memory_bytes(),
        "total_swap_bytes": swap[0] if swap else None,
        "used_swap_bytes": swap[1] if swap else None,
        "memory_bandwidth_bytes_per_second": memory_bandwidth() if measure_bandwidth else None,
        "governor": machine_counters.power_plan(),
        "power_source": None if mains is None else "mains" if mains else "battery",
        "battery_percent": machine.battery_percent(),
        "virtual_machine": machine_counters.virtual_machine(),
        "python_version": platform.python_version(),
        "llama_cpp_build": _without_files(llama_cpp_build),
        "llama_cpp_files_sha256": llama_cpp_files_sha256(),
        "kernels": kernels,
        "energy_source": energy_source,
        "energy_grade": energy_grade,
        "canary_ns": canary_ns,
    }


def machine_id() -> str:
    """Return this installation's random word, making it at the first call.

    Raises:
        StorageError: the data folder cannot be written.
    """
    path = paths.data_folder() / MACHINE_ID_NAME
    with contextlib.suppress(OSError, UnicodeDecodeError):
        word = path.read_text(encoding="ascii").strip()
        if len(word) == _ID_LENGTH and set(word) <= set(_ID_LETTERS):
            return word
    word = "".join(secrets.choice(_ID_LETTERS) for _letter in range(_ID_LENGTH))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, word.encode("ascii") + b"\n")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Use a data folder that you may write to: set EDGEMED_HOME.",
        ) from error
    return word


def llama_cpp_files_sha256() -> str | None:
    """Return one SHA-256 over the names and bytes of the engine's library files; None if there are none.

    Versions lie: this says which code really ran. The library itself is not loaded.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    digest = hashlib.sha256()
    files = sorted(path for path in (Path(spec.origin).parent / "lib").glob("*") if _is_library(path))
    try:
        for path in files:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest() if files else None


def _without_files(build: str) -> str:
    """ "0.3.36 | CPU : AVX2 = 1 … | libggml.so 123 456": the files' times are those of one installation."""
    return " | ".join(part for part in build.split(" | ") if "ggml" not in part)


def _is_library(path: Path) -> bool:
    return path.is_file() and (path.suffix in (".dll", ".dylib") or ".so" in path.suffixes)


def arm_of(
    model: InstalledModel,
    *,
    label: str,
    context_length: int,
    threads: int | None,
    adapter: InstalledModel | None = None,
    temperature: float = 0.0,
    repetition_penalty: float | None = None,
) -> Arm:
    """Return what a model and its settings are for the record.

    Args:
        model: the model.
        label: short and unique within the run.
        context_length: tokens the engine was opened with.
        threads: None is the app's own rule.
        adapter: attached to the model, if one is.
        temperature: of the run; 0 always takes the most probable token.
        repetition_penalty: None is the model's own.
    """
    manifest = model.manifest
    template = _chat_template(model)
    penalty = manifest.sampling.repetition_penalty if repetition_penalty is None else repetition_penalty
    return Arm(
        label=label,
        model_name=manifest.name,
        model_sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
        quantization_type=manifest.quantization_type,
        tensor_types=manifest.tensor_types,
        parameters=manifest.shape.parameters,
        architecture=manifest.shape.architecture,
        context_length=context_length,
        threads=threads,
        adapter_sha256=None if adapter is None else adapter.manifest.sha256,
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        base_fingerprint=manifest.base_fingerprint,
        dataset_sha256=manifest.dataset_sha256,
        recipe_sha256=manifest.recipe_sha256,
        unchecked=manifest.unchecked,
        temperature=temperature,
        repetition_penalty=penalty,
    )


def _chat_template(model: InstalledModel) -> str | None:
    """Return the template that the engine uses: the file's own, else the manifest's."""
    try:
        template = read_header(model.path).text("tokenizer.chat_template")
    except EdgemedError:
        template = None
    return template or model.manifest.chat_template
