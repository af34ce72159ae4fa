"""Signatures and lists of kits: what was signed is accepted, and nothing else."""

import base64
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemed.checksums import KitDamaged, encode_sums, is_safe_path, parse_sums
from edgemed.minisign import (
    SignatureInvalid,
    parse_public_key,
    read_public_key,
    verify_bytes,
    verify_ed25519,
    verify_file,
)

ROOT = Path(__file__).resolve().parent.parent
ORDER = 2**252 + 27742317777372353535851937790883648493
MESSAGE = b"test kit\n"
# Made with minisign 0.11: `minisign -G -W`, `minisign -S` and `minisign -S -l`.
PUBLIC = "untrusted comment: minisign public key 41ACCB8ED26B0D08\nRWQIDWvSjsusQfk+OE6MxywPNE7h0z6tALChhALvfrR0PX+JO+wmZG1f\n"
HASHED = (
    "untrusted comment: signature from minisign secret key\n"
    "RUQIDWvSjsusQZGQN1Br2Osnq4UR2zs0yg+761T5cKDwsDv5nfYsYiuco76Lr2LzTkhr55gPiJ0fAIzvaZ1LzjzjH1J9/wDq+wU=\n"
    "trusted comment: edgemed test\n"
    "5UEVdxh8nniffHgaLF4J3K8VDU2b6zhOfFa1l4CiFLbDnh/igMoFYt4UZ+YGLgEJr7f0Yf0bdKY7U0vWU2wuBg==\n"
)
OLDER = (
    "untrusted comment: signature from minisign secret key\n"
    "RWQIDWvSjsusQThDi3qIWkR3thE0XCe+8emj3B92LO/a9kdy7kbpfyqP+dhy1HOLs+Z0B8HFQ7b75RDBhohOmINW7A9w3WMftgY=\n"
    "trusted comment: edgemed test\n"
    "24k4sBXAe8gK5JZ7jehlYYPvRsWB5K4lvK0Sehe/dgCQAhC3UOplpVKR5xo8ZGPga6wWCqNSUXELbd3mlVfMAg==\n"
)
OPEN_KEY = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACA1r0o7LrEEuQ0ilDND5PjQrYeRcO5kD/+aa"
    "4Wzf3dOYDecgOpwKX/k+OE6MxywPNE7h0z6tALChhALvfrR0PX+JO+wmZG1fAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
)
LOCKED_KEY = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWRTY0Iy47DaraLrGXeHe6bsN9hOus1MdeysaHlHLZjhvnnlYNsAAAACAAAAAAAAAEAAAAAAy7pgRC7u9MbhrnBHQas1amwVZNgdfb0VIgsbr2rQ"
    "0nC7N7xsY63X7zIIsJOD+ISsyVbyWprQvhD2SUFJeFkEX6nMeTkllltSdV6qQB9lvWxDI5SpOA5PYz80NakiZP8v5RGaIzazLcY=\n"
)
KEY = parse_public_key(PUBLIC, "edgemed.pub")


@pytest.mark.parametrize(
    "signature", [HASHED, OLDER, HASHED.replace("\n", "\r\n"), HASHED.removesuffix("\n")]
)
def test_what_minisign_signed_is_accepted(signature: str, tmp_path: Path) -> None:
    assert verify_bytes(MESSAGE, signature, KEY, name="m") == "edgemed test"
    (tmp_path / "m").write_bytes(MESSAGE)
    (tmp_path / "m.minisig").write_text(signature, encoding="utf-8", newline="")
    assert verify_file(tmp_path / "m", tmp_path / "m.minisig", KEY) == "edgemed test"
    assert KEY.fingerprint == "41ACCB8ED26B0D08" and KEY.line in PUBLIC


@pytest.mark.parametrize("signature", [HASHED, OLDER])
def test_one_changed_letter_anywhere_in_a_signature_is_refused(signature: str) -> None:
    start = signature.index("\n") + 1
    for position in range(start, len(signature) - 1):
        letter = chr(ord(signature[position]) ^ 1)
        changed = signature[:position] + letter + signature[position + 1 :]
        with pytest.raises(SignatureInvalid):
            verify_bytes(MESSAGE, changed, KEY, name="m")


def test_a_changed_message_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(MESSAGE + b"x")
    (tmp_path / "sig").write_text(HASHED, encoding="utf-8")
    with pytest.raises(SignatureInvalid, match="SHA256SUMS is not what was signed"):
        verify_file(tmp_path / "SHA256SUMS", tmp_path / "sig", KEY)
    with pytest.raises(SignatureInvalid, match="cannot be read"):
        verify_file(tmp_path / "absent", tmp_path / "sig", KEY)


