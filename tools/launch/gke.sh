#!/usr/bin/env bash
# Trains an experiment on a TPU slice or GPU nodes of a GKE cluster, as a JobSet; preempted nodes are waited for, and training
# continues from its last checkpoint. TOPOLOGY is that of the slice, or the number of nodes with GPUs.
#
#   tools/launch/gke.sh [--dry-run] NAME ACCELERATOR TOPOLOGY IMAGE RUN EXPERIMENT.py [mmgen train's own arguments]
#   tools/launch/gke.sh mine tpu-v5p-slice 4x4x4 REGISTRY/mmgen:latest /data/runs/mine experiments/imagenet256/llamagen_3b.py
#   tools/launch/gke.sh mine nvidia-h200-141gb 4 REGISTRY/mmgen:latest /data/runs/mine experiments/imagenet256/llamagen_3b.py
#
# From the environment: CHIPS a node (4 TPUs, 8 GPUs), CLAIM (data), the persistent volume claim mounted at /data, which all
# nodes write to; RESTARTS (100). JobSet must be in the cluster.
set -euo pipefail

dry=no
if [[ "${1:-}" == --dry-run ]]; then dry=yes && shift; fi
if (($# < 6)) || [[ ! $1 =~ ^[a-z][a-z0-9-]*$ ]]; then sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2; fi
name=$1 accelerator=$2 topology=$3 image=$4 run=$5
shift 5
words=("${@//\\/\\\\}" --out "${run//\\/\\\\}")
if [[ $accelerator == nvidia-* ]]; then # nothing but JobSet's names tells these processes of each other
    hosts=$topology chips="nvidia.com/gpu: ${CHIPS:-8}" nodes="cloud.google.com/gke-accelerator: $accelerator"
    words+=(--coordinator "$name-slice-0-0.$name:8476" --processes "$hosts" --process "\$(JOB_COMPLETION_INDEX)")
else
    hosts=$((${topology//x/*} / ${CHIPS:-4})) chips="google.com/tpu: ${CHIPS:-4}"
    nodes="cloud.google.com/gke-tpu-accelerator: $accelerator, cloud.google.com/gke-tpu-topology: $topology"
fi
command=$(printf '"%s", ' "${words[@]//\"/\\\"}")
manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: $name}
spec:
  failurePolicy: {maxRestarts: ${RESTARTS:-100}, rules: [{action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}]}
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $((hosts > 0 ? hosts : 1))
        completions: $((hosts > 0 ? hosts : 1))
        backoffLimit: 0
        podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [2]}}]} # a mistake of the user's
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            nodeSelector: {$nodes}
            containers:
            - name: mmgen
              image: $image
              command: [mmgen, train, ${command%, }]
              resources: {limits: {$chips}}
              volumeMounts: [{name: data, mountPath: /data}]
            volumes: [{name: data, persistentVolumeClaim: {claimName: ${CLAIM:-data}}}]"

if [[ $dry == yes ]]; then
    printf "kubectl apply -f - <<'MANIFEST'\n%s\nMANIFEST\n" "$manifest"
else
    kubectl apply -f - <<<"$manifest"
fi
