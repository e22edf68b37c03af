# shellcheck shell=bash
# Sourced by the commands beside it: makes the environment on first use and puts it first on PATH.
#
# Needs bash, coreutils and Python 3.11 to 3.14; nothing activated, nothing installed.
#   SMALLBATCH_VENV    the environment's directory (default: .venv in the repository)
#   SMALLBATCH_PYTHON  the interpreter to make it with (default: the first suitable one on PATH)

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$(realpath -m -- "${SMALLBATCH_VENV:-$ROOT/.venv}")"

# Written when the environment was made here, with its path: only such a directory is ever deleted,
# and it is of no use after a move, because the scripts in it name their interpreter.
MADE="$VENV/.smallbatch-made"
# Present from the first change of an install to its end: an install that was interrupted leaves it.
UNFINISHED="$VENV/.smallbatch-unfinished"
# Says what is installed: the digest of everything an install depends on.
INSTALLED="$VENV/.smallbatch-installed"

say() { printf 'smallbatch: %s\n' "$*" >&2; }

die() {
    trap - EXIT
    say "$*"
    exit 2
}

digest() {
    {
        printf '%s\n' "$ROOT" "$VENV"
        cat -- "$ROOT/pyproject.toml" "$ROOT/requirements-build.lock" "$ROOT/requirements.lock"
    } | sha256sum
}

is_ready() {
    [[ -e "$INSTALLED" && ! -e "$UNFINISHED" && "$(<"$INSTALLED")" == "$(digest)" ]] &&
        # Fails when the interpreter that the environment was made from has been removed or replaced.
        "$VENV/bin/python" -I -c 'import click, smallbatch' 2>/dev/null
}

# Exits 0 for a supported version that can make environments, and prints whether it can put pip
# into them: Debian and Ubuntu split that off.
PROBE='
import importlib.util, sys
if not (3, 11) <= sys.version_info[:2] <= (3, 14) or not importlib.util.find_spec("venv"):
    sys.exit(1)
print("pip" if any(map(importlib.util.find_spec, ("ensurepip", "pip"))) else "no pip")
'

# Sets PYTHON to the first suitable interpreter, one that has pip if there is any.
find_python() {
    local name path finding bare=""
    if [[ -n "${SMALLBATCH_PYTHON:-}" ]]; then
        "$SMALLBATCH_PYTHON" -I -c "$PROBE" >/dev/null 2>&1 ||
            die "SMALLBATCH_PYTHON: '$SMALLBATCH_PYTHON' is no Python 3.11 to 3.14 with venv"
        PYTHON="$SMALLBATCH_PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        path="$(command -v -- "$name")" || continue
        finding="$("$path" -I -c "$PROBE" 2>/dev/null)" || continue
        if [[ "$finding" == pip ]]; then
            PYTHON="$path"
            return
        fi
        bare="${bare:-$path}"
    done
    PYTHON="$bare"
    [[ -n "$PYTHON" ]] ||
        die "found no Python 3.11 to 3.14 with venv on PATH" \
            "(python3 is $(python3 --version 2>&1 || true)); install one or name it in SMALLBATCH_PYTHON"
}

make_venv() {
    if [[ -e "$MADE" ]] && { [[ -e "$UNFINISHED" || "$(<"$MADE")" != "$VENV" ]] ||
        ! "$VENV/bin/python" -I -c "$PROBE" >/dev/null 2>&1; }; then
        say "making $VENV anew: it is unfinished, was moved, or has lost its interpreter"
        rm -rf -- "$VENV"
    fi
    if [[ ! -e "$VENV" ]]; then
        mkdir -p -- "$VENV"
        printf '%s\n' "$VENV" >"$MADE"
        touch -- "$UNFINISHED"
        # pip follows separately: so this works on systems that split ensurepip off.
        "$PYTHON" -m venv --without-pip "$VENV"
    elif ! "$VENV/bin/python" -I -c "$PROBE" >/dev/null 2>&1; then
        die "$VENV is no environment with Python 3.11 to 3.14; remove it or set SMALLBATCH_VENV"
    fi
}

# Sets PIP to a pip that installs into the environment: its own, or one that can bring it there.
find_pip() {
    local python="$VENV/bin/python"
    PIP=("$python" -m pip)
    "${PIP[@]}" --version >/dev/null 2>&1 && return
    "$python" -m ensurepip >/dev/null 2>&1 && return
    PIP=("$PYTHON" -m pip --python "$python")
    "${PIP[@]}" --version >/dev/null 2>&1 && return
    # The distribution's own pip, unpacked here and nowhere else.
    (cd -- "$TMPDIR" && apt-get download -qq python3-pip-whl && dpkg -x python3-pip-whl_*.deb .) \
        >/dev/null 2>&1 ||
        die "$PYTHON has neither ensurepip nor pip (on Debian and Ubuntu: apt-get install python3-venv)"
    PIP=(env "PYTHONPATH=$(echo "$TMPDIR"/usr/share/python-wheels/pip-*.whl)" "$python" -m pip)
}

