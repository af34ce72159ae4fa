#!/bin/sh
# Installs edgemed from this stick, with no network and no administrator: sh install.sh
# Looks for a Python that is new enough; EDGEMED_PYTHON names one that it does not find.

kit=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1

new_enough() {
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ ! -f "$kit/install/install.py" ]; then
    echo "error: install/install.py is missing beside install.sh." >&2
    echo "hint: Copy the whole folder of the kit, not this file alone." >&2
    exit 1
fi

for python in ${EDGEMED_PYTHON:+"$EDGEMED_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python \
    /usr/bin/python3 /usr/local/bin/python3 "$kit/python/bin/python3"; do
    if new_enough "$python"; then
        exec "$python" -E -s -B "$kit/install/install.py" "$@"
    fi
done

echo "error: edgemed needs Python 3.11 or newer, and this computer has none." >&2
if [ -f "$kit/python/bin/python3" ]; then
    echo "hint: The stick carries one, but it cannot run from there. Copy the folder $kit/python to this" >&2
    echo "      computer, allow it to run (chmod -R u+x python), and start again with" >&2
    echo "      EDGEMED_PYTHON=/where/you/put/python/bin/python3 sh install.sh" >&2
else
    echo "hint: Debian 12, Ubuntu 24.04, Raspberry Pi OS 12 and newer have it: let IT staff install the package" >&2
    echo "      python3. The carried Python is in the kits for Windows only; a Python that lies elsewhere is" >&2
    echo "      named with EDGEMED_PYTHON=/path/to/python3 sh install.sh" >&2
fi
exit 1
