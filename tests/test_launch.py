"""The launch scripts: their syntax, the environment they make, and the command lines for clusters and clouds."""

import os
import re
import runpy
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"])
PLACE = ["--zone=us-central1-a"]
SCOPE = "--scopes=https://www.googleapis.com/auth/cloud-platform"


def bash(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *map(str, arguments)], capture_output=True, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture
def no_gcloud(tmp_path) -> dict[str, str]:
    """An environment in which gcloud and git leave a mark where they are called."""
    for name in ("gcloud", "git"):
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def dry_run(env: dict[str, str], *arguments: str, script: str = "tpu_pod.sh") -> list[list[str]]:
    """The command lines that a script would run, split as a shell does; asserts that none was run."""
    done = bash(ROOT / "launch" / script, "--dry_run", *arguments, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(env["PATH"].partition(":")[0], "called").exists()
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines()]


def gcloud(verb: str, *more: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, *more]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path):
    done = bash("-n", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_create(no_gcloud):
    assert dry_run(no_gcloud, "create", "--name=pod", "--zone=z", "--type=v4-32", "--version=v", "--project=p") == [
        gcloud("create", "pod", "--accelerator-type=v4-32", "--version=v", SCOPE, "--zone=z", "--project=p")
    ]
    (line,) = dry_run(no_gcloud, "create", "--spot")
    assert line == gcloud(
        "create", "utilgen", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", SCOPE, "--spot", *PLACE
    )
    assert "--service-account=who@example.com" in dry_run(no_gcloud, "create", "--account=who@example.com")[0]


def test_setup_warms_the_ssh_key_up_on_one_worker_then_installs_on_all(no_gcloud):
    warm_up, archive, copy, unpack, install = dry_run(no_gcloud, "setup")
    assert warm_up == gcloud("ssh", "utilgen", "--worker=0", "--command=true", *PLACE)
    assert archive[0] == "git" and archive[-1] == "HEAD"
    output = next(word for word in archive if word.startswith("--output=")).removeprefix("--output=")
    assert copy == gcloud("scp", output, "utilgen:utilgen_jax.tar.gz", "--worker=all", *PLACE)
    pinned = "--constraint launch/constraints.txt --editable '.[tpu,gs]'"
    for line, needed in ((unpack, "tar -xzf utilgen_jax.tar.gz"), (install, pinned)):
        assert line[:7] == gcloud("ssh", "utilgen", "--worker=all")
        assert needed in line[7]
        assert bash("-n", "-c", line[7].removeprefix("--command=")).returncode == 0


ARGUMENTS = ["--config=c.py:shots=5,seed=1", "--config.generator.prompt=a {class}, 'big' & $HOME", "--workdir=w"]
# A stand-in for a worker's python: prints its arguments.
PRINTS = '#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "$UTILGEN_DISTRIBUTED"; exit 143\n'


def test_setup_mounts_a_share_on_every_worker(no_gcloud):
    mount = dry_run(no_gcloud, "setup", "--mount=10.0.0.2:/share")[-2]
    assert mount[6] == "--worker=all" and "mount 10.0.0.2:/share /mnt/shared" in mount[7]
    assert bash("-n", "-c", mount[7].removeprefix("--command=")).returncode == 0


def test_run_starts_the_job_on_all_workers_with_a_log_and_a_status(no_gcloud, tmp_path):
    (line,) = dry_run(no_gcloud, "run", "--logs=the_logs", "--", *ARGUMENTS)
    assert line[:7] == gcloud("ssh", "utilgen", "--worker=all")
    python = tmp_path / "utilgen_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PRINTS)
    python.chmod(0o755)
    # As a worker does, but that the job is waited for.
    assert bash("-c", line[7].removeprefix("--command=").replace("&)", ")"), cwd=tmp_path).returncode == 0
    (log,) = (tmp_path / "utilgen_jax" / "the_logs").iterdir()
    assert log.read_text().splitlines() == ["-m", "utilgen_jax.main", *ARGUMENTS, "1"]
    (status,) = (tmp_path / "utilgen_jax").glob("status-*")
    assert status.read_text() == "143\n"


def test_watch_and_delete(no_gcloud):
    for options, worker in (([], "0"), (["--worker=all"], "all"), (["--worker=3"], "3")):
        state, log = dry_run(no_gcloud, "watch", *options)
        assert state == gcloud("describe", "utilgen", "--format=value(state)", *PLACE)
        assert log[:7] == gcloud("ssh", "utilgen", f"--worker={worker}")
        assert "tail -n 50 -F logs/$(hostname).log" in log[7]
    assert dry_run(no_gcloud, "delete") == [gcloud("delete", "utilgen", "--quiet", *PLACE)]


def test_a_queued_pod_is_a_queued_resource(no_gcloud):
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    (line,) = dry_run(no_gcloud, "create", "--queued", "--spot")
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert line == [*queued, "create", "utilgen", "--node-id=utilgen", *kind, SCOPE, "--spot", *PLACE]
    assert dry_run(no_gcloud, "delete", "--queued") == [[*queued, "delete", "utilgen", "--force", "--quiet", *PLACE]]


def test_keep_makes_the_pod_and_starts_the_job(no_gcloud):
    lines = dry_run(no_gcloud, "keep", "--spot", "--", *ARGUMENTS)
    steps = [line for command in (["create", "--spot"], ["setup"]) for line in dry_run(no_gcloud, *command)]
    start = dry_run(no_gcloud, "run", "--", *ARGUMENTS)
    assert lines[:-1] == [*steps, *start] and "cat utilgen_jax/status-" in lines[-1][7]


# A stand-in for gcloud: the pod and the job go from line to line of a story, with each look at the job's status.
STORY = """#!/bin/bash
cd "$(dirname "$0")"
event="$(head -n 1 story)"
next() { sed -i 1d story; }
case "$*" in
  *" describe "*)
    [[ "$event" != none ]] || exit 1
    case "$event" in PREEMPTED|CREATING) echo "$event"; [[ "$event" == PREEMPTED ]] || next ;; *) echo READY ;; esac ;;
  *" create "*|*" delete "*) echo "$4 $5" | tr ' ' '\n' | grep -E 'create|delete' >> calls; next ;;
  *"cat utilgen_jax/status"*)
    next
    [[ "$event" != unreachable ]] || exit 255
    [[ "$event" == no ]] || echo "$event" ;;
  *"utilgen_jax.main"*) echo run >> calls ;;
esac
"""


def keep(tmp_path, no_gcloud, *story: str) -> tuple[int, list[str], str]:
    """Runs keep through a story: its exit status, what it did to pod and job, what it says."""
    (tmp_path / "gcloud").write_text(STORY)
    (tmp_path / "story").write_text("\n".join(story) + "\n")
    done = bash(
        ROOT / "launch/tpu_pod.sh", "keep", "--every=0", "--retries=1", "--", "--config=c", env=no_gcloud, timeout=30
    )
    return done.returncode, (tmp_path / "calls").read_text().split(), done.stdout + done.stderr


def test_keep_makes_a_preempted_pod_again_and_ends_with_the_job(tmp_path, no_gcloud):
    life = ["none", "CREATING", "no", "running", "unreachable", "PREEMPTED", "none", "no", "running", "143", "0"]
    status, did, says = keep(tmp_path, no_gcloud, *life)
    assert (status, did) == (0, ["create", "run", "delete", "create", "run", "run"])
    assert "preempted" in says and "the job is done; the pod still costs money" in says


@pytest.mark.parametrize(
    ("life", "runs", "ended"), [(["no", "2"], 1, 2), (["no", "1", "running", "1"], 2, 1), (["no", "130"], 1, 130)]
)
def test_keep_gives_up_at_bad_input_and_at_too_many_failures(tmp_path, no_gcloud, life, runs, ended):
    status, did, says = keep(tmp_path, no_gcloud, *life)
    assert (status, did) == (1, ["run"] * runs)
    assert f"error: the job ended with status {ended}; see its log" in says


def test_watch_says_what_to_do_after_a_preemption(tmp_path, no_gcloud):
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho PREEMPTED\n")
    done = bash(ROOT / "launch/tpu_pod.sh", "watch", env=no_gcloud)
    assert done.returncode == 2
    assert "PREEMPTED" in done.stdout and "continues" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["creat"], "unknown argument 'creat'"),
        (["create", "delete"], "two commands, create and delete"),
        (["run"], "run needs the job's arguments after --"),
        (["create", "--", "x"], "only run and keep take arguments after --"),
        (["create", "--nam=x"], "unknown argument '--nam=x'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(no_gcloud, tmp_path, arguments, message):
    done = bash(ROOT / "launch/tpu_pod.sh", *arguments, env=no_gcloud)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tpu_pod.sh", "create setup run watch delete keep --queued --dry_run preemption"),
        ("gke_xpk.sh", "create run watch stop delete --dry_run 143"),
    ],
)
def test_help(no_gcloud, script, words):
    done = bash(ROOT / "launch" / script, "--help", env=no_gcloud)
    assert done.returncode == 0
    assert all(word in done.stdout for word in words.split())


