"""The gate: every check of every file, and one report.

Called by `check`, `run` and `pack`. A check that cannot run here says why; it never counts as passed.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgemed import __version__
from edgemed.check_report import AppliedAdapter, CheckedFile, CheckReport, CheckResult, QuantizationLoss
from edgemed.engine.chat_template import ChatTemplate
from edgemed.engine.messages import ChatMessage
from edgemed.errors import EdgemedError, MissingExtra, ModelError, UsageError
from edgemed_convert.adapter import Adapter, MergedCheckpoint, apply_adapters
from edgemed_convert.check import logits, losses, probe_strings, tokenizer_files
from edgemed_convert.check.divergence import WINDOW_TOKENS, DivergenceMeter
from edgemed_convert.check.end_of_turn import check_end_of_turn
from edgemed_convert.check.first_layers import metadata_bytes
from edgemed_convert.check.gguf_file import GGUFFile
from edgemed_convert.check.metadata import check_metadata
from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.check.quantization_label import check_label, label_of
from edgemed_convert.check.reference_logits import ReferenceModel
from edgemed_convert.check.reference_tokenizer import ReferenceTokenizer
from edgemed_convert.check.templates import EngineVocabulary, check_rendering, check_template_text
from edgemed_convert.check.tensors import check_tensors
from edgemed_convert.check.tokens import check_tokens
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.output import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How thoroughly to check; the defaults are those of the gate."""

    parent: Path | None = None
    """The unquantized file that quantized ones are compared with, where none is among the files."""
    random_strings: int = probe_strings.RANDOM_STRINGS
    with_logits: bool = True
    """False leaves out what needs torch; the report then says so."""
    scratch_folder: Path | None = None
    """Where the first layers of a file are written to for a while; None: the system's temporary folder."""
    threads: int | None = None


def check_files(
    model: Path | Checkpoint,
    files: Sequence[Path],
    adapters: Sequence[Path | Adapter] = (),
    *,
    options: CheckOptions | None = None,
    progress: Progress = no_progress,
) -> CheckReport:
    """Check GGUF files against the model they were made of.

    Args:
        model: the base model's folder.
        files: GGUF files of it, unquantized and quantized.
        adapters: what was merged into it, in order.

    Raises:
        CheckpointError, AdapterError: the model itself cannot be read.
        UsageError: no file, or one named twice.
    """
    if not files or len({path.resolve() for path in files}) < len(files):
        raise UsageError("Name each file to check once.", hint="edgemed-convert check MODEL FILE…")
    base = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    opened = [one if isinstance(one, Adapter) else Adapter.open(one) for one in adapters]
    merged = apply_adapters(base, opened, progress) if opened else base
    with LlamaProcess(threads=(options or CheckOptions()).threads) as process:
        gate = _Gate(merged, process, options or CheckOptions(), progress)
        gate.check(files)
    return CheckReport(
        edgemed_version=__version__,
        model=base.folder.resolve().name,
        model_sha256=base.fingerprint(progress),
        adapters=[AppliedAdapter(name=one.folder.resolve().name, weight=one.weight) for one in opened],
        files=gate.checked,
        results=gate.results,
        quantization_losses=gate.losses,
    )


