# Names that several of the VM's scripts share, and the boot marks on the console that tests and time lines read.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN=/run/neonvm
# While it exists the workload may be started; see vmstart and vmshutdown.
ALLOWED=$RUN/vmstart.allowed
LOCK=$RUN/vmstart.lock
CGROUPS=/sys/fs/cgroup
WORKLOAD=$CGROUPS/workload
PGDATA=/var/lib/postgresql/data

# Says on the console what happened and at which uptime, in seconds.
mark() {
    read -r uptime _ </proc/uptime
    echo "neonvm: $* $uptime" >/dev/console
}