def xpk(noun: str, verb: str, *more: str) -> list[str]:
    return ["xpk", noun, verb, *more, "--cluster=utilgen", "--zone=us-central1-a"]


def test_gke_makes_a_cluster_and_deletes_it(no_gcloud):
    lines = [dry_run(no_gcloud, *command, script="gke_xpk.sh") for command in (["create", "--spot"], ["delete"])]
    create = xpk("cluster", "create", "--tpu-type=v5litepod-16", "--num-slices=1", "--spot")
    assert lines == [[create], [xpk("cluster", "delete")]]


def test_gke_starts_the_job_again_after_status_143(no_gcloud):
    (line,) = dry_run(no_gcloud, "run", "--storage=data", "--", *ARGUMENTS, script="gke_xpk.sh")
    assert line[:3] == ["xpk", "workload", "create"]
    wanted = {"--restart-on-exit-codes=143", "--max-restarts=100", "--storage=data", f"--script-dir={ROOT}"}
    assert wanted <= set(line)
    (command,) = (word.removeprefix("--command=") for word in line if word.startswith("--command="))
    job = command.partition("exec env UTILGEN_DISTRIBUTED=1 python -m utilgen_jax.main ")[2]
    assert shlex.split(job) == ARGUMENTS
    for verb in ("watch", "stop"):
        ((_, noun, *_),) = dry_run(no_gcloud, verb, script="gke_xpk.sh")
        assert noun == "workload"
    assert bash(ROOT / "launch/gke_xpk.sh", "run", env=no_gcloud).returncode == 2


