# enter.sh ROOT LAB OWN HOMES CHECKOUT PROGRAM ARGUMENT...: see enclosure.py; ROOT is empty for this machine itself.
#
# `ip netns exec` has given this shell a mount namespace of its own: the mounts end with the program.
root=$1 lab=$2 own=$3 homes=$4 checkout=$5; shift 5
if [ -n "$root" ]; then
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    for file in passwd group shadow resolv.conf nsswitch.conf; do mount --bind /etc/$file "$root/etc/$file"; done
fi
mount --bind "$own/run" "$root/run"
mount --bind "$own/log" "$root/var/log"
mount --bind "$homes" "$root/home"
mount -t tmpfs -o mode=1777 tmpfs "$own/tmp"
mkdir "$own/tmp/${lab##*/}"
mount --bind "$lab" "$own/tmp/${lab##*/}"
case $checkout in "${lab%/*}"/*) # what is tested must not be hidden
    mkdir -p "$own/tmp${checkout#"${lab%/*}"}"
    mount --rbind "$checkout" "$own/tmp${checkout#"${lab%/*}"}" ;;
esac
mkdir -p "$root${lab%/*}"
mount --rbind "$own/tmp" "$root${lab%/*}"
cd /
exec "$@"
