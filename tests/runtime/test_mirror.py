"""A run's folder in a bucket: whatever happens, what is saved there is a whole state of it."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from utilgen_jax.errors import InputError
from utilgen_jax.runtime import mirror
from utilgen_jax.runtime import working_folder as working
from utilgen_jax.runtime.mirror import Mirror
from utilgen_jax.runtime.working_folder import shown, was_saved, working_folder

URL = "memory://bucket/runs/first"
WRITES = ("pipe_file", "put_file", "cp_file", "rm_file")
EARLIER = {"config.json": "{}", "log.jsonl": "1\n", "states/4/a": "four", "states/4/b": "four"}
_WRITES_OF_A_SAVE = 14
LATER = {"config.json": "{}", "log.jsonl": "1\n2\n", "states/5/a": "five", "pool/new.png": "image"}


class Killed(BaseException):
    """Ends a process."""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Goes to another machine, where nothing of the run is; begins on one. Buckets are empty at first."""

    def go(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    go("first")
    MemoryFileSystem.store.clear()
    yield go
    MemoryFileSystem.store.clear()


def write(folder, files):
    """Makes the folder's files these, and no others."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def in_bucket(url=URL):
    """What lies in the bucket under names that a person sees, and how many objects there are beside."""
    found = {path: file.getvalue().decode() for path, file in MemoryFileSystem.store.items()}
    names = {path.removeprefix("/bucket/runs/first/"): text for path, text in found.items()}
    return {name: text for name, text in names.items() if not name.startswith(".")}, len(names)


def kill_at(monkeypatch, number):
    """Ends the process before its write of this number, counted from here."""
    done = []

    def counted(write):
        def run(*arguments, **options):
            done.append(1)
            if len(done) > number:
                raise Killed
            return write(*arguments, **options)

        return run

    for name in WRITES:
        monkeypatch.setattr(MemoryFileSystem, name, counted(getattr(MemoryFileSystem, name)))


def test_a_folder_in_a_bucket_is_what_the_run_leaves_and_another_machine_finds_it(machine):
    with working_folder(URL) as folder:
        write(folder, EARLIER | {".lock": "", ".a.partial": "half", "states/6.orbax-checkpoint-tmp/a": "half"})
        assert shown(folder / "report") == f"{URL}/report"
    assert in_bucket() == (EARLIER, len(EARLIER) + 1)  # one object says which files there are
    machine("second")
    with working_folder(URL) as folder:
        assert read(folder) == EARLIER
        write(folder, LATER)
        was_saved(folder / "states")
        assert in_bucket() == (LATER, len(LATER) + 1)


@pytest.mark.parametrize("number", range(_WRITES_OF_A_SAVE + 1))
def test_killed_at_any_write_the_bucket_has_the_old_state_or_the_new_one(machine, monkeypatch, number):
    with working_folder(URL) as folder:
        write(folder, EARLIER)
    saving = Mirror(URL)
    saving.fetch()
    write(saving.folder, LATER)
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        try:
            saving.save()
        except Killed:
            is_killed = True
        else:
            is_killed = False
    assert is_killed == (number < _WRITES_OF_A_SAVE), "there are more: all should be tried"
    machine("second")
    with working_folder(URL, claims=False) as folder:  # reads alone
        found = read(folder)
    assert found in (EARLIER, LATER) and (is_killed or found == LATER)
    with working_folder(URL) as folder:
        assert read(folder) == found
        write(folder, LATER)
    assert in_bucket() == (LATER, len(LATER) + 1), "something is left over"


def test_a_machine_that_was_further_than_the_bucket_goes_on_from_there_unless_another_one_did(machine):
    with working_folder(URL) as folder:
        write(folder, EARLIER)
    write(folder, LATER)  # and is killed before it is saved
    with working_folder(URL) as folder:
        assert read(folder) == LATER
    machine("second")
    with working_folder(URL) as other:
        write(other, EARLIER)
    machine("first")
    with working_folder(URL) as folder:
        assert read(folder) == EARLIER


def test_of_two_runs_the_one_that_started_later_goes_on(machine):
    with pytest.raises(InputError, match=r"^memory://bucket/runs/first is in use by another run \(process"):
        with working_folder(URL) as folder:
            machine("second")
            with working_folder(URL) as other:
                write(other, LATER)
            write(folder, EARLIER)
            was_saved(folder)
    assert in_bucket()[0] == LATER


def test_what_was_copied_to_the_bucket_by_hand_is_continued():
    files = MemoryFileSystem()
    for name, text in EARLIER.items():
        files.pipe_file(f"/bucket/runs/first/{name}", text.encode())
    with working_folder(URL) as folder:
        assert read(folder) == EARLIER


def test_no_name_in_a_bucket_leads_out_of_the_copy(tmp_path):
    run = Mirror(URL)
    run.fetch()
    write(run.folder, EARLIER)
    run.save()
    (state,) = [path for path in MemoryFileSystem.store if path.endswith("0.json")]
    text = json.loads(MemoryFileSystem.store[state].getvalue())
    text["files"]["../../outside"] = 0
    MemoryFileSystem().pipe_file(state, json.dumps(text).encode())
    MemoryFileSystem().pipe_file("/bucket/runs/outside", b"1")
    shutil.rmtree(run.folder.parent)
    with pytest.raises(InputError, match=r"'../../outside', in a bucket, is no name"):
        Mirror(URL).fetch()
    assert not [*tmp_path.rglob("outside")]


def test_files_that_come_and_go_while_they_are_saved_make_no_half_of_a_state(machine, monkeypatch):
    with working_folder(URL) as folder:
        write(folder, EARLIER)
        put_file = MemoryFileSystem.put_file

        def put_while_another_thread_saves(*arguments, **options):
            monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
            write(folder, LATER)
            return put_file(*arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, "put_file", put_while_another_thread_saves)
        was_saved(folder)
        assert in_bucket()[0] == LATER


def test_a_bucket_that_is_not_reached_stops_no_run_before_its_end(machine, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError("no route to host")

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="no route to host.*the same command on this machine"),
    ):
        with working_folder(URL) as folder:
            patch.setattr(MemoryFileSystem, "put_file", refuse)
            write(folder, EARLIER)
            was_saved(folder)
            assert (
                "warning: memory://bucket/runs/first: cannot be reached (no route to host)" in capsys.readouterr().err
            )
    with working_folder(URL):
        pass
    assert in_bucket()[0] == EARLIER


def test_saves_are_as_far_apart_as_is_asked():
    with working_folder(URL) as folder:
        write(folder, EARLIER)
        was_saved(folder, every_seconds=3600)
        assert in_bucket()[0] == {}
        was_saved(folder.parent)  # of another run
        assert in_bucket()[0] == {}
        was_saved(folder)
        assert in_bucket()[0] == EARLIER


def test_messages_name_the_bucket_and_a_local_folder_stays_one(tmp_path):
    with working_folder(tmp_path / "run") as folder:
        assert folder == tmp_path / "run" and shown(folder) == str(folder)
        was_saved(folder)
    with pytest.raises(InputError, match=f"^{URL}/config.json is of another run$"), working_folder(URL) as folder:
        raise InputError(f"{folder / 'config.json'} is of another run")
    assert json.loads((folder.parent / "state.json").read_text())["number"] == 0 and not working._mirrors


# Two processes, each with a disk of its own: threads that meet as processes would.
ALSO_EARLIER = {"pool/shard-00001/a": "image", "pool/shard-00001/b": "half"}
ALSO_LATER = {"pool/shard-00001/a": "image", "pool/shard-00001/b": "whole", "pool/shard-00001/c": "image"}
_WRITES_OF_TWO = 27


def _one_at_a_time(method, lock):
    def run(*arguments, **options):
        with lock:
            return method(*arguments, **options)

    return run


class Two:
    """Runs a function in both at once, with a copy of the folder each, on machines of a name."""

    def __init__(self, monkeypatch):
        self._values = [None, None]
        self._own = threading.local()
        monkeypatch.setattr(mirror, "is_any", lambda value: any(self._gather(value)))
        monkeypatch.setattr(mirror, "agree_on", lambda value: self._gather(value)[0])
        monkeypatch.setattr(mirror, "wait_for_all", self._gather)
        lock = threading.RLock()  # fsspec's store in memory, unlike a bucket, is one process's
        for name in (*WRITES, "get_file", "cat_file"):
            monkeypatch.setattr(MemoryFileSystem, name, _one_at_a_time(getattr(MemoryFileSystem, name), lock))

    def _gather(self, value):
        self._values[self._own.process] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def run(self, work):
        """The results of both, or what has ended one of them."""
        self._barrier = threading.Barrier(2, timeout=20)

        def of(process):
            self._own.process = process
            try:
                copy = Mirror(URL, process, 2)
                copy.fetch()
                return work(copy, process)
            except BaseException as error:
                self._barrier.abort()  # the other one is ended too
                return error

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(of, range(2)))

    def write(self, *files):
        """Both write their files, and save."""

        def work(copy, process):
            copy.claim()
            mine = files[process]
            for name in [name for name in read(copy.folder) if ("shard-00001" in name) == bool(process)]:
                if name not in mine:
                    (copy.folder / name).unlink()
            for name, text in mine.items():
                (copy.folder / name).parent.mkdir(parents=True, exist_ok=True)
                if not (copy.folder / name).is_file() or (copy.folder / name).read_text() != text:
                    (copy.folder / name).write_text(text)
            copy.save(takes=True)
            return read(copy.folder)

        return self.run(work)

    def found(self):
        """What both find in the bucket."""
        return self.run(lambda copy, process: read(copy.folder))


@pytest.fixture
def two(monkeypatch) -> Two:
    return Two(monkeypatch)


def test_two_without_a_shared_disk_have_what_each_of_them_wrote(machine, two):
    assert two.write(EARLIER, ALSO_EARLIER) == [EARLIER | ALSO_EARLIER] * 2
    assert in_bucket() == (EARLIER | ALSO_EARLIER, len(EARLIER | ALSO_EARLIER) + 1)
    assert two.write(LATER, ALSO_LATER) == [LATER | ALSO_LATER] * 2
    machine("second")
    assert two.found() == [LATER | ALSO_LATER] * 2
    assert in_bucket() == (LATER | ALSO_LATER, len(LATER | ALSO_LATER) + 1)


@pytest.mark.parametrize("number", range(_WRITES_OF_TWO + 1))
def test_one_of_two_killed_at_any_write_the_bucket_has_the_old_state_of_both_or_the_new_one(
    machine, two, monkeypatch, number
):
    two.write(EARLIER, ALSO_EARLIER)
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        results = two.write(LATER, ALSO_LATER)
    is_killed = any(isinstance(result, BaseException) for result in results)
    assert is_killed == (number < _WRITES_OF_TWO), "there are more: all should be tried"
    if number % 2:  # else where one was killed
        machine("second")
    first, second = two.found()
    assert first == second and first in (EARLIER | ALSO_EARLIER, LATER | ALSO_LATER)
    two.write(LATER, ALSO_LATER)
    assert in_bucket() == (LATER | ALSO_LATER, len(LATER | ALSO_LATER) + 1), "something is left over"


def test_a_copy_of_one_of_two_that_was_further_is_no_state_that_one_process_goes_on_from(two):
    two.write(EARLIER, ALSO_EARLIER)
    two.run(lambda copy, process: (copy.folder / "log.jsonl").write_text("further"))
    with working_folder(URL) as folder:
        assert read(folder) == EARLIER | ALSO_EARLIER


def test_what_has_not_changed_is_copied_once(two, monkeypatch):
    two.write(EARLIER, ALSO_EARLIER)
    copied, get_file = [], MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "get_file",
        lambda self, path, *more, **options: copied.append(path) or get_file(self, path, *more, **options),
    )
    two.write(LATER, ALSO_LATER)
    own = {path.removeprefix("/bucket/runs/first/") for path in copied}
    assert own == {"log.jsonl", "states/5/a", "pool/new.png", "pool/shard-00001/b", "pool/shard-00001/c"}
    assert len(copied) == len(own)