def test_slurm_runs_a_process_a_gpu_and_queues_a_job_that_was_terminated_again(tmp_path, no_gcloud):
    env = no_gcloud | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "CALLS": str(tmp_path / "calls")}
    job, requeue = dry_run(env, *ARGUMENTS, script="slurm.sbatch")
    assert job[0] == "srun" and job[-5:] == ["-m", "utilgen_jax.main", *ARGUMENTS]
    assert requeue == ["scontrol", "requeue", "7"]
    text = (ROOT / "launch/slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"] and options["signal"].startswith("TERM")

    assert bash(ROOT / "launch/slurm.sbatch", *ARGUMENTS, env=env).returncode == 2  # no .venv there
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text("")
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for status in (143, 1):
        for tool in ("srun", "scontrol"):
            (tmp_path / tool).write_text(
                f'#!/bin/sh\necho "{tool} $*" >> "$CALLS"\nexit {status if tool == "srun" else 0}\n'
            )
            (tmp_path / tool).chmod(0o755)
        assert bash(ROOT / "launch/slurm.sbatch", *ARGUMENTS, env=env).returncode == status
        called = [line.split()[0] for line in calls(tmp_path)]
        assert called == (["srun", "scontrol"] if status == 143 else ["srun"])


# A stand-in for python: `-m venv FOLDER` makes a folder whose python is this script; every call is written to $CALLS.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1 $2" in
  "--version ") echo Python 3.12.0 ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
  "-m pip") exit "${PIP_STATUS:-0}" ;;
  "launch/extras.py "*) echo "$EXTRAS" ;;
  "-m utilgen_jax.main") [ ! -e "$CALLS.left" ] || { rm "$CALLS.left"; exit 143; } ;;