def bad_signatures() -> dict[str, str]:
    lines = HASHED.splitlines()
    raw = bytearray(base64.b64decode(lines[1]))
    raw[2] ^= 1
    other_key = [lines[0], base64.b64encode(raw).decode(), *lines[2:]]
    # The last letter of the Base64 carries bits that decoding drops.
    loose = [lines[0], lines[1].replace("wU=", "wV="), *lines[2:]]
    return {
        "is damaged": "",
        "the signature of m is damaged": HASHED.replace("trusted comment: e", "trusted comment: \x1b[2J"),
        "is signed with the key": "\n".join(other_key),
        "signature of m is damaged": "\n".join(loose),
        "of m is damaged": HASHED + "more\n",
        "m is damaged": HASHED.replace("untrusted", "entrusted"),
        "unknown kind": HASHED.replace("RUQI", "RUUI"),
        "a changed comment": HASHED.replace("edgemed test", "edgemed best"),
    }


@pytest.mark.parametrize(("words", "signature"), bad_signatures().items())
def test_a_bad_signature_is_named(words: str, signature: str) -> None:
    with pytest.raises(SignatureInvalid, match=f"(?i){words}"):
        verify_bytes(MESSAGE, signature, KEY, name="m")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not a key",
        PUBLIC.replace("RWQ", "RUQ"),
        PUBLIC.replace("ZG1f", "ZG1"),
        # Points of small order: the neutral one, and y = 0.
        base64.b64encode(b"Ed" + bytes(8) + b"\1" + bytes(31)).decode(),
        base64.b64encode(b"Ed" + bytes(8) + bytes(32)).decode(),
        # y beyond the field.
        base64.b64encode(b"Ed" + bytes(8) + b"\xff" * 32).decode(),
    ],
)
def test_what_is_no_public_key_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureInvalid, match=r"edgemed\.pub"):
        parse_public_key(text, "edgemed.pub")
    (tmp_path / "edgemed.pub").write_text(text, encoding="utf-8")
    with pytest.raises(SignatureInvalid, match=r"edgemed\.pub"):
        read_public_key(tmp_path / "edgemed.pub")


def test_ed25519_agrees_with_cryptography() -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    invalid = pytest.importorskip("cryptography.exceptions").InvalidSignature

    def theirs(key: bytes, message: bytes, signature: bytes) -> bool:
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        except invalid:
            return False
        return True

    accepted = 0
    for number in range(40):
        private = ed25519.Ed25519PrivateKey.generate()
        key, message = private.public_key().public_bytes_raw(), secrets.token_bytes(number)
        good = private.sign(message)
        larger = int.from_bytes(good[32:], "little") + ORDER
        flipped = bytearray(good)
        flipped[number] ^= 1 << (number % 8)
        for tried in (good, good[:32] + larger.to_bytes(32, "little"), bytes(flipped), good[:63], bytes(64)):
            ours = verify_ed25519(key, message, tried)
            accepted += ours
            assert ours == theirs(key, message, tried)
        assert not verify_ed25519(key, message + b"x", good)
    assert accepted == 40


