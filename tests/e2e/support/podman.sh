#!/bin/sh
# podman with runc as the tests use it, under its own name and under docker's: in a mount and a process
# namespace of its own, where its locks, its state and what it mounts go with it. The test has put the
# folder of its storage, that of the images it begins with, and the name of its control groups here:
store=@STORE@ images=@IMAGES@ groups=@GROUPS@

command=$1
shift
case $command in
    # Limits are those that a machine for tests allows.
    run)
        set -- --cgroup-parent "/$groups" --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 "$@"
        case " $* " in *" --network"*) ;; *) set -- --network=none "$@" ;; esac
        ;;
    # The packages that a build installs come from the network, and the image that it begins with does not.
    build)
        set -- --cgroup-parent "/$groups" --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
            --network=host --pull=never --quiet "$@"
        ;;
esac

exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh -c '
    mount -t tmpfs run /run && mount -t tmpfs shm /dev/shm || exit 1
    store=$1 images=$2 groups=$3
    shift 3
    [ ! -d "$images" ] || set -- --storage-opt "additionalimagestore=$images" "$@"
    podman=$(PATH=/usr/local/bin:/usr/bin:/bin command -v podman)
    "$podman" --root "$store" --runroot /run/podman --tmpdir /run/podman-tmp --storage-driver overlay \
        --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
    status=$?
    find /sys/fs/cgroup -depth -type d -path "*/$groups*" -exec rmdir {} + 2>/dev/null
    exit $status
' sh "$store" "$images" "$groups" "$command" "$@"
