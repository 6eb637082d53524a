"""tools/launch: what the scripts would do. None of it has been run on a cluster."""

import shutil
import subprocess

import pytest

TRAIN = ["experiments/a b.py", "--mesh.tensor", "2"]
GIVEN = {
    "slurm.sh": ["4", "runs/mine", *TRAIN],
    "gke.sh": ["mine", "tpu-v5p-slice", "4x4x4", "registry/mmgen:1", "/data/mine", *TRAIN],
    "tpu_vm.sh": ["mine", "v5p-128", "us-east5-a", "/mnt/mine", *TRAIN],
}


@pytest.fixture(scope="module")
def told(repository):
    def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([repository / "tools/launch" / name, *arguments], capture_output=True, text=True, timeout=20)

    return run


def test_slurm_queues_itself_again(told):
    text = told("slurm.sh", "--dry-run", *GIVEN["slurm.sh"]).stdout
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8\n" in text
    assert "srun mmgen train experiments/a\\ b.py --mesh.tensor 2 --out runs/mine" in text
    assert "#SBATCH --signal=TERM@300\n#SBATCH --requeue\n" in text and 'scontrol requeue "$SLURM_JOB_ID"' in text
    job = text.split("<<'JOB'\n")[1].removesuffix("JOB\n")
    assert subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0


@pytest.mark.parametrize(
    ("code", "state", "restarts", "again"),
    [
        *((code, "RUNNING", 0, code in (75, 137, 143)) for code in (0, 1, 2, 75, 134, 137, 139, 143)),
        *((143, state, 0, False) for state in ("CANCELLED", "COMPLETING")),
        *((137, "RUNNING", restarts, restarts < 100) for restarts in (99, 100)),
    ],
)
def test_slurm_queues_again_what_lost_a_process(told, tmp_path, code, state, restarts, again):
    """Not what crashes by itself (134, 139) or was cancelled. `srun` ends with the largest code of the processes."""
    job = told("slurm.sh", "--dry-run", *GIVEN["slurm.sh"]).stdout.split("<<'JOB'\n")[1].removesuffix("JOB\n")
    commands(tmp_path, srun=f"exit {code}", squeue=f"echo {state}", scontrol=f"echo $* > {tmp_path}/log")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    assert subprocess.run(["bash"], input=job, text=True, env=environment, timeout=20).returncode == code
    assert (tmp_path / "log").exists() == again and (not again or (tmp_path / "log").read_text() == "requeue 7\n")


def commands(folder, **scripts: str) -> None:
    """Commands that do what they are said to."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def test_gke_starts_a_pod_a_host_and_again_after_a_preemption(told):
    text = told("gke.sh", "--dry-run", *GIVEN["gke.sh"]).stdout
    assert text.startswith("kubectl apply -f - <<'MANIFEST'\n")
    assert "parallelism: 16\n" in text and "completions: 16\n" in text and "maxRestarts: 100," in text
    (container,) = pod_of(text)["containers"]
    assert container["command"] == ["mmgen", "train", *TRAIN, "--out", "/data/mine"]


def test_gke_tells_processes_on_gpus_of_each_other(told):
    """JAX finds out by itself on TPUs only."""
    text = told("gke.sh", "--dry-run", "mine", "nvidia-h200-141gb", "4", "registry/mmgen:1", "/data/mine", *TRAIN).stdout
    (container,) = pod_of(text)["containers"]
    assert "parallelism: 4\n" in text and container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    place = ["--coordinator", "mine-slice-0-0.mine:8476", "--processes", "4", "--process", "$(JOB_COMPLETION_INDEX)"]
    assert container["command"] == ["mmgen", "train", *TRAIN, "--out", "/data/mine", *place]


def pod_of(told: str) -> dict:
    """The pods' specification in a manifest that was told."""
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load(told.split("<<'MANIFEST'\n")[1].removesuffix("MANIFEST\n"))
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_gke_passes_on_what_it_is_given(told):
    """Quotes, colons and backslashes are letters to YAML too."""
    words = ["e.py", "--data.source.folder", 'C:\\new: "pictures" # 1', "--task.tokenizer={}", "a'b"]
    (container,) = pod_of(told("gke.sh", "--dry-run", *GIVEN["gke.sh"][:4], '/data/a "b" #c', *words).stdout)["containers"]
    assert container["command"] == ["mmgen", "train", *words, "--out", '/data/a "b" #c']


def test_tpu_vms_are_asked_for_and_given_back(told):
    create, ssh, delete = told("tpu_vm.sh", "--dry-run", *GIVEN["tpu_vm.sh"]).stdout.splitlines()
    assert create.startswith("gcloud compute tpus queued-resources create mine --node-id mine --accelerator-type v5p-128 ")
    assert "--spot" in create and "--worker all" in ssh and "mmgen" in ssh and "--out" in ssh
    assert delete.startswith("gcloud compute tpus queued-resources delete mine --force")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """`cloud("SUSPENDED 137", "ACTIVE 0")`: a gcloud whose slice is then that, after training ended with that code. Gives the
    file that gets what was asked for."""

    def begin(*ends: str):
        log, told = tmp_path / "log", "\n".join(ends)
        end = f"echo '{told}' | sed -n \"$(grep -c ssh {log})p\""
        commands(
            tmp_path,
            sleep="",
            gcloud=f"""
[ "$4" = describe ] || echo "$4 $5" >> {log}
case "$4" in
describe) if [ "$(tail -1 {log})" = "ssh mine" ]; then {end} | cut -d" " -f1; else echo ACTIVE; fi ;;
ssh) exit "$({end} | cut -d" " -f2)" ;;
esac""",
        )
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return log

    return begin


def test_a_preempted_slice_is_asked_for_anew(told, cloud):
    log = cloud("SUSPENDED 137", "ACTIVE 255", "ACTIVE 0")
    done = told("tpu_vm.sh", *GIVEN["tpu_vm.sh"])
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines() == ["create mine", "ssh mine", "delete mine"] * 3
    assert "the slice is SUSPENDED: asking for another" in done.stderr


def test_a_lost_process_is_started_again_on_its_slice(told, cloud):
    log = cloud("ACTIVE 75", "ACTIVE 137", "ACTIVE 2")
    done = told("tpu_vm.sh", *GIVEN["tpu_vm.sh"])
    assert done.returncode == 2 and "training ended with exit code 2" in done.stderr
    assert log.read_text().splitlines() == ["create mine", *["ssh mine"] * 3, "delete mine"]


@pytest.mark.parametrize("name", GIVEN)
def test_it_is_short_and_says_how_to_use_it(told, name, repository):
    assert len((repository / "tools/launch" / name).read_text().splitlines()) < 60
    done = told(name)
    assert done.returncode == 2 and f"tools/launch/{name} [--dry-run]" in done.stderr
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", repository / "tools/launch" / name]).returncode == 0


@pytest.mark.parametrize("name", GIVEN)
def test_what_cannot_be_a_name_or_a_number_shows_how(told, name):
    for first in ("--help", "Mine_Run"):
        shown = told(name, first, *GIVEN[name][1:])
        assert shown.returncode == 2 and f"tools/launch/{name} [--dry-run]" in shown.stderr and not shown.stdout
