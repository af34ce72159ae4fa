"""`edgemed models fetch` against a hub on this computer's loopback, with the faults of real networks.

Each test runs the command in a process of its own, which may reach the loopback and nothing else.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemed import models
from edgemed.errors import ModelCorrupt, ModelNotFound, UsageError
from edgemed.fetch import fetch_model
from edgemed.hub_files import HubFile, choose_model
from edgemed.manifest import ModelManifest
from edgemed.paths import downloads_folder, embedded_models_folder, models_folder
from tests.gguf_files import write_tiny_llama
from tests.hub_server import COMMIT, REPOSITORY, Faults, LoopbackHub, running

ROOT = Path(__file__).parents[1]
CHUNK_BYTES = 256 * 2**10
TOKEN = "hf_a" + "SecretThatNobodyMaySee"
CARD = {"license": "apache-2.0", "base_model": ["org/base", "org/other"]}
PROGRAM = """
import sys
from tests.loopback import loopback_only
from edgemed import cli, fetch
fetch._WAIT_SECONDS = 0.01
{before}
with loopback_only():
    cli.main(sys.argv[1:])
"""
SEVERAL = """
import contextlib, io, json, sys
from tests.loopback import loopback_only
from edgemed import cli
answers = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with loopback_only(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            answers.append([ended.code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
CLIENTS = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "requests", "urllib3", "aiohttp")


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    """Return a GGUF file of half a megabyte."""
    return write_tiny_llama(tmp_path / "tiny.gguf", name="tiny llama").read_bytes()


@pytest.fixture
def hub(loopback: None, tiny: bytes) -> Iterator[LoopbackHub]:
    with running(LoopbackHub({"README.md": b"# Hi", "tiny.Q4_K_M.gguf": tiny}, CARD)) as served:
        yield served


@pytest.fixture
def large() -> bytes:
    """Return a GGUF file of 9 MB: many chunks."""
    return next(embedded_models_folder().rglob("*.gguf")).read_bytes()


def command(hub: LoopbackHub | None, *arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(before=before), "models", "fetch", *arguments]


def environment(hub: LoopbackHub | None, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    python_path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {
        **kept,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(Path(kept["EDGEMED_HOME"]).parent / "hf-home"),
        "HF_ENDPOINT": hub.address if hub else "http://127.0.0.1:9",
        "PYTHONPATH": python_path,
        "PYTHONIOENCODING": "utf-8",
        **more,
    }


def fetch(
    hub: LoopbackHub | None, *arguments: str, before: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(hub, *arguments, before=before),
        env=environment(hub, **variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )


def fetch_each(hub: LoopbackHub, several: list[list[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Run one command after the other in one process, which is much cheaper."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SEVERAL,
            json.dumps([["models", "fetch", *arguments] for arguments in several]),
        ],
        env=environment(hub),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=100,
    )
    return [subprocess.CompletedProcess("", *answer) for answer in json.loads(done.stdout)]


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """Assert one sentence and one hint, the exit code, and that nothing is installed."""
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], done.stderr
    for word in words:
        assert word in done.stderr
    assert not [path for path in models_folder().glob("*") if not path.name.startswith(".")]


def installed(name: str) -> ModelManifest:
    model = models.find_model(name)
    models.verify_model(model)
    return model.manifest


def left_over() -> list[str]:
    return sorted(
        path.name for path in downloads_folder().rglob("*") if path.is_file() and path.name != ".lock"
    )


def test_the_only_model_of_a_repository_is_installed_with_its_source_and_licence(
    hub: LoopbackHub, tiny: bytes
) -> None:
    done = fetch(hub, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    manifest = installed("tiny.Q4_K_M")
    assert manifest.source == f"{hub.address}/{REPOSITORY}/blob/{COMMIT}/tiny.Q4_K_M.gguf"
    assert manifest.license == "apache-2.0"
    assert manifest.base_model == "org/base, org/other"
    assert manifest.quantization_type == "Q4_K_M"
    assert manifest.sha256 == hashlib.sha256(tiny).hexdigest()
    assert manifest.source in done.stdout
    assert "License: apache-2.0" in done.stdout
    assert list(downloads_folder().rglob("*")) == [downloads_folder() / ".lock"]
    again = fetch(hub, f"{REPOSITORY}@v1")
    assert "tiny.Q4_K_M was installed already" in again.stdout
    assert len(hub.ranges()) == 1


def test_a_cut_at_40_percent_is_resumed_with_a_range_request(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    cut = 2 * len(large) // 5
    hub.faults.cut_at = [cut]
    done = fetch(hub, REPOSITORY)
    assert done.returncode == 0, done.stderr
    resumed_at = cut // CHUNK_BYTES * CHUNK_BYTES
    assert hub.ranges() == [None, f"bytes={resumed_at}-"]
    assert installed("m").sha256 == hashlib.sha256(large).hexdigest()


def test_a_killed_download_goes_on_in_the_next_call(hub: LoopbackHub, large: bytes) -> None:
    """huggingface_hub 2.4's own download would begin anew."""
    hub.files = {"m.gguf": large}
    hub.faults.cut_at = [2 * len(large) // 5]
    hub.faults.hold = threading.Event()
    process = subprocess.Popen(command(hub, REPOSITORY), env=environment(hub))
    assert hub.faults.held.wait(60)
    wanted = 2 * len(large) // 5 // CHUNK_BYTES * CHUNK_BYTES
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in downloads_folder().rglob("*.part")) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    hub.faults.hold.set()
    done = fetch(hub, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert hub.ranges() == [None, f"bytes={wanted}-"]
    assert installed("m").sha256 == hashlib.sha256(large).hexdigest()


def test_a_hub_that_vanishes_leaves_what_came_and_says_how_to_go_on(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    positions = [CHUNK_BYTES * 4] * 8
    hub.faults.cut_at = [*positions]
    hub.faults.say_no_length = True
    done = fetch(hub, REPOSITORY)
    refused(done, 1, f"{positions[0]:,} of {len(large):,} bytes", "Run the same command again")
    assert left_over() == ["m.gguf.part"]
    # Five times without a new byte, after the first.
    assert len(hub.ranges()) == 6


def test_one_flipped_bit_is_refused_set_aside_and_healed_by_the_next_call(
    hub: LoopbackHub, tiny: bytes
) -> None:
    hub.faults.flip_bit_at = len(tiny) // 2
    done = fetch(hub, REPOSITORY)
    refused(done, 3, "tiny.Q4_K_M.gguf arrived damaged", "SHA-256", "Run the same command again")
    assert left_over() == ["tiny.Q4_K_M.gguf.damaged"]
    assert str(next(downloads_folder().rglob("*.damaged"))) in done.stderr
    hub.faults.flip_bit_at = None
    assert fetch(hub, REPOSITORY).returncode == 0
    assert hub.ranges() == [None, None]
    assert installed("tiny.Q4_K_M").sha256 == hashlib.sha256(tiny).hexdigest()
    assert left_over() == []


def test_bytes_that_changed_on_the_disk_between_two_calls_are_refused(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    hub.faults.cut_at = [CHUNK_BYTES * 4] * 7
    fetch(hub, REPOSITORY)
    part = next(downloads_folder().rglob("*.part"))
    data = bytearray(part.read_bytes())
    data[1000] ^= 1
    part.write_bytes(data)
    hub.faults.cut_at = []
    refused(fetch(hub, REPOSITORY), 3, "arrived damaged")


def test_a_login_page_instead_of_the_file_spoils_nothing(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    hub.faults.cut_at = [CHUNK_BYTES * 4] * 7
    fetch(hub, REPOSITORY)
    hub.faults.cut_at = []
    hub.faults.page_instead = True
    refused(fetch(hub, REPOSITORY), 3, "sent a web page instead of the model m.gguf", "in a browser")
    assert next(downloads_folder().rglob("*.part")).read_bytes() == large[: CHUNK_BYTES * 4]
    hub.faults.page_instead = False
    assert fetch(hub, REPOSITORY).returncode == 0
    assert hub.ranges()[-1] == f"bytes={CHUNK_BYTES * 4}-"


def test_a_store_without_ranges_is_read_from_the_beginning(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    hub.faults.cut_at = [CHUNK_BYTES * 4]
    hub.faults.ignore_range = True
    assert fetch(hub, REPOSITORY).returncode == 0
    assert installed("m").sha256 == hashlib.sha256(large).hexdigest()


def test_a_busy_store_is_asked_again(hub: LoopbackHub) -> None:
    hub.faults.statuses = [503, 429, 500]
    assert fetch(hub, REPOSITORY).returncode == 0
    assert len(hub.ranges()) == 4


def test_bytes_behind_the_published_size_are_left_out(hub: LoopbackHub, tiny: bytes) -> None:
    hub.faults.extra_bytes = 3 * CHUNK_BYTES
    assert fetch(hub, REPOSITORY).returncode == 0
    assert installed("tiny.Q4_K_M").size_bytes == len(tiny)


def test_the_shards_of_a_split_model_come_together(hub: LoopbackHub, tmp_path: Path) -> None:
    first = write_tiny_llama(tmp_path / "split.gguf", shards=3)
    shards = sorted(tmp_path.glob("split-*.gguf"))
    assert len(shards) == 3
    hub.files |= {f"Q8_0/{path.name.replace('split', 'big-Q8_0')}": path.read_bytes() for path in shards}
    # The second one breaks off for good: the first is not downloaded again.
    hub.faults.cut_at = [first.stat().st_size, *[1000] * 5]
    refused(fetch(hub, REPOSITORY, "--quant", "q8_0"), 1, "broke off")
    before = len(hub.ranges())
    done = fetch(hub, REPOSITORY, "--quant", "q8_0")
    assert done.returncode == 0, done.stderr
    assert len(hub.ranges()) - before == 2
    manifest = installed("big-Q8_0")
    assert [file.sha256 for file in manifest.files] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in shards
    ]


def test_what_a_hub_refuses_is_said_in_one_sentence(hub: LoopbackHub) -> None:
    no_hub = "does not answer as a hub does"
    rows: list[tuple[Faults, list[str]]] = [
        (Faults(gated=True), ["open only to those who accepted its terms", "hf auth login"]),
        (Faults(private=True), ["no repository clinic/health-GGUF, or it is private", "HF_TOKEN"]),
        (Faults(status=401), ["refuses access"]),
        (Faults(status=403), ["refuses access"]),
        (Faults(status=500), ["answers with error 500", "Wait"]),
        (Faults(page_from_api=True), [no_hub, "login page"]),
        (Faults(api_answer=[]), [no_hub]),
        (Faults(api_answer={"id": "x"}), [no_hub]),
        (Faults(api_answer={"id": "x", "sha": COMMIT, "siblings": [{}]}), [no_hub]),
    ]
    hub.turns = [faults for faults, _words in rows]
    for done, (_faults, words) in zip(fetch_each(hub, [[REPOSITORY]] * len(rows)), rows, strict=True):
        refused(done, 1, *words)
        assert "HACKED" not in done.stderr
        assert "\x1b" not in done.stderr


def test_what_was_asked_wrongly_is_said_in_one_sentence(hub: LoopbackHub) -> None:
    rows = [
        (["clinic/none-GGUF"], 1, "no repository clinic/none-GGUF"),
        ([f"{REPOSITORY}@v9"], 1, "no revision v9"),
        (["a/b--c..d"], 2, "names no repository"),
        ([REPOSITORY, "--quant", "Q2_K"], 3, "tiny.Q4_K_M.gguf (0.00 GB)"),
        ([REPOSITORY, "--file", "../../x.gguf"], 3, "no GGUF file ../../x.gguf"),
        ([REPOSITORY, "--name", "a/b"], 2, "cannot be a model's name"),
        ([REPOSITORY, "--name", "edge-chat-8m"], 2, "a part of edgemed"),
    ]
    found = fetch_each(hub, [arguments for arguments, _code, _words in rows])
    for done, (_arguments, exit_code, words) in zip(found, rows, strict=True):
        refused(done, exit_code, words)
    assert hub.ranges() == []


@pytest.mark.parametrize(
    ("variables", "exit_code", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, 2, "Unset HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "hub.example"}, 2, "hub.example is no address"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "there is no connection"),
        ({"HTTP_PROXY": "http://127.0.0.1:9"}, 1, "there is no connection"),
        ({"HF_TOKEN": "hf_S\u00e9cret"}, 2, "HF_TOKEN"),
        ({"HF_TOKEN": "hf_S\x0becret"}, 2, "HF_TOKEN"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_said_in_one_sentence(
    hub: LoopbackHub, variables: dict[str, str], exit_code: int, words: str
) -> None:
    done = fetch(hub, REPOSITORY, **variables)
    refused(done, exit_code, words)
    assert "cret" not in done.stderr
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["no-owner", "https://huggingface.co/a/b", "a/b\x1b]0;HACKED\x07", "a/b@", ""]
)
def test_what_cannot_be_a_repository_is_refused_before_any_request(name: str) -> None:
    with pytest.raises(UsageError, match="names no repository") as caught:
        fetch_model(name)
    assert "\x1b" not in caught.value.message


def test_without_space_for_file_and_copy_nothing_is_downloaded(hub: LoopbackHub, tiny: bytes) -> None:
    free = 2 * len(tiny) + 16 * 2**20 - 1
    before = f"import shutil, types; shutil.disk_usage = lambda _path: types.SimpleNamespace(free={free})"
    refused(fetch(hub, REPOSITORY, before=before), 6, "MB free", "EDGEMED_HOME")
    assert hub.ranges() == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX's")
def test_a_disk_that_takes_no_more_is_named_and_what_came_is_kept(hub: LoopbackHub, large: bytes) -> None:
    hub.files = {"m.gguf": large}
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    refused(fetch(hub, REPOSITORY, before=before), 6, "m.gguf.part", "FAT32")
    assert left_over() == ["m.gguf.part"]
    assert fetch(hub, REPOSITORY).returncode == 0
    full = "import errno, edgemed.hub as h; h.fsync_file = lambda _number: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'x'))"
    done = fetch(hub, REPOSITORY, "--name", "other", before=full)
    assert done.returncode == 6
    assert "The disk is full" in done.stderr


def test_two_fetches_at_once_do_not_write_one_file(hub: LoopbackHub) -> None:
    from edgemed.operating_system import lock_file

    downloads_folder().mkdir(parents=True)
    with lock_file(downloads_folder() / ".lock"):
        refused(fetch(hub, REPOSITORY), 6, "in use by another edgemed")


def test_the_token_reaches_the_hub_alone_and_is_never_written_or_shown(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.faults.private = True
    done = fetch(hub, REPOSITORY, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    front = [asked.token for asked in hub.asked if not asked.path.startswith("/store/")]
    store = [asked.token for asked in hub.asked if asked.path.startswith("/store/")]
    assert set(front) == {f"Bearer {TOKEN}"}
    assert store == [None]
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == []


def test_neither_xet_nor_telemetry_is_used(hub: LoopbackHub) -> None:
    """The variables must stand before huggingface_hub is imported; it reads them then."""
    before = (
        "import atexit\n"
        "def show():\n"
        "    c = sys.modules['huggingface_hub'].constants\n"
        "    print(c.HF_HUB_DISABLE_XET, c.HF_HUB_DISABLE_TELEMETRY, 'hf_xet' in sys.modules)\n"
        "atexit.register(show)"
    )
    done = fetch(hub, REPOSITORY, before=before, HF_HUB_DISABLE_XET="0")
    assert done.stdout.splitlines()[-1] == "True True False"
    assert {asked.path.split("?")[0].split("/")[1] for asked in hub.asked} == {"api", "clinic", "store"}


def test_without_huggingface_hub_the_command_says_what_to_install(hub: LoopbackHub) -> None:
    done = fetch(hub, REPOSITORY, before="sys.modules['huggingface_hub'] = None")
    refused(done, 5, 'pip install "edgemed[hq]"', "edgemed models install")


def test_a_file_that_is_published_damaged_is_refused_with_its_folder(hub: LoopbackHub, tiny: bytes) -> None:
    hub.files = {"m.gguf": tiny[: len(tiny) // 2]}
    refused(fetch(hub, REPOSITORY), 3, "m.gguf", str(downloads_folder()))
    hub.files = {"m.gguf": b"<html>not found</html>"}
    refused(fetch(hub, REPOSITORY), 3, "web page")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models", "list"], ["chat", "--plain"], ["models", "fetch", "--help"]],
    ids=" ".join,
)
def test_no_other_command_loads_an_http_client(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"for name in {CLIENTS!r}: sys.modules[name] = None\n"
        "from edgemed.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('loaded', *sorted({'http.client', 'urllib.request', 'edgemed.hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input="/quit\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


def test_what_changes_between_check_and_copy_is_not_installed(tmp_path: Path) -> None:
    """The disk may err after the download was checked."""
    path = write_tiny_llama(tmp_path / "m.gguf")
    origin = models.Origin("https://hub/m", ["0" * 64])
    with pytest.raises(ModelCorrupt, match="not the published one"):
        models.install_model(path, name="m", origin=origin)
    assert models.list_models().damaged == []
    assert not (models_folder() / "m").exists()


def test_a_licence_or_base_that_the_repository_does_not_state_is_that_of_the_file(
    hub: LoopbackHub, tiny: bytes
) -> None:
    hub.card = {"license": "other", "license_name": "llama3\x1b[2J", "base_model": 7}
    assert fetch(hub, REPOSITORY).returncode == 0
    manifest = installed("tiny.Q4_K_M")
    assert (manifest.license, manifest.base_model) == ("llama3[2J", None)
    hub.card = None
    assert fetch(hub, REPOSITORY, "--name", "other").returncode == 0
    assert installed("other").license == "apache-2.0"
    # The folder of an installed model is a pack: what a kit carries still knows its source.
    copied = models.install_model(models.find_model("other").folder, name="copied")
    assert copied.manifest.source == installed("other").source


# The choice, without a hub.


def files(*paths: str, sha256: str | None = "0" * 64) -> list[HubFile]:
    return [HubFile(path, 10**9, sha256) for path in paths]


@pytest.mark.parametrize(
    ("paths", "quantization_type", "path", "first"),
    [
        (["a.gguf", "b.safetensors"], None, None, "a.gguf"),
        (["m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], "q4_k_m", None, "m-Q4_K_M.gguf"),
        (["m.Q4_0.gguf", "m.Q4_0_4_4.gguf"], "Q4_0", None, "m.Q4_0.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf"], "Q4_K_XL", None, "m-Q4_K_XL.gguf"),
        (["m-IQ4_XS.gguf", "m-Q4_K_S.gguf"], "IQ4_XS", None, "m-IQ4_XS.gguf"),
        (["m-BF16.gguf", "m-F16.gguf"], "F16", None, "m-F16.gguf"),
        (["Q4_K_M/m-f16-base.gguf", "Q8_0/m.gguf"], "Q8_0", None, "Q8_0/m.gguf"),
        (["mmproj-F16.gguf", "m-Q8_0.gguf", "m-imatrix.gguf"], None, None, "m-Q8_0.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], None, "b-Q4_0.gguf", "b-Q4_0.gguf"),
        (
            ["m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"],
            "Q8_0",
            None,
            "m-Q8_0-00001-of-00002.gguf",
        ),
    ],
)
def test_the_wanted_file_is_found(
    paths: list[str], quantization_type: str | None, path: str | None, first: str
) -> None:
    found = choose_model(files(*paths), "o/r", quantization_type=quantization_type, path=path)
    assert found.files[0].path == first


@pytest.mark.parametrize(
    ("paths", "quantization_type", "error", "words"),
    [
        (["README.md", "m.safetensors"], None, ModelNotFound, "edgemed-convert"),
        (["m-Q4_0.gguf", "m-Q8_0.gguf"], None, UsageError, "--quant TYPE: Q4_0 (1.00 GB), Q8_0 (1.00 GB)"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0", UsageError, "--file PATH: a-Q4_0.gguf (1.00 GB)"),
        (["a.gguf", "a-Q4_0.gguf"], None, UsageError, "--file PATH"),
        (["m-Q4_0.gguf"], "Q4", ModelNotFound, "m-Q4_0.gguf"),
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], None, ModelCorrupt, "m-00002-of-00003.gguf"),
        (["m\x1b[2J.gguf"], None, ModelNotFound, "no GGUF file"),
    ],
)
def test_an_unclear_choice_names_what_there_is(
    paths: list[str], quantization_type: str | None, error: type[UsageError], words: str
) -> None:
    with pytest.raises(error) as caught:
        choose_model(files(*paths), "o/r", quantization_type=quantization_type, path=None)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_file_without_a_published_sha256_is_refused() -> None:
    with pytest.raises(ModelCorrupt, match="no SHA-256"):
        choose_model(files("m.gguf", sha256=None), "o/r", quantization_type=None, path=None)
