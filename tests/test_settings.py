"""One file of settings that a person can read, change, and get wrong."""

import os
from pathlib import Path

import pytest

from edgemed import models, operating_system, paths
from edgemed.errors import StorageError, UsageError
from edgemed.settings import Settings, change_settings, read_settings


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def write(text: str) -> None:
    paths.settings_file().parent.mkdir(exist_ok=True)
    paths.settings_file().write_text(text, encoding="utf-8")


def test_what_is_changed_comes_back_and_the_rest_stays() -> None:
    change_settings(theme="high-contrast", temperature=0.0)
    change_settings(context_length=2048)
    expected = Settings(theme="high-contrast", temperature=0.0, context_length=2048)
    assert read_settings() == (expected, [])
    change_settings(theme=None)
    assert read_settings()[0].theme is None


def test_the_file_explains_each_setting_also_those_that_are_not_set() -> None:
    change_settings(language="en")
    text = paths.settings_file().read_text(encoding="utf-8")
    for name in Settings.__annotations__:
        assert f"\n# {name} = " in text or f"\n{name} = " in text
    assert '"dark", "light", "high-contrast" or "console"' in text


def test_an_example_of_the_file_works_when_its_mark_is_taken_away() -> None:
    change_settings(language="en")
    lines = paths.settings_file().read_text(encoding="utf-8").splitlines()
    write("\n".join(line.removeprefix("# ") if " = " in line else line for line in lines))
    assert read_settings()[1] == []
    assert read_settings()[0].temperature == 0.3


@pytest.mark.parametrize(
    ("text", "sentence", "kept"),
    [
        ('theme = "purple"\ntext_size = "large"', "The setting theme in .* is not valid", "large"),
        ('langage = "fr"\ntext_size = "large"', "no setting 'langage' .* Did you mean language", "large"),
        ('temperature = -1\ntext_size = "large"', "The setting temperature in .* is not valid", "large"),
        ("theme = ", "cannot be understood", "normal"),
        ("x = [" + "[" * 5000, "cannot be understood", "normal"),
    ],
)
def test_a_slip_is_one_sentence_and_costs_one_setting(text: str, sentence: str, kept: str) -> None:
    write(text)
    found, problems = read_settings()
    assert found.text_size == kept
    assert len(problems) == 1
    assert pytest.importorskip("re").search(sentence, problems[0])
    assert str(paths.settings_file()) in problems[0]


def test_a_file_that_was_not_understood_is_kept_when_a_setting_is_changed() -> None:
    for number in (1, 2):
        write(f"theme = {number} what I wrote by hand")
        change_settings(text_size="large")
    kept = sorted(path.name for path in paths.data_folder().iterdir())
    assert kept == ["settings.toml", "settings.toml.old", "settings.toml.old2"]


def test_a_disk_that_takes_nothing_is_a_storage_error_and_the_old_file_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_settings(text_size="large")

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(operating_system, "fsync_file", full)
    with pytest.raises(StorageError, match="settings cannot be saved"):
        change_settings(text_size="normal")
    assert read_settings()[0].text_size == "large"
    assert [path.name for path in paths.data_folder().iterdir()] == ["settings.toml"]


def test_the_chosen_model_is_a_setting() -> None:
    models.use_model("edge-chat-8m")
    assert read_settings()[0].model == "edge-chat-8m"
    with pytest.raises(UsageError, match="part of edgemed"):
        models.remove_model("edge-chat-8m")
