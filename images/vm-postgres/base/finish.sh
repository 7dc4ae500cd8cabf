#!/bin/sh
# Turns a fresh Debian tree into the Postgres VM's root file system: users, init's links, an initialised database.
# Called with the tree as its only argument, in a mount namespace of its own: what is mounted here needs no cleaning up.
set -eu
tree=$1
here=$(dirname "$0")

mount -t proc proc "$tree/proc"
mount -t tmpfs tmpfs "$tree/dev"
mkdir -m 1777 "$tree/dev/shm"
mknod -m 666 "$tree/dev/null" c 1 3
mknod -m 666 "$tree/dev/zero" c 1 5
mknod -m 666 "$tree/dev/urandom" c 1 9

# The scaler's own user: it may raise its PSI triggers' rate (a capability), and nothing else.
chroot "$tree" useradd --system --uid 200 --user-group --no-create-home --shell /usr/sbin/nologin vm-monitor

# busybox is init, and whatever else the packages left out (mount, swapon, ping and the like).
for name in $(chroot "$tree" /bin/busybox --list); do
    chroot "$tree" /bin/sh -c "command -v $name" >/dev/null || ln -s /bin/busybox "$tree/usr/sbin/$name"
done
ln -sf /sbin/init "$tree/init"

data=/var/lib/postgresql/data
# Not synced: an interrupted build is thrown away as a whole.
chroot "$tree" setpriv --reuid postgres --regid postgres --init-groups \
    /usr/lib/postgresql/15/bin/initdb --pgdata "$data" --encoding UTF8 --locale C.UTF-8 \
    --auth-local peer --auth-host trust --no-sync
for file in pg_hba.conf pg_ident.conf; do
    cp "$here/$file" "$tree$data/$file"
done
cp "$here/vm.conf" "$tree$data/vm.conf"
echo "include = 'vm.conf'" >>"$tree$data/postgresql.conf"
chroot "$tree" chown postgres:postgres "$data/pg_hba.conf" "$data/pg_ident.conf" "$data/vm.conf"
chroot "$tree" chmod 600 "$data/pg_hba.conf" "$data/pg_ident.conf" "$data/vm.conf"

printf '127.0.0.1 localhost\n::1 localhost\n' >"$tree/etc/hosts"
rm -rf "$tree/run" "$tree/tmp"
mkdir -m 755 "$tree/run"
mkdir -m 1777 "$tree/tmp"
