#!/bin/sh
# Cancels SLURM jobs. A run answers Ctrl-C's signal by a last checkpoint; by SIGTERM, it would go back into the queue.
scancel --state=PENDING "$@"
scancel --state=RUNNING --full --signal=INT "$@"
