#!/bin/sh
# Says whether SLURM job $1 is running, success or failed. SLURM forgets a job minutes after its end: then its accounts are
# asked. What nobody knows has failed, and is submitted again: a finished run then ends at once.
job=$(scontrol -o show job "$1" 2>&1)
case $job in
    *JobState=*) state=$(expr "$job" : '.*JobState=\([A-Z_]*\)') ;;
    *"Invalid job id"*) state=$(sacct -X -n -P -o State -j "$1" 2>/dev/null) ;;
    *) state=RUNNING ;;  # the controller does not answer
esac
case $state in
    COMPLETED*) echo success ;;
    PENDING* | RUNNING* | COMPLETING* | CONFIGURING* | REQUEUE* | RESIZING* | SUSPENDED* | STAGE_OUT* | SIGNALING* | STOPPED*) echo running ;;
    *) echo failed ;;
esac
