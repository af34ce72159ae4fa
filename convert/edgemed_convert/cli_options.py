"""Options that several commands of `edgemed-convert` share. Called by `cli.py` alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., None])

PATH = click.Path(path_type=Path)
OVERWRITE_OPTION = click.option("--overwrite", is_flag=True, help="Replace what is there.")
THREADS_OPTION = click.option(
    "--threads", type=click.IntRange(1, 512), metavar="N", help="For computing. Default: all physical cores."
)
ADAPTER_OPTION = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR",
    help="An adapter to merge; DIR:0.5 merges half of it. May be given again; the first is merged first.",
)
TYPES_OPTION = click.option(
    "--types", required=True, metavar="LIST", help="Quantization types with commas, such as F16,Q8_0,Q4_K_M."
)
FOLDER_OPTION = click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for the output.")
FILE_OPTION = click.option("--out", type=PATH, required=True, metavar="FILE", help="The file to write.")
LICENSE_OPTION = click.option(
    "--license",
    "licence",
    metavar="NAME",
    help="Licence of the weights, such as apache-2.0. Default: what the base model's folder says.",
)
BASE_NAME_OPTION = click.option(
    "--base-model",
    "base_name",
    metavar="NAME",
    help="How the base model is called in metadata and model card.",
)
NO_LOGITS_OPTION = click.option(
    "--no-logits", is_flag=True, help="Leave out the comparison that needs torch; the report says so."
)


def with_llama_cpp_options(command: Command) -> Command:
    """Add the options of a command that can export with the user's own llama.cpp."""
    python = _file_option("--llama-cpp-python", "The Python that runs llama.cpp's script.")
    folder = click.option(
        "--with-llama-cpp",
        type=PATH,
        metavar="DIR",
        help="Export with convert_hf_to_gguf.py of this copy of llama.cpp, for other architectures.",
    )
    with_both: Command = folder(python(command))
    return with_both


def pack_options(command: Command) -> Command:
    """Add the options for what a pack tells beyond its files."""
    options = (
        _file_option("--license-file", "The licence's text.", name="licence_files", multiple=True),
        _text_option(
            "--data",
            "NAME,SOURCE,LICENSE",
            'Data it was trained on; quote what has commas: "\\"A, B\\",source,CC BY 4.0".',
            multiple=True,
        ),
        _file_option("--training-card", "Markdown for the model card: how it was trained."),
        _file_option("--recipe", "Training recipe, recorded by its SHA-256."),
        _file_option("--dataset-card", "Recorded by its SHA-256."),
        _text_option("--intended-use", "TEXT", "For the model card.", default=""),
        _text_option("--limits", "TEXT", "For the model card.", default=""),
        _text_option("--notice", "TEXT", "Words that stand beside everything the model writes."),
        _file_option("--chat-template", "Jinja file for a model that has none, such as GPT-2."),
        _text_option("--system-prompt", "TEXT", 'The one it was trained with; "" for none at all.'),
        _text_option(
            "--sampling",
            "LIST",
            "Such as temperature=0.3,top_p=0.9; also top_k, min_p, repetition_penalty.",
            default="",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _file_option(flag: str, text: str, *, name: str | None = None, multiple: bool = False) -> Any:
    names = (flag, name) if name else (flag,)
    return click.option(*names, type=PATH, metavar="FILE", multiple=multiple, help=text)


def _text_option(flag: str, metavar: str, text: str, **settings: Any) -> Any:
    return click.option(flag, metavar=metavar, help=text, **settings)