@dataclass
class _Gate:
    """Walks through the files, unquantized ones first, and collects what it finds."""

    model: Checkpoint | MergedCheckpoint
    process: LlamaProcess
    options: CheckOptions
    progress: Progress
    checked: list[CheckedFile] = field(default_factory=list)
    results: list[CheckResult] = field(default_factory=list)
    losses: list[QuantizationLoss] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = ModelConfig(self.model.config)
        self._folder = self.model.tokenizer_folder
        self._end_ids = sorted(
            {*self.config.end_ids(self.model.generation_config), *tokenizer_files.end_ids(self._folder)}
        )
        self._reference: ReferenceTokenizer | EdgemedError
        try:
            self._reference = ReferenceTokenizer(self._folder)
        except (MissingExtra, ModelError) as error:
            self._reference = error
        self._whole: ReferenceModel | None = None
        self._vocabulary_results: dict[str, list[CheckResult]] = {}

    def check(self, paths: Sequence[Path]) -> None:
        """Check all files; the first unquantized one becomes the parent of the quantized ones."""
        files = [file for path in paths if (file := self._open(path)) is not None]
        files.sort(key=lambda file: file.is_quantized)
        unquantized = [file for file in files if not file.is_quantized]
        for file in files:
            self.results.append(check_metadata(self.config, file, self._end_ids))
            self.results.append(check_label(file))
            self.results += check_tensors(self.config, self.model.weights, file, progress=self.progress)
            self._guarded(file, self._check_vocabulary)
            if not file.is_quantized:
                self._guarded(file, self._check_logits)
        self._check_losses(files, unquantized)

    def _open(self, path: Path) -> GGUFFile | None:
        """Read a file's header: a damaged or cut file goes no further."""
        try:
            file = GGUFFile(path)
            sha256 = _sha256(path, self.progress)
        except ModelError as error:
            self.results.append(_failed("file", path.name, error.message))
            return None
        self.results.append(
            CheckResult(
                name="file",
                file=path.name,
                status="passed",
                sentence=f"All {len(file.tensors)} tensors lie inside the file.",
            )
        )
        self.checked.append(
            CheckedFile(
                name=path.name,
                size_bytes=file.size_bytes,
                sha256=sha256,
                quantization_type=label_of(file),
                tensor_types=file.tensor_types,
                bits_per_weight=file.bits_per_weight,
            )
        )
        return file

    def _guarded(self, file: GGUFFile, check: Callable[[GGUFFile], None]) -> None:
        """A file that llama.cpp refuses or dies of has failed; the others are still checked."""
        try:
            check(file)
        except MissingExtra as error:
            self.results.append(logits.not_run(file.path.name, f"{error.message} {error.hint}"))
        except EdgemedError as error:
            self.results.append(_failed("llama_cpp", file.path.name, error.message))

    # Vocabulary and chat.

    def _check_vocabulary(self, file: GGUFFile) -> None:
        """Files of one export share their vocabulary: the same bytes are checked once."""
        digest = _vocabulary_digest(file)
        if digest not in self._vocabulary_results:
            self._vocabulary_results[digest] = self._vocabulary(file)
        for result in self._vocabulary_results[digest]:
            self.results.append(_for_file(result, file.path.name))

    def _vocabulary(self, file: GGUFFile) -> list[CheckResult]:
        name = file.path.name
        self.progress("vocabulary", 0, 1, "files")
        engine = self._engine(file)
        loaded_template = self._template
        reference = self._reference
        results = [
            check_template_text(loaded_template, tokenizer_files.chat_template(self._folder), file=name),
            check_end_of_turn(
                engine,
                self._end_ids,
                tokenizer_files.added_ids(self._folder),
                reference if isinstance(reference, ReferenceTokenizer) else None,
                file=name,
            ),
        ]
        if isinstance(reference, ReferenceTokenizer):
            results.append(
                check_tokens(
                    reference,
                    self.process,
                    file=name,
                    random_count=self.options.random_strings,
                )
            )
            results.append(check_rendering(loaded_template, reference, engine, file=name))
        elif isinstance(reference, MissingExtra):
            reason = f"{reference.message} {reference.hint}"
            results += [logits.not_run(name, reason, check) for check in ("tokens", "chat_rendering")]
        else:
            results.append(_failed("tokens", name, reference.message))
        return results

    def _engine(self, file: GGUFFile) -> EngineVocabulary:
        loaded = self.process.load(file.path, vocabulary_only=True)
        self._template = loaded.chat_template
        return EngineVocabulary(
            engine=self.process,
            table=self.process.token_attributes(),
            bos_token=loaded.bos,
            eos_token=loaded.eos,
            adds_bos=loaded.add_bos,
        )

    # Logits.

    def _check_logits(self, file: GGUFFile) -> None:
        if not self.options.with_logits:
            self.results.append(logits.not_run(file.path.name, "The logits were left out on request."))
            return
        self.progress("logits", 0, 1, "files")
        prompts = self._prompts(file)
        fits = logits.fits_whole(self.model.weights, file) or self._whole is not None
        if fits and self._whole is None:
            self._whole = ReferenceModel(self.model.config, self.model.weights)
        self.results += logits.check_logits(
            self.config,
            self.model.weights,
            file,
            self.process,
            prompts,
            whole=self._whole,
            scratch_folder=self.options.scratch_folder,
        )

    def _prompts(self, file: GGUFFile) -> logits.Prompts:
        engine = self._engine(file)
        control = [token for token in range(file.token_count) if engine.is_control(token)]
        texts = self.process.tokenize(probe_strings.CLINICAL_PROMPTS, add_special=True, parse_special=True)
        chat = self._chat_ids(engine)
        return logits.make_prompts(
            self.config, file.token_count, control, [*texts, *([chat] if chat else [])]
        )

    def _chat_ids(self, engine: EngineVocabulary) -> list[int]:
        """Return a conversation as the app gives it to the model; empty without a template."""
        if not self._template:
            return []
        try:
            template = ChatTemplate(
                self._template, engine, bos_text=engine.bos_text, eos_text=engine.eos_text
            )
            return template.token_ids(template.render([ChatMessage("user", probe_strings.ORDINARY[0])]))
        except EdgemedError:
            return []  # `check_rendering` says so

    # Losses.

    def _check_losses(self, files: Sequence[GGUFFile], unquantized: Sequence[GGUFFile]) -> None:
        quantized = [file for file in files if file.is_quantized]
        parent = self.options.parent or next((file.path for file in unquantized), None)
        reason = ""
        if parent is None:
            reason = "No unquantized file of this model was named to compare with."
        elif self.config.context < WINDOW_TOKENS:
            reason = f"The model reads fewer than {WINDOW_TOKENS} tokens."
        if parent is None or reason:
            self.results += [
                logits.not_run(file.path.name, reason, "quantization_loss") for file in quantized
            ]
            return
        if not quantized:
            return
        # The meter has its own two processes.
        self.process.close()
        for name, text in probe_strings.clinical_texts().items():
            self._measure(quantized, parent, name, text)

    def _measure(self, files: Sequence[GGUFFile], parent: Path, name: str, text: str) -> None:
        try:
            meter = DivergenceMeter(parent, text, threads=self.options.threads, progress=self.progress)
        except EdgemedError as error:
            self.results.append(_failed("quantization_loss", parent.name, error.message))
            return

        def measure(file: GGUFFile) -> None:
            result, loss = losses.check_loss(file, meter, parent, text=name)
            self.results.append(result)
            self.losses.append(loss)

        with meter:
            for file in files:
                self._guarded(file, measure)


def _failed(name: str, file: str, sentence: str) -> CheckResult:
    return CheckResult(name=name, file=file, status="failed", sentence=sentence)


def _for_file(result: CheckResult, name: str) -> CheckResult:
    import msgspec

    return msgspec.structs.replace(result, file=name)


def _vocabulary_digest(file: GGUFFile) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(metadata_bytes(file.headers[0].path).items()):
        if key.startswith("tokenizer."):
            digest.update(key.encode() + b"\0" + value)
    return digest.hexdigest()


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while data := file.read(2**20):
            digest.update(data)
            done += len(data)
            progress("reading", done, total)
    return digest.hexdigest()
