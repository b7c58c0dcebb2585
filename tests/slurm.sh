#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests/test_cluster.py: slurm.sh start|stop FOLDER.
# Needs root, and Debian's slurmctld, slurmd, slurm-client and munge. Prints the file for SLURM_CONF.
set -euo pipefail
folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

stop() {
  for name in slurmd slurmctld munged; do
    if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
  done
}

if [ "$1" = stop ]; then stop; exit; fi

host=$(hostname -s)
memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))
mkdir -p "$folder/state" "$folder/spool"
head --bytes 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
chmod 755 "$folder"
cat > "$SLURM_CONF" << END
ClusterName=tests
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
NodeName=$host CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
  --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
slurmctld -c > "$folder/start.log" 2>&1
slurmd >> "$folder/start.log" 2>&1
for _ in $(seq 60); do
  if sinfo --noheader --format=%t 2>/dev/null | grep --quiet idle; then echo "$SLURM_CONF"; exit; fi
  sleep 0.5
done
tail -5 "$folder"/*.log >&2
stop
exit 1
