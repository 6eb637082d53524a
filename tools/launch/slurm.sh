#!/usr/bin/env bash
# Trains an experiment on nodes of a SLURM cluster, one process a GPU; preempted, out of time or with a process lost, it queues
# itself again and continues from its last checkpoint.
#
#   tools/launch/slurm.sh [--dry-run] NODES RUN EXPERIMENT.py [mmgen train's own arguments]
#
# RUN lies on a disk that all nodes see. From the environment: GPUS a node (8), TIME (24:00:00), GRACE seconds to save in before
# the time is over (300), RESTARTS (100), SBATCH_ARGS (partition, account ...), SETUP, a command before mmgen (". env/start").
# To end it for good: scontrol update JobId=ID Requeue=0 && scancel ID
set -euo pipefail

dry=no
if [[ "${1:-}" == --dry-run ]]; then
    dry=yes
    shift
fi
if (($# < 3)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
nodes=$1 run=$2
shift 2
printf -v train '%q ' mmgen train "$@" --out "$run"

job="#!/usr/bin/env bash
#SBATCH --job-name=$(basename "$run")
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=${GPUS:-8}
#SBATCH --gpus-per-node=${GPUS:-8}
#SBATCH --time=${TIME:-24:00:00}
#SBATCH --signal=TERM@${GRACE:-300}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$run/slurm-%j.log
${SETUP:-}
# After SIGTERM processes save and end with 143; where one is killed (137) or lost the others end with 75; by a mistake of the
# user's all end with 2. What was preempted SLURM queues again by itself, and what is CANCELLED or COMPLETING is to end.
code=0
srun $train || code=\$?
state=\$(squeue --noheader --jobs \"\$SLURM_JOB_ID\" --format %T)
if [[ \$code =~ ^(75|137|143)\$ && \$state != C* ]] && ((\${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-100})); then
    scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \$code"

if [[ $dry == yes ]]; then
    echo "mkdir -p $run && sbatch ${SBATCH_ARGS:-} <<'JOB'"
    echo "$job"
    echo JOB
    exit
fi
mkdir -p "$run"
# shellcheck disable=SC2086  # several words
sbatch ${SBATCH_ARGS:-} <<<"$job"
