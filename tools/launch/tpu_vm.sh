#!/usr/bin/env bash
# Trains an experiment on a TPU slice by a queued resource: a preempted one is asked for anew, a lost process is started again,
# and training goes on from its last checkpoint. Runs here until training is over, then gives the slice back.
#
#   tools/launch/tpu_vm.sh [--dry-run] NAME TYPE ZONE RUN EXPERIMENT.py [mmgen train's own arguments]
#   tools/launch/tpu_vm.sh mine v5p-128 us-east5-a /mnt/data/runs/mine experiments/imagenet256/llamagen_3b.py
#
# RUN lies on a disk that all hosts see. From the environment: VERSION of the runtime (v2-alpha-tpuv5), SPOT (--spot; empty: on
# demand), RESTARTS on one slice (100), SETUP, run on each host before (mount the disk, install mmgen[tpu], cd).
set -euo pipefail

dry=no
if [[ "${1:-}" == --dry-run ]]; then
    dry=yes
    shift
fi
if (($# < 5)) || [[ ! $1 =~ ^[a-z][a-z0-9-]*$ ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1 type=$2 zone=$3 run=$4
shift 4
printf -v train '%q ' MMGEN_DISTRIBUTED=1 mmgen train "$@" --out "$run"

run() {
    if [[ $dry == yes ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}
queued() { run gcloud compute tpus queued-resources "$@" --zone "$zone"; }
state() { # of the request
    if [[ $dry == yes ]]; then echo ACTIVE; else queued describe "$name" --format 'value(state.state)' || echo NONE; fi
}

while true; do
    # shellcheck disable=SC2086  # none or one word
    queued create "$name" --node-id "$name" --accelerator-type "$type" --runtime-version "${VERSION:-v2-alpha-tpuv5}" ${SPOT---spot}
    until [[ $(state) =~ ^(ACTIVE|FAILED|SUSPENDED)$ ]]; do sleep 30; done
    if [[ $(state) == FAILED ]]; then
        queued describe "$name" >&2
        exit 1
    fi
    for ((start = 0; start <= ${RESTARTS:-100}; start++)); do
        code=0
        run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "${SETUP:-true} && $train" || code=$?
        ((code == 0)) || sleep 30 # until it is known that the slice was taken away
        left=$(state)
        # A process was killed (above 128) and the others ended (75); 255: ssh was cut off, and they may train on.
        if [[ $left != ACTIVE ]] || ((code != 75 && code <= 128 || code == 255)); then break; fi
        echo "a process was lost (exit code $code): starting all again" >&2
    done
    queued delete "$name" --force --quiet
    if ((code == 0)); then exit; fi
    if [[ $left == ACTIVE && $code != 255 ]]; then # the slice is there, and ssh was not cut off: the mistake is ours
        echo "training ended with exit code $code" >&2
        exit "$code"
    fi
    echo "the slice is $left: asking for another" >&2
done
