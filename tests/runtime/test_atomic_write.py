import errno
import os

import pytest

from utilgen_jax.runtime import atomic_write


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file.txt").write_text("old\n")
    return tmp_path / "file.txt"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_text_makes_and_replaces_a_file(tmp_path):
    for text in ("first, größer\n", "second\n"):
        atomic_write.write_text(tmp_path / "file.txt", text)
        assert (tmp_path / "file.txt").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["file.txt"]


def test_write_bytes_with_fsync(file, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    atomic_write.write_bytes(file, b"\x00\r\n\xff", fsync=True)
    assert file.read_bytes() == b"\x00\r\n\xff"
    assert synced == [4]
    atomic_write.write_bytes(file, b"")
    assert synced == [4]


def test_a_crash_half_way_leaves_the_old_file(file):
    with pytest.raises(KeyboardInterrupt), atomic_write.replace_file(file) as partial:
        partial.write_text("ne")
        assert file.read_text() == "old\n"
        raise KeyboardInterrupt
    assert file.read_text() == "old\n"
    assert names(file.parent) == ["file.txt"]


def test_a_failed_replacement_leaves_the_old_file(file, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write.write_text(file, "new\n")
    assert file.read_text() == "old\n"
    assert names(file.parent) == ["file.txt"]


def test_a_killed_process_s_partial_file_is_overwritten(file):
    file.with_name(".file.txt.partial").write_text("left by a killed process, longer than the new text\n")
    atomic_write.write_text(file, "new\n")
    assert file.read_text() == "new\n"
    assert names(file.parent) == ["file.txt"]


def test_replace_folder(tmp_path):
    folder = tmp_path / "parent" / "folder"
    for text in ("first", "second"):
        with atomic_write.replace_folder(folder) as partial:
            (partial / text).touch()
        assert names(folder) == [text]
    assert names(folder.parent) == ["folder"]


def test_a_crash_half_way_leaves_the_old_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(RuntimeError), atomic_write.replace_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
        raise RuntimeError
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_failed_replacement_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    replace = os.replace

    def fail(source, target):
        if source.name == ".folder.partial":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"), atomic_write.replace_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_append_text_is_forced_to_the_disk(file, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    atomic_write.append_text(file, "größer\n")
    assert file.read_text(encoding="utf-8") == "old\ngrößer\n"
    assert synced == [len("old\ngrößer\n".encode())]


@pytest.mark.parametrize("content, whole", [("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("a", ""), ("", "")])
def test_cut_partial_line(file, content, whole):
    file.write_text(content)
    atomic_write.cut_partial_line(file)
    assert file.read_text() == whole


def test_a_full_disk_is_told_with_the_file(file):
    with pytest.raises(OSError, match="No space left on device") as caught:
        with atomic_write.replace_file(file):
            raise OSError(errno.ENOSPC, "No space left on device")  # as `write` does
    assert caught.value.filename == str(file)
