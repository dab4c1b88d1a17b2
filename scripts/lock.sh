#!/usr/bin/env bash
# Writes requirements/lock.txt from what .venv has now. Run it after a change of dependencies that
# the whole test suite passed with: the lock says what was tested, not what might work.
set -euo pipefail
cd "$(dirname "$0")/.."

# pip is the installer's own; posttrain is this repository; the three torch* packages are left out
# on purpose (see scripts/setup.sh); a local build such as torch==2.13.0+cpu satisfies torch==2.13.0.
{
    echo "# Every package of .venv, with the exact versions the tests ran with: Linux x86-64,"
    echo "# Python 3.11. Installed whole, without a resolver, by scripts/setup.sh; usable as"
    echo "# constraints (pip install -c requirements/lock.txt ...). Made by scripts/lock.sh."
    .venv/bin/python -m pip freeze --all --exclude-editable |
        grep -viE '^(pip|posttrain|torchvision|torchaudio|torchcodec)(==| @)' |
        sed -E 's/^(torch==[0-9.]+)\+.*/\1/'
} >requirements/lock.txt.new
mv requirements/lock.txt.new requirements/lock.txt
