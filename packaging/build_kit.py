"""Build the kit: one folder with all that a clinic without a network needs, for a USB stick.

    python packaging/build_kit.py --platform linux-x86_64 --engine-wheel WHEEL --key edgemed.key --out DIR

The folder is `DIR/edgemed-kit-VERSION-PLATFORM`. Same inputs give the same bytes: files are sorted, and the
date is that of the source. Needs the extra `hq`, and the package index unless `--wheels` names a folder that
has all. Paths of the build machine are in no file.
"""

import argparse
import sys
from pathlib import Path

from kit_assemble import build_kit
from kit_lock import DEFAULT_PYTHONS
from kit_parts import Order

from edgemed.errors import EdgemedError
from edgemed.kit_format import KIT_PLATFORMS


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the kit for a USB stick.")
    add = parser.add_argument
    add("--platform", choices=KIT_PLATFORMS, required=True)
    add("--engine-wheel", type=Path, required=True, metavar="WHEEL", help="from packaging/engine_wheel.py")
    add("--model", type=Path, action="append", default=[], metavar="PACK", help="a pack's folder; repeat it")
    add(
        "--library",
        type=Path,
        action="append",
        default=[],
        metavar="PACK",
        help="a library's or rule set's folder with its pack.toml, which is installed; or a file, which "
        "people read from the stick; repeat it",
    )
    add("--python", action="append", default=[], metavar="3.N", help="serve this Python too; repeat it")
    add("--python-embed", type=Path, metavar="ZIP", help="Windows: python.org's embeddable zip")
    add("--update-root", type=Path, metavar="FILE", help="root.json, by which later updates are checked")
    add("--wheels", type=Path, metavar="DIR", help="keep fetched wheels here; nothing is fetched twice")
    add("--app-wheel", type=Path, metavar="WHEEL", help="edgemed's wheel; without it, built from this source")
    add("--out", type=Path, required=True, metavar="DIR", help="the kit becomes a folder in this one")
    add("--overwrite", action="store_true", help="replace a kit of the same name")
    add("--estimate", action="store_true", help="say how large it will be, and build nothing")
    signing = parser.add_mutually_exclusive_group(required=True)
    signing.add_argument("--key", type=Path, metavar="FILE", help="minisign secret key that signs the kit")
    signing.add_argument("--unsigned", action="store_true", help="for trials only; the kit says so")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Build the kit that the command line asks for; return the exit code."""
    arguments = _arguments(words)
    order = Order(
        platform=arguments.platform,
        out=arguments.out,
        engine_wheel=arguments.engine_wheel,
        pythons=[*DEFAULT_PYTHONS, *arguments.python],
        models=arguments.model,
        libraries=arguments.library,
        key=arguments.key,
        update_root=arguments.update_root,
        python_embed=arguments.python_embed,
        wheels=arguments.wheels,
        app_wheel=arguments.app_wheel,
        overwrite=arguments.overwrite,
        estimate_only=arguments.estimate,
    )
    try:
        folder = build_kit(order, lambda line: print(line, file=sys.stderr, flush=True))
    except EdgemedError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    if folder:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
