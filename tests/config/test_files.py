import pytest

from utilgen_jax.config import files
from utilgen_jax.config.command_line import read_config
from utilgen_jax.config.files import config_names, find_config
from utilgen_jax.errors import InputError


def test_the_packages_configs_are_found_by_name_and_by_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"cifar", "digits", "imagefolder"} <= set(config_names())
    for name in ("cifar", "configs/cifar.py"):
        assert find_config(name).name == "cifar.py" and find_config(name).parent.name == "configs"
    assert read_config("digits:runlocal,shots=3").data.shots == 3


def test_a_file_of_that_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "cifar.py"
    own.write_text("")
    assert find_config(str(own)) == find_config("~/configs/cifar.py") == own
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/cifar.py").resolve() == own.resolve()


@pytest.mark.parametrize("name", ["cifra", "cifar.py", "my/cifar", "configs/cifra.py", ""])
def test_what_is_not_there_is_told_with_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no file .*all: caltech101, cifar, "):
        find_config(name)


def test_a_copy_of_the_package_alone_has_no_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FOLDERS", (tmp_path,))
    assert config_names() == []
    with pytest.raises(InputError, match="there is no file 'digits'$"):
        find_config("digits")
