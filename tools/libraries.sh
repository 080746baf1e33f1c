#!/bin/sh
# libraries.sh "NEEDED…" "WANTED…": installs Debian packages, or says how. Without a NEEDED one the build stops; a
# WANTED one (pip, which only fetches the default model) is tried once. DEPS=0 only prints the line to run.
needed=$1 wanted=$2
packages=$(echo $needed $wanted)
export DEBIAN_FRONTEND=noninteractive

stop() {  # says what to do; ends well when nothing needed is missing
  echo "$1" >&2
  [ -z "$needed" ]
  exit
}

command -v apt-get >/dev/null ||
  stop "make: missing $packages (names in Debian), and this system has no apt-get: install them by its own means, then run make again."
line="apt-get install -y --no-install-recommends $packages"
[ "$DEPS" != 0 ] || stop "make: missing libraries; run as root: $line"
if [ "$(id -u)" = 0 ]; then as_root=
elif sudo -n true 2>/dev/null; then as_root="sudo -n"
else stop "make: missing libraries, and sudo would ask for a password; run as root: $line"
fi

install() { $as_root apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1; }
for package in $packages; do echo "  APT   $package"; done
install $packages >/dev/null && exit
echo "  APT   update"
$as_root apt-get update </dev/null >/dev/null 2>&1
said=$(install $packages) && exit
if [ -n "$needed" ] && [ -n "$wanted" ]; then said=$(install $needed) && needed=; fi
stop "make: apt-get failed ($(echo "$said" | grep '^E:' | head -n 1)); run as root: $line"
