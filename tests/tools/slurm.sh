#!/usr/bin/env bash
# A real Slurm of one node, this machine: slurmctld, slurmd, munged. No systemd, nothing under /etc. Needs root and
# the packages munge, slurmctld, slurmd, slurm-client.
#   bash slurm.sh up FOLDER PORT      # then: export SLURM_CONF=FOLDER/slurm.conf
#   bash slurm.sh down FOLDER
set -euo pipefail
B=$2
NODE=$(hostname -s)

# What real sites use, and what ends processes that have left their session; it needs a writable freezer.
track() {
    if mkdir "/sys/fs/cgroup/freezer/campaign_probe.$$" 2>/dev/null; then
        rmdir "/sys/fs/cgroup/freezer/campaign_probe.$$"; echo cgroup
    else echo linuxproc; fi
}

up() {
    local port=$1 how; how=$(track)
    mkdir -p "$B"/{log,run,state,spool,munge}; chmod 755 "$B"; chmod 711 "$B/munge"
    dd if=/dev/urandom of="$B/munge/key" bs=128 count=1 status=none; chmod 600 "$B/munge/key"
    cat >"$B/slurm.conf" <<C
ClusterName=campaign$port
SlurmctldHost=$NODE(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$B/munge/socket
CredType=cred/munge
StateSaveLocation=$B/state
SlurmdSpoolDir=$B/spool
SlurmctldPidFile=$B/run/slurmctld.pid
SlurmdPidFile=$B/run/slurmd.pid
SlurmctldLogFile=$B/log/slurmctld.log
SlurmdLogFile=$B/log/slurmd.log
ProctrackType=proctrack/$how
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=${KILL_WAIT:-30}
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
C
    if [ "$how" = cgroup ]; then
        printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup CgroupAutomount=no \
            ConstrainCores=no ConstrainRAMSpace=no ConstrainDevices=no >"$B/cgroup.conf"
    fi
    export SLURM_CONF=$B/slurm.conf
    munged --force --key-file="$B/munge/key" --socket="$B/munge/socket" --pid-file="$B/run/munged.pid" \
        --log-file="$B/log/munged.log" --seed-file="$B/munge/seed" 2>>"$B/log/munged.err"
    slurmctld -c
    slurmd -N "$NODE"
    for _ in $(seq 150); do
        [ "$(sinfo -h -N -t idle -o %N 2>/dev/null)" = "$NODE" ] && return 0
        sleep 0.2
    done
    tail -n 20 "$B"/log/* >&2
    return 1
}

down() {
    export SLURM_CONF=$B/slurm.conf
    for _ in $(seq 75); do
        [ -z "$(squeue -h 2>/dev/null)" ] && break
        scancel -u root 2>/dev/null || true
        sleep 0.2
    done
    for name in slurmd slurmctld munged; do
        [ -s "$B/run/$name.pid" ] || continue
        pid=$(cat "$B/run/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do
            state=$(ps -o stat= -p "$pid" || true)
            case "$state" in ""|Z*) break;; esac
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
}

case $1 in
up) up "$3";;
down) down;;
*) echo "usage: $0 up FOLDER PORT | down FOLDER" >&2; exit 2;;
esac