# Everything comes from the lock, checked against its hashes, the build tools included.
install_locked() {
    # Twice quiet: errors are shown, and no warnings, which are of this machine's other packages, of
    # root, or of newer versions of pip.
    local options=(--disable-pip-version-check --no-input --quiet --quiet) hashed=(--require-hashes --no-deps)
    # Packages half-written by an interrupted install look installed: write them all again.
    [[ -e "$UNFINISHED" && ! -e "$MADE" ]] && hashed+=(--force-reinstall)
    touch -- "$UNFINISHED"

    # Several gigabytes pass through it, more than a /tmp in memory may hold.
    export TMPDIR="$VENV/.smallbatch-tmp"
    rm -rf -- "$TMPDIR"
    mkdir -p -- "$TMPDIR"

    find_pip
    "${PIP[@]}" install "${options[@]}" "${hashed[@]}" -r "$ROOT/requirements-build.lock"
    PIP=("$VENV/bin/python" -m pip)
    "${PIP[@]}" install "${options[@]}" "${hashed[@]}" --no-build-isolation \
        -r "$ROOT/requirements.lock"
    # What this project was called before, and another project is.
    "${PIP[@]}" uninstall --disable-pip-version-check --yes --quiet --quiet smallbatch 2>/dev/null
    "${PIP[@]}" install "${options[@]}" --no-deps --no-build-isolation -e "$ROOT"
    "${PIP[@]}" check --disable-pip-version-check >/dev/null ||
        say "warning: 'pip check' finds requirements that the lock does not meet"

    rm -rf -- "$TMPDIR"
    digest >"$INSTALLED"
    rm -f -- "$UNFINISHED"
}

install() {
    find_python
    if [[ -e "$INSTALLED" && ! -e "$UNFINISHED" ]]; then
        say "bringing $VENV up to date"
    else
        say "installing into $VENV (3 GB to download, 7 GB on disk: some minutes, once)"
    fi
    # A shell of its own: what it exports and traps ends with it.
    (
        trap '[[ $? -eq 0 ]] || say "the install did not finish; the next call starts it again"' EXIT
        unset PIP_TARGET PIP_PREFIX
        export PIP_USER=0
        make_venv
        install_locked
    )
    say "installed"
}

group_writes() { [[ "$(stat -c %A -- "$1")" == ?????w* ]]; }

# Dies where a file that is there was made by neither this user, nor root, nor whose repository it
# is: another user could have planted it.
trusted() {
    local owner
    owner="$(stat -c %u -- "$1" 2>/dev/null)" || return 0
    [[ "$owner" == 0 || "$owner" == "$EUID" || "$owner" == "$(stat -c %u -- "$ROOT")" ]] ||
        die "$1: made by another user; remove it, or name another place in SMALLBATCH_VENV"
}

# DVC makes folders here that all may write, whatever the umask is, and whoever may read its locks
# may hold them: so the folder above is for those alone who may write the repository.
close_dvc() {
    local mode=700
    trusted "$1"
    [[ ! -L "$1" ]] || return 0 # to another disk, by one of these
    ! group_writes "$ROOT" || mode=770
    # It may hold what others wrote: it is a cache.
    [[ "$(stat -c %A -- "$1" 2>/dev/null)" != ????????w* ]] || rm -rf -- "$1/site"
    { mkdir -p -- "$1" && chmod "$mode" -- "$1"; } 2>/dev/null || true
}

ensure_environment() {
    unset PYTHONHOME PYTHONPATH
    local part
    for part in "$VENV" "$VENV/bin" "$VENV/bin/python" "$INSTALLED"; do
        trusted "$part"
    done
    if ! is_ready; then
        # One at a time; whoever waited finds the work done. The lock ends with the file descriptor.
        # Whoever may open a file may lock it: so those alone may who may write beside it.
        local file="$VENV.lock" mask=0177
        mkdir -p -- "$(dirname -- "$VENV")"
        ! group_writes "$(dirname -- "$VENV")" || mask=0117
        [[ ! -L "$file" && (! -e "$file" || -f "$file") ]] || die "$file: no regular file; remove it"
        trusted "$file"
        (umask "$mask" && : >>"$file")
        exec {lock}<>"$file"
        if command -v flock >/dev/null; then
            flock --nonblock "$lock" || {
                say "waiting for another install"
                flock --timeout 1800 "$lock" || die "$file: locked by another process for 30 min"
            }
        fi
        is_ready || install
        exec {lock}<&-
    fi
    export VIRTUAL_ENV="$VENV" PATH="$VENV/bin:$PATH"
    export DVC_NO_ANALYTICS=true MLFLOW_DISABLE_TELEMETRY=true
    close_dvc "$ROOT/.dvc/tmp"
    # By default DVC keeps its state, with pickles in it, where every user of the machine may write.
    export DVC_SITE_CACHE_DIR="${DVC_SITE_CACHE_DIR:-$ROOT/.dvc/tmp/site}"
}

ensure_environment
