#!/bin/sh
#SBATCH --job-name=textpatch
#SBATCH --array=0-7
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
# Eight processes carry one command out together, each on a GPU of its own:
#     sbatch slurm_array.sh localize sdxl-base-1.0 --prompts pairs.tsv --mode staged --out /shared/run
# They meet in the run folder, on a disk that all nodes see. A job that was killed is started again by
# --requeue, or by the same command; whatever others have made meanwhile is not made again.
exec textpatch "$@" --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