esac
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of launch/ and setup.py, with a stand-in for python."""
    scripts = (
        "environment.sh",
        "rerun.sh",
        "local.sh",
        "gpu.sh",
        "test.sh",
        "update_constraints.sh",
        "constraints.txt",
    )
    for name in (*(f"launch/{script}" for script in scripts), "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "fake_python").write_text(FAKE_PYTHON)
    (tmp_path / "fake_python").chmod(0o755)
    monkeypatch.setenv("PYTHON", str(tmp_path / "fake_python"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path


def calls(checkout: Path) -> list[str]:
    lines = (checkout / "calls").read_text().splitlines()
    (checkout / "calls").unlink()
    return lines


def test_local_installs_once_and_runs_the_main_job(checkout):
    job = "-m utilgen_jax.main --config=configs/digits.py --workdir=runs/digits --config.seed=3"
    assert bash(checkout / "launch/local.sh", "--config.seed=3").returncode == 0
    first = calls(checkout)
    assert "-m venv .venv" in first
    pinned = "--constraint launch/constraints.txt --editable ."
    assert any(line.startswith("-m pip install") and line.endswith(pinned) for line in first)
    assert first[-1] == job

    assert bash(checkout / "launch/local.sh", "--config.seed=3", cwd="/").returncode == 0
    assert calls(checkout) == ["launch/extras.py --config.seed=3", job]

    for changed in ("setup.py", "launch/constraints.txt"):
        (checkout / changed).write_text("# others\n")
        assert bash(checkout / "launch/local.sh").returncode == 0
        assert any(line.startswith("-m pip install") for line in calls(checkout))
        assert bash(checkout / "launch/local.sh").returncode == 0
        assert not any(line.startswith("-m pip install") for line in calls(checkout))


def test_local_installs_what_a_config_needs_and_runs_it(checkout, monkeypatch):
    monkeypatch.setenv("EXTRAS", "[tfds,caption]")
    assert bash(checkout / "launch/local.sh", "--config=configs/cifar.py").returncode == 0
    *_, extras, install, job = calls(checkout)
    assert extras == "launch/extras.py --config=configs/cifar.py"
    assert install.endswith("--editable .[tfds,caption]") and job == "-m utilgen_jax.main --config=configs/cifar.py"
    assert bash(checkout / "launch/local.sh", "--config", "cifar").returncode == 0
    assert calls(checkout)[1:] == ["-m utilgen_jax.main --config cifar"]  # installed before


def test_gpu_installs_cuda_and_runs_a_job_again_that_left_with_143(checkout):
    assert bash(checkout / "launch/gpu.sh", "--dry_run", "--config=cifar").returncode == 0
    assert not (checkout / "calls").exists()
    (checkout / "calls.left").touch()
    done = bash(checkout / "launch/gpu.sh", "--config=cifar")
    assert done.returncode == 0 and "running it again" in done.stderr
    called = calls(checkout)
    assert any(line.endswith("--editable .[cuda]") for line in called)
    assert called[-2:] == ["-m utilgen_jax.main --config=cifar"] * 2


def test_sigterm_to_the_script_reaches_the_job_which_is_not_run_again(tmp_path):
    job = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    script = f"set -euo pipefail; source {ROOT}/launch/rerun.sh; rerun bash -c {shlex.quote(job)}"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.stdout.read() == "saved\n" and running.wait(10) == 143


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ""),
        (["--config=nothing"], ""),  # the job says what is wrong
        (["--config=digits:method=captions"], ""),
        (["--config=configs/cifar.py"], "[tfds]"),
        (["--config=cifar:method=captions"], "[tfds,caption]"),
        (["--config=cifar:method=difficulty", "--config.prompts.captions=mine.jsonl"], "[tfds]"),
        (["--config=imagefolder:path=x,method=vanilla", "--config.data.source=hf"], "[hf]"),
        (["--config=digits", "--workdir=gs://bucket/run", "--config.data.path=s3://bucket/data"], "[gs,s3]"),
    ],
)
def test_extras_follow_from_data_captions_and_buckets(arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["extras.py", *arguments])
    runpy.run_path(str(ROOT / "launch/extras.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() == expected


def test_a_missing_list_of_versions_is_an_error(checkout):
    (checkout / "launch/constraints.txt").unlink()
    done = bash(checkout / "launch/local.sh")
    assert done.returncode != 0
    assert "launch/constraints.txt" in done.stderr
    assert "utilgen_jax.main" not in "".join(calls(checkout))


def test_a_failed_install_is_tried_again(checkout, monkeypatch):
    monkeypatch.setenv("PIP_STATUS", "1")
    assert bash(checkout / "launch/local.sh").returncode != 0
    assert "utilgen_jax.main" not in "".join(calls(checkout))
    monkeypatch.setenv("PIP_STATUS", "0")
    assert bash(checkout / "launch/local.sh").returncode == 0
    assert "-m utilgen_jax.main" in calls(checkout)[-1]


def test_a_python_that_is_too_old_is_refused(checkout, monkeypatch):
    monkeypatch.setenv("PYTHON", "false")
    done = bash(checkout / "launch/local.sh")
    assert done.returncode != 0
    assert "PYTHON=false is not a Python 3.11 or newer" in done.stderr


def test_the_gate_runs_lint_types_and_tests_and_fails_with_any(checkout):
    assert bash(checkout / "launch/test.sh").returncode != 0  # the stand-in made no ruff and no mypy
    assert not any("pytest" in line for line in calls(checkout))
    for tool in ("ruff", "mypy"):
        (checkout / f".venv/bin/{tool}").write_text(f'#!/bin/sh\necho "{tool} $@" >> "$CALLS"\n')
        (checkout / f".venv/bin/{tool}").chmod(0o755)
    assert bash(checkout / "launch/test.sh", "-m", "not slow").returncode == 0
    assert calls(checkout) == ["ruff check .", "mypy ", "-m pytest --numprocesses=2 --dist=worksteal -m not slow"]


# A stand-in for uv: writes its arguments down, and to the file that it is told to write.
FAKE_UV = """#!/bin/sh
echo "uv $@" >> "$CALLS"
while [ $# -gt 0 ]; do [ "$1" = --output-file ] && echo "new==1" > "$2"; shift; done
exit "${UV_STATUS:-0}"
"""


def test_new_constraints_cover_all_extras_and_python_3_11_and_later(checkout, monkeypatch):
    fake = (checkout / "fake_python").read_text()
    put_uv = f'cp {checkout}/fake_uv "$(dirname "$0")/uv"; exit'
    (checkout / "fake_uv").write_text(FAKE_UV)
    (checkout / "fake_uv").chmod(0o755)
    (checkout / "fake_python").write_text(fake.replace("exit", put_uv))
    monkeypatch.setenv("TMPDIR", str(checkout / "tmp"))
    (checkout / "tmp").mkdir()

    assert bash(checkout / "launch/update_constraints.sh", cwd="/").returncode == 0
    (call,) = (line for line in calls(checkout) if line.startswith("uv "))
    assert call.startswith("uv pip compile setup.py")
    for option in ("--all-extras", "--universal", "--python-version 3.11", "--upgrade"):
        assert f" {option} " in f"{call} "
    assert (checkout / "launch/constraints.txt").read_text() == "new==1\n"
    assert not list((checkout / "tmp").iterdir())

    assert bash(checkout / "launch/update_constraints.sh", "--upgrade-package=optax").returncode == 0
    (call,) = (line for line in calls(checkout) if line.startswith("uv "))
    assert "--upgrade-package=optax" in call and "--upgrade " not in f"{call} "

    monkeypatch.setenv("UV_STATUS", "1")
    assert bash(checkout / "launch/update_constraints.sh").returncode != 0