def test_what_the_build_machine_signs_minisign_accepts(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from kit_signature import make_key, read_secret_key, sign

    from edgemed.errors import StorageError

    made = make_key(tmp_path, "")
    key = read_secret_key(tmp_path / "edgemed.key")
    assert key == made and read_public_key(tmp_path / "edgemed.pub") == key.public_key
    signature = sign(MESSAGE, key, "edgemed 1.0")
    assert sign(MESSAGE, key, "edgemed 1.0") == signature
    assert verify_bytes(MESSAGE, signature, key.public_key, name="m") == "edgemed 1.0"
    with pytest.raises(StorageError, match=r"edgemed\.key"):
        make_key(tmp_path, "")
    if shutil.which("minisign"):
        (tmp_path / "m").write_bytes(MESSAGE)
        (tmp_path / "m.minisig").write_text(signature, encoding="utf-8")
        for command in (
            ["-V", "-m", "m", "-p", "edgemed.pub"],
            ["-S", "-m", "m", "-s", "edgemed.key", "-x", "by-minisign"],
        ):
            subprocess.run(["minisign", *command], cwd=tmp_path, check=True, capture_output=True)
        assert verify_file(tmp_path / "m", tmp_path / "by-minisign", key.public_key)


def test_a_key_of_minisign_signs_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from kit_signature import read_secret_key, sign

    from edgemed.errors import UsageError

    path = tmp_path / "open.key"
    path.write_text(OPEN_KEY, encoding="ascii")
    assert sign(MESSAGE, read_secret_key(path), "edgemed test").splitlines()[1:] == HASHED.splitlines()[1:]
    for text in (OPEN_KEY.replace("4Wzf", "4Wzg"), OPEN_KEY[:100], "", PUBLIC):
        path.write_text(text, encoding="ascii")
        with pytest.raises(UsageError, match=r"open\.key"):
            read_secret_key(path)


@pytest.mark.slow
def test_a_locked_key_opens_with_its_password_alone(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from kit_signature import make_key, read_secret_key

    from edgemed.errors import UsageError

    path = tmp_path / "locked.key"
    path.write_text(LOCKED_KEY, encoding="ascii")
    assert read_secret_key(path, lambda _prompt: "secret").public_key.fingerprint == "B59A5766B37307C3"
    with pytest.raises(UsageError, match="password"):
        read_secret_key(path, lambda _prompt: "guess")
    made = make_key(tmp_path / "own", "word")
    assert read_secret_key(tmp_path / "own/edgemed.key", lambda _prompt: "word") == made


# The password, where a script asks for one.


def without_terminal(tmp_path: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script of `packaging/` in a session that has no terminal; `given` stands on standard input."""
    return subprocess.run(
        [sys.executable, str(ROOT / "packaging" / words[0]), *words[1:]],
        cwd=tmp_path,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows asks on the console")


@POSIX
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("kit_signature.py make-key keys", "--no-password"),
        ("publish_update.py keys keys", "EDGEMED_KEY_PASSPHRASE"),
    ],
)
def test_a_password_without_a_terminal_is_one_sentence(tmp_path: Path, words: str, hint: str) -> None:
    done = without_terminal(tmp_path, *words.split())
    assert done.returncode == 2
    error, advice = done.stderr.splitlines()
    assert error == "error: The password cannot be asked for: there is no terminal."
    assert advice.startswith("hint: ") and hint in advice
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_a_locked_key_without_a_terminal_is_one_sentence(tmp_path: Path) -> None:
    """As `build_kit.py --key` reads it."""
    (tmp_path / "locked.key").write_text(LOCKED_KEY, encoding="ascii")
    program = (
        "from pathlib import Path; from kit_signature import read_secret_key; from edgemed.errors import UsageError\n"
        "try: read_secret_key(Path('locked.key'))\n"
        "except UsageError as error: print(error.message, error.hint)\n"
    )
    (tmp_path / "read.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'packaging')!r})\n{program}", encoding="utf-8"
    )
    done = without_terminal(tmp_path, str(tmp_path / "read.py"))
    assert done.stderr == ""
    assert done.stdout.startswith("The password cannot be asked for: there is no terminal.")
    assert "without a password" in done.stdout


@POSIX
def test_a_password_from_a_pipe_is_taken(tmp_path: Path) -> None:
    done = without_terminal(
        tmp_path, "publish_update.py", "keys", "keys", given="five random words\nfour words\n"
    )
    assert done.stderr.startswith("error: The two passphrases differ.")
    done = without_terminal(tmp_path, "publish_update.py", "keys", "keys", given="five random words\n" * 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "keys" / "root.json").is_file()


# The list.


def test_a_list_comes_back_as_it_was_written() -> None:
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("b/x", "a.txt", "b-1.0+cpu/y")}
    assert parse_sums(encode_sums(sums)) == sums
    assert encode_sums(sums).decode().splitlines()[0].endswith(" *a.txt")


@pytest.mark.parametrize(
    "lines",
    [
        "",
        f"{'0' * 64} *a",
        f"{'0' * 63} *a\n",
        f"{'0' * 64}  a\n",
        f"{'0' * 64} *../a\n",
        f"{'0' * 64} */a\n",
        f"{'0' * 64} *a\\b\n",
        f"{'0' * 64} *a:b\n",
        f"{'0' * 64} *a.\n",
        f"{'0' * 64} *x/nul.txt\n",
        f"{'0' * 64} *{'a' * 250}\n",
        f"{'0' * 64} *ä\n",
        f"{'0' * 64} *a\n{'0' * 64} *a\n",
        f"{'0' * 64} *a\n{'0' * 64} *A\n",
        f"{'0' * 64} *a\n{'0' * 64} *A/b\n",
        f"{'0' * 64} *a/b\n{'0' * 64} *A/c\n",
        f"{'0' * 64} *a/b\n{'0' * 64} *a\n",
        f"{'0' * 64} *a\n\n",
    ],
)
def test_a_bad_list_is_refused(lines: str) -> None:
    with pytest.raises(KitDamaged, match="SHA256SUMS"):
        parse_sums(lines.encode())


def test_names_of_real_wheels_are_safe() -> None:
    assert is_safe_path("wheels/psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.manylinux_2_12_x86_64.whl")
    assert is_safe_path("install/edgemed/__init__.py")
    assert not is_safe_path("packs/.hidden") and not is_safe_path("a//b") and not is_safe_path("")
